"""Training state in torch.distributed.checkpoint; models in and out in Hugging Face and PEFT format."""
