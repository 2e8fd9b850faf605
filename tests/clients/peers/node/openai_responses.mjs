// openai-node's Responses: plain, streamed, with a tool.

import OpenAI from "openai";

import { PARAMETERS, QUESTION, run } from "./asking.mjs";

function note(response, seen) {
  seen.text = response.output.flatMap((item) => (item.type === "message" ? item.content : [])).map((part) => part.text).join("");
  const thought = response.output.flatMap((item) => (item.type === "reasoning" ? item.content ?? [] : []));
  seen.reasoning = thought.map((part) => part.text).join("") || null;
  seen.finish = response.status;
  const calls = response.output.filter((item) => item.type === "function_call");
  seen.tools = calls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) }));
  const told = response.usage;
  seen.usage = told && {
    prompt: told.input_tokens,
    completion: told.output_tokens,
    total: told.total_tokens,
    reasoning: told.output_tokens_details?.reasoning_tokens ?? null,
  };
}

async function ask(asked, seen) {
  const client = new OpenAI({ baseURL: asked.base_url, apiKey: "unused", maxRetries: 0 });
  const body = { model: asked.model, input: QUESTION };
  if (asked.tool) {
    body.tools = [{ type: "function", name: "keep", description: "Keep a number.", parameters: PARAMETERS, strict: false }];
  }
  if (!asked.stream) {
    note(await client.responses.create(body), seen);
    return;
  }
  for await (const event of await client.responses.create({ ...body, stream: true })) {
    if (event.type !== seen.parts.at(-1)) seen.parts.push(event.type);
    if (event.type === "response.output_text.delta") seen.text += event.delta;
    if (event.type === "response.reasoning_text.delta") seen.reasoning = (seen.reasoning ?? "") + event.delta;
    if (event.type === "response.completed" || event.type === "response.incomplete") note(event.response, seen);
  }
}

await run(ask);
