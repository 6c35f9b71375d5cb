// Accumulates streams of message events with Anthropic's SDK: one in base64 on each line of stdin,
// one message or error as JSON on each line of stdout.
import Anthropic from "@anthropic-ai/sdk";
import { createInterface } from "node:readline";

let events;
const fetch = async () =>
  new Response(events, { headers: { "content-type": "text/event-stream" } });
const client = new Anthropic({ apiKey: "k", baseURL: "http://sdk.invalid", maxRetries: 0, fetch });
const asked = { model: "m", max_tokens: 9, messages: [{ role: "user", content: "x" }] };

for await (const line of createInterface({ input: process.stdin })) {
  events = Buffer.from(line, "base64");
  let result;
  try {
    result = await client.messages.stream(asked).finalMessage();
  } catch (error) {
    result = { error: error.constructor.name };
  }
  console.log(JSON.stringify(result));
}
