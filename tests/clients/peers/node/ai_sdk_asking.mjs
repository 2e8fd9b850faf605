// What the programs of the Vercel AI SDK share, the strictest parser of them all; `provide` makes a model of a case.

import { generateText, jsonSchema, streamText, tool } from "ai";

import { PARAMETERS, QUESTION } from "./asking.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

function count(told) {
  return {
    prompt: told.inputTokens ?? null,
    completion: told.outputTokens ?? null,
    total: told.totalTokens ?? null,
    reasoning: told.reasoningTokens ?? told.outputTokenDetails?.reasoningTokens ?? null,
  };
}

export const askWith = (provide) => async (asked, seen) => {
  const call = { model: provide(asked), prompt: QUESTION, maxRetries: 0 };
  if (asked.tool) {
    call.tools = { keep: tool({ description: "Keep a number.", inputSchema: jsonSchema(PARAMETERS) }) };
  }
  if (!asked.stream) {
    const whole = await generateText(call);
    seen.text = whole.text;
    seen.reasoning = whole.reasoningText || null;
    seen.finish = whole.finishReason;
    seen.usage = count(whole.usage);
    seen.tools = whole.toolCalls.map((made) => ({ name: made.toolName, arguments: made.input }));
    return;
  }
  let failed = null;
  // Without onError the SDK prints errors; they are in the stream as well.
  for await (const part of streamText({ ...call, onError: () => {} }).fullStream) {
    if (part.type !== seen.parts.at(-1)) seen.parts.push(part.type);
    if (part.type === "text-delta") seen.text += part.text;
    if (part.type === "reasoning-delta") seen.reasoning = (seen.reasoning ?? "") + part.text;
    if (part.type === "tool-call") seen.tools.push({ name: part.toolName, arguments: part.input });
    if (part.type === "error") failed ??= part.error;
    if (part.type === "finish") {
      seen.finish = part.finishReason;
      seen.usage = count(part.totalUsage);
    }
  }
  if (failed !== null) throw failed instanceof Error ? failed : new Error(JSON.stringify(failed));
};
