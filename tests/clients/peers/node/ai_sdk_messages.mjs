// The Vercel AI SDK with Anthropic's provider, which speaks Messages.

import { createAnthropic } from "@ai-sdk/anthropic";

import { askWith } from "./ai_sdk_asking.mjs";
import { run } from "./asking.mjs";

await run(askWith((asked) => createAnthropic({ baseURL: asked.base_url, apiKey: "unused" })(asked.model)));
