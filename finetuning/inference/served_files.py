"""Files of models, served here for a comparison: a GGUF file by llama.cpp's `llama-server`, a folder by transformers."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetuning.errors import InputError, RunError
from finetuning.formats.gguf.k_quants import find_program
from finetuning.i18n import t
from finetuning.inference.served import Message, OpenAIServer, ServedAnswer
from finetuning.model.attention import make_documents
from finetuning.model.llama import Llama
from finetuning.runtime.network import no_answer
from finetuning.runtime.process_lifetime import end_with_parent

START_S = 600.0  # a large file is read from a slow disk
LOOK_S = 0.1
SHOWN_LINES = 5
PROGRAM = "llama-server"


@contextmanager
def llama_cpp(file: Path, context: int) -> Iterator[OpenAIServer]:
    """llama.cpp with a GGUF file, on a port of this machine that nobody else is told.

    Args:
        context: tokens of the longest prompt with its answer.

    Raises:
        InputError: llama-server is not found.
        RunError: it does not start; with what it said.
    """
    program = find_program(PROGRAM)
    if program is None:
        raise InputError(
            t(
                "{file}: {program} of llama.cpp is neither on the PATH nor in the folder LLAMA_CPP; install llama.cpp, or "
                "start a server yourself and give its address",
                file=file,
                program=PROGRAM,
            )
        )
    command = [str(program), "--model", str(file), "--ctx-size", str(context), "--parallel", "1", "--jinja"]
    with started(command, PROGRAM) as url:
        yield OpenAIServer(url)


@contextmanager
def started(command: list[str], program: str) -> Iterator[str]:
    """A server on a port of this machine that nobody else is told; its address, once it answers.

    Raises:
        RunError: it does not start; with what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=partial(end_with_parent, os.getpid()))
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log, program)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", health: str, log: Any, program: str) -> None:
    """Until the server answers; it refuses while it reads the model."""
    deadline = time.monotonic() + START_S
    while no_answer(health) is not None:
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
            raise RunError(t("{program} does not start: {reason}", program=program, reason=" / ".join(lines)))
        time.sleep(LOOK_S)


@dataclass(frozen=True)
class ScoredServer:
    """A server with a decoder of ours on its weights, for what it does not tell: the log-probabilities of given texts."""

    server: OpenAIServer
    net: Llama

    @property
    def name(self) -> str:
        return self.server.name

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> ServedAnswer:
        return self.server.answer(messages, max_new_tokens)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]] | None:
        return self.server.tokenize(texts)

    @torch.inference_mode()
    def logprobs(self, tokens: Sequence[int]) -> list[float] | None:
        device = self.net.model.embed_tokens.weight.device
        given = torch.tensor(tokens, device=device)
        positions = torch.arange(len(tokens), device=device)
        logits = self.net(given[None], positions[None], make_documents([len(tokens)]).to(device), at_S=positions[:-1])[0]
        return logits.float().log_softmax(-1).gather(1, given[1:, None])[:, 0].tolist()


class TransformersFolder:
    """A folder in Hugging Face format as transformers loads and prompts it."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        import transformers

        self.name = str(folder)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model = model.to(device).eval()

    @torch.inference_mode()
    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> ServedAnswer:
        inputs = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        prompt = inputs["input_ids"][0].tolist()
        found = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        tokens = found.sequences[0, len(prompt) :].tolist()
        steps = [step[0].float().log_softmax(-1) for step in found.logits]
        logprobs = [(token, step[token].item()) for step, token in zip(steps, tokens, strict=True)]
        ends = self.model.generation_config.eos_token_id
        has_ended = bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])
        return ServedAnswer(
            self.tokenizer.decode(tokens, skip_special_tokens=True), has_ended, tokens, logprobs, prompt, len(prompt)
        )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]] | None:
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    @torch.inference_mode()
    def logprobs(self, tokens: Sequence[int]) -> list[float] | None:
        given = torch.tensor(list(tokens), device=self.model.device)
        logits = self.model(input_ids=given[None]).logits[0, :-1].float().log_softmax(-1)
        return logits.gather(1, given[1:, None])[:, 0].tolist()
