"""Keys and values of many sequences in pages, and prompts read into them.

Memory is cut into pages of PAGE positions. A sequence takes as many as it may come to need and gives them back when it ends, so
that sequences of any lengths share the memory, and none is ever moved. Prompts go through the model as documents of one packed
sequence, exactly as in training. One process, whole weights.

Shape letters: S sequences, T tokens of a pack, N query heads, K key/value heads, H head dimension, A pages, L positions of a
page, P pages of a sequence, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from finetuning.config.llama import LlamaConfig
from finetuning.model.attention import Documents, document_attention, make_documents, sent
from finetuning.model.kernels.decode_ops import Cache, positions_of
from finetuning.model.llama import Block, Llama

PAGE = 64
TOKENS_AT_ONCE = 1024  # of those that are added to a sequence; each looks at all positions before it


def num_pages(positions: int) -> int:
    return -(-positions // PAGE)


def page_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Of one page in all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * PAGE * dtype.itemsize


class PagedCache:
    """Pages of all layers. The first belongs to nobody: what no sequence needs is written there."""

    def __init__(self, config: LlamaConfig, pages: int, dtype: torch.dtype, device: torch.device):
        shape = (pages + 1, config.num_key_value_heads, PAGE, config.head_dim)

        def empty() -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)  # never NaN, which a weight of 0 would not hide

        self.layers: list[Cache] = [(empty(), empty()) for _ in range(config.num_hidden_layers)]
        self.free = list(range(pages, 0, -1))

    def take(self, positions: int) -> list[int]:
        """Pages for so many positions, which must be there."""
        return [self.free.pop() for _ in range(num_pages(positions))]

    def give_back(self, pages: list[int]) -> None:
        self.free += pages


class PromptReader:
    """Reads prompts into a cache. It takes over the model's attention until `close`."""

    def __init__(self, net: Llama, cache: PagedCache):
        self.net, self.cache = net, cache
        self.device = net.model.embed_tokens.weight.device
        self.attentions = [block.self_attn for block in net.model.layers.values() if isinstance(block, Block)]
        self.own = [attention.attend for attention in self.attentions]
        self.places = (torch.empty(0), torch.empty(0))  # page of each token, and where in it
        self.earlier: Tensor | None = None  # pages [P] of the sequence that goes on
        for attention, layer in zip(self.attentions, cache.layers, strict=True):
            attention.attend = _StoringAttention(self, layer)

    def read_prompts(self, prompts: list[list[int]], pages: list[list[int]]) -> Tensor:
        """Logits [S, V] after each prompt, each to be kept in its pages from position 0."""
        lengths = [len(prompt) for prompt in prompts]
        tokens_T = torch.tensor([token for prompt in prompts for token in prompt])
        position_T = torch.cat([torch.arange(length) for length in lengths])
        page_T = torch.cat(
            [torch.tensor(own)[torch.arange(length) // PAGE] for own, length in zip(pages, lengths, strict=True)]
        )
        last_S = torch.tensor(lengths).cumsum(0) - 1
        return self._read(tokens_T, position_T, page_T, last_S, make_documents(lengths), None)

    def read_more(self, tokens: list[int], start: int, pages: list[int]) -> Tensor:
        """Logits [1, V] after more tokens of a sequence, whose positions before `start` are in its pages."""
        logits_SV, pages_P = torch.empty(0), torch.tensor(pages)
        for part_T in torch.tensor(tokens).split(TOKENS_AT_ONCE):
            position_T = torch.arange(start, start + len(part_T))
            start += len(part_T)
            documents, last_S = make_documents([len(part_T)]), torch.tensor([len(part_T) - 1])
            logits_SV = self._read(
                part_T, position_T, pages_P[position_T // PAGE], last_S, documents, pages_P[: num_pages(start)]
            )
        return logits_SV

    def close(self) -> None:
        """Gives the model its own attention back, and frees the cache."""
        for attention, own in zip(self.attentions, self.own, strict=True):
            attention.attend = own
        self.cache.layers.clear()

    def _read(
        self,
        tokens_T: Tensor,
        position_T: Tensor,
        page_T: Tensor,
        last_S: Tensor,
        documents: Documents,
        earlier_P: Tensor | None,
    ) -> Tensor:
        tokens_T, position_T, page_T, last_S = (sent(x, self.device) for x in (tokens_T, position_T, page_T, last_S))
        self.places = page_T, position_T % PAGE
        self.position_T = position_T
        self.earlier = None if earlier_P is None else sent(earlier_P, self.device)
        return self.net(tokens_T[None], position_T[None], documents.to(self.device), at_S=last_S)[0]


class _StoringAttention(nn.Module):
    """Attention of one layer that keeps keys and values, and looks at those that were kept."""

    def __init__(self, reader: PromptReader, cache: Cache):
        super().__init__()
        self.reader, self.cache = reader, cache

    @override
    def forward(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, documents: Documents) -> Tensor:
        (page_T, place_T), (keys_AKLH, values_AKLH) = self.reader.places, self.cache
        keys_AKLH[page_T, :, place_T] = k_TKH
        values_AKLH[page_T, :, place_T] = v_TKH
        if self.reader.earlier is None:
            return document_attention(q_TNH, k_TKH, v_TKH, documents)
        k, v = (positions_of(pages, self.reader.earlier[None]) for pages in self.cache)
        seen_TL = torch.arange(k.shape[2], device=k.device) <= self.reader.position_T[:, None]
        out = F.scaled_dot_product_attention(q_TNH.transpose(0, 1)[None], k, v, attn_mask=seen_TL, enable_gqa=True)
        return out[0].transpose(0, 1)
