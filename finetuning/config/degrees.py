"""The number of processes along each axis of the mesh. Imports no torch: a resume compares them before a launch."""

from dataclasses import dataclass

from finetuning.config.settings import RunConfig


@dataclass(frozen=True)
class Degrees:
    """Number of processes along each axis."""

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def world_size(self) -> int:
        return self.pp * self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def data_parallel(self) -> int:
        """Processes that get samples of their own."""
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        """The axes that are more than one process wide, as in "TP 2 × DP 4"."""
        named = {"TP": self.tp, "CP": self.cp, "PP": self.pp, "DP": self.data_parallel}
        text = " × ".join(f"{name} {degree}" for name, degree in named.items() if degree > 1)
        return text or "DP 1"


def degrees_of(config: RunConfig) -> Degrees:
    replicate = config.data_parallel_replicate_size
    return Degrees(
        pp=config.pipeline_model_parallel_size,
        dp_replicate=replicate,
        dp_shard=config.data_parallel_size // replicate,
        cp=config.context_parallel_size,
        tp=config.tensor_model_parallel_size,
    )
