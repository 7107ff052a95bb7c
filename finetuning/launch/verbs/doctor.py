"""`finetune doctor`: what would stop a run here, each with what to do about it."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    raise NotImplementedError
