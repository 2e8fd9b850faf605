// The Vercel AI SDK with OpenAI's provider, which speaks Responses.

import { createOpenAI } from "@ai-sdk/openai";

import { askWith } from "./ai_sdk_asking.mjs";
import { run } from "./asking.mjs";

await run(askWith((asked) => createOpenAI({ baseURL: asked.base_url, apiKey: "unused" }).responses(asked.model)));
