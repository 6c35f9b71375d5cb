// How a client's program talks with the tests; see lines.py.
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";

export const INSTRUCTIONS = "Be short.";
export const TOOL = "look";
export const TOOL_DESCRIPTION = "Looks for a fox.";
export const TOOL_PARAMETERS = {
  type: "object",
  properties: { where: { type: "string" }, times: { type: "integer" } },
  required: ["where", "times"],
  additionalProperties: false,
};

export const look = ({ where, times }) => `A fox in ${where}, ${times} times.`;

export const serve = async (actions) => {
  writeSync(1, "{}\n");
  for await (const line of createInterface({ input: process.stdin })) {
    const task = JSON.parse(line);
    const answer = await actions[task.action](task).catch((error) => ({ error: described(error) }));
    writeSync(1, `${JSON.stringify(answer)}\n`);
  }
};

const described = (error) => ({
  kind: error.constructor.name,
  status: error.status ?? error.statusCode ?? null,
  text: String(error),
});
