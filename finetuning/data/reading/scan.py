"""Records to samples to tokens, batch by batch, on all cores: what one process does with a batch, and the pool of them.

Nothing here keeps more than a few batches in memory. Batches come back in the order of the file.
"""

import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetuning.data.prompts.length import is_far_longer, shorten_questions
from finetuning.data.prompts.promises import broken_promise
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.chinese_script import only_simplified, only_traditional
from finetuning.data.reading.columns import Columns
from finetuning.data.reading.findings import Finding, Problem, excerpt
from finetuning.data.reading.near_duplicates import DIGEST_BYTES, digest, minima
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import RawBatch, parse, read_batches
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.runtime.interrupts import end_signals_wait
from finetuning.runtime.limited_process import cpu_limit, limit_this_process
from finetuning.runtime.process_lifetime import end_with_parent
from finetuning.runtime.secrets import ContextWithoutSecrets, without_secrets

REFUSE, CUT_INPUT, DROP = "refuse", "cut_input", "drop"
TEMPLATE_TEXTS = (
    "<|start_header_id|>",
    "<|im_start|>",
    "<start_of_turn>",
    "[INST]",
    "<<SYS>>",
    "### Instruction:",
    "### Response:",
    "<|begin_of_text|>",
)
MIN_BYTES_FOR_PROCESSES = 4 << 20  # a process takes a second to start; less than that is read by one alone
MAX_PROCESSES = 16
MAX_UNKNOWN = 50  # names of fields that nobody knows, of a file
MEMORY_OF_PROCESS = 4 << 30
BATCH_S, BYTES_PER_S = 20.0, 20_000  # what the slowest machine needs, many times over


@dataclass(frozen=True)
class ScanSettings:
    """How samples are judged. Without a prompt format nothing is tokenized."""

    prompt_format: PromptFormat | None
    seq_length: int
    truncation: str = REFUSE
    columns: Columns = ()
    batch_s: float = BATCH_S  # CPU time that a process may take for a batch, besides that for its size


class Scanned(NamedTuple):
    """One batch: arrays over its usable samples, and what was found."""

    position: int  # bytes of the file read so far
    records: int  # usable or not
    formats: Counter[str]
    findings: list[Finding]
    unknown: dict[str, tuple[int, int]]  # fields that nobody knows: the first line and the number of records with it
    lines: np.ndarray
    counts: np.ndarray  # tokens of each sample
    answers: np.ndarray  # trained tokens of each sample
    tokens: np.ndarray
    trained: np.ndarray
    weights: np.ndarray | None  # of each token (float32); None: 1 of each that is trained
    weight_sums: np.ndarray  # of each sample
    digests: np.ndarray  # uint8 [n, 16] of the whole sample, character for character
    questions: np.ndarray  # uint8 [n, 16] of everything but the last answer, without white space around each text
    signatures: np.ndarray  # uint16 [n, 64], see near_duplicates
    scripts: np.ndarray  # int64 [n, 2]: how many characters only Simplified, only Traditional Chinese has


def scan_batch(batch: RawBatch, settings: ScanSettings) -> Scanned:
    """Reads, checks and tokenizes a batch."""
    findings: list[Finding] = []
    formats: Counter[str] = Counter()
    unknown: dict[str, tuple[int, int]] = {}
    samples: list[Sample] = []
    shortened: set[int] = set()  # lines
    for line, record in batch.records:
        sample, name, problems = parse(record, line, columns=settings.columns)
        if name:
            formats[name] += 1
        usable = None
        if sample is not None:
            usable, judged = _judge(sample, settings)
            problems = problems + judged
        for problem in problems:
            if problem.code == "unknown_field":
                add_unknown(unknown, str(problem.values["name"]), line, 1)
            else:
                findings.append(problem.at(batch.file, line))
        if usable is not None:
            samples.append(usable)
            if usable is not sample:
                shortened.add(line)
    encoded: list[tuple[np.ndarray, np.ndarray]] = []
    if settings.prompt_format is not None:
        samples, unwritable = _writable(samples, settings.prompt_format)
        samples, encoded, unusable = _tokenize(samples, settings.prompt_format, settings, shortened)
        findings += [problem.at(batch.file, line) for line, problem in unwritable + unusable]
    texts = ["\n".join(sample.texts()) for sample in samples]
    weights = (
        []
        if settings.prompt_format is None
        else list(map(settings.prompt_format.weights, samples, [trained for _, trained in encoded]))
    )
    is_weighted = any(each.dtype != np.bool_ for each in weights)
    return Scanned(
        batch.position,
        len(batch.records),
        formats,
        findings,
        unknown,
        lines=np.array([sample.line for sample in samples], np.int64),
        counts=np.array([len(tokens) for tokens, _ in encoded], np.int64),
        answers=np.array([int(trained.sum()) for _, trained in encoded], np.int64),
        tokens=np.concatenate([tokens for tokens, _ in encoded]) if encoded else np.zeros(0, np.int32),
        trained=np.concatenate([trained for _, trained in encoded]) if encoded else np.zeros(0, np.bool_),
        weights=np.concatenate([each.astype(np.float32) for each in weights]) if is_weighted else None,
        weight_sums=np.array([each.sum(dtype=np.float64) for each in weights]),
        digests=_digests([_digest_of_sample(sample) for sample in samples]),
        questions=_digests([_digest_of_question(sample) for sample in samples]),
        signatures=minima(texts),
        scripts=np.array([(len(only_simplified(x)), len(only_traditional(x))) for x in texts], np.int64).reshape(-1, 2),
    )


