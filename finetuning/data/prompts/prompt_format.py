"""From a question and its answer to tokens: the tokenizer's chat template, or a template of the user's.

A sample becomes prompt tokens followed by answer tokens; only the answer, with the first token that ends it, is trained.
Special tokens come from the template alone: text such as `<|eot_id|>` inside a question or an answer is encoded as
ordinary characters. The prompt of a training sample is, token for token, the prompt that is used when an answer is generated.

Template and tokenizer are foreign: both are applied in a process with limits, another one unless this one has them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

import numpy as np

from finetuning.data.prompts.chat_template import DATE, read_chat_template
from finetuning.data.prompts.conversation import Pieces
from finetuning.data.prompts.leads import encode_with_leads, leads_of_conversation, leads_of_turns
from finetuning.data.prompts.limited import (
    FormatSource,
    TokenizerFacts,
    Turns,
    decode_limited,
    differences_limited,
    encode_limited,
    find_facts,
    settle,
    token_starts_limited,
    token_text_limited,
    tokenizer_here,
    try_tokenizer,
)
from finetuning.data.prompts.named_tokens import named_token_problems
from finetuning.data.prompts.sample_pieces import ALL_ANSWERS, pieces_of, problem_of, trained_answers
from finetuning.data.prompts.template_parts import (
    Difference,
    TemplateParts,
    check_lengths_of_texts,
    custom_parts,
    difference,
)
from finetuning.data.prompts.tokenizer import (
    MAX_TOKENIZER_BYTES,
    TOKENIZER_FILE,
    Segments,
    decode_tokens,
    encode_each,
    read_end_token_ids,
    read_table_size,
    read_tokenizer_settings,
    special_pattern,
    token_starts,
    unreadable,
)
from finetuning.data.reading.finding_words import describe
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from finetuning.files.documents import read_bytes
from finetuning.i18n import t
from finetuning.runtime.limited_process import is_limited

T = TypeVar("T")
Encoded = tuple[np.ndarray, np.ndarray]  # tokens (int32), and which of them are trained (bool)


@dataclass(frozen=True)
class PromptFormat:
    """What surrounds questions and answers, and how text becomes tokens."""

    source: FormatSource
    facts: TokenizerFacts
    parts: TemplateParts
    pinned_template: str | None  # the chat template with its date, where transformers would render another
    begin_token_id: int | None
    opens_turns: bool  # the begin token stands before later turns, too, as ChatML's <|im_start|>
    end_token_ids: tuple[int, ...]
    table_size: int | None  # rows of the embedding table
    fingerprint: str  # changes with the tokenizer's file and the text that the template writes
    was_asked_for: bool  # by --prompt_template; tokens and texts of a base model need none, and get none
    writes_names: bool = True  # of who says a message, as the chat template does
    train_on: str = ALL_ANSWERS

    @property
    def is_custom(self) -> bool:
        """From --prompt_template, not the tokenizer's own."""
        return self.source.chat_template is None

    @property
    def has_template(self) -> bool:
        """Whether there is any; without, only texts and tokens can be trained."""
        return not self.is_custom or self.was_asked_for

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.facts.special_tokens

    @property
    def template_digest(self) -> str:
        """Changes with the chat template's text, also where what it writes around the texts is the same."""
        return hashlib.sha256((self.source.chat_template or "").encode()).hexdigest()[:16]

    def problem_of(self, sample: Sample, *, with_answer: bool = True) -> Problem | None:
        """Why this format has no place for the sample, or nothing to train in it, if so."""
        if not self.has_template and not sample.is_text:
            return Problem("no_chat_template", {}, excerpt(sample.input))
        if with_answer and not any(self.trained_answers(sample)):
            return Problem("nothing_trained", {}, excerpt(sample.input))
        if sample.messages and self.is_custom:
            what = ", ".join(message["role"] for message in sample.messages[:6])
            return Problem("conversation_has_no_place", {"what": what}, excerpt(sample.input))
        if sample.system is not None and self.parts.own_system is None:
            return Problem("system_has_no_place", {}, excerpt(sample.system))
        if sample.history and self.parts.again is None:
            return Problem("turns_have_no_place", {}, excerpt(sample.history[0][0]))
        return None

    def trained_answers(self, sample: Sample) -> list[bool]:
        """Whether each answer is trained, in order."""
        return trained_answers(sample, self.train_on)

    def weights(self, sample: Sample, trained: np.ndarray) -> np.ndarray:
        """How much each token counts in the loss (float32), of a sample's trained tokens; where all alike, `trained` itself.

        Of each trained answer there is one stretch of trained tokens, as is promised (`promises`).
        """
        if all(weight in (0, 1) for weight in sample.weights):
            return trained
        answers = zip(sample.answer_weights, self.trained_answers(sample), strict=True)
        of_stretches = np.array([0.0, *(weight for weight, is_trained in answers if is_trained)], np.float32)
        begins = trained & ~np.concatenate(([False], trained[:-1]))
        return of_stretches[np.cumsum(begins) * trained]

    def differences(self, samples: list[Sample], *, with_answer: bool = True) -> list[Problem | None]:
        """Where the chat template itself writes a sample in another way, of samples without a `problem_of`."""
        if self.is_custom or not samples:
            return [None] * len(samples)
        in_turns = [sample for sample in samples if not sample.messages and not sample.is_text]
        found = iter(self._differences([(sample.system, list(sample.turns)) for sample in in_turns], with_answer))
        written = iter(self._pieces([sample for sample in samples if sample.messages]))
        problems: list[Problem | None] = []
        for sample in samples:
            if sample.messages:
                pieces = next(written)
                problems.append(pieces if isinstance(pieces, Problem) else None)
            else:
                one = None if sample.is_text else next(found)
                problems.append(problem_of(Difference(*one), sample) if one else None)
        return problems

    def _differences(self, turns: list[Turns], with_answer: bool) -> Sequence[Sequence[str] | None]:
        if not is_limited():
            return differences_limited(self.source, self.parts, turns, with_answer=with_answer)
        template, system_prompt = self.source.template(), self.source.system_prompt
        assert template is not None
        return [difference(self.parts, template, system_prompt, *each, with_answer=with_answer) for each in turns]

    def prompt_text(self, sample: Sample) -> str:
        """Everything before the last answer."""
        return "".join(text for segments, _ in self._pieces_of_one(sample)[:-1] for text, _ in segments)

    def whole_text(self, sample: Sample) -> str:
        """The whole sample, control text included."""
        return "".join(text for segments, _ in self._pieces_of_one(sample) for text, _ in segments)

    def encode_prompt(self, sample: Sample) -> list[int]:
        """Tokens of everything before the last answer; errors as of `encode`."""
        pieces = self._pieces_of_one(sample)[:-1]
        return [token for found in self._encode_pieces([sample], [pieces]) for token in self._whole(found)]

    def encode(self, sample: Sample) -> Encoded:
        """Tokens of the whole sample, and which of them are trained.

        Raises:
            InputError: the tokenizer fails on it.
        """
        return self.encode_all([sample])[0]

    def encode_all(self, samples: list[Sample]) -> list[Encoded]:
        """`encode` of many samples at once."""
        encoded = []
        for found in self.encode_each(samples):
            encoded.append(self._usable(found))
        return encoded

    def encode_each(self, samples: list[Sample]) -> list[Encoded | Problem]:
        """`encode` of many samples at once; the problem of those that the template does not write or the tokenizer fails on."""
        all_pieces = self._pieces(samples)
        written = [(sample, pieces) for sample, pieces in zip(samples, all_pieces, strict=True) if isinstance(pieces, list)]
        found = iter(self._encode_pieces([sample for sample, _ in written], [pieces for _, pieces in written]))
        encoded: list[Encoded | Problem] = []
        for sample, pieces in zip(samples, all_pieces, strict=True):
            if isinstance(pieces, Problem):
                encoded.append(pieces)
                continue
            outcomes = [(next(found), is_trained) for _, is_trained in pieces]
            error = next((outcome for outcome, _ in outcomes if isinstance(outcome, str)), None)
            if error is not None:
                encoded.append(Problem("tokenizer_fails", {"error": error}, excerpt(sample.input)))
                continue
            tokens = np.concatenate([np.array(ids, dtype=np.int32) for ids, _ in outcomes])
            trained = np.repeat([is_trained for _, is_trained in outcomes], [len(ids) for ids, _ in outcomes])
            encoded.append((tokens, trained))
        return encoded

    def count_tokens(self, text: str) -> int:
        """Of a text alone; errors as of `encode`."""
        return len(self.encode_texts([text])[0])

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts alone, nothing put before or after; errors as of `encode`."""
        return [self._whole(found) for found in self._encode([[(text, True)] for text in texts])]

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        """The prompt of plain turns as a server is sent it, which puts it into the chat template itself."""
        system = sample.system or self.source.system_prompt
        found = [{"role": "system", "content": system}] if system else []
        for question, answer in sample.turns:
            found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return found[:-1]

    def cut_input(self, sample: Sample, seq_length: int) -> Sample | None:
        """The sample with its longest questions cut at their end so that it fits; None: what may not be cut does not."""
        while (excess := len(self.encode(sample)[0]) - seq_length) > 0:
            if sample.messages or sample.is_text:
                return None
            questions = [question for question, _ in sample.turns]
            longest = max(range(len(questions)), key=lambda index: len(questions[index]))
            starts = self._token_starts(questions[longest])
            if not starts:
                return None
            keep = len(starts) - excess
            cut = min(starts[keep], len(questions[longest]) - 1) if keep > 0 else 0
            questions[longest] = questions[longest][:cut]
            *history, last = zip(questions, (answer for _, answer in sample.turns), strict=True)
            sample = dataclasses.replace(sample, input=last[0], history=tuple(history))
        return sample

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        return self.decode_all([tokens], skip_special_tokens=skip_special_tokens)[0]

    def decode_all(self, tokens: list[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """`decode` of many at once.

        Raises:
            InputError: the tokenizer fails on them.
        """
        if not is_limited():
            return decode_limited(self.source, tokens, skip_special_tokens=skip_special_tokens)
        tokenizer = tokenizer_here(self.source)
        return [decode_tokens(tokenizer, each, skip_special_tokens=skip_special_tokens) for each in tokens]

    def token_text(self, token: int) -> str | None:
        """The tokenizer's name of a token; None: it has none of this number."""
        return tokenizer_here(self.source).id_to_token(token) if is_limited() else token_text_limited(self.source, token)

    def chat_template(self) -> str | None:
        """Jinja chat template that writes the same prompts, where the tokenizer's own does not (None: it does)."""
        if not self.was_asked_for:
            return self.pinned_template
        assert self.parts.again is not None
        before, between, after, again = (
            json.dumps(text, ensure_ascii=False)
            for text in (self.parts.before, self.parts.between, self.parts.after, self.parts.again)
        )
        return (
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'user' -%}{{ " + before + " if loop.first else " + again + " }}{{ message['content'] }}"
            "{{ " + between + " }}{%- elif message['role'] == 'assistant' -%}{{ message['content'] }}{{ " + after + " }}"
            "{%- endif -%}{%- endfor -%}"
        )

    def special_token_in(self, text: str) -> str | None:
        found = special_pattern(self.special_tokens).search(text)
        return found[0] if found else None

    def _encode_pieces(self, samples: list[Sample], all_pieces: list[Pieces]) -> list[list[int] | str]:
        """Tokens of each piece of each sample, as they are in the whole text."""
        leads = [lead for each in zip(samples, all_pieces, strict=True) for lead in self._leads(*each)]
        return encode_with_leads([segments for pieces in all_pieces for segments, _ in pieces], leads, self._encode)

    def _leads(self, sample: Sample, pieces: Pieces) -> list[str]:
        by_place = self.facts.reads_by_place
        if sample.is_text:
            return [""] * len(pieces)
        if sample.messages:
            return leads_of_conversation(pieces, special_pattern(self.special_tokens), reads_by_place=by_place)
        return leads_of_turns(len(pieces), self.parts, reads_by_place=by_place, is_custom=self.is_custom)

    def _pieces(self, samples: Sequence[Sample]) -> list[Pieces | Problem]:
        return pieces_of(samples, self.source, self.parts, self.train_on)

    def _pieces_of_one(self, sample: Sample) -> Pieces:
        return self._usable(self._pieces([sample])[0])

    def _usable(self, found: T | Problem) -> T:
        """What was found of a sample, where it is no problem."""
        if isinstance(found, Problem) and found.code == "tokenizer_fails":
            raise self._failed(str(found.values["error"]))
        if isinstance(found, Problem):
            raise InputError(describe(found.code, found.values))
        return found

    def _encode(self, entries: list[Segments]) -> list[list[int] | str]:
        if is_limited():
            return [
                found if isinstance(found, list) else str(found) for found in encode_each(tokenizer_here(self.source), entries)
            ]
        return encode_limited(self.source, entries)

    def _token_starts(self, text: str) -> list[int]:
        return token_starts(tokenizer_here(self.source), text) if is_limited() else token_starts_limited(self.source, text)

    def _whole(self, found: list[int] | str) -> list[int]:
        if isinstance(found, str):
            raise self._failed(found)
        return found

    def _failed(self, error: str) -> InputError:
        return InputError(t("{file}: the tokenizer fails: {error}", file=self.source.tokenizer_file, error=error))


