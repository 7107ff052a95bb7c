"""A server that speaks OpenAI's protocol with our own decoder behind it, on 127.0.0.1: what vLLM or Ollama are to a client.

Conversations are put into the folder's chat template and tokenized by transformers. It tells tokens as vLLM does, or,
`silent`, only text and how many tokens a prompt has, as Ollama.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
import transformers

from finetuning.config.llama import read_llama_config
from finetuning.data.prompts.tokenizer import read_end_token_ids
from finetuning.formats.stored_model import open_model
from finetuning.inference.compare import observe
from finetuning.inference.loading import load_net

NAME = "trained"


class Engine:
    """A folder in Hugging Face format, as it is; nothing of it is compared with anything."""

    def __init__(self, folder: Path, *, silent: bool = False, names: tuple[str, ...] = (NAME,), context: int = 100_000):
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.net = load_net(open_model(folder).weights(), torch.device("cpu"), torch.float32)
        self.ends = tuple(read_end_token_ids(folder))
        self.silent, self.names, self.context = silent, names, context
        self.tells_no_tokens = False  # as older vLLM
        self.lock = Lock()  # the decoder answers one at a time
        self.requests: list[tuple[str, str | None]] = []  # path, Authorization
        self.completions: list[dict[str, Any]] = []  # what was asked for
        assert read_llama_config(folder) == self.net.config

    def chat(self, given: dict[str, Any]) -> dict[str, Any] | None:
        prompt = self.tokenizer.apply_chat_template(given["messages"], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        if len(prompt) + given["max_tokens"] > self.context:
            return None
        with self.lock:
            found = observe(self.net, [prompt], None, self.ends, given["max_tokens"])
        (tokens,), (logits,) = found.answers, found.logits
        logprobs = logits.log_softmax(-1)[range(len(tokens)), tokens].tolist()
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        ended = len(tokens) < given["max_tokens"]
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = "stop" if ended else "length"
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        if self.silent:
            return {"choices": [choice], "usage": usage}
        entries = [
            {"token": self.tokenizer.decode([token]), "logprob": value} for token, value in zip(tokens, logprobs, strict=True)
        ]
        choice |= {"logprobs": {"content": entries}, "token_ids": tokens}
        return {"choices": [choice], "usage": usage, "prompt_token_ids": prompt}

    def completion(self, given: dict[str, Any]) -> dict[str, Any]:
        tokens = given["prompt"]
        if not given.get("echo"):
            self.completions.append(given)
            ends = tuple(given["stop_token_ids"])
            with self.lock:
                (found,) = observe(self.net, [tokens], None, ends, given["max_tokens"]).answers
            ended = ends[:1] if len(found) < given["max_tokens"] else ()  # it tells the end token, too
            return {"choices": [{"text": "", "token_ids": None if self.tells_no_tokens else [*found, *ended]}]}
        with self.lock:
            logits = observe(self.net, [tokens[:1]], [tokens[1:]], self.ends, 1).logits[0]
        values = logits.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]].tolist()
        return {"choices": [{"text": "", "logprobs": {"token_logprobs": [None, *values, -1.0]}}]}


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The address to give to clients."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"engine": engine}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    engine: Engine

    def do_GET(self) -> None:
        answers: dict[str, dict[str, Any]] = {
            "/v1/models": {"data": [{"id": name} for name in self.engine.names]},
            "/health": {},
        }
        self._send(answers.get(self.path))

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.engine.requests.append((self.path, self.headers.get("Authorization")))
        if self.path == "/v1/chat/completions":
            self._send(self.engine.chat(given))
        elif self.path == "/v1/completions" and not self.engine.silent:
            self._send(self.engine.completion(given))
        elif self.path == "/tokenize" and not self.engine.silent:
            self._send({"tokens": self.engine.tokenizer.encode(given["prompt"], add_special_tokens=False)})
        else:
            self._send(None)

    def _send(self, found: dict[str, Any] | None) -> None:
        body = json.dumps(found if found is not None else {"error": "no such thing here"}).encode()
        self.send_response(HTTPStatus.OK if found is not None else HTTPStatus.BAD_REQUEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""
