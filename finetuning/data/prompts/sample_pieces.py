"""A sample in pieces that become tokens by themselves: its texts, what stands around them, and which pieces are trained.

Three kinds: questions and answers in turns, whose surroundings are known (`template_parts`); other conversations, which the
chat template writes itself (`conversation`); and texts, from the begin token to the end token.
"""

from collections.abc import Sequence

from finetuning.data.prompts.conversation import Conversation, Pieces
from finetuning.data.prompts.limited import FormatSource, write_here, write_limited
from finetuning.data.prompts.template_parts import Difference, TemplateParts
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.records import Sample
from finetuning.runtime.limited_process import is_limited

ALL_ANSWERS, LAST_ANSWER = "all_answers", "last_answer"


def trained_answers(sample: Sample, train_on: str) -> list[bool]:
    """Whether each answer is trained, in order."""
    trained = [weight > 0 for weight in sample.answer_weights]
    return trained if train_on == ALL_ANSWERS else [False] * (len(trained) - 1) + trained[-1:]


def pieces_of(samples: Sequence[Sample], source: FormatSource, parts: TemplateParts, train_on: str) -> list[Pieces | Problem]:
    """The pieces of each sample, its last answer the last one; or how the chat template does not write it."""
    conversations = [
        Conversation(list(sample.messages), list(sample.tools), trained_answers(sample, train_on))
        for sample in samples
        if sample.messages
    ]
    write = write_here if is_limited() else write_limited
    written = iter(write(source, conversations) if conversations else [])
    found: list[Pieces | Problem] = []
    for sample in samples:
        if sample.messages:
            pieces = next(written)
            found.append(problem_of(pieces, sample) if isinstance(pieces, Difference) else pieces)
        elif sample.is_text:
            begin, end = (source.tokens.get(name, "") for name in ("bos_token", "eos_token"))
            found.append([([(begin, True)], False), ([(sample.output, False), (end, True)], True)])
        else:
            flags = iter(trained_answers(sample, train_on))
            found.append(
                [(segments, is_answer and next(flags)) for segments, is_answer in parts.pieces(sample.system, sample.turns)]
            )
    return found


def problem_of(difference: Difference, sample: Sample) -> Problem:
    return Problem("template_differs", difference._asdict(), excerpt(sample.input))
