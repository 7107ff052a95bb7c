"""Which of PEFT's settings are understood; imports no torch."""

from pathlib import Path
from typing import Any

from finetuning.i18n import t

# PEFT settings that do not change what a stored adapter computes, or that its tensors say themselves.
DESCRIPTIVE = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "layers_to_transform",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "loftq_config",
    "ensure_weight_tying",
    "runtime_config",
}
# Computed here as PEFT does.
SUPPORTED = {"use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}
# Besides null, false and what is empty.
PLAIN_VALUES = (("bias", "none"), ("layers_pattern", "layers"), ("layers_pattern", ["layers"]))
# Other values of `init_lora_weights` change the base weights when the adapter is made.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def unsupported_settings(folder: Path, settings: dict[str, Any]) -> list[str]:
    """A message for each setting that changes what the adapter computes and that nothing here computes."""
    if settings.get("peft_type") != "LORA":
        return [
            t(
                "{folder}: {name} is {value!r}; only {supported!r} is supported",
                folder=folder,
                name="peft_type",
                value=settings.get("peft_type"),
                supported="LORA",
            )
        ]
    start = settings.get("init_lora_weights")
    problems = []
    if start not in PLAIN_STARTS:
        problems.append(
            t(
                "{folder}: made with init_lora_weights={value!r}, which changes the base weights as well; convert it with PEFT "
                "(path_initial_model_for_weight_conversion)",
                folder=folder,
                value=start,
            )
        )
    for name, value in settings.items():
        plain = value in (None, False, {}, []) or (name, value) in PLAIN_VALUES
        if not plain and name not in DESCRIPTIVE | SUPPORTED | {"init_lora_weights"}:
            if name == "bias":
                message = t(
                    "{folder}: {name} is {value!r}; only {supported!r} is supported",
                    folder=folder,
                    name=name,
                    value=value,
                    supported="none",
                )
            else:
                message = t("{folder}: {name} is {value!r}, which is not supported", folder=folder, name=name, value=value)
            problems.append(message)
    return problems
