"""The sources of a mixture with their shares, in words."""

from collections.abc import Sequence

from finetuning.data.batches.source_order import Shares, SourceOrder
from finetuning.i18n import t


def share_lines(names: Sequence[str], shares: Shares, samples: int) -> list[str]:
    """A line for each source. `samples`: of the run, or of an epoch."""
    counts = SourceOrder(shares.parts).counts(samples)
    return [
        t(
            "{share:.2%} {name}: {count:,} sample{count:s} drawn from {size:,}, {epochs:.2f} epochs of it",
            share=part / sum(shares.parts),
            name=name,
            count=count,
            size=size,
            epochs=count / size,
        )
        for name, part, count, size in zip(names, shares.parts, counts, shares.sizes, strict=True)
    ]
