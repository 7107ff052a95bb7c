"""A sample exactly as the model sees it: every token, trained or not, and the promises that the tokens keep."""

from dataclasses import dataclass

from rich.text import Text

from finetuning.data.prompts.length import is_far_longer
from finetuning.data.prompts.promises import promises
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.columns import Columns
from finetuning.data.reading.records import Sample
from finetuning.data.reading.sources import Source, read_samples_at
from finetuning.errors import InputError
from finetuning.i18n import t

MAX_TOKENS = 131_072  # of a sample that is shown


@dataclass(frozen=True)
class PreviewToken:
    id: int
    text: str  # of the token alone; tokens of one character split over several are put together in the first, the rest is ""
    weight: float  # in the loss; 0: not trained
    is_special: bool

    @property
    def is_trained(self) -> bool:
        return self.weight > 0


@dataclass(frozen=True)
class Preview:
    file: str
    line: int
    tokens: list[PreviewToken]
    promises: list[tuple[str, bool]]  # what must hold, and whether it does

    @property
    def trained(self) -> int:
        return sum(token.is_trained for token in self.tokens)


def make_preview(file: str, sample: Sample, prompt_format: PromptFormat) -> Preview:
    tokens, trained = prompt_format.encode(sample)
    weights = prompt_format.weights(sample, trained)
    special = set(prompt_format.facts.special_ids)
    texts = _texts(tokens.tolist(), prompt_format)
    shown = [
        PreviewToken(token, text, float(weight), token in special)
        for token, text, weight in zip(tokens.tolist(), texts, weights, strict=True)
    ]
    return Preview(file, sample.line, shown, promises(sample, tokens, trained, prompt_format))


def preview_line(
    source: Source, line: int | None, prompt_format: PromptFormat, *, cut_to: int | None = None, columns: Columns = ()
) -> Preview:
    """The preview of a line, or of the first usable sample; with its input cut to this many tokens, where the run does so.

    Raises:
        InputError: there is no usable sample in that line.
    """
    wanted = {line} if line else set(range(1, 1000))
    samples = read_samples_at(source.path, wanted, columns)
    usable = [
        sample
        for _, sample in sorted(samples.items())
        if prompt_format.problem_of(sample) is None and not is_far_longer(prompt_format, sample, MAX_TOKENS)
    ]
    if not usable:
        place = f"{source.path.name}:{line}" if line else source.path.name
        raise InputError(t("{place}: holds no sample that can be used; `finetune data check` says why", place=place))
    sample = usable[0]
    if cut_to is not None:
        sample = prompt_format.cut_input(sample, cut_to) or sample
    return make_preview(source.path.name, sample, prompt_format)


def preview_text(preview: Preview, *, with_ids: bool = False) -> Text:
    """For a terminal: trained tokens bold on green, others dim, control tokens cyan; in brackets, with a weight other than 1.

    `with_ids` adds a line for each token: its number, its id, whether it is trained, and its text.
    """
    text = Text()
    text.append(
        t(
            "{file}:{line} · {tokens} token{tokens:s}, {trained} of them trained (in brackets)",
            file=preview.file,
            line=preview.line,
            tokens=len(preview.tokens),
            trained=preview.trained,
        )
        + "\n",
        style="bold",
    )
    weight = 0.0
    for token in preview.tokens:
        if token.weight != weight:
            text.append(_closed(weight) + "[" * token.is_trained, style="bold green")
            weight = token.weight
        style = "bold green" if token.is_trained else "cyan" if token.is_special else "dim"
        text.append(token.text, style=style)
    text.append(_closed(weight), style="bold green")
    if with_ids:
        for number, token in enumerate(preview.tokens):
            mark = t("trained") if token.is_trained else ""
            text.append(f"\n{number:>6}{token.id:>8}  {token.text!r}  {mark}", style="bold green" if mark else "dim")
    for promise, holds in preview.promises:
        text.append("\n" + ("✓ " if holds else "✗ "), style="green" if holds else "bold red")
        text.append(promise)
    return text


def _closed(weight: float) -> str:
    """What ends a stretch of this weight."""
    return "" if weight == 0 else "]" if weight == 1 else f"]×{weight:g}"


def _texts(tokens: list[int], prompt_format: PromptFormat) -> list[str]:
    """The text of each token; a character made of several tokens is put into the first of them."""
    decode = prompt_format.decode
    texts = prompt_format.decode_all([[token] for token in tokens], skip_special_tokens=False)
    index = 0
    while index < len(tokens):
        if "\ufffd" in texts[index]:
            for stop in range(index + 1, min(index + 8, len(tokens)) + 1):
                together = decode(tokens[index:stop], skip_special_tokens=False)
                if "\ufffd" not in together:
                    texts[index:stop] = [together] + [""] * (stop - index - 1)
                    index = stop - 1
                    break
        index += 1
    return texts
