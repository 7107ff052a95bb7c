"""What the tokens of every sample keep: said by a preview, an error of check and training where they do not."""

import numpy as np

from finetuning.data.prompts.prompt_format import PromptFormat, begins_well
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.records import Sample
from finetuning.i18n import t


def broken_promise(sample: Sample, tokens: np.ndarray, trained: np.ndarray, prompt_format: PromptFormat) -> Problem | None:
    """The first promise that a sample's tokens do not keep, or a token that the model does not have."""
    if not _begins(tokens, prompt_format):
        return Problem("wrong_begin", {}, excerpt(sample.input))
    if not _ends(sample, tokens, trained, prompt_format):
        return Problem("no_end_token", {}, excerpt(sample.output))
    return unknown_token(tokens, prompt_format)


def unknown_token(tokens: np.ndarray, prompt_format: PromptFormat) -> Problem | None:
    """A token for which the embedding table has no row."""
    size = prompt_format.table_size
    if size is None or int(tokens.max(initial=0)) < size:
        return None
    token = int(tokens[tokens >= size][0])
    text = prompt_format.token_text(token)
    return Problem("token_beyond_table", {"token": text or "", "id": token, "size": size})


def promises(sample: Sample, tokens: np.ndarray, trained: np.ndarray, prompt_format: PromptFormat) -> list[tuple[str, bool]]:
    """What must hold of a sample, and whether it does."""
    prompt = prompt_format.encode_prompt(sample)
    last = np.full(len(tokens) - len(prompt), prompt_format.trained_answers(sample)[-1])
    kept = [(t("begins with the begin token, which is not doubled"), _begins(tokens, prompt_format))]
    if prompt_format.begin_token_id is None:
        kept = []
    elif not prompt_format.opens_turns:
        kept = [(t("exactly one begin-of-text token"), _begins(tokens, prompt_format))]
    kept += [
        (t("every trained answer ends with a trained end token"), _ends(sample, tokens, trained, prompt_format)),
        (
            t("the prompt is, token for token, the beginning of the sample"),
            tokens[: len(prompt)].tolist() == prompt
            and np.array_equal(trained[len(prompt) :], last)
            and not trained[: len(prompt)][-1:].any(),
        ),
    ]
    if not prompt_format.is_custom:
        same = prompt_format.differences([sample])[0] is None
        kept.append((t("the chat template itself writes the same text"), same))
    if prompt_format.table_size is not None:
        known = unknown_token(tokens, prompt_format) is None
        kept.append((t("every token has a row in the embedding table"), known))
    return kept


def _begins(tokens: np.ndarray, prompt_format: PromptFormat) -> bool:
    begin = prompt_format.begin_token_id
    if begin is None:
        return True
    return begins_well(tokens, begin, opens_turns=prompt_format.opens_turns)


def _ends(sample: Sample, tokens: np.ndarray, trained: np.ndarray, prompt_format: PromptFormat) -> bool:
    """Whether the trained tokens are one stretch for each trained answer, and each ends with an end token."""
    stops = trained.copy()
    stops[:-1] &= ~trained[1:]
    last = tokens[stops].tolist()
    return len(last) == sum(prompt_format.trained_answers(sample)) and set(last) <= set(prompt_format.end_token_ids)
