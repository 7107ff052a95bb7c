"""Folders in Hugging Face format: safetensors, config.json, tokenizer."""
