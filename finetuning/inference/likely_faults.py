"""What goes wrong between training and serving, told from the served files, or as another model that would answer so.

In: our model, and the served one where it lies here as a file or folder. Rows of weights are compared, not all of them: a
few of each are enough for an adapter or a base.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetuning.config.llama import LlamaConfig
from finetuning.formats.gguf.header import GgufHeader
from finetuning.formats.gguf.vocabulary import read_vocabulary
from finetuning.formats.gguf.write import end_of_answer
from finetuning.formats.stored_model import StoredModel
from finetuning.formats.weight_source import WeightSource
from finetuning.i18n import t
from finetuning.inference.loading import load_net
from finetuning.model.llama import Llama

ROWS = 64  # of each weight
# By how much rounding moves rows, as a share of their norm; of blocks, some twice what random numbers measure.
SHARES = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3, "Q8_0": 0.015, "Q6_K": 0.04, "Q5_K": 0.08, "Q4_K": 0.16}
COARSEST = 0.25  # of any other type
NOT_COMPUTED = ("max_position_embeddings", "dtype")  # fields of a configuration that no number depends on


@dataclass(frozen=True)
class ConfiguredSource:
    """Weights under another configuration of the same shapes."""

    source: WeightSource
    config: LlamaConfig

    def shapes(self) -> dict[str, torch.Size]:
        return self.source.shapes()

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.source.read(name, start, stop)


def likely_models(model: StoredModel, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Llama]]:
    """Models that are served in place of the trained one, with what has happened then; one at a time in memory."""
    if model.adapter is not None:
        yield t("it answers as the base model without the adapter"), load_net(model.base, device, dtype)
    source = model.weights(rounds=False)
    if source.config.rope_scaling is not None:
        plain = ConfiguredSource(source, dataclasses.replace(source.config, rope_scaling=None))
        yield t("it answers as the trained model without its RoPE scaling"), load_net(plain, device, dtype)


def stored_faults(served: WeightSource, model: StoredModel, type_name: Callable[[str], str]) -> list[str]:
    """Of weights that lie here.

    Args:
        type_name: how a served weight is kept, as a GGUF file names it.
    """
    trained = model.weights(rounds=False)
    faults = [
        t("{name} is {served} as served and {trained} as trained", name=field.name, served=theirs, trained=ours)
        for field in dataclasses.fields(LlamaConfig)
        if field.name not in NOT_COMPUTED
        and (theirs := getattr(served.config, field.name)) != (ours := getattr(trained.config, field.name))
    ]
    if served.shapes() != trained.shapes():
        return faults
    updated = model.adapter.updates if model.adapter is not None else {}
    # What was merged may have been rounded to the base's dtype before it came into this file.
    shares = {
        name: max(SHARES.get(type_name(name), COARSEST), SHARES[str(model.base.dtype(name)).removeprefix("torch.")])
        for name in trained.shapes()
    }
    wrong = [name for name in trained.shapes() if _difference(served, trained, name) > shares[name]]
    if updated and sum(_difference(served, model.base, name) - _difference(served, trained, name) for name in updated) < 0:
        return [*faults, t("weights: those of the base model, without the adapter")]
    if wrong:
        is_of_base = bool(updated) and not set(wrong) <= set(updated)
        reason = t("it was made from another base model") if is_of_base else t("it was made from another training")
        counts = {"count": len(wrong), "all": len(trained.shapes()), "name": wrong[0]}
        faults.append(t("weights: {count} of {all} differ, {name} first: {reason}", **counts, reason=reason))
    return faults


def header_faults(header: GgufHeader, model: StoredModel) -> list[str]:
    """Of what a GGUF file says of its tokenizer."""
    has_record = (model.origin or {}).get("prompt") is not None
    end = end_of_answer(model.prompt_format()) if has_record else None
    expected = read_vocabulary(Path(model.tokenizer_folder), model.base.config.vocab_size, end)
    rule = header.settings.get("tokenizer.ggml.pre")
    faults = []
    if rule != expected.rule:
        faults.append(
            t(
                "tokenizer: the file splits text by the rule {served!r}, in training it was {trained!r}",
                served=rule,
                trained=expected.rule,
            )
        )
    tokens = {header.settings.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    missing = [expected.tokens[token] for token in dict.fromkeys(expected.ends.values()) if token not in tokens]
    if missing:
        faults.append(t("stop token: the file does not end answers at {ends}", ends=", ".join(missing)))
    return faults


def _difference(served: WeightSource, trained: WeightSource, name: str) -> float:
    """Of the first rows, as a share of their norm."""
    ours = trained.read(name, 0, ROWS).float()
    return ((served.read(name, 0, ROWS).float() - ours).norm() / ours.norm().clamp_min(1e-30)).item()
