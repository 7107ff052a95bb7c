"""Peer: NeMo AutoModel 0.7, LoRA r = 16 on all seven linears with its Triton kernels; its training recipe is left out.

hf: the Hugging Face model with Liger, which was its faster one; own: its own Llama. Loss: its masked cross-entropy on all
logits, as in its recipes, or the fused linear cross-entropy that its Liger patch puts into the model.
"""

import torch
from nemo_automodel import NeMoAutoModelForCausalLM
from nemo_automodel.components._peft.lora import PeftConfig
from nemo_automodel.components.loss.masked_ce import MaskedCrossEntropy
from peer_loop import (
    IGNORED_LABEL,
    MicroBatch,
    attention_mask,
    load_steps,
    measure,
    parse_arguments,
    register_flash_attention_2,
)
from torch import Tensor
from transformers import AutoConfig


def main() -> None:
    arguments = parse_arguments(
        attention=("sdpa", "flash_attention_2", "flash_attention_4"), model_code=("hf", "own"), loss=("masked", "liger")
    )
    attention = arguments.attention
    if attention == "flash_attention_2":
        attention = register_flash_attention_2()
    config = AutoConfig.from_pretrained(arguments.model)
    config.use_cache, config.initializer_range = False, 0.02
    lora = PeftConfig(
        target_modules=["*_proj"], dim=16, alpha=32, dropout=0.0, use_memory_efficient_lora=False, use_triton=True
    )
    with torch.device("cuda"):
        model = NeMoAutoModelForCausalLM.from_config(
            config, attn_implementation=attention, force_hf=arguments.model_code == "hf", peft_config=lora, dtype=torch.bfloat16
        )
    model = model.cuda().train()
    steps = load_steps(arguments.workload, arguments.layout)
    masked_cross_entropy = MaskedCrossEntropy()

    def forward(row: MicroBatch) -> Tensor:
        options: dict[str, object] = {}
        if attention != "sdpa" and not row.padded:
            boundaries, longest = row.boundaries(), max(row.lengths)
            options = {
                "position_ids": row.positions_BT,
                "cu_seq_lens_q": boundaries,
                "cu_seq_lens_k": boundaries,
                "max_length_q": longest,
                "max_length_k": longest,
            }
        elif row.padded:
            options = {"attention_mask": attention_mask(row)}
        else:
            assert len(row.lengths) == 1, "SDPA sees a packed row as one document"
        if arguments.loss == "liger":
            return model(input_ids=row.tokens_BT, labels=row.labels_BT, **options).loss
        found = model(input_ids=row.tokens_BT, **options)
        logits = found if isinstance(found, Tensor) else found.logits
        following = torch.nn.functional.pad(row.labels_BT[:, 1:], (0, 1), value=IGNORED_LABEL)
        return masked_cross_entropy(logits, following)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    measure(
        steps,
        forward,
        trained,
        dtype=str(trained[0].dtype),
        attention=attention,
        model=f"{type(model).__module__}.{type(model).__name__}",
    )


if __name__ == "__main__":
    main()
