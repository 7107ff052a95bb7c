"""Which layers form a pipeline stage and which process holds it. Imports no torch: the memory plan needs it before a launch."""

from functools import lru_cache

from finetuning.config.llama import LlamaConfig

SCHEDULES = ("1f1b", "interleaved")


def stage_indices(schedule: str, pp: int, pp_rank: int) -> list[int]:
    """The stages of a process, in the order they run.

    Example with pp 2: 1f1b -> [0] and [1]; interleaved, a loop -> [0, 2] and [1, 3].
    """
    if schedule == "1f1b":
        return [pp_rank]
    return [pp_rank, pp + pp_rank]


@lru_cache(maxsize=256)
def assign_layers(config: LlamaConfig, num_stages: int) -> tuple[range, ...]:
    """The layers of each stage, so that the slowest stage is as fast as possible, and the largest as small as possible.

    The head costs what its matrix product costs, in the last stage; the embedding is a look-up and counts by its size
    only. Example: 32 layers of Llama-3.1-8B in 2 stages -> 0-16 and 17-31 with the head, which is worth 2.4 layers.
    """
    table = config.vocab_size * config.hidden_size
    best: list[tuple[int, int, list[range]] | None] = [(0, 0, [])] + [None] * config.num_hidden_layers
    for stage in range(num_stages):
        previous, best = best, [None] * (config.num_hidden_layers + 1)
        for end in range(stage + 1, config.num_hidden_layers + 1):
            for begin in range(stage, end):
                before = previous[begin]
                if before is None:
                    continue
                cost = (end - begin) * config.layer_parameters + (table if stage == num_stages - 1 else 0)
                size = cost + (table if stage == 0 and num_stages > 1 else 0)
                found = (max(before[0], cost), max(before[1], size), [*before[2], range(begin, end)])
                if best[end] is None or found[:2] < best[end][:2]:  # type: ignore[index]
                    best[end] = found
    result = best[config.num_hidden_layers]
    assert result is not None, f"{config.num_hidden_layers} layers are too few for {num_stages} stages"
    return tuple(result[2])
