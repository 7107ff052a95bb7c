"""`finetune merge ADAPTER OUT`: an adapter into its base model, and the proof that it answers as before.

Merged in float32 and written in the base's dtype; then both are loaded again and compared on real prompts.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from finetuning.cli.common_flags import verb_parser
from finetuning.cli.compared_prompts import add_comparison_flags, check_comparison_flags, compared_prompts
from finetuning.cli.export import export_with_progress, say_how_to_serve, served_name
from finetuning.cli.model_argument import open_given_model
from finetuning.cli.model_flags import add_model_flags, chosen_device
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, InputError
from finetuning.formats.huggingface.write import DTYPES
from finetuning.formats.stored_model import StoredModel, open_model
from finetuning.i18n import t
from finetuning.inference.compare import Behavior, Comparison, compare, observe
from finetuning.inference.loading import load_model
from finetuning.inference.samples import check_prompts, check_tokens
from finetuning.terminal import open_console


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("merge", t("Merges an adapter and compares before and after."))
    add_model_flags(parser)
    parser.add_argument("out", type=Path, help=t("folder for the merged model in Hugging Face format"))
    add_comparison_flags(parser)
    given = parser.parse_args(argv)
    check_comparison_flags(given)
    device, _ = chosen_device(given)
    dtype = DTYPES[given.dtype or "float32"]  # a coarser one would hide what merging changes
    stored = open_given_model(given.model, given.base)
    if stored.adapter is None:
        raise InputError(t("{path}: is a whole model; there is no adapter to merge", path=stored.path))
    file, samples = compared_prompts(given, stored.path)
    prompt_format = stored.prompt_format()
    check_prompts(samples, prompt_format, stored.base.config, with_answer=False)
    prompts = [prompt_format.encode_prompt(sample) for sample in samples]
    check_tokens(samples, prompts, given.max_new_tokens, prompt_format, stored.base.config)

    console = open_console()
    if not stored.base_is_checked:
        console.print(t("note: the adapter does not say on which weights it was trained; only names and shapes are compared"))
    export_with_progress(stored, given.out, None, console)
    console.print(t("model in Hugging Face format: {path}", path=given.out))
    before = _observe(stored, prompts, None, given.max_new_tokens, device, dtype)
    merged = open_model(given.out)
    after = _observe(merged, prompts, before.answers, given.max_new_tokens, device, dtype)
    dtypes = {merged.base.dtype(name) for name in stored.adapter.updates}
    found = compare(before, after, dtypes)
    _show(console, found, file)
    if found.is_same:
        say_how_to_serve(stored, given.out, served_name(given.model), console)
    return EXIT_FINISHED if found.is_same else EXIT_FAILED


def _observe(
    stored: StoredModel,
    prompts: list[list[int]],
    along: list[list[int]] | None,
    max_new_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Behavior:
    model = load_model(stored, device, dtype)  # freed before the next is loaded
    return observe(model.net, prompts, along, model.prompt_format.end_token_ids, max_new_tokens)


def _show(console: Console, found: Comparison, file: Path) -> None:
    console.print(t("compared on {count} prompt{count:s} of {file}:", count=found.answers, file=file))
    console.print(
        t(
            "  largest difference of a logit  {difference:.3g} (largest logit {largest:.3g}; rounding "
            "explains {tolerance:.3g})",
            difference=found.largest_difference,
            largest=found.largest_logit,
            tolerance=found.tolerance,
        )
    )
    console.print(
        t(
            "  same greedy answers            {same} of {all}; same next token at {tokens} of {positions} "
            "position{positions:s}",
            same=found.same_answers,
            all=found.answers,
            tokens=found.same_tokens,
            positions=found.tokens,
        )
    )
    if not found.is_same:
        console.print(t("DIFFERENT: the merged model does not compute what the adapter does; do not use it"))
    elif found.same_answers == found.answers:
        console.print(t("same: the merged model answers as the adapter does"))
    else:
        console.print(t("same but for rounding: where two tokens are almost equally likely, the other one may be chosen"))
