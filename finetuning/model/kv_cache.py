"""Keys and values of earlier tokens, kept for generating: the decoder then computes each token once.

A sequence's keys lie in its cache at their positions, so prompts of any lengths share a cache without padding. Prompts go
through the model as documents of one packed row, exactly as in training; after that each row holds one new token of every
sequence, or several of a sequence that is alone. One process, whole weights.

Shape letters: S sequences, T tokens of a row, N query heads, K key/value heads, G = N / K, H head dimension, L positions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from finetuning.model.attention import Documents, document_attention, make_documents
from finetuning.model.llama import Block, Llama

TOKENS_AT_ONCE = 1024  # of those that are added to a sequence; each looks at all positions before it


class Places(NamedTuple):
    """Where the tokens of the row belong that goes through the model now."""

    sequence_T: Tensor  # index in the cache
    position_T: Tensor
    longest: int  # positions in use, this row's included
    is_prompt: bool  # whole documents from position 0


class CachedLlama:
    """A decoder with a cache for a number of sequences. It takes over the model's attention until `close`."""

    def __init__(self, model: Llama, num_sequences: int, num_positions: int):
        """
        Args:
            num_positions: of the longest sequence, answer included.
        """
        self.model = model
        weight = model.model.embed_tokens.weight
        self.device = weight.device
        self.attentions = [layer.self_attn for layer in model.model.layers.values() if isinstance(layer, Block)]
        shape = (num_sequences, model.config.num_key_value_heads, num_positions, model.config.head_dim)
        self.caches = [torch.zeros(2, *shape, dtype=weight.dtype, device=self.device) for _ in self.attentions]
        self.lengths_S = torch.zeros(num_sequences, dtype=torch.int64, device=self.device)
        self.longest = 0
        self.places: Places | None = None
        self.own = [attention.attend for attention in self.attentions]
        for index, attention in enumerate(self.attentions):
            attention.attend = CachedAttention(self, index)

    @torch.inference_mode()
    def read_prompts(self, prompts: list[list[int]]) -> Tensor:
        """Logits [S, V] after each prompt; every sequence must be empty."""
        lengths = [len(prompt) for prompt in prompts]
        tokens_T = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        position_T = torch.cat([torch.arange(length) for length in lengths]).to(self.device)
        sequence_T = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(lengths)).to(self.device)
        self.lengths_S = torch.tensor(lengths, device=self.device)
        self.longest = max(lengths)
        self.places = Places(sequence_T, position_T, self.longest, is_prompt=True)
        documents = make_documents(lengths).to(self.device)
        last_S = self.lengths_S.cumsum(0) - 1
        return self.model(tokens_T[None], position_T[None], documents, at_S=last_S)[0]

    @torch.inference_mode()
    def read_tokens(self, tokens_S: Tensor) -> Tensor:
        """Logits [S, V] after one more token of each sequence."""
        position_S, self.lengths_S = self.lengths_S, self.lengths_S + 1
        self.longest += 1
        self.places = Places(torch.arange(len(tokens_S), device=self.device), position_S, self.longest, is_prompt=False)
        documents = make_documents([1] * len(tokens_S))
        return self.model(tokens_S[None].to(self.device), position_S[None], documents)[0]

    @torch.inference_mode()
    def read_more(self, tokens: list[int]) -> Tensor:
        """Logits [1, V] after more tokens of the only sequence."""
        logits_SV = torch.empty(0)
        for part_T in torch.tensor(tokens, device=self.device).split(TOKENS_AT_ONCE):
            position_T = torch.arange(self.longest, self.longest + len(part_T), device=self.device)
            self.longest += len(part_T)
            self.lengths_S = torch.tensor([self.longest], device=self.device)
            self.places = Places(torch.zeros_like(position_T), position_T, self.longest, is_prompt=False)
            documents = make_documents([len(part_T)])
            last_S = torch.tensor([len(part_T) - 1], device=self.device)
            logits_SV = self.model(part_T[None], position_T[None], documents, at_S=last_S)[0]
        return logits_SV

    def cut(self, length: int) -> None:
        """Forgets what the only sequence holds from this position on."""
        self.lengths_S = torch.tensor([length], device=self.device)
        self.longest = length

    def make_room(self, num_positions: int) -> None:
        """For sequences of this length; what is cached stays."""
        more = num_positions - self.caches[0].shape[-2]
        if more > 0:
            self.caches = [F.pad(cache, (0, 0, 0, more)) for cache in self.caches]

    def keep(self, sequences: list[int]) -> None:
        """Drops all other sequences; the kept ones move up."""
        chosen = torch.tensor(sequences, device=self.device)
        self.caches = [cache[:, chosen] for cache in self.caches]
        self.lengths_S = self.lengths_S[chosen]
        self.longest = int(self.lengths_S.max())

    def close(self) -> None:
        """Gives the model its own attention back and frees the cache."""
        for attention, own in zip(self.attentions, self.own, strict=True):
            attention.attend = own
        self.caches = []


class CachedAttention(nn.Module):
    """Attention of one layer that keeps keys and values, and looks at those that were kept."""

    def __init__(self, owner: CachedLlama, index: int):
        super().__init__()
        self.owner, self.index = owner, index

    @override
    def forward(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
        places, (keys_SKLH, values_SKLH) = self.owner.places, self.owner.caches[self.index]
        assert places is not None
        keys_SKLH[places.sequence_T, :, places.position_T] = k_TKH
        values_SKLH[places.sequence_T, :, places.position_T] = v_TKH
        if places.is_prompt:
            return document_attention(q_TNH, k_TKH, v_TKH, documents)
        if len(keys_SKLH) == 1:
            q_SNTH = q_TNH.transpose(0, 1)[None]
            seen_TL = torch.arange(places.longest, device=q_TNH.device) <= places.position_T[:, None]
            k, v = keys_SKLH[:, :, : places.longest], values_SKLH[:, :, : places.longest]
            found = F.scaled_dot_product_attention(q_SNTH, k, v, attn_mask=seen_TL, enable_gqa=True)
            return found[0].transpose(0, 1)
        # One query for each sequence; the G queries of a key/value head stand in for G positions.
        q_SKGH = q_TNH.unflatten(1, (keys_SKLH.shape[1], -1))
        seen_SL = torch.arange(places.longest, device=q_TNH.device) <= places.position_T[:, None]
        k, v = keys_SKLH[:, :, : places.longest], values_SKLH[:, :, : places.longest]
        return F.scaled_dot_product_attention(q_SKGH, k, v, attn_mask=seen_SL[:, None, None]).flatten(1, 2)
