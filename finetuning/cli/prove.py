"""`finetune prove SERVED MODEL`: whether what answers is the model that was trained; the verdict is the exit code.

SERVED is the address of a server that speaks OpenAI's protocol, a GGUF file, which llama.cpp then serves, or a folder in
Hugging Face format, which transformers loads.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from finetuning.cli.common_flags import verb_parser
from finetuning.cli.compared_prompts import (
    LIMIT,
    MAX_NEW_TOKENS,
    add_comparison_flags,
    check_comparison_flags,
    compared_prompts,
)
from finetuning.cli.model_argument import open_given_model
from finetuning.cli.model_flags import chosen_device
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, InputError
from finetuning.formats.gguf import door as gguf
from finetuning.formats.gguf.k_quants import K_QUANTS
from finetuning.formats.gguf.weights import open_gguf
from finetuning.formats.gguf.write import FILE_TYPES
from finetuning.formats.huggingface import door as huggingface
from finetuning.formats.huggingface.fp8 import KIND as FP8
from finetuning.formats.huggingface.fp8 import is_fp8
from finetuning.formats.huggingface.write import DTYPES
from finetuning.formats.recognize import format_at
from finetuning.formats.stored_model import StoredModel
from finetuning.formats.weight_source import HuggingFaceSource
from finetuning.i18n import t
from finetuning.inference.likely_faults import header_faults, likely_models, stored_faults
from finetuning.inference.loading import load_model, load_net
from finetuning.inference.prove import LONG_PROMPT, TEXTS, Proof, long_sample, prove
from finetuning.inference.samples import check_prompts, check_tokens
from finetuning.inference.served import OpenAIServer, Served
from finetuning.inference.served_files import ScoredServer, TransformersFolder, llama_cpp
from finetuning.on_demand import needed_for
from finetuning.terminal import open_console

ADDRESS = ("http://", "https://")
SHOWN_DIFFERENCES = 5
ROOM = 16  # tokens of a server's context beyond the longest prompt and its answer
# llama.cpp's number of a file's type -> as which its perplexity is judged.
QUANTIZATIONS = {FILE_TYPES["q8_0"]: "q8_0"} | {number: name for name, number in K_QUANTS.items()}


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("prove", t("Compares a served model with the trained one."))
    parser.add_argument("served", help=t("an address such as http://127.0.0.1:8000/v1, a GGUF file, or a model folder"))
    parser.add_argument("model", help=t("the trained one: an experiment, a checkpoint, an adapter, a model folder"))
    parser.add_argument("--base", help=t("the model that it was trained from; default: the one it names"))
    parser.add_argument("--served_model", help=t("its name on a server that has several"))
    add_comparison_flags(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), help=t("where it runs; default: a GPU where there is one"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=t("it computes in; default: bfloat16 on a GPU, else float32"))
    given = parser.parse_args(argv)
    check_comparison_flags(given)
    if given.served_model is not None and not given.served.startswith(ADDRESS):
        raise InputError(t("--served_model has no effect on a file or folder; it is a name on a server"))
    return prove_served(given.served, open_given_model(given.model, given.base), given)


def prove_export(served: Path, stored: StoredModel) -> int:
    """Of what has just been written, on the run's test split; the exit code."""
    flags = {
        "data": None,
        "columns": None,
        "limit": LIMIT,
        "max_new_tokens": MAX_NEW_TOKENS,
        "served_model": None,
        "device": None,
        "dtype": None,
    }
    return prove_served(str(served), stored, Namespace(**flags))


