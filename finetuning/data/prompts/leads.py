"""What pieces of a sample are encoded with, so that each has the tokens that it has in the whole text.

Where it matters a piece is encoded with the control text before it, whose tokens are then taken away: a tokenizer may write a
mark before every text, or have tokens that take in the white space beside them.
"""

import re
from collections.abc import Callable

from finetuning.data.prompts.conversation import Pieces
from finetuning.data.prompts.template_parts import TemplateParts
from finetuning.data.prompts.tokenizer import Segments
from finetuning.i18n import t

Encode = Callable[[list[Segments]], list[list[int] | str]]  # tokens of each entry, or why it has none


def leads_of_turns(count: int, parts: TemplateParts, *, reads_by_place: bool, is_custom: bool) -> list[str]:
    """Of the pieces of questions and answers in turns. An answer is the continuation of a prompt that the model is given by
    itself, but an earlier one is part of such a prompt."""
    leads = []
    for place in range(count):
        is_answer = place % 2 == 1
        is_history = is_answer and place < count - 1 and not (is_custom or parts.trims)
        matters = place > 0 and (reads_by_place or is_history)
        leads.append((parts.between if is_answer else parts.after) if matters else "")
    return leads


def leads_of_conversation(pieces: Pieces, special: re.Pattern[str], *, reads_by_place: bool) -> list[str]:
    """The same where the template has written all: the end of the piece before, from its last special token on."""
    leads = [""]
    for place in range(1, len(pieces)):
        is_history = place % 2 == 1 and place < len(pieces) - 1
        before, is_control = pieces[place - 1][0][-1] if pieces[place - 1][0] else ("", True)
        starts = [found.start() for found in special.finditer(before)] if is_control else []
        leads.append(before[starts[-1] :] if starts and (reads_by_place or is_history) else "")
    return leads


def encode_with_leads(entries: list[Segments], leads: list[str], encode: Encode) -> list[list[int] | str]:
    """Tokens of each piece without those of its lead."""
    found = encode([[(lead, True), *segments] if lead else segments for lead, segments in zip(leads, entries, strict=True)])
    texts = sorted(set(leads) - {""})
    lead_tokens = dict(zip(texts, encode([[(text, True)] for text in texts]), strict=True))
    return [_without(lead, lead_tokens.get(lead, []), tokens) for lead, tokens in zip(leads, found, strict=True)]


def _without(lead: str, lead_tokens: list[int] | str, tokens: list[int] | str) -> list[int] | str:
    if isinstance(tokens, str) or isinstance(lead_tokens, str):
        return tokens if isinstance(tokens, str) else lead_tokens
    if tokens[: len(lead_tokens)] != lead_tokens:
        return t(
            "it makes one token of the end of {lead!r} and the beginning of the text behind it; begin that text without white "
            "space",
            lead=lead,
        )
    return tokens[len(lead_tokens) :]