def load_prompt_format(
    model_path: Path,
    prompt_template: str | None,
    system_prompt: str | None,
    *,
    needs_template: bool = True,
    day: date = DATE,
    train_on: str = ALL_ANSWERS,
) -> PromptFormat:
    """Reads the tokenizer of a local model folder and settles the prompt format.

    Without `needs_template` a tokenizer without chat template, that of a base model, will do: for tokens, and for texts that
    nobody asks for. A chat template that asks for the date is told `day`.

    Raises:
        InputError: no tokenizer, no chat template, or a template that cannot train a proper end of answer.
    """
    check_lengths_of_texts(prompt_template=prompt_template, system_prompt=system_prompt)
    file = model_path / TOKENIZER_FILE
    settings = read_tokenizer_settings(model_path)
    tokens = settings.special_tokens()
    chat_template = read_chat_template(model_path, settings) if prompt_template is None else None
    was_asked_for = prompt_template is not None
    if prompt_template is None and chat_template is None and not needs_template:
        if system_prompt:
            raise InputError(t("--system_prompt has no effect: the data are texts, and the tokenizer has no chat template"))
        prompt_template = "{input}{output}"
    digest = _digest_of(file)
    source = FormatSource(str(model_path), digest, tokens, (), chat_template, system_prompt, day.isoformat())
    begin, end = tokens.get("bos_token", ""), tokens.get("eos_token", "")
    end_token_ids = read_end_token_ids(model_path)
    facts = find_facts(source, [begin, end], sorted(end_token_ids))
    problems = named_token_problems(model_path, facts)
    if facts.dropout:
        problems.append(
            t(
                "{file}: model.dropout is {dropout}, so that the same text becomes other tokens each time; set it to null",
                file=file,
                dropout=facts.dropout,
            )
        )
    if problems:
        raise InputError(problems)
    if end in facts.ids:
        end_token_ids.add(facts.ids[end])
    ends = tuple(facts.texts[number] for number in sorted(end_token_ids) if number in facts.texts)
    source = _with_ends(source, ends)
    pinned, writes_names = None, False
    if prompt_template is not None:
        parts = custom_parts(prompt_template, system_prompt if was_asked_for else None, begin, end, ends)
    else:
        parts, pinned, writes_names = _chat_parts(source)
    begin_id = facts.ids.get(begin)
    opens_turns = bool(begin) and (begin in parts.between or begin in (parts.again or ""))
    _check_control_text(source, parts, begin, begin_id, opens_turns, end_token_ids)
    table_size = read_table_size(model_path)
    settled = hashlib.sha256((digest + json.dumps(parts[:-1])).encode()).hexdigest()[:16]
    return PromptFormat(
        source,
        facts,
        parts,
        pinned,
        begin_id,
        opens_turns,
        tuple(sorted(end_token_ids)),
        table_size,
        settled,
        was_asked_for,
        writes_names,
        train_on,
    )


