// @anthropic-ai/sdk: plain, streamed, with a tool.

import Anthropic from "@anthropic-ai/sdk";

import { PARAMETERS, QUESTION, run } from "./asking.mjs";

function note(message, seen) {
  const of = (kind) => message.content.filter((block) => block.type === kind);
  seen.text = of("text").map((block) => block.text).join("");
  seen.reasoning = of("thinking").map((block) => block.thinking).join("") || null;
  seen.finish = message.stop_reason;
  seen.tools = of("tool_use").map((block) => ({ name: block.name, arguments: block.input }));
  const told = message.usage;
  const prompt = told.input_tokens + (told.cache_read_input_tokens ?? 0);
  seen.usage = { prompt, completion: told.output_tokens, total: prompt + told.output_tokens, reasoning: null };
}

async function ask(asked, seen) {
  const client = new Anthropic({ baseURL: asked.base_url.replace(/\/v1$/, ""), apiKey: "unused", maxRetries: 0 });
  const body = { model: asked.model, max_tokens: 1000, messages: [{ role: "user", content: QUESTION }] };
  if (asked.tool) body.tools = [{ name: "keep", description: "Keep a number.", input_schema: PARAMETERS }];
  if (!asked.stream) {
    note(await client.messages.create(body), seen);
    return;
  }
  const stream = client.messages.stream(body);
  stream.on("text", (text) => { seen.text += text; });
  stream.on("thinking", (text) => { seen.reasoning = (seen.reasoning ?? "") + text; });
  note(await stream.finalMessage(), seen);
}

await run(ask);
