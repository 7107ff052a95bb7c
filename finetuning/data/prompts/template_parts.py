"""What a template puts around questions and answers, found once, so that a sample is put together without running it.

A chat template is rendered with marks in place of the texts. That it treats every text like the marks is compared for each
sample (`difference`): a template may trim, or take `<think>…</think>` out of earlier answers.

Example, ChatML: before `<|im_start|>user\\n`, between `<|im_end|>\\n<|im_start|>assistant\\n`, after `<|im_end|>`, again
`\\n<|im_start|>user\\n`, rest `\\n`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from finetuning.data.prompts.chat_template import ChatTemplate, TemplateFault
from finetuning.data.prompts.tokenizer import Segments
from finetuning.errors import InputError
from finetuning.i18n import t

# Rendered in place of the real texts; private-use characters, so that no template contains them. The white space around them
# tells whether the template trims; a space alone may be the template's own.
INPUT_MARK, OUTPUT_MARK, SYSTEM_MARK = "\ue000input\ue001", "\ue000output\ue001", "\ue000system\ue001"
PADDING = " \t "
MAX_CHARACTERS = 100_000  # of --prompt_template and --system_prompt
SHOWN_CHARACTERS = 60

Turns = Iterable[tuple[str, str]]


class TemplateParts(NamedTuple):
    """The control text of a template."""

    before: str  # the first question, begin-of-text included
    between: str
    after: str  # an answer; ends with the first end token
    again: str | None  # between an answer's end and the next question; None: turns cannot follow each other
    own_system: tuple[str, str] | None  # around a sample's own system message, to its question; None: no place
    trims: bool  # the chat template strips white space around every text
    rest: str  # what the chat template writes after the last answer's end, and nobody needs

    def pieces(self, system: str | None, turns: Turns) -> list[tuple[Segments, bool]]:
        """Prompt, answer, prompt, answer … as (segments, is an answer); each becomes tokens by itself."""
        opening: Segments = [(self.before, True)]
        if system is not None:
            assert self.own_system is not None
            head, tail = self.own_system
            opening = [(head, True), (self._trimmed(system), False), (tail, True)]
        pieces: list[tuple[Segments, bool]] = []
        for question, answer in turns:
            pieces.append(([*opening, (self._trimmed(question), False), (self.between, True)], False))
            pieces.append(([(self._trimmed(answer), False), (self.after, True)], True))
            opening = [(self.again or "", True)]
        return pieces

    def texts(self, system: str | None, turns: Turns) -> tuple[str, str]:
        """Everything before the last answer, and the whole sample."""
        pieces = ["".join(text for text, _ in segments) for segments, _ in self.pieces(system, turns)]
        return "".join(pieces[:-1]), "".join(pieces)

    def _trimmed(self, text: str) -> str:
        return text.strip() if self.trims else text


def chat_parts(template: ChatTemplate, system_prompt: str | None, ends: Iterable[str]) -> TemplateParts | None:
    """The parts of a chat template; None: it does not put the answer right after the prompt.

    Args:
        ends: texts of the end tokens.

    Raises:
        TemplateFault: the template fails.
    """
    turn = (_padded(INPUT_MARK), _padded(OUTPUT_MARK))
    prompt, whole = _rendered(template, system_prompt, [turn])
    trims = turn[0] not in prompt
    question, answer = (INPUT_MARK, OUTPUT_MARK) if trims else turn
    if prompt.count(question) != 1 or not whole.startswith(prompt) or not whole[len(prompt) :].startswith(answer):
        return None
    before, between = prompt.split(question)
    after, rest = cut_at_end(whole[len(prompt) + len(answer) :], ends)
    head = prompt + answer + after
    try:
        two_turns = _rendered(template, system_prompt, [turn, turn])[1]
    except TemplateFault:  # some templates refuse a second question
        two_turns = ""
    again = two_turns.removeprefix(head).partition(question)[0]
    repeats = two_turns == head + again + question + between + answer + after + rest
    own_system = _system_parts(template, turn, trims, between)
    return TemplateParts(before, between, after, again if repeats else None, own_system, trims, rest)


def kinds_of_conversations(system_prompt: str | None) -> list[tuple[list[dict[str, str]], bool]]:
    """Messages, and whether an answer is asked for: with and without a system message, one turn and two, prompt and whole."""
    turn = [{"role": "user", "content": INPUT_MARK}, {"role": "assistant", "content": OUTPUT_MARK}]
    system = {"role": "system", "content": system_prompt or SYSTEM_MARK}
    starts = [[system]] if system_prompt else [[], [system]]
    wholes = [[*start, *turns] for start in starts for turns in (turn, turn + turn)]
    return [kind for whole in wholes for kind in ((whole[:-1], True), (whole, False))]


def writes_names(template: ChatTemplate) -> bool:
    """Whether a template writes the `name` of who says a message."""
    turn = [
        {"role": "user", "name": INPUT_MARK, "content": "a"},
        {"role": "assistant", "name": OUTPUT_MARK, "content": "b"},
    ]
    try:
        text = template.render(turn, add_generation_prompt=False)
    except TemplateFault:
        return False
    return INPUT_MARK in text and OUTPUT_MARK in text


def custom_parts(template: str, system_prompt: str | None, begin: str, end: str, ends: Iterable[str]) -> TemplateParts:
    """The parts of --prompt_template.

    Raises:
        InputError: it lacks {input} or {output}, or a system prompt is given as well.
    """
    if system_prompt:
        raise InputError(t("--system_prompt has no effect with --prompt_template; write it into the template"))
    # A shell passes \n as two characters. Only these two escapes: unicode_escape would garble Chinese.
    template = template.replace(r"\n", "\n").replace(r"\t", "\t")
    places = template.find("{input}"), template.find("{output}")
    if template.count("{input}") != 1 or template.count("{output}") != 1 or places[0] > places[1]:
        raise InputError(
            t(
                "--prompt_template {template!r}: must contain {{input}} once and, after it, {{output}} once",
                template=shown(template),
            )
        )
    before, _, tail = template.partition("{input}")
    between, _, after = tail.partition("{output}")
    after, rest = cut_at_end(after, ends)
    if not any(text and text in after for text in ends):
        after += end
    opens_turns = bool(begin) and begin in between  # ChatML's <|im_start|>
    without_begin = before.removeprefix(begin)
    again = rest + (before if opens_turns else without_begin)
    return TemplateParts(begin + without_begin, between, after, again, None, False, "")


def check_lengths_of_texts(**texts: str | None) -> None:
    """
    Raises:
        InputError: a text of a flag is too long for a prompt.
    """
    problems = [
        t(
            "--{name}: {count:,} character{count:s}; at most {limit:,} are used",
            name=name,
            count=len(text),
            limit=MAX_CHARACTERS,
        )
        for name, text in texts.items()
        if text is not None and len(text) > MAX_CHARACTERS
    ]
    if problems:
        raise InputError(problems)


class Difference(NamedTuple):
    """Where a template writes a sample in another way than its parts do."""

    where: str  # "prompt", "answer", "error" or "not_written"
    theirs: str  # what the template writes from there on, or its error
    ours: str


def difference(
    parts: TemplateParts,
    template: ChatTemplate,
    system_prompt: str | None,
    system: str | None,
    turns: list[tuple[str, str]],
    *,
    with_answer: bool = True,
) -> Difference | None:
    """Compares a sample as its parts write it with what the template makes of it; None: they are the same."""
    try:
        prompt, whole = _rendered(template, system or system_prompt, turns, with_answer=with_answer)
    except TemplateFault as error:
        return Difference("error", shown(str(error)), "")
    our_prompt, our_whole = parts.texts(system, turns)
    if prompt != our_prompt:
        return Difference("prompt", *from_difference(prompt, our_prompt))
    if with_answer and whole != our_whole + parts.rest:
        return Difference("answer", *from_difference(whole, our_whole + parts.rest))
    return None


def from_difference(theirs: str, ours: str) -> tuple[str, str]:
    """Both texts from where they differ."""
    place = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    return shown(theirs[place:]), shown(ours[place:])


def _padded(mark: str) -> str:
    return PADDING + mark + PADDING


def shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _rendered(template: ChatTemplate, system: str | None, turns: Turns, *, with_answer: bool = True) -> tuple[str, str]:
    """Prompt and whole of a conversation."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = template.render(messages[:-1], add_generation_prompt=True)
    return prompt, template.render(messages, add_generation_prompt=False) if with_answer else ""


def _system_parts(template: ChatTemplate, turn: tuple[str, str], trims: bool, between: str) -> tuple[str, str] | None:
    """What stands before a sample's own system message, and between it and the question; None: it has no place."""
    try:
        prompt, _ = _rendered(template, _padded(SYSTEM_MARK), [turn], with_answer=False)
    except TemplateFault:  # some templates refuse a system message
        return None
    system, question = (SYSTEM_MARK, INPUT_MARK) if trims else (_padded(SYSTEM_MARK), turn[0])
    if prompt.count(system) != 1 or prompt.count(question) != 1 or not prompt.endswith(question + between):
        return None
    head, _, rest = prompt.partition(system)
    return head, rest.removesuffix(question + between)


def cut_at_end(text: str, ends: Iterable[str]) -> tuple[str, str]:
    """Up to and with the first end token, and what follows; the whole where there is none."""
    stops = [text.index(end) + len(end) for end in ends if end and end in text]
    return (text[: min(stops)], text[min(stops) :]) if stops else (text, "")
