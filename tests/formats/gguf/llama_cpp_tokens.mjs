// node llama_cpp_tokens.mjs MODULES TEXTS.json OUT.json FILE.gguf …: llama.cpp's tokens of texts, special tokens read as text and
// as what they are.
import {readFileSync, writeFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [modules, texts, out, ...files] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(createRequire(modules + "/").resolve("node-llama-cpp")).href);
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error});
const found = {};
for (const file of files) {
  const model = await llama.loadModel({modelPath: file, vocabOnly: true});
  found[file] = JSON.parse(readFileSync(texts, "utf-8")).map((text) => [model.tokenize(text, false), model.tokenize(text, true)]);
  await model.dispose();
}
writeFileSync(out, JSON.stringify(found));
process.exit(0);
