"""Files that hold tensors, read without running anything in them: pickles, tar archives, DCP."""
