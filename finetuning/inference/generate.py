"""Answers to prompts, greedy or sampled: on a GPU by the engine, on the CPU the plain way, which gives the same answers.

An answer depends on its prompt, its number and the seed, not on which prompts are computed beside it (up to rounding).
The sample answers of a training run are `finetuning.training.sample_answers`'s, which works in every layout.
"""

import torch

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.inference.conversation import Conversation
from finetuning.inference.engine import Engine
from finetuning.inference.plain import NewToken, PlainConversation, plain_answers
from finetuning.model.llama import Llama
from finetuning.model.sampling import Sampling

BATCH_SIZE, GPU_BATCH_SIZE = 16, 256
REPLACEMENT = "\ufffd"  # what an unfinished character decodes to


def generate_answers(
    net: Llama,
    prompts: list[list[int]],
    sampling: Sampling,
    end_token_ids: tuple[int, ...],
    *,
    batch_size: int | None = None,
    told: NewToken | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, without the end token.

    Args:
        batch_size: answers at once; None: BATCH_SIZE, or on a GPU GPU_BATCH_SIZE, as far as its memory goes.
        told: is called with each new token, as soon as it is there.

    Raises:
        InputError: the longest prompt and its answer do not fit the GPU's memory.
    """
    if not prompts or not has_engine(net.model.embed_tokens.weight.device):
        return plain_answers(net, prompts, sampling, end_token_ids, batch_size or BATCH_SIZE, told)
    lengths = [len(prompt) for prompt in prompts]
    engine = Engine(net, sampling, end_token_ids, lengths, batch_size or GPU_BATCH_SIZE)
    try:
        return engine.answer(prompts, told)
    finally:
        engine.close()


def has_engine(device: torch.device) -> bool:
    """Whether the engine's kernels run there: on GPUs that multiply matrices in bfloat16, from NVIDIA's A100 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def open_conversation(net: Llama, sampling: Sampling, end_token_ids: tuple[int, ...]) -> Conversation | PlainConversation:
    """To be closed."""
    kind = Conversation if has_engine(net.model.embed_tokens.weight.device) else PlainConversation
    return kind(net, sampling, end_token_ids)


class TextStream:
    """Turns tokens into text as they come; a character of several tokens appears when it is whole."""

    def __init__(self, prompt_format: PromptFormat):
        self.prompt_format = prompt_format
        self.tokens: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """The text that is new with this token."""
        self.tokens.append(token)
        text = self.prompt_format.decode(self.tokens)
        if text.endswith(REPLACEMENT):
            return ""
        return self._new(text)

    def end(self) -> str:
        """What is left of an unfinished character."""
        return self._new(self.prompt_format.decode(self.tokens))

    def _new(self, text: str) -> str:
        new, self.shown = text[len(self.shown) :], text
        return new
