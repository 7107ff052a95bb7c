"""From tokens to packed global batches in an exact order, and the ledger of what each step consumed."""
