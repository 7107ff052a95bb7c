"""Fine-tune Llama 3.1 on a folder of JSONL with one command; see README.md."""

__version__ = "0.1.0"
