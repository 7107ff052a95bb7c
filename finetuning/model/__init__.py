"""The Llama decoder, its kernels and LoRA, as plain PyTorch without any knowledge of parallelism."""
