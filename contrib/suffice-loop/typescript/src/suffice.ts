// Suffice in the loops of the AI SDK, over POST /v1/decide of `suffice serve`:
//
//   const run = await SufficeRun.begin({ url: "http://127.0.0.1:8400", route: "agent" }, question);
//   const result = await generateText({
//     model, tools, prompt: question,
//     stopWhen: [run.stopWhen, stepCountIs(20)],
//     onStepFinish: run.onStepFinish,
//   });
//   await run.end();
//
// If the server is slow or gone, the loop goes on without it.

export interface Gateway {
  url: string; // base, without /v1
  route: string;
  apiKey?: string;
  timeoutMs?: number; // for one call; 2,000 by default
  readAnswer?: (text: string) => string | null; // in a step's text; by default the route's scorer reads it
}

export interface Decision {
  action: "continue" | "stop";
  reason: string;
  stop_reason: string | null;
}

/** What is read of a step of the AI SDK. */
export interface Step {
  text: string;
  toolCalls: readonly unknown[];
  usage: { inputTokens?: number | undefined; outputTokens?: number | undefined };
}

const LOST: Decision = { action: "continue", reason: "the call to the server failed", stop_reason: null };

export class SufficeRun {
  readonly decisions: Decision[] = [];
  readonly texts: string[] = [];
  episodeId = "";
  feedbackToken: string | null = null; // rates the answer at POST /v1/feedback
  isLost = false; // the server failed, and is not called again in this run
  private returnStep: number | null = null;
  private isOver = false;

  private constructor(private readonly gateway: Gateway) {}

  /** Begin a run. `start` holds further fields of /v1/decide, such as key, planned_steps and metadata. */
  static async begin(gateway: Gateway, question: string, start: Record<string, unknown> = {}): Promise<SufficeRun> {
    const run = new SufficeRun(gateway);
    const opened = await run.call({ question, ...start }, { "idempotency-key": crypto.randomUUID() });
    run.episodeId = opened?.episode_id ?? "";
    run.feedbackToken = opened?.feedback_token ?? null;
    return run;
  }

  /** Whether the loop is to end before the model is called again. */
  get stops(): boolean {
    return this.decisions.at(-1)?.action === "stop";
  }

  /** The answer to use, which is the text of the step that the server names. */
  get answer(): string {
    const texts = this.texts.filter((text) => text !== "");
    return this.returnStep === null ? (texts.at(-1) ?? "") : this.texts[this.returnStep - 1];
  }

  stopWhen = async ({ steps }: { steps: readonly Step[] }): Promise<boolean> => {
    for (const step of steps.slice(this.decisions.length)) await this.take(step);
    return this.stops;
  };

  /** Reports the last step too, behind which no condition is asked. */
  onStepFinish = async (step: Step): Promise<void> => {
    if (step.toolCalls.length === 0) await this.take(step);
  };

  async end(aborted = false): Promise<void> {
    if (this.isOver) return;
    this.isOver = true;
    await this.call({ episode_id: this.episodeId, [aborted ? "aborted" : "done"]: true });
  }

  private async take(step: Step): Promise<void> {
    const { gateway, texts } = this;
    texts.push(step.text);
    this.isOver = step.toolCalls.length === 0;
    const read = gateway.readAnswer?.(step.text) ?? "";
    const signals = {
      ...(step.text === "" ? {} : { text: step.text }),
      action: this.isOver ? "answer" : "tool",
      ctx_tokens: step.usage.inputTokens ?? 0,
    };
    const answer = gateway.readAnswer === undefined && step.text !== "" ? null : read;
    const report = { index: texts.length, answer, tokens: step.usage.outputTokens ?? 0, signals };
    const decision = await this.call({ episode_id: this.episodeId, step: report, done: this.isOver });
    this.decisions.push(decision ?? LOST);
    this.returnStep = decision?.return_step ?? null;
  }

  private async call(body: object, headers: Record<string, string> = {}): Promise<any> {
    if (this.isLost) return null;
    const { url, route, apiKey, timeoutMs = 2_000 } = this.gateway;
    try {
      const reply = await fetch(`${url}/v1/decide`, {
        method: "POST",
        headers: { "content-type": "application/json", ...(apiKey ? { authorization: `Bearer ${apiKey}` } : {}), ...headers },
        body: JSON.stringify({ route, ...body }),
        signal: AbortSignal.timeout(timeoutMs),
      });
      if (reply.ok) return await reply.json();
    } catch {
      // The loop goes on.
    }
    this.isLost = true;
    return null;
  }
}
