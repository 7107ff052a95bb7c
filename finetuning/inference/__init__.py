"""A stored model in use, in one process: evaluate, generate, merge with a check."""
