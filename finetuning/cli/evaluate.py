"""`finetune evaluate MODEL DATA`: loss and perplexity of each sample, answers, and how close they are to the references."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from finetuning.cli.common_flags import add_columns_flag, verb_parser
from finetuning.cli.model_argument import open_given_model
from finetuning.cli.model_flags import (
    VLLM,
    add_engine_flag,
    add_model_flags,
    add_prompt_flags,
    add_sampling_flags,
    chosen_device,
    chosen_sampling,
)
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.columns import parse_columns
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import find_sources
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.i18n import t
from finetuning.inference.evaluate import SampleLoss, mean_loss, sample_losses
from finetuning.inference.generate import generate_answers
from finetuning.inference.loading import LoadedModel, load_model
from finetuning.inference.samples import check_prompts, check_tokens, read_samples
from finetuning.inference.scores import Scores, check_packages, score_answers
from finetuning.inference.vllm import vllm_answers, vllm_command
from finetuning.model.sampling import Sampling
from finetuning.terminal import open_console

SHOWN_SAMPLES = 5
SUMMARY, TABLE, PREDICTIONS = "summary.json", "samples.csv", "predictions.jsonl"


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("evaluate", t("How well a model answers a data file."))
    add_model_flags(parser)
    parser.add_argument("data", type=Path, help=t("a data file as for training, or a data folder, of which test is taken"))
    parser.add_argument("--out", type=Path, help=t("folder for the results; default: evaluation/MODEL-DATA"))
    parser.add_argument("--limit", type=int, help=t("only this many samples, from the beginning"))
    parser.add_argument("--no_answers", action="store_true", help=t("only loss and perplexity, which is much faster"))
    add_sampling_flags(parser, max_new_tokens=256)
    add_engine_flag(parser)
    add_prompt_flags(parser)
    add_columns_flag(parser)
    given = parser.parse_args(argv)
    sampling = chosen_sampling(given)
    device, dtype = chosen_device(given)
    if given.limit is not None and given.limit < 1:
        raise InputError(t("--{name} {value}: {rule}", name="limit", value=given.limit, rule=t("must be 1 or more")))
    if given.no_answers and given.engine is not None:
        raise InputError(t("--engine {engine} has no effect with --no_answers", engine=given.engine))
    if not given.no_answers:
        check_packages()
    file = data_file(given.data)
    samples = read_samples(file, given.limit, columns=parse_columns(given.columns))
    stored = open_given_model(given.model, given.base)
    command = vllm_command(stored, given.dtype) if given.engine == VLLM else None
    model = load_model(stored, device, dtype, given.prompt_template, given.system_prompt)
    check_prompts(samples, model.prompt_format, stored.base.config, with_answer=True)
    tokens = [tokens for tokens, _ in model.prompt_format.encode_all(samples)]
    check_tokens(samples, tokens, 0, model.prompt_format, stored.base.config)
    losses = sample_losses(model.net, model.prompt_format, samples, device)
    answers = None
    if command is not None:
        prompt_format = model.prompt_format
        del model  # vLLM takes most of the GPU's memory
        answers = _answers_of_vllm(command, prompt_format, samples, sampling, given.batch_size)
    elif not given.no_answers:
        answers = _answers(model, samples, sampling, given.batch_size)
    scores = None if answers is None else score_answers(answers, [sample.output for sample in samples])
    out = given.out or Path("evaluation") / f"{Path(given.model).resolve().name}-{file.name.split('.')[0]}"
    write_results(out, samples, losses, answers, scores, {"model": str(stored.path), "data": str(file)})
    console = open_console()
    _show(console, samples, losses, scores, out)
    return EXIT_FINISHED


def data_file(given: Path) -> Path:
    """The file itself; of a data folder its test split, else validation.

    Raises:
        InputError: the folder has neither.
    """
    if not given.is_dir():
        return given
    sources = find_sources(given)
    for name in ("test", "validation"):
        if name in sources and not sources[name].is_shared:
            return sources[name].path
    raise InputError(t("{path}: has no test and no validation file; give the file itself", path=given))


def write_results(
    out: Path,
    samples: list[Sample],
    losses: list[SampleLoss],
    answers: list[str] | None,
    scores: tuple[Scores, list[Scores]] | None,
    origin: dict[str, str],
) -> None:
    """The three files of an evaluation."""
    out.mkdir(parents=True, exist_ok=True)
    loss = mean_loss(losses)
    whole = SampleLoss(0, sum(item.answer_tokens for item in losses), loss, 1.0)
    summary = origin | {
        "samples": len(samples),
        "answer_tokens": whole.answer_tokens,
        "loss": loss,
        "perplexity": whole.perplexity,
        **(asdict(scores[0]) if scores else {}),
    }
    (out / SUMMARY).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = [
        {"line": item.line, "answer_tokens": item.answer_tokens, "loss": item.loss, "perplexity": item.perplexity}
        | (asdict(scores[1][index]) if scores else {})
        for index, item in enumerate(losses)
    ]
    with (out / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if answers is not None:
        lines = (
            json.dumps({"input": sample.input, "label": sample.output, "prediction": answer}, ensure_ascii=False) + "\n"
            for sample, answer in zip(samples, answers, strict=True)
        )
        (out / PREDICTIONS).write_text("".join(lines), encoding="utf-8")


def _answers(model: LoadedModel, samples: list[Sample], sampling: Sampling, batch_size: int | None) -> list[str]:
    prompts = [model.prompt_format.encode_prompt(sample) for sample in samples]
    tokens = generate_answers(model.net, prompts, sampling, model.prompt_format.end_token_ids, batch_size=batch_size)
    return model.prompt_format.decode_all(tokens)


def _answers_of_vllm(
    command: list[str], prompt_format: PromptFormat, samples: list[Sample], sampling: Sampling, at_once: int | None
) -> list[str]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    prompts = [prompt_format.encode_prompt(sample) for sample in samples]
    return prompt_format.decode_all(vllm_answers(command, prompts, sampling, prompt_format.end_token_ids, at_once))


def _show(
    console: Console, samples: list[Sample], losses: list[SampleLoss], scores: tuple[Scores, list[Scores]] | None, out: Path
) -> None:
    loss = mean_loss(losses)
    whole = SampleLoss(0, 1, loss, 1.0)
    console.print(
        t(
            "loss {loss:.4f}, perplexity {perplexity:.2f} on {samples} sample{samples:s} ({tokens} answer token{tokens:s})",
            loss=loss,
            perplexity=whole.perplexity,
            samples=len(samples),
            tokens=sum(item.answer_tokens for item in losses),
        )
    )
    if scores is not None:
        mean = scores[0]
        console.print(
            t(
                "exact match {exact:.1%}, ROUGE-1 {rouge1:.3f}, ROUGE-2 {rouge2:.3f}, ROUGE-L {rouge_l:.3f}, chrF {chrf:.3f}",
                exact=mean.exact_match,
                rouge1=mean.rouge1,
                rouge2=mean.rouge2,
                rouge_l=mean.rouge_l,
                chrf=mean.chrf,
            )
        )
    console.print(t("highest losses:"))
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in (t("line"), t("loss"), t("tokens"), t("input")):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    worst = sorted(range(len(losses)), key=lambda index: -losses[index].loss)[:SHOWN_SAMPLES]
    for index in worst:
        item = losses[index]
        first = " ".join(samples[index].input.split())
        table.add_row(str(item.line), f"{item.loss:.4f}", str(item.answer_tokens), first)
    console.print(table)
    console.print(
        t("all samples: {files} in {folder}", files=", ".join(sorted(path.name for path in out.iterdir())), folder=out)
    )