def add_unknown(unknown: dict[str, tuple[int, int]], name: str, line: int, count: int) -> None:
    """Counts a field that nobody knows; of names without end, the later ones together under ""."""
    if name not in unknown and len(unknown) >= MAX_UNKNOWN:
        name = ""
    first, before = unknown.get(name, (line, 0))
    unknown[name] = (first, before + count)


def _judge(sample: Sample, settings: ScanSettings) -> tuple[Sample | None, list[Problem]]:
    """The sample (None: it cannot be used; shortened, where it is far too long), and what its texts say."""
    prompt_format = settings.prompt_format
    if prompt_format is None:
        return sample, look_at_text(sample, None)
    if is_far_longer(prompt_format, sample, settings.seq_length):
        values: dict[str, str | int] = {"at_least": settings.seq_length, "seq_length": settings.seq_length}
        if settings.truncation == DROP:
            return None, [Problem("dropped_too_long", values, excerpt(sample.input))]
        shorter = shorten_questions(prompt_format, sample, settings.seq_length) if settings.truncation == CUT_INPUT else None
        if shorter is None:
            return None, [Problem("too_long", values, excerpt(sample.input))]
        sample = shorter
    problems = look_at_text(sample, prompt_format)
    if not prompt_format.writes_names and any("name" in message for message in sample.messages if message["role"] != "tool"):
        problems.append(Problem("unknown_field", {"name": "messages[].name", "count": 1}))
    problem = prompt_format.problem_of(sample)
    return (sample, problems) if problem is None else (None, [*problems, problem])


def look_at_text(sample: Sample, prompt_format: PromptFormat | None) -> list[Problem]:
    """What is suspicious in the texts of a sample: traces of a wrong encoding, templates and control tokens in them."""
    problems = []
    for text in sample.texts():
        if "\ufffd" in text:
            problems.append(Problem("replacement_character", {}, _around(text, "\ufffd")))
            break
    for text in sample.texts():
        pasted = next((pattern for pattern in TEMPLATE_TEXTS if pattern in text), None)
        if pasted:
            problems.append(Problem("pasted_template", {"text": pasted}, _around(text, pasted)))
            break
        token = prompt_format.special_token_in(text) if prompt_format and ("<" in text or "[" in text) else None
        if token:
            problems.append(Problem("special_token", {"token": token}, _around(text, token)))
            break
    return problems


def scan_file(path: Path, settings: ScanSettings, pool: ProcessPoolExecutor | None) -> Iterator[Scanned | Finding]:
    """All batches of a file, in order; in this process when there is no pool.

    Raises:
        InputError: tokenizer or chat template take too much time or memory on a text.
    """
    try:
        yield from _scan_batches(path, settings, pool)
    except BrokenProcessPool:
        raise InputError(
            t(
                "{file}: a process that read it was ended: the tokenizer or the chat template takes too much time or memory on "
                "a text there, or the machine has too little memory",
                file=path,
            )
        ) from None


def _scan_batches(path: Path, settings: ScanSettings, pool: ProcessPoolExecutor | None) -> Iterator[Scanned | Finding]:
    waiting: deque[Future[Scanned] | Finding] = deque()
    for batch in read_batches(path):
        if isinstance(batch, Finding):
            waiting.append(batch)
        elif pool is None:
            yield scan_batch(batch, settings)
        else:
            with end_signals_wait():  # it may start a process, and half of one could not be ended
                waiting.append(pool.submit(_scan_in_worker, batch))
        if len(waiting) > 2 * MAX_PROCESSES:
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def make_pool(paths: list[Path], settings: ScanSettings) -> ProcessPoolExecutor | None:
    """Processes for files of this size on this machine; None: one is enough."""
    cores = min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1, MAX_PROCESSES)
    if cores == 1 or sum(path.stat().st_size for path in paths) < MIN_BYTES_FOR_PROCESSES:
        return None
    # Spawned: tokenizers and torch have threads here, which a fork would not take along.
    with without_secrets():  # the pool starts a process of its own
        resource_tracker.ensure_running()
        return ProcessPoolExecutor(
            cores, mp_context=ContextWithoutSecrets(), initializer=_start_worker, initargs=(settings, os.getpid())
        )


