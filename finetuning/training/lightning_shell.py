"""The Lightning shell around the training step: module, strategy and callbacks, all thin.

Lightning brings the Trainer, loggers and callbacks that people know; the step, the batches and the checkpoints are
ours. Optimization is manual: Lightning's accumulation would average per micro-batch.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override

from finetuning.checkpoint.background import BackgroundSaves
from finetuning.checkpoint.files import weights_name
from finetuning.checkpoint.store import load_checkpoint, prune, trainable_weights, training_state
from finetuning.config.run import Run
from finetuning.data.batches.global_batch import GlobalBatches, StepBatch
from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.training.optimizer import build_optimizer, gradient_scaler, optimizer_state
from finetuning.training.profile import StepProfiler
from finetuning.training.schedule import learning_rate_at
from finetuning.training.step import StepResult, train_step


class FineTuning(pl.LightningModule):
    """Holds the model and runs one optimizer step per Lightning batch."""

    def __init__(
        self,
        run: Run,
        build: Callable[[], ParallelLlama],
        stop_requested: Callable[[], bool],
        has_checkpoint: Callable[[], bool] = lambda: False,
        save_is_due: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.run, self.build, self.stop_requested, self.has_checkpoint = run, build, stop_requested, has_checkpoint
        self.save_is_due = save_is_due
        self.net: ParallelLlama | None = None
        self.result: StepResult | None = None
        self.postponed: Callable[[], None] | None = None  # what is left to do about the last step
        self.profiler = (
            StepProfiler(Path(run.experiment_dir) / "profile", dist.get_rank(), run.config.profile_steps)
            if run.config.profile_steps > 0
            else None
        )

    @override
    def configure_model(self) -> None:
        if self.net is None:  # Lightning calls this more than once
            self.net = self.build()

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = self.run.config
        assert self.net is not None
        return build_optimizer(
            self.net,
            learning_rate=self.run.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=self.run.device == "cuda",
            states=self.run.strategy.optimizer_states,
        )

    @override
    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert self.net is not None and isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        rate = self.learning_rate(batch.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Through Lightning's optimizer: a raw one would leave global_step at 0.
        with self.profiler.around(batch.step + 1) if self.profiler else nullcontext():
            self.result = train_step(
                self.net,
                batch,
                optimizer.step,
                scale=gradient_scaler(optimizer.optimizer),
                clip_grad=self.run.config.clip_grad,
                stop=self.stop_requested(),
                save=self.save_is_due(),
                meanwhile=self._meanwhile,
                has_checkpoint=self.has_checkpoint(),
            )
        optimizer.zero_grad()

    def _meanwhile(self) -> None:
        """Called in each step when the device is at work."""
        batches = self.trainer.train_dataloader
        assert isinstance(batches, GlobalBatches)
        batches.prepare_next()
        self.catch_up()

    def catch_up(self) -> None:
        """Does what was postponed; in the next step at the latest."""
        postponed, self.postponed = self.postponed, None
        if postponed:
            postponed()

    def learning_rate(self, step: int) -> float:
        config = self.run.config
        return learning_rate_at(
            step,
            schedule=config.lr_schedule,
            peak=self.run.learning_rate,
            minimum=config.min_lr,
            warmup_steps=self.run.warmup_steps,
            max_steps=self.run.max_steps,
        )

    @override
    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch  # rows move one by one in the step


class MeshStrategy(ModelParallelStrategy):
    """Lightning on our device mesh, with our checkpoints."""

    def __init__(
        self,
        layout: Layout,
        saves: BackgroundSaves,
        *,
        max_steps: int,
        keep_last: int,
        identity: dict[str, Any],
        origin: dict[str, Any],
    ):
        super().__init__(data_parallel_size=layout.degrees.data_parallel, tensor_parallel_size=layout.degrees.tp)
        self.layout, self.saves, self.keep_last = layout, saves, keep_last
        self.max_steps, self.identity, self.origin = max_steps, identity, origin
        self.val_loss: float | None = None  # of the step that is being saved

    @override
    def setup_environment(self) -> None:
        assert self.accelerator is not None and self.lightning_module is not None
        self.accelerator.setup_device(self.root_device)
        self._setup_distributed()
        self._device_mesh = self.layout.mesh
        self.lightning_module._device_mesh = self._device_mesh

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.layout.degrees.data_parallel, "rank": self.layout.data_rank}

    # Lightning's own collection of states would copy them; save_checkpoint takes them from the model itself.
    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {}

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        lightning = {name: checkpoint[name] for name in ("epoch", "global_step", "pytorch-lightning_version", "loops")}
        info = self._info(checkpoint["global_step"], self.val_loss) | {"lightning": json.loads(json.dumps(lightning))}
        path = Path(filepath)
        self.saves.save(path, self.training_state(), info, completed=partial(prune, path.parent, self.keep_last))

    def save_weights(self, folder: Path, step: int, val_loss: float) -> None:
        """The weights of the lowest validation loss so far, without what a run needs to go on from them."""
        completed = partial(prune, folder, self.keep_last)
        self.saves.save(folder / weights_name(step), trainable_weights(self._net()), self._info(step, val_loss), completed)

    def _info(self, step: int, val_loss: float | None) -> dict[str, Any]:
        return {
            "step": step,
            "max_steps": self.max_steps,
            "val_loss": val_loss,
            "layout": asdict(self.layout.degrees),
            "identity": self.identity,
            "origin": self.origin,
        }

    @override
    def barrier(self, name: str | None = None) -> None:
        if name != "Trainer.save_checkpoint":  # it would wait for the device; ranks agree in the save itself
            super().barrier(name)

    def training_state(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds."""
        return training_state(self._net(), optimizer_state(self._net(), self._optimizer()))

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        info = load_checkpoint(Path(checkpoint_path), self._net(), optimizer_state(self._net(), self._optimizer()))
        if not info.get("lightning"):
            raise RunError(t("{path}: holds no position in the data, so it cannot be gone on from", path=checkpoint_path))
        return {**info["lightning"], "state_dict": {}, "optimizer_states": [{}], "lr_schedulers": [], "callbacks": {}}

    @override
    def remove_checkpoint(self, filepath: str | Path) -> None:
        raise RuntimeError("checkpoints are removed by finetuning.checkpoint.store.prune")

    def _net(self) -> ParallelLlama:
        assert isinstance(self.lightning_module, FineTuning) and self.lightning_module.net is not None
        return self.lightning_module.net

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers[0]


class OwnCheckpoints(LightningCheckpoint):
    """Tells Lightning that checkpoints are taken care of (by StepRecord), so that it adds none of its own."""
