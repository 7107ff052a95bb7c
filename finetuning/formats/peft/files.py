"""The two files of an adapter in PEFT's format; imports no torch."""

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
