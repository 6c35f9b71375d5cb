// Anthropic's SDK for JavaScript.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";

import { Fox } from "./fox.mjs";
import { INSTRUCTIONS, TOOL, TOOL_DESCRIPTION, TOOL_PARAMETERS, look, serve } from "./lines.mjs";

const client = ({ url, key }) => new Anthropic({ baseURL: url, apiKey: key });
const members = ({ model, prompt }) => ({
  model,
  max_tokens: 1000,
  system: INSTRUCTIONS,
  messages: [{ role: "user", content: prompt }],
});
const textOf = ({ content }) =>
  content.map((block) => (block.type === "text" ? block.text : "")).join("");
const usageOf = ({ usage }) => [usage.input_tokens, usage.output_tokens];

const plain = async (task) => {
  const message = await client(task).messages.create(members(task));
  return { text: textOf(message), usage: usageOf(message) };
};

const streamed = async (task) => {
  const pieces = [];
  const stream = client(task).messages.stream(members(task));
  stream.on("text", (piece) => pieces.push(piece));
  return { usage: usageOf(await stream.finalMessage()), pieces };
};

const tools = async (task, isStreamed = false) => {
  const { messages } = client(task);
  const tool = { name: TOOL, description: TOOL_DESCRIPTION, input_schema: TOOL_PARAMETERS };
  const asked = { ...members(task), tools: [tool] };
  for (;;) {
    const message = isStreamed
      ? await messages.stream(asked).finalMessage()
      : await messages.create(asked);
    if (message.stop_reason !== "tool_use") return { text: textOf(message) };
    const results = message.content
      .filter((block) => block.type === "tool_use")
      .map(({ id, input }) => ({ type: "tool_result", tool_use_id: id, content: look(input) }));
    asked.messages.push(
      { role: "assistant", content: message.content },
      { role: "user", content: results },
    );
  }
};

const structured = async (task) => {
  const asked = { ...members(task), output_config: { format: zodOutputFormat(Fox) } };
  return { value: (await client(task).messages.parse(asked)).parsed_output };
};

await serve({ plain, streamed, tools, tools_streamed: (task) => tools(task, true), structured });
