"""A stored model in memory, whole, in one process."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.formats.huggingface.write import pieces
from finetuning.formats.peft.adapter import Adapter
from finetuning.formats.stored_model import StoredModel
from finetuning.formats.weight_source import HuggingFaceSource, WeightSource
from finetuning.model.llama import Llama
from finetuning.model.lora import LoraLinear, StretchedLinear

LOADING_THREADS = 8


@dataclass(frozen=True)
class LoadedModel:
    net: Llama
    prompt_format: PromptFormat
    device: torch.device


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """As in training: bfloat16 on a GPU, float32 on the CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_model(
    model: StoredModel,
    device: torch.device,
    dtype: torch.dtype,
    prompt_template: str | None = None,
    system_prompt: str | None = None,
) -> LoadedModel:
    """Base weights with their adapter beside them, and the prompt format of the training."""
    prompt_format = model.prompt_format(prompt_template, system_prompt)  # before the long part
    net = load_net(model.base, device, dtype)
    if model.adapter is not None:
        attach_adapter(net, model.adapter)
    return LoadedModel(net, prompt_format, device)


def load_net(source: WeightSource, device: torch.device, dtype: torch.dtype) -> Llama:
    """The decoder with all weights of a source, for inference."""
    with torch.device("meta"):
        net = Llama(source.config)
    net.to(dtype).to_empty(device=device).requires_grad_(False)

    def fill(name: str, parameter: nn.Parameter) -> None:
        start = 0
        for rows in pieces(source, name):
            parameter[start : start + len(rows)].copy_(rows)
            start += len(rows)

    source.shapes()  # files that are missing or damaged are told before threads start
    # Mapped files may be read by several threads at once; one copies 3 GB/s. The other formats read one place after the other.
    with ThreadPoolExecutor(LOADING_THREADS if isinstance(source, HuggingFaceSource) else 1) as threads:
        for filled in [threads.submit(fill, name, parameter) for name, parameter in net.named_parameters()]:
            filled.result()
    return net.eval()


def attach_adapter(net: Llama, adapter: Adapter) -> None:
    """Puts the adapter beside the weights it updates, in their dtype and on their device; into the head it is merged."""
    for name, update in adapter.updates.items():
        path = name.removesuffix(".weight")
        linear = net.get_submodule(path)
        if not isinstance(linear, nn.Linear):  # the head
            weight = net.get_parameter(name)
            with torch.no_grad():
                weight.copy_(update.merged(weight.cpu(), 0, len(weight)))
            continue
        rank = len(update.a)
        with torch.device("meta"):
            low_rank = LoraLinear(linear.in_features, linear.out_features, rank, update.scale * rank)
        low_rank.weight = linear.weight
        low_rank.lora_A.weight = nn.Parameter(update.a.to(linear.weight), requires_grad=False)
        low_rank.lora_B.weight = nn.Parameter(update.b.to(linear.weight), requires_grad=False)
        module: nn.Module = low_rank
        if update.magnitude is not None:
            length = torch.linalg.vector_norm(
                torch.addmm(
                    linear.weight.float(), *(x.to(linear.weight.device) for x in (update.b, update.a)), alpha=update.scale
                ),
                dim=1,
            )
            module = StretchedLinear(low_rank, update.magnitude.to(length.device) / length)
        net.set_submodule(path, module)