def _digest_of(file: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(file, MAX_TOKENIZER_BYTES)).hexdigest()
    except FileNotFoundError as error:
        raise unreadable(file, error) from None


def _with_ends(source: FormatSource, ends: tuple[str, ...]) -> FormatSource:
    return FormatSource(
        source.model_path, source.tokenizer_digest, source.tokens, ends, source.chat_template, source.system_prompt, source.day
    )


def _chat_parts(source: FormatSource) -> tuple[TemplateParts, str | None, bool]:
    if source.chat_template is None:
        raise InputError(
            t(
                "{path}: the tokenizer has no chat template (a base model?); use an -Instruct model, or give "
                "--prompt_template, for example '{example}'",
                path=source.model_path,
                example=r"問題：{input}\n回答：{output}",
            )
        )
    settled = settle(source)
    if settled.parts is None:
        raise InputError(
            t(
                "{path}: the chat template does not put the answer right after the prompt; give --prompt_template",
                path=source.model_path,
            )
        )
    return settled.parts, settled.pinned, settled.writes_names


def _check_control_text(
    source: FormatSource, parts: TemplateParts, begin: str, begin_id: int | None, opens_turns: bool, end_token_ids: set[int]
) -> None:
    head, tail = try_tokenizer(source, [parts.before, parts.after])
    if begin_id is not None and not begins_well(np.array(head), begin_id, opens_turns=opens_turns):
        raise InputError(
            t("the prompt must begin with exactly one {token}; it begins with {text!r}", token=begin, text=parts.before[:60])
        )
    if not tail or tail[-1] not in end_token_ids:
        raise InputError(
            t(
                "answers would end with {text!r}, which holds no end token, so the model would never learn to stop",
                text=parts.after,
            )
        )


def begins_well(tokens: np.ndarray, begin_id: int, *, opens_turns: bool) -> bool:
    """Whether a prompt begins with the begin token, which stands nowhere else, or else opens turns and is not doubled."""
    is_begin = tokens == begin_id
    if not is_begin[:1].any():
        return False
    return not (is_begin[1:] & is_begin[:-1]).any() if opens_turns else int(is_begin.sum()) == 1
