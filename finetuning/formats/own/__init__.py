"""Checkpoints and experiments of this command, as models for every tool."""
