"""Operations of the blocks, on the CPU and in Triton."""
