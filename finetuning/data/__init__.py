"""From source files to packed global batches; needs no process group."""
