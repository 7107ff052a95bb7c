"""Decoder blocks with gradients written by hand, which take the place of the plain ones on GPUs."""
