// node llama_cpp.mjs MODULES MODEL.gguf JOB.json: llama.cpp's greedy tokens after each prompt of JOB, and how it tokenises texts.
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [modules, file, job] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(createRequire(modules + "/").resolve("node-llama-cpp")).href);
const {prompts, texts, length, ends} = JSON.parse(readFileSync(job, "utf-8"));
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: 512, threads: 1});
const answers = [];
for (const prompt of prompts) {
  const sequence = context.getSequence();
  const answer = [];
  for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    if (ends.includes(token)) break;
    answer.push(token);
    if (answer.length === length) break;
  }
  answers.push(answer);
  sequence.dispose();
}
console.log(JSON.stringify({answers, texts: texts.map((text) => model.tokenize(text, false))}));
process.exit(0);
