// OpenAI's and Anthropic's own clients for Node.js against a service: what they saw.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI, { toFile } from "openai";

import { serve } from "./lines.mjs";

const model = "llama-3.3-70b";
const messages = [{ role: "user", content: "[tokens=12]" }];
const tool = { name: "look", description: "Looks.", input_schema: { type: "object" } };

const all = async ({ url, key: apiKey }) => {
  const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
  const anthropic = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
  const seen = {};

  const completion = await openai.chat.completions.create({ model, messages });
  seen.plain = completion.usage.completion_tokens;
  seen.streamed = 0;
  for await (const chunk of await openai.chat.completions.create({ model, messages, stream: true })) {
    seen.streamed += chunk.choices[0]?.delta?.content ? 1 : 0;
  }
  const response = await openai.responses.create({ model, input: "[tokens=12]" });
  seen.response = response.usage.output_tokens;
  const embedding = await openai.embeddings.create({ model: "text-embedding-bge-m3", input: "a" });
  seen.dimensions = embedding.data[0].embedding.length;
  const speech = await openai.audio.speech.create({ model: "tts-kokoro", voice: "af_sky", input: "a" });
  const sound = Buffer.from(await speech.arrayBuffer());
  const heard = await openai.audio.transcriptions.create({
    model: "nvidia/parakeet-tdt-0.6b-v3",
    file: await toFile(sound, "a.wav"),
  });
  seen.heard = heard.text.length > 0;
  const edited = await openai.images.edit({
    image: [await toFile(Buffer.from("fox"), "a.png"), await toFile(Buffer.from("owl"), "b.png")],
    prompt: "together",
  });
  seen.edited = Buffer.from(edited.data[0].b64_json, "base64").subarray(1, 4).toString();
  seen.refused = await openai.chat.completions
    .create({ model: "nope", messages })
    .catch((error) => [error.constructor.name, error.code]);

  const asked = { model, max_tokens: 100, messages };
  const message = await anthropic.messages.create(asked);
  seen.message = [message.stop_reason, message.usage.output_tokens];
  const final = await anthropic.messages.stream(asked).finalMessage();
  seen.messageStream = [final.stop_reason, final.usage.output_tokens];
  const called = await anthropic.messages
    .stream({ ...asked, tools: [tool], tool_choice: { type: "any" } })
    .finalMessage();
  seen.tool = [called.stop_reason, called.content[0].name, called.content[0].input];
  seen.messageRefused = await anthropic.messages
    .create({ ...asked, model: "nope" })
    .catch((error) => [error.constructor.name, error.error.error.type]);

  const controller = new AbortController();
  const long = [{ role: "user", content: "[tokens=9999][delay=0.01]" }];
  for await (const _ of await openai.chat.completions.create(
    { model, messages: long, stream: true },
    { signal: controller.signal },
  )) {
    controller.abort();
  }
  return seen;
};

await serve({ all });
