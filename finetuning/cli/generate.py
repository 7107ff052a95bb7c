"""`finetune generate MODEL [PROMPT …]`: answers to prompts, from the command line, a file or standard input."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

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
from finetuning.data.reading.columns import parse_columns
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import SUFFIXES, stem_of
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.i18n import printable, t
from finetuning.inference.generate import TextStream, generate_answers
from finetuning.inference.loading import load_model
from finetuning.inference.samples import check_characters, check_prompts, check_tokens, read_prompts, read_samples
from finetuning.inference.vllm import vllm_answers, vllm_command


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("generate", t("Answers prompts; one prompt streams."))
    add_model_flags(parser)
    parser.add_argument("prompts", nargs="*", help=t("questions; default: --file, or each line of standard input is one"))
    parser.add_argument("--file", type=Path, help=t("questions: data as for training, or a text file with one on each line"))
    parser.add_argument("--out", type=Path, help=t("JSON Lines file for the answers; default: the terminal"))
    add_sampling_flags(parser, max_new_tokens=256)
    add_engine_flag(parser)
    add_prompt_flags(parser)
    add_columns_flag(parser)
    given = parser.parse_intermixed_args(argv)  # flags may stand between the positional arguments
    sampling = chosen_sampling(given)
    if given.engine is not None and given.device is not None:
        raise InputError(t("--device has no effect with --engine {engine}", engine=given.engine))
    device, dtype = chosen_device(given)
    samples = _samples(given.prompts, given.file, given.columns)
    stored = open_given_model(given.model, given.base)
    command = vllm_command(stored, given.dtype) if given.engine == VLLM else None
    model = None if command else load_model(stored, device, dtype, given.prompt_template, given.system_prompt)
    prompt_format = model.prompt_format if model else stored.prompt_format(given.prompt_template, given.system_prompt)
    check_prompts(samples, prompt_format, stored.base.config, with_answer=False)
    prompts = [prompt_format.encode_prompt(sample) for sample in samples]
    check_tokens(samples, prompts, sampling.max_new_tokens, prompt_format, stored.base.config)
    stream = TextStream(prompt_format)
    streams = len(samples) == 1 and given.out is None

    def show(_number: int, token: int) -> None:
        print(printable(stream.add(token)), end="", flush=True)

    told, ends = show if streams else None, prompt_format.end_token_ids
    if model is None:
        assert command is not None
        answers = vllm_answers(command, prompts, sampling, ends, given.batch_size, told)
    else:
        answers = generate_answers(model.net, prompts, sampling, ends, batch_size=given.batch_size, told=told)
    if streams:
        print(printable(stream.end()))
        return EXIT_FINISHED
    texts = prompt_format.decode_all(answers)
    if given.out is None:
        _write(sys.stdout, samples, texts)
    else:
        with given.out.open("w", encoding="utf-8") as file:
            _write(file, samples, texts)
        print(t("{count} answer{count:s} in {file}", count=len(texts), file=given.out))
    return EXIT_FINISHED


def _samples(prompts: list[str], file: Path | None, columns: str | None) -> list[Sample]:
    if prompts and file is not None:
        raise InputError(t("give prompts or --file, not both"))
    if columns is not None and (file is None or stem_of(file) is None):
        raise InputError(t("--columns has no effect without data as --file"))
    if file is not None and stem_of(file) is not None:
        return read_samples(file, None, needs_answer=False, columns=parse_columns(columns))
    if file is not None:
        try:
            with file.open("rb") as stream:
                prompts = read_prompts(stream, str(file))
        except OSError as error:
            raise InputError(t("{file}: cannot be read: {error}", file=file, error=error.strerror or error)) from None
    elif not prompts:
        prompts = read_prompts(sys.stdin.buffer, t("standard input"))
    check_characters(prompts)
    samples = [Sample(line, prompt, "") for line, prompt in enumerate(prompts, start=1) if prompt.strip()]
    if not samples:
        raise InputError(
            t(
                "no prompt: give one as an argument, on standard input, or a file of lines or of {suffixes} as --file",
                suffixes=", ".join(SUFFIXES),
            )
        )
    return samples


def _write(file: TextIO, samples: list[Sample], answers: list[str]) -> None:
    for sample, answer in zip(samples, answers, strict=True):
        row = {"input": sample.input} | ({"label": sample.output} if sample.output else {}) | {"prediction": answer}
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
