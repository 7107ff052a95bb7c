"""Answers from vLLM, started here with a stored model and asked with our own prompts: for whoever wants a server's throughput.

In and out go tokens, so template, tokenizer and end tokens are those of the training. vLLM is not imported: it has an
environment and a torch of its own, and is known by its command.
"""

import os
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from finetuning.errors import InputError
from finetuning.formats.huggingface import door as huggingface
from finetuning.formats.peft import door as peft
from finetuning.formats.serving import adapter_commands, whole_model_commands
from finetuning.formats.stored_model import StoredModel
from finetuning.i18n import t
from finetuning.inference.plain import NewToken
from finetuning.inference.served import OpenAIServer
from finetuning.inference.served_files import started
from finetuning.model.sampling import Sampling

PROGRAM = "vllm"
NAME = "trained"
REQUESTS_AT_ONCE = 256  # what it cannot compute together, it lets wait


def vllm_command(model: StoredModel, dtype: str | None) -> list[str]:
    """What is to be started for a model.

    Args:
        dtype: it computes in; None: that of the files.

    Raises:
        InputError: vLLM is not installed here, or does not read such models.
    """
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    program = shutil.which(PROGRAM, path=beside)
    if program is None:
        raise InputError(
            t("--engine vllm: there is no command {program} here; install vLLM, or leave --engine out", program=PROGRAM)
        )
    found = model.found
    line = None
    if found.kind is huggingface:
        line = whole_model_commands(found.path, NAME, has_template=False)["vLLM"][0]
    elif found.kind is peft and model.adapter is not None and found.required_base().kind is huggingface:
        rank = max(len(update.a) for update in model.adapter.updates.values())
        line = adapter_commands(found.path, str(found.required_base().path), NAME, rank, has_template=False)["vLLM"][0]
    if line is None:
        raise InputError(
            t(
                "--engine vllm: {path} is neither a model folder nor an adapter on one; make one by finetune export --to hf",
                path=found.path,
            )
        )
    _, *flags = shlex.split(line)
    return [program, *flags, *(["--dtype", dtype] if dtype is not None else [])]


def vllm_answers(
    command: list[str],
    prompts: list[list[int]],
    sampling: Sampling,
    end_token_ids: tuple[int, ...],
    requests_at_once: int | None,
    told: NewToken | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, without the end token, from a server that is started for them.

    Args:
        told: is called with each new token, when its answer is whole.

    Raises:
        RunError: it does not start, refuses, or does not tell tokens.
    """
    context = max(map(len, prompts)) + sampling.max_new_tokens

    def ask(server: OpenAIServer, number: int) -> list[int]:
        tokens = server.complete(prompts[number], _settings(sampling, end_token_ids, number))
        tokens = tokens[:-1] if tokens and tokens[-1] in end_token_ids else tokens
        if told is not None:
            for token in tokens:
                told(number, token)
        return tokens

    with started([*command, "--max-model-len", str(context)], PROGRAM) as url:
        server = OpenAIServer(url, NAME)
        with ThreadPoolExecutor(min(requests_at_once or REQUESTS_AT_ONCE, len(prompts))) as threads:
            return list(threads.map(partial(ask, server), range(len(prompts))))


def _settings(sampling: Sampling, end_token_ids: tuple[int, ...], number: int) -> dict[str, Any]:
    """A draw depends on the seed and the prompt's number here too, but it is vLLM's own."""
    settings: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    settings |= {"stop_token_ids": list(end_token_ids), "ignore_eos": True, "skip_special_tokens": False}
    if sampling.temperature > 0:
        settings |= {"top_p": sampling.top_p, "seed": (sampling.seed * 1_000_003 + number) % 2**63}
        settings |= {"top_k": sampling.top_k} if sampling.top_k else {}
    return settings