def prove_served(given: str, stored: StoredModel, flags: Namespace) -> int:
    """Compares and shows; the exit code.

    Args:
        flags: served_model, data, columns, limit, max_new_tokens, device and dtype.
    """
    device, _ = chosen_device(flags)
    dtype = DTYPES[flags.dtype or "float32"]  # a coarser one would hide what serving changes
    file, read = compared_prompts(flags, stored.path)
    samples = [sample for sample in read if not sample.messages]
    if not samples:
        raise InputError(t("{file}: has no plain questions, which alone are compared: turns, without tools", file=file))
    prompt_format = stored.prompt_format()
    check_prompts(samples, prompt_format, stored.base.config, with_answer=False)
    prompts = [prompt_format.encode_prompt(sample) for sample in samples]
    check_tokens(samples, prompts, flags.max_new_tokens, prompt_format, stored.base.config)
    context = max(map(len, prompts)) + flags.max_new_tokens + ROOM
    console = open_console()
    # Of files the scaling is read; a server only shows it.
    is_asked = given.startswith(ADDRESS) and stored.base.config.rope_scaling is not None
    with _opened(given, flags.served_model, stored, context, device, dtype) as (served, quantization, faults):
        assert served.name
        model = load_model(stored, device, dtype)
        found = prove(
            model,
            served,
            samples,
            flags.max_new_tokens,
            quantization=quantization,
            long_sample=long_sample(prompt_format, LONG_PROMPT) if is_asked else None,
            others=lambda: () if faults else likely_models(stored, device, dtype),
        )
    found.faults = [*faults, *found.faults]
    _show(console, found, file, given)
    return EXIT_FINISHED if found.is_same else EXIT_FAILED


@contextmanager
def _opened(
    given: str, name: str | None, stored: StoredModel, context: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Served, str | None, list[str]]]:
    """The served model, how its weights are quantized, and what its files alone show to be wrong."""
    path = Path(given)
    if given.startswith(ADDRESS):
        yield OpenAIServer(given.rstrip("/"), name), None, []
        return
    kind = format_at(path)
    if kind is gguf:
        file = open_gguf(path)
        source, quantization = file.source(), QUANTIZATIONS.get(file.header.settings.get("general.file_type", -1))
        faults = header_faults(file.header, stored) + stored_faults(source, stored, source.type_name)
        with llama_cpp(path, context) as server:
            net = load_net(source, device, dtype) if quantization is not None else None
            yield (server if net is None else ScoredServer(server, net)), quantization, faults
    elif kind is huggingface and is_fp8(path):
        with needed_for(t("a folder with weights in fp8")):
            import compressed_tensors  # noqa: F401 - by which transformers reads it
        yield TransformersFolder(path, device, dtype), FP8, []
    elif kind is huggingface:
        weights = HuggingFaceSource(path)
        faults = stored_faults(weights, stored, lambda name: str(weights.dtype(name)).removeprefix("torch."))
        yield TransformersFolder(path, device, dtype), None, faults
    else:
        raise InputError(
            t(
                "{path}: neither an address (http://…/v1), nor a GGUF file, nor a model folder in Hugging Face format; an "
                "adapter is served by vLLM or SGLang, whose address can be given",
                path=given,
            )
        )


def _show(console: Console, found: Proof, file: Path, served: str) -> None:
    console.print(t("{served} on {count} prompt{count:s} of {file}:", served=served, count=found.prompts, file=file))
    untold = t("the server does not tell")
    prompts = untold if found.same_prompts is None else t("{same} of {all}", same=found.same_prompts, all=found.prompts)
    texts = untold if found.same_texts is None else t("{same} of {all}", same=found.same_texts, all=len(TEXTS))
    console.print(t("  same tokens of prompts   {same}", same=prompts))
    console.print(t("  same tokens of texts     {same}", same=texts))
    console.print(t("  same greedy answers      {same} of {all}", same=found.same_answers, all=found.prompts))
    if found.first_differences:
        shown = ", ".join(
            t("prompt {prompt} after {tokens}", prompt=prompt + 1, tokens=tokens)
            for prompt, tokens in found.first_differences[:SHOWN_DIFFERENCES]
        )
        console.print(t("    first other token      {shown}", shown=shown))
    if found.largest_difference is not None:
        console.print(
            t(
                "  log-probabilities        differ by {difference:.3g} at most ({tokens} token{tokens:s})",
                difference=found.largest_difference,
                tokens=found.compared_tokens,
            )
        )
    if found.perplexity is not None and found.served_perplexity is not None:
        console.print(
            t(
                "  perplexity               {ours:.4g} as trained, {served:.4g} as served",
                ours=found.perplexity,
                served=found.served_perplexity,
            )
        )
    if found.is_same:
        is_equal = found.same_answers == found.prompts
        console.print(
            t("same: what is served is what was trained")
            if is_equal
            else t("same but for rounding: where two tokens are almost equally likely, the other one may be chosen")
        )
        return
    console.print(t("DIFFERENT: what is served is not what was trained:"))
    for fault in found.faults:
        console.print(f"  - {fault}", soft_wrap=True)
