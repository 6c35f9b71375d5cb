// Runs a block of docs/clients.md, and then a call with what it made.
import { rm, writeFile } from "node:fs/promises";

import { serve } from "./lines.mjs";

let count = 0;
const run = async ({ code, call }) => {
  // A module finds packages from where its file is.
  const path = new URL(`../block-${process.pid}-${count++}.mjs`, import.meta.url);
  await writeFile(path, code + call);
  try {
    return { text: (await import(path)).answer };
  } finally {
    await rm(path);
  }
};

await serve({ run });
