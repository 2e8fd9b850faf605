// What the two Node programs share: cases come in on stdin, what the client saw goes out on stdout.
// The same lines as programs/asking.py; refuses to know gateways, modes and expectations.

import { createInterface } from "node:readline";

export const QUESTION = "What is 17 * 24? Answer with the number.";
export const PARAMETERS = {
  type: "object", properties: { value: { type: "integer" } }, required: ["value"],
};

export function count(told) {
  return {
    prompt: told.prompt_tokens ?? null,
    completion: told.completion_tokens ?? null,
    total: told.total_tokens ?? null,
    reasoning: told.completion_tokens_details?.reasoning_tokens ?? null,
  };
}

function toldOf(error, baseUrl) {
  let status = null;
  for (let at = error; at && status === null; at = at.cause ?? at.lastError) {
    status = at.statusCode ?? at.status ?? null;
  }
  const message = String(error?.message ?? error).replaceAll(baseUrl, "URL").slice(0, 600);
  return { type: error?.name === "Error" ? error.constructor.name : error?.name ?? typeof error, status, message };
}

async function answer(ask, asked) {
  const seen = { text: "", reasoning: null, finish: null, usage: null, tools: [], parts: [], error: null };
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the client did not come back in time")), asked.timeout_s * 1000);
  });
  try {
    await Promise.race([ask(asked, seen), late]);
  } catch (error) {
    seen.error = toldOf(error, asked.base_url);
  } finally {
    clearTimeout(timer);
  }
  return seen;
}

export async function run(ask) {
  // A client that lets an error escape into nowhere has still told nobody: only what reaches the caller counts.
  process.on("unhandledRejection", (error) => process.stderr.write(`unhandled: ${error}\n`));
  for await (const line of createInterface({ input: process.stdin })) {
    const seen = await answer(ask, JSON.parse(line));
    process.stdout.write(`\nSEEN ${JSON.stringify(seen)}\n`);
  }
  process.exit(0);
}