_worker_settings: ScanSettings | None = None


def _start_worker(settings: ScanSettings, parent: int) -> None:
    global _worker_settings
    end_with_parent(parent)
    # It began with END_SIGNALS blocked. A terminal sends Ctrl-C and its end to every process; the parent is enough.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _worker_settings = settings
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    limit_this_process(MEMORY_OF_PROCESS)


def _scan_in_worker(batch: RawBatch) -> Scanned:
    assert _worker_settings is not None
    size = sum(len(record) if isinstance(record, bytes) else len(str(record)) for _, record in batch.records)
    with cpu_limit(_worker_settings.batch_s + size / BYTES_PER_S):
        return scan_batch(batch, _worker_settings)


def _result(entry: Future[Scanned] | Finding) -> Scanned | Finding:
    return entry if isinstance(entry, Finding) else entry.result()


def _writable(samples: list[Sample], prompt_format: PromptFormat) -> tuple[list[Sample], list[tuple[int, Problem]]]:
    """The samples that the chat template itself writes as the format does, and a problem for each other one.

    Those that only the template can write are told when they become tokens.
    """
    in_turns = [sample for sample in samples if not sample.messages]
    problems = {
        sample.line: problem
        for sample, problem in zip(in_turns, prompt_format.differences(in_turns), strict=True)
        if problem is not None
    }
    return [sample for sample in samples if sample.line not in problems], list(problems.items())


def _tokenize(
    samples: list[Sample], prompt_format: PromptFormat, settings: ScanSettings, shortened: set[int]
) -> tuple[list[Sample], list[tuple[np.ndarray, np.ndarray]], list[tuple[int, Problem]]]:
    """The samples that fit with their tokens; a problem for each that did not, or not before it was `shortened`, or that breaks
    a promise."""
    kept: list[Sample] = []
    encoded: list[tuple[np.ndarray, np.ndarray]] = []
    problems: list[tuple[int, Problem]] = []
    for sample, found in zip(samples, prompt_format.encode_each(samples), strict=True):
        if isinstance(found, Problem):
            problems.append((sample.line, found))
            continue
        tokens, trained = found
        if (broken := broken_promise(sample, tokens, trained, prompt_format)) is not None:
            problems.append((sample.line, broken))
            continue
        is_shortened = sample.line in shortened
        if len(tokens) <= settings.seq_length and not is_shortened:
            kept.append(sample)
            encoded.append((tokens, trained))
            continue
        values: dict[str, str | int] = {"tokens": len(tokens), "seq_length": settings.seq_length}
        if is_shortened:
            values = {"at_least": settings.seq_length, "seq_length": settings.seq_length}
        cut = prompt_format.cut_input(sample, settings.seq_length) if settings.truncation == CUT_INPUT else None
        if cut is not None:
            kept.append(cut)
            encoded.append(prompt_format.encode(cut))
            if not is_shortened:
                values["removed"] = len(tokens) - len(encoded[-1][0])
            problems.append((sample.line, Problem("input_cut", values, excerpt(sample.input))))
        elif settings.truncation == DROP:
            problems.append((sample.line, Problem("dropped_too_long", values, excerpt(sample.input))))
        else:
            values["prompt"] = int(len(tokens) - trained.sum())
            problems.append((sample.line, Problem("too_long", values, excerpt(sample.input))))
    return kept, encoded, problems


def _digests(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def _digest_of_sample(sample: Sample) -> bytes:
    return digest([sample.system, *sample.texts(), *_beside(sample)])


def _digest_of_question(sample: Sample) -> bytes:
    if sample.is_text:  # it asks nothing, and is the same only where all of it is
        return digest(["text", sample.output])
    if sample.messages:
        return digest(["conversation", repr((sample.messages[:-1], sample.tools))])
    *before, _ = sample.texts()
    return digest([sample.system and sample.system.strip(), *(text.strip() for text in before)])


def _beside(sample: Sample) -> list[str]:
    """What makes samples of the same texts different: who says them, tools, and what is trained."""
    is_more = sample.messages or sample.weights or sample.is_text
    return [repr((sample.messages, sample.tools, sample.weights, sample.is_text))] if is_more else []


def _around(text: str, found: str) -> str:
    return excerpt(text[max(text.index(found) - 10, 0) :])
