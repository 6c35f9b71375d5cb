// Accumulates a stream of message events, in base64, with Anthropic's SDK.
import Anthropic from "@anthropic-ai/sdk";

import { serve } from "./lines.mjs";

const accumulate = async ({ events }) => {
  const body = Buffer.from(events, "base64");
  const fetch = async () =>
    new Response(body, { headers: { "content-type": "text/event-stream" } });
  const client = new Anthropic({ apiKey: "k", baseURL: "http://sdk.invalid", maxRetries: 0, fetch });
  const asked = { model: "m", max_tokens: 9, messages: [{ role: "user", content: "x" }] };
  return client.messages.stream(asked).finalMessage();
};

await serve({ accumulate });
