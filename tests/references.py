"""The same mathematics without our engine: transformers, PEFT and plain PyTorch, one sample at a time.

No packing, no sharding, no chunked loss: every sample goes through the model alone, and its answer tokens are counted by
hand. Slow, obvious, and the measure of everything else.
"""

from pathlib import Path

import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from finetuning.data.tokens.tokenized import TokenizedSplit, write_split

PEFT_PREFIX = "base_model.model."


def load_reference(folder: Path) -> transformers.LlamaForCausalLM:
    """transformers' own Llama in float64, but for the norms, which it rounds to float32.

    "sdpa" because its "eager" attention rounds the softmax to float32 as well.
    """
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    return model.train()


def load_peft_reference(folder: Path, adapter: Path) -> peft.PeftModel:
    return peft.PeftModel.from_pretrained(load_reference(folder), adapter, is_trainable=True)


def write_random_adapter(model_folder: Path, folder: Path, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """A PEFT adapter whose B is not zero, so that the gradients of A are not zero either.

    B is small, as it is after training: one that outweighs the base makes attention choose between single tokens, and
    rounding grows a hundredfold on the way through.
    """
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_reference(model_folder), settings)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                spread = 0.02 if ".lora_B." in name else parameter.shape[1] ** -0.5
                parameter.normal_(0, spread, generator=generator)
    model.save_pretrained(folder)


def summed_loss(model: torch.nn.Module, split: TokenizedSplit, sample: int) -> Tensor:
    """Sum of the cross-entropies of one sample's answer tokens."""
    array, trained = split.sample(sample)
    tokens = torch.from_numpy(array.astype(np.int64))
    logits = model(input_ids=tokens[None, :-1]).logits[0].double()
    answer = torch.from_numpy(np.array(trained[1:]))
    return F.cross_entropy(logits[answer], tokens[1:][answer], reduction="sum")


def summed_loss_of_text(model: torch.nn.Module, folder: Path, question: str, answer: str) -> tuple[float, int]:
    """Sum of the cross-entropies of an answer's tokens, and how many they are; also the tokens are transformers' own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    tokens = torch.tensor(tokenizer.apply_chat_template(messages, return_dict=False))
    assert tokens[: len(prompt)].tolist() == prompt
    logits = model(input_ids=tokens[None, :-1]).logits[0, len(prompt) - 1 :].double()
    return F.cross_entropy(logits, tokens[len(prompt) :], reduction="sum").item(), len(tokens) - len(prompt)


def mean_loss_backward(model: torch.nn.Module, split: TokenizedSplit, samples: np.ndarray) -> float:
    """Adds the gradients of the mean over the answer tokens of all samples; returns the mean."""
    answer_tokens = sum(int(split.sample(sample)[1].sum()) for sample in samples)
    total = 0.0
    for sample in samples:
        loss = summed_loss(model, split, sample)
        (loss / answer_tokens).backward()
        total += loss.item()
    return total / answer_tokens


def random_split(folder: Path, lengths: list[int], answers: list[int], vocab_size: int = 512) -> None:
    """Writes a split of random tokens: sample i has `lengths[i]` tokens, the last `answers[i]` of them trained."""
    generator = np.random.default_rng(5)
    samples = [
        (generator.integers(0, vocab_size, length).tolist(), [position >= length - answer for position in range(length)], line)
        for line, (length, answer) in enumerate(zip(lengths, answers, strict=True), start=1)
    ]
    write_split(folder, samples)
