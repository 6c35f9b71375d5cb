// Vercel's AI SDK with three providers: openai (chat and responses), openai-compatible, anthropic.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, isStepCount, jsonSchema, streamText, tool } from "ai";

import { Fox } from "./fox.mjs";
import { INSTRUCTIONS, TOOL_DESCRIPTION, TOOL_PARAMETERS, look, serve } from "./lines.mjs";

const MAX_STEPS = 5;

const languageModel = ({ dialect, url, key: apiKey, model }) => {
  const baseURL = `${url}/v1`;
  if (dialect === "messages") return createAnthropic({ baseURL, apiKey })(model);
  if (dialect === "chat") return createOpenAI({ baseURL, apiKey }).chat(model);
  if (dialect === "responses") return createOpenAI({ baseURL, apiKey })(model);
  const settings = { name: "rialto", baseURL, apiKey, includeUsage: true };
  return createOpenAICompatible({ ...settings, supportsStructuredOutputs: true })(model);
};
const members = (task) => ({
  model: languageModel(task),
  system: INSTRUCTIONS,
  prompt: task.prompt,
  // Otherwise it refers to items of earlier responses, and nothing is stored.
  providerOptions: { openai: { store: false } },
});
const withTool = () => ({
  tools: {
    look: tool({
      description: TOOL_DESCRIPTION,
      inputSchema: jsonSchema(TOOL_PARAMETERS),
      execute: async (input) => look(input),
    }),
  },
  stopWhen: isStepCount(MAX_STEPS),
});
const usageOf = ({ inputTokens, outputTokens }) => [inputTokens, outputTokens];

const plain = async (task) => {
  const { text, usage } = await generateText(members(task));
  return { text, usage: usageOf(usage) };
};

// The stream's errors come as parts of it.
const streamOf = async (asked) => {
  const result = streamText({ ...asked, onError: () => {} });
  const pieces = [];
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") pieces.push(part.text);
  }
  return { pieces, usage: usageOf(await result.usage) };
};

const streamed = (task) => streamOf(members(task));

const tools = async (task) => {
  const { text } = await generateText({ ...members(task), ...withTool() });
  return { text };
};

const toolsStreamed = async (task) => {
  const { pieces } = await streamOf({ ...members(task), ...withTool() });
  return { text: pieces.join("") };
};

const structured = async (task) => {
  const { output } = await generateText({
    ...members(task),
    output: Output.object({ schema: Fox }),
  });
  return { value: output };
};

await serve({ plain, streamed, tools, tools_streamed: toolsStreamed, structured });
