"""Peer: transformers + PEFT + Liger, LoRA r = 16 on all seven linears, without its Trainer, whose work is then not counted.

Adapters are bfloat16 like the weights: PEFT's default, float32 adapters without autocast, is much slower.
"""

import torch
from liger_kernel.transformers import apply_liger_kernel_to_llama
from peer_loop import MicroBatch, attention_mask, load_steps, measure, parse_arguments, register_flash_attention_2
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    arguments = parse_arguments(attention=("sdpa", "flash_attention_2", "flash_attention_4"), checkpointing=("off", "on"))
    attention = arguments.attention
    if attention == "flash_attention_2":
        attention = register_flash_attention_2()
    apply_liger_kernel_to_llama()
    config = AutoConfig.from_pretrained(arguments.model)
    config.use_cache, config.initializer_range = False, 0.02
    with torch.device("cuda"):
        base = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    if arguments.checkpointing == "on":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    steps = load_steps(arguments.workload, arguments.layout)

    def forward(row: MicroBatch) -> Tensor:
        options = packed_options(row) if attention != "sdpa" and not row.padded else {}
        if attention == "sdpa" and not row.padded:
            assert len(row.lengths) == 1, "SDPA sees a packed row as one document"
        return model(input_ids=row.tokens_BT, labels=row.labels_BT, attention_mask=attention_mask(row), **options).loss

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    measure(steps, forward, trained, dtype=str(trained[0].dtype), attention=base.config._attn_implementation)


def packed_options(row: MicroBatch) -> dict[str, object]:
    """What transformers' padding-free collator hands to the model."""
    boundaries, longest = row.boundaries(), max(row.lengths)
    return {
        "position_ids": row.positions_BT,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


if __name__ == "__main__":
    main()
