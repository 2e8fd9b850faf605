// The Vercel AI SDK with its provider for OpenAI-compatible servers.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

import { askWith } from "./ai_sdk_asking.mjs";
import { run } from "./asking.mjs";

await run(askWith((asked) => {
  const provider = createOpenAICompatible({ name: "gw", baseURL: asked.base_url, apiKey: "unused", includeUsage: true });
  return provider(asked.model);
}));
