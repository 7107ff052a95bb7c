"""Training state of our own runs in torch.distributed.checkpoint."""
