// Plays the decision scripts of a folder and prints what was decided: node dist/play.js SCRIPTS GATEWAY MODEL
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, tool } from "ai";
import { z } from "zod";

import { SufficeRun } from "./suffice.js";

const [folder, gateway, models] = process.argv.slice(2);
const search = tool({
  description: "Look something up.",
  inputSchema: z.object({}),
  execute: async () => "A passage.",
});
const results: Record<string, unknown> = {};
for (const file of readdirSync(folder).sort()) {
  const name = basename(file, ".json");
  const { question } = JSON.parse(readFileSync(join(folder, file), "utf8"));
  const model = createOpenAICompatible({ name: "scripted", baseURL: `${models}/${name}/v1` })("scripted");
  const run = await SufficeRun.begin({ url: gateway, route: name, timeoutMs: 30_000 }, question);
  await generateText({
    model,
    tools: { search },
    prompt: question,
    stopWhen: [run.stopWhen, stepCountIs(50)],
    onStepFinish: run.onStepFinish,
  });
  await run.end();
  const decisions = run.decisions.map(({ action, reason, stop_reason }) => ({ action, reason, stop_reason }));
  results[name] = { answer: run.answer, decisions };
}
console.log(JSON.stringify(results));
