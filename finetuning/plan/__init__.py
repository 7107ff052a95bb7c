"""What a run will use and take: rates of GPUs, the time of a step, all layouts beside each other. Imports no torch."""
