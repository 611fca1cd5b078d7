// Runs a batch with openai-node, for each line of standard input, and prints what it saw.
"use strict";

const readline = require("node:readline");
const { OpenAI, toFile } = require("openai");

const ENDED = ["completed", "failed", "expired", "cancelled"];

/** Upload, create, poll, list, download, cancel: the steps of OpenAI's guide. */
async function run(task) {
  const client = new OpenAI({ apiKey: task.api_key, baseURL: task.base_url });
  const file = await client.files.create({
    file: await toFile(Buffer.from(task.contents), "in.jsonl"),
    purpose: "batch",
  });
  const wanted = { input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
  const made = await client.batches.create({ ...wanted, metadata: { of: "mine" } });
  const missing = [
    await refusal(client.batches.retrieve("batch_" + "0".repeat(32))),
    await refusal(client.files.content("file-" + "0".repeat(32))),
  ];
  const ended = await end(client, made);
  const listed = [];
  for await (const each of client.batches.list({ limit: 1 })) listed.push(each.id);
  const contents = ended.output_file_id ? await (await client.files.content(ended.output_file_id)).text() : "";
  const stopped = await client.batches.cancel((await client.batches.create(wanted)).id);
  return {
    file,
    made,
    missing,
    ended,
    listed,
    contents,
    cancelled: await client.batches.cancel(ended.id),
    stopped: [stopped, await end(client, stopped)],
  };
}

async function end(client, batch) {
  while (!ENDED.includes(batch.status)) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

/** Return how the SDK throws the error of a call that is refused. */
async function refusal(call) {
  try {
    await call;
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
  throw new Error("it was taken");
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await run(JSON.parse(line))));
  }
}

main();
