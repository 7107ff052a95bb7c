"""The next token of each sequence, from its logits: the likeliest, or drawn.

A draw is decided by the seed, the number of the sequence, the place of the token and the logits alone, so it does not matter
which other sequences are computed beside it, when, or where. Each token of the vocabulary gets a number of its own from a
hash, distributed as Gumbel's: the largest sum of logit and number is then a draw from the softmax of the logits.

Shape letters: S sequences, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuning.model.kernels import decode_ops


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    top_k: int = 0  # only this many of the likeliest; 0: all
    seed: int = 1234
    max_new_tokens: int = 256


def choose_tokens(logits_SV: Tensor, sampling: Sampling, number_S: Tensor, place_S: Tensor) -> Tensor:
    """The next token [S] (int64), without waiting for the device.

    Args:
        number_S: of each sequence, int64.
        place_S: position that each new token gets, int64.
    """
    if sampling.temperature == 0.0:
        return logits_SV.argmax(-1)
    scaled_SV = logits_SV.float() / sampling.temperature
    if 0 < sampling.top_k < scaled_SV.shape[-1]:
        scaled_SV = _from(scaled_SV, scaled_SV.topk(sampling.top_k).values[:, -1:])
    if sampling.top_p < 1.0:
        ordered_SV = scaled_SV.sort(descending=True).values
        probability_SV = ordered_SV.softmax(-1)
        before_SV = probability_SV.cumsum(-1) - probability_SV
        kept_SV = before_SV < sampling.top_p  # the likeliest always stays
        scaled_SV = _from(scaled_SV, ordered_SV.masked_fill(~kept_SV, math.inf).amin(-1, keepdim=True))
    return decode_ops.add_gumbel(scaled_SV, row_keys(sampling.seed, number_S, place_S)).argmax(-1)


def row_keys(seed: int, number_S: Tensor, place_S: Tensor) -> Tensor:
    """What the noise of each row is made from: two numbers of 32 bits [S, 2], as int64."""
    key_S = decode_ops.hash32(number_S + decode_ops.hash_of(seed % 2**32))
    key_S = decode_ops.hash32(place_S + key_S)
    return torch.stack((key_S, decode_ops.hash32(key_S + decode_ops.hash_of(seed // 2**32 + 1))), -1)


def _from(scaled_SV: Tensor, lowest_S1: Tensor) -> Tensor:
    return scaled_SV.masked_fill(scaled_SV < lowest_S1, -math.inf)
