"""`finetune inspect PATH`: what a file or folder with a model holds, whoever wrote it."""

import json
from collections.abc import Sequence
from pathlib import Path

from finetuning.cli.common_flags import verb_parser
from finetuning.formats.inspection import Inspection
from finetuning.formats.recognize import inspect
from finetuning.i18n import t
from finetuning.terminal import open_console

LABEL_WIDTH = 12


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("inspect", t("What a file or folder with a model holds."))
    parser.add_argument("path", type=Path, help=t("folder or file of Hugging Face, PEFT, NeMo, Megatron, GGUF or this command"))
    parser.add_argument("--json", action="store_true", help=t("one JSON object instead of text, with every tensor"))
    parser.add_argument("--tensors", action="store_true", help=t("list every tensor"))
    given = parser.parse_args(argv)
    found = inspect(given.path)
    console = open_console()
    if given.json:
        console.print(json.dumps(found.plain(), ensure_ascii=False))
        return 0
    for label, value in _lines(found):
        console.print(f"{label:<{LABEL_WIDTH}}{value}")
    if given.tensors:
        for name, weight in found.weights.items():
            console.print(f"  {name}  {list(weight.shape)}  {weight.dtype}")
    return 0


def _lines(found: Inspection) -> list[tuple[str, str]]:
    lines = [(t("format"), found.format), (t("path"), found.path)]
    model = found.model
    if model is not None:
        lines.append(
            (
                t("model"),
                t(
                    "Llama, {layers} layer{layers:s}, hidden {hidden}, MLP {inner}, {heads} heads of {size} for {groups} "
                    "key/value heads, "
                    "vocabulary {vocabulary}, {head}",
                    layers=model.num_hidden_layers,
                    hidden=model.hidden_size,
                    inner=model.intermediate_size,
                    heads=model.num_attention_heads,
                    groups=model.num_key_value_heads,
                    size=model.head_dim,
                    vocabulary=model.vocab_size,
                    head=t("tied head") if model.tie_word_embeddings else t("untied head"),
                ),
            )
        )
        scaling = model.rope_scaling
        factor = (
            ""
            if scaling is None
            else t(
                ", scaled by {factor:g} beyond {length} position{length:s}",
                factor=scaling.factor,
                length=scaling.original_max_position_embeddings,
            )
        )
        lines.append(("RoPE", f"{model.rope_theta:g}{factor}"))
    kinds = ", ".join(f"{count} x {dtype}" for dtype, count in found.dtypes.items()) or t("nothing")
    lines.append((t("weights"), t("{parameters:,} parameters; tensors: {kinds}", parameters=found.parameters, kinds=kinds)))
    if found.step is not None:
        lines.append((t("step"), str(found.step)))
    if found.layout:
        lines.append((t("saved with"), ", ".join(f"{axis} {degree}" for axis, degree in found.layout.items())))
    lines.append((t("optimizer"), t("states are there") if found.optimizer_states else t("no states")))
    lines.append((t("tokenizer"), found.tokenizer or t("none")))
    if found.base is not None:
        lines.append((t("base model"), found.base))
    lines += [(t("not usable"), problem) for problem in found.problems]
    return lines
