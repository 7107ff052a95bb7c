"""Flags that evaluate, generate, chat and merge share."""

import argparse

import torch

from finetuning.errors import InputError
from finetuning.formats.huggingface.write import DTYPES
from finetuning.i18n import t
from finetuning.inference.generate import BATCH_SIZE, GPU_BATCH_SIZE
from finetuning.inference.loading import default_device, default_dtype
from finetuning.model.sampling import Sampling

VLLM = "vllm"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help=t("an experiment, a checkpoint, an adapter, a model folder, a GGUF file, or a name on the hub")
    )
    parser.add_argument("--base", help=t("the model that it was trained from; default: the one it names"))
    parser.add_argument("--device", choices=("cpu", "cuda"), help=t("where it runs; default: a GPU where there is one"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=t("it computes in; default: bfloat16 on a GPU, else float32"))


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt_template", help=t("of a model that does not say how it was trained: text with {{input}} and {{output}}")
    )
    parser.add_argument("--system_prompt", help=t("of a model that does not say how it was trained: its system message"))


def add_sampling_flags(parser: argparse.ArgumentParser, *, max_new_tokens: int, batched: bool = True) -> None:
    """
    Args:
        batched: there may be several answers at once.
    """
    default = Sampling()

    def add(name: str, kind: type, value: float, text: str) -> None:
        parser.add_argument(f"--{name}", type=kind, default=value, help=text + t(" (default: {value})", value=value))

    add("max_new_tokens", int, max_new_tokens, t("longest answer, in tokens"))
    add("temperature", float, default.temperature, t("0: the likeliest token; more: less likely ones too"))
    add("top_p", float, default.top_p, t("only the likeliest tokens of this probability together"))
    add("top_k", int, default.top_k, t("only this many of the likeliest tokens; 0: all"))
    add("seed", int, default.seed, t("decides the choice of tokens"))
    if batched:
        default_sizes = t(
            "default: {plain}; on a GPU {engine}, or what its memory holds", plain=BATCH_SIZE, engine=GPU_BATCH_SIZE
        )
        parser.add_argument("--batch_size", type=int, help=t("answers at once") + f"; {default_sizes}")


def add_engine_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", choices=(VLLM,), help=t("what answers: a vLLM that is installed here; default: this command")
    )


def chosen_device(given: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Where to compute, and in which dtype.

    Raises:
        InputError: a GPU is asked for where there is none.
    """
    device = torch.device(given.device) if given.device else default_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(t("--device cuda: there is no CUDA GPU here; give cpu, or leave it out"))
    return device, DTYPES[given.dtype] if given.dtype else default_dtype(device)


def chosen_sampling(given: argparse.Namespace) -> Sampling:
    """
    Raises:
        InputError: with every value that cannot be.
    """
    rules = [
        ("max_new_tokens", given.max_new_tokens >= 1, t("must be 1 or more")),
        ("temperature", 0 <= given.temperature < float("inf"), t("must be 0 or more")),
        ("top_p", 0 < given.top_p <= 1, t("must be greater than 0 and at most 1")),
        ("top_k", given.top_k >= 0, t("must be 0 or more")),
        ("seed", 0 <= given.seed < 2**63, t("must be 0 or more")),
    ]
    if "batch_size" in given and given.batch_size is not None:
        rules.append(("batch_size", given.batch_size >= 1, t("must be 1 or more")))
    problems = [
        t("--{name} {value}: {rule}", name=name, value=getattr(given, name), rule=rule)
        for name, holds, rule in rules
        if not holds
    ]
    if given.temperature == 0 and (given.top_p != 1 or given.top_k):
        problems.append(t("--top_p and --top_k have no effect at --temperature 0; give for example --temperature 0.7"))
    if problems:
        raise InputError(problems)
    return Sampling(given.temperature, given.top_p, given.top_k, given.seed, given.max_new_tokens)
