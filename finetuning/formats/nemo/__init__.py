"""Checkpoints of NeMo and Megatron, in and out, without either installed."""
