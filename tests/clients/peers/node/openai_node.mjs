// openai-node: plain, streamed, with a tool.

import OpenAI from "openai";

import { PARAMETERS, QUESTION, count, run } from "./asking.mjs";

async function ask(asked, seen) {
  const client = new OpenAI({ baseURL: asked.base_url, apiKey: "unused", maxRetries: 0 });
  const body = { model: asked.model, messages: [{ role: "user", content: QUESTION }] };
  if (asked.tool) {
    body.tools = [{ type: "function", function: { name: "keep", description: "Keep a number.", parameters: PARAMETERS } }];
  }
  if (!asked.stream) {
    const whole = await client.chat.completions.create(body);
    const [choice] = whole.choices;
    seen.text = choice.message.content ?? "";
    seen.reasoning = choice.message.reasoning_content ?? null;
    seen.finish = choice.finish_reason;
    seen.usage = whole.usage ? count(whole.usage) : null;
    for (const call of choice.message.tool_calls ?? []) {
      seen.tools.push({ name: call.function.name, arguments: JSON.parse(call.function.arguments) });
    }
    return;
  }
  const calls = [];
  const chunks = await client.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of chunks) {
    seen.usage = chunk.usage ? count(chunk.usage) : seen.usage;
    for (const choice of chunk.choices) {
      seen.text += choice.delta.content ?? "";
      if (choice.delta.reasoning_content) seen.reasoning = (seen.reasoning ?? "") + choice.delta.reasoning_content;
      seen.finish = choice.finish_reason ?? seen.finish;
      for (const call of choice.delta.tool_calls ?? []) {
        calls[call.index] ??= { name: "", arguments: "" };
        calls[call.index].name += call.function.name ?? "";
        calls[call.index].arguments += call.function.arguments ?? "";
      }
    }
  }
  seen.tools = calls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) }));
}

await run(ask);
