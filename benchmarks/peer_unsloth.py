"""Peer: Unsloth, LoRA r = 16 on all seven linears, its kernels and its packing, without the Trainer of TRL around it.

torch: the attention that it chooses itself, FlashAttention-4 inside torch included where its own probe accepts that;
flash_attention_2: the functions of the package flash-attn, which it prefers where they are installed, on torch's own kernel.
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1")

# unsloth first: it patches the others.
import unsloth  # noqa: F401 I001
import torch
from peer_loop import (
    ROW_TOKENS,
    MicroBatch,
    attention_mask,
    flash_attn_func,
    flash_attn_varlen_func,
    load_steps,
    measure,
    parse_arguments,
)
from torch import Tensor
from unsloth import FastLanguageModel
from unsloth.utils import attention_dispatch
from unsloth.utils.flash_impl import FLASH_IMPL_STATE, maybe_activate_flash_attention_impl

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    arguments = parse_arguments(attention=("torch", "flash_attention_2"), checkpointing=("unsloth", "off"))
    checkpointing = "unsloth" if arguments.checkpointing == "unsloth" else False
    model, _ = FastLanguageModel.from_pretrained(
        str(arguments.model), max_seq_length=ROW_TOKENS, dtype=torch.bfloat16, load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=checkpointing,
    )
    FastLanguageModel.for_training(model, use_gradient_checkpointing=checkpointing)
    if arguments.attention == "flash_attention_2":
        attention_dispatch.flash_attn_func = flash_attn_func
        attention_dispatch.flash_attn_varlen_func = flash_attn_varlen_func
        attention_dispatch.HAS_FLASH_ATTENTION = True
    else:
        maybe_activate_flash_attention_impl(model)
    steps = load_steps(arguments.workload, arguments.layout)

    def forward(row: MicroBatch) -> Tensor:
        options: dict[str, object] = {"attention_mask": attention_mask(row)} if row.padded else {}
        if len(row.lengths) > 1 and not row.padded:
            lengths = torch.tensor(row.lengths, dtype=torch.int32)
            options = {"position_ids": row.positions_BT, "packed_seq_lengths": lengths}
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return model(input_ids=row.tokens_BT, labels=row.labels_BT, **options).loss

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    packed = any(len(row.lengths) > 1 for rows in steps for row in rows) and arguments.layout == "packed"
    backend = attention_dispatch.select_attention_backend(use_varlen=packed)
    measure(
        steps,
        forward,
        trained,
        dtype=str(trained[0].dtype),
        attention=backend,
        flash={key: str(FLASH_IMPL_STATE[key]) for key in ("active", "reason")},
    )


if __name__ == "__main__":
    main()
