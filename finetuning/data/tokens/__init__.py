"""Samples as tokens on disk: our own cache, and Megatron's .bin and .idx."""
