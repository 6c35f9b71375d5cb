// OpenAI's SDK for JavaScript: chat completions and responses.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";

import { Fox } from "./fox.mjs";
import { INSTRUCTIONS, TOOL, TOOL_DESCRIPTION, TOOL_PARAMETERS, look, serve } from "./lines.mjs";

const fn = { name: TOOL, description: TOOL_DESCRIPTION, parameters: TOOL_PARAMETERS, strict: true };
const client = ({ url, key }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const isResponses = ({ dialect }) => dialect === "responses";
const chat = ({ model, prompt }) => ({
  model,
  messages: [
    { role: "system", content: INSTRUCTIONS },
    { role: "user", content: prompt },
  ],
});
const response = ({ model, prompt }) => ({
  model,
  instructions: INSTRUCTIONS,
  input: [{ role: "user", content: prompt }],
});

const plain = async (task) => {
  if (isResponses(task)) {
    const { output_text: text, usage } = await client(task).responses.create(response(task));
    return { text, usage: [usage.input_tokens, usage.output_tokens] };
  }
  const { choices, usage } = await client(task).chat.completions.create(chat(task));
  const text = choices[0].message.content;
  return { text, usage: [usage.prompt_tokens, usage.completion_tokens] };
};

const streamed = async (task) => {
  const pieces = [];
  if (isResponses(task)) {
    const stream = client(task).responses.stream(response(task));
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") pieces.push(event.delta);
    }
    const { usage } = await stream.finalResponse();
    return { pieces, usage: [usage.input_tokens, usage.output_tokens] };
  }
  const asked = { ...chat(task), stream: true, stream_options: { include_usage: true } };
  let usage;
  for await (const chunk of await client(task).chat.completions.create(asked)) {
    pieces.push(chunk.choices[0]?.delta?.content ?? "");
    usage = chunk.usage ?? usage;
  }
  return { pieces, usage: [usage.prompt_tokens, usage.completion_tokens] };
};

const tools = async (task, isStreamed = false) => {
  if (isResponses(task)) return respondWithTools(task, isStreamed);
  const { completions } = client(task).chat;
  const asked = { ...chat(task), tools: [{ type: "function", function: fn }] };
  for (;;) {
    const completion = isStreamed
      ? await completions.stream(asked).finalChatCompletion()
      : await completions.create(asked);
    const { message } = completion.choices[0];
    if (!message.tool_calls?.length) return { text: message.content };
    asked.messages.push(message);
    for (const call of message.tool_calls) {
      const content = look(JSON.parse(call.function.arguments));
      asked.messages.push({ role: "tool", tool_call_id: call.id, content });
    }
  }
};

const respondWithTools = async (task, isStreamed) => {
  const { responses } = client(task);
  const asked = { ...response(task), store: false, tools: [{ type: "function", ...fn }] };
  for (;;) {
    const { output, output_text: text } = isStreamed
      ? await responses.stream(asked).finalResponse()
      : await responses.create(asked);
    const calls = output.filter((item) => item.type === "function_call");
    if (!calls.length) return { text };
    asked.input.push(...output);
    for (const call of calls) {
      const result = look(JSON.parse(call.arguments));
      asked.input.push({ type: "function_call_output", call_id: call.call_id, output: result });
    }
  }
};

const structured = async (task) => {
  if (isResponses(task)) {
    const asked = { ...response(task), text: { format: zodTextFormat(Fox, "fox") } };
    return { value: (await client(task).responses.parse(asked)).output_parsed };
  }
  const asked = { ...chat(task), response_format: zodResponseFormat(Fox, "fox") };
  return { value: (await client(task).chat.completions.parse(asked)).choices[0].message.parsed };
};

await serve({ plain, streamed, tools, tools_streamed: (task) => tools(task, true), structured });
