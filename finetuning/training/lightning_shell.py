"""The Lightning shell around the training step: module, strategy and callbacks, all thin.

Lightning brings the Trainer, loggers and callbacks that people know; the step, the batches and the checkpoints are
ours. Optimization is manual: Lightning's accumulation would average per micro-batch.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override

from finetuning.checkpoint.background import BackgroundSaves
from finetuning.checkpoint.files import Checkpoint, checkpoint_name, find_checkpoints, find_weights, weights_name
from finetuning.checkpoint.host_copy import bytes_of
from finetuning.checkpoint.store import best_of, load_checkpoint, prune, record_val_loss, trainable_weights, training_state
from finetuning.config.run import Run
from finetuning.data.batches.global_batch import GlobalBatches, StepBatch
from finetuning.data.batches.ledger import LEDGER_FILE, Ledger, ledger_entry
from finetuning.data.tokens.tokenized import Split
from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.runtime.agreement import all_agree, on_first_rank
from finetuning.runtime.progress import Phase
from finetuning.runtime.status import RUNNING, UPDATE_INTERVAL_S, write_status
from finetuning.runtime.stop_switch import StopSwitch
from finetuning.training.delivery import Trackers
from finetuning.training.display import TrainingDisplay
from finetuning.training.early_stopping import Validation, course_of, validations_in
from finetuning.training.evaluate import Evaluation
from finetuning.training.metrics import MetricsFile, read_metrics
from finetuning.training.optimizer import build_optimizer, gradient_scaler, optimizer_state
from finetuning.training.profile import StepProfiler
from finetuning.training.save_rule import SaveRule
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


@dataclass
class StepRecord(pl.Callback):
    """After each step, in this order: validate, write the row of metrics.csv and the ledger's entry, show, save.

    One callback, because the order matters: both must be on disk before the checkpoint that claims their step, the row with
    the validation loss in it, or a crash in between would lose them. Where no checkpoint follows, writing and showing is
    postponed until the device is at work on the next step: here it would have nothing to do meanwhile.
    """

    run: Run
    display: TrainingDisplay | None  # rank 0 only
    resumed: Checkpoint | None
    validate: Callable[[Callable[[], bool]], Evaluation | None] | None  # None where all ranks leave, as its argument says
    before_first_step: Callable[[], None]
    training_split: Split
    stop: StopSwitch
    saves: BackgroundSaves
    rule: SaveRule | None  # rank 0, where nobody has said how often
    trackers: Trackers | None  # rank 0 only

    def __post_init__(self) -> None:
        self.folder = Path(self.run.experiment_dir)
        self.progress, self.stopped = self.stop.progress, False
        resume_step = self.resumed.step if self.resumed else 0
        self.first_step = resume_step + 1
        self.metrics = MetricsFile(self.folder / "metrics.csv", resume_step) if self.display else None
        self.ledger = Ledger(self.folder / LEDGER_FILE, resume_step) if self.display else None
        self.step_started_at = self.status_written_at = 0.0
        self.other_s = 0.0  # between the step before, or the command, and the one that runs
        self.slowed_s = 0.0  # by the save under way, or the newest
        self.lowest_loss = on_first_rank(self._lowest_loss_before)
        self.validations = on_first_rank(lambda: validations_in(read_metrics(self.folder / "metrics.csv")))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.before_first_step()
        self._validate_late()
        if self._is_over():  # it was stopped after the save of its last step
            trainer.should_stop = True
        self.progress.enter(Phase.FIRST_STEP)
        if self.display:
            self.display.start(trainer.global_step)
        self.other_s = self.progress.spent.total_s
        self.step_started_at = time.monotonic()

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.progress.step_is_certain()
        self.saves.before_update()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, FineTuning) and pl_module.result is not None
        result, step = pl_module.result, trainer.global_step
        ended_at = time.monotonic()
        seconds = ended_at - self.step_started_at
        self.progress.step_done(step, seconds)
        self._look_at_saves(seconds)
        if step == self.first_step and self.run.save_every_n_steps != 0:
            self._prepare_saves(trainer)
        last, stops = step >= self.run.max_steps, result.stop
        found = None
        if self.validate and not stops and self._is_validated(step):  # else: _validate_late
            found = self._validated(leaves=lambda: not all_agree(not pl_module.stop_requested()))
            stops = found is None
        val_loss = found.loss if found else None
        if found and self._ends_early(step, found):
            last = True
        row: dict[str, Any] = {
            "step": step,
            "train_loss": result.loss,
            "val_loss": val_loss,
            "val_error": found.error if found else None,
            "learning_rate": pl_module.learning_rate(batch.step),
            "grad_norm": result.grad_norm,
            "samples": step * self.run.config.global_batch_size,
            "tokens": batch.tokens,
            "answer_tokens": batch.answer_tokens,
            "tokens_per_second": batch.tokens / seconds,
            "fill": batch.tokens / batch.computed,
            "imbalance": batch.imbalance,
            "memory_gib": peak_memory_gib(pl_module.device),
            "time": time.time(),
            "other_seconds": self.other_s,
            "seconds": seconds,
        }
        pl_module.catch_up()
        pl_module.postponed = partial(self._publish, trainer, row, batch.samples, found)
        every = self.run.save_every_n_steps
        due = result.save if every is None else every > 0 and step % every == 0
        if every != 0 and (last or stops or due):
            pl_module.catch_up()
            stops = self._save(trainer, step, val_loss) or stops
            if stops:
                self.saves.finish()
        elif every is None and val_loss is not None and val_loss < self.lowest_loss:
            assert isinstance(trainer.strategy, MeshStrategy)
            trainer.strategy.save_weights(self.folder / "checkpoints", step, val_loss)
        if val_loss is not None:
            self._compare(val_loss)
        if stops:
            self.stopped = True
        if stops or last:
            trainer.should_stop = True
        self.other_s = time.monotonic() - ended_at
        self.step_started_at = time.monotonic()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FineTuning)
        pl_module.catch_up()
        if self.display:
            self.display.stop()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validate_late()  # where no step was left, and so no training began

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, FineTuning)
        pl_module.catch_up()
        if self.display:
            self.display.stop()

    def _is_validated(self, step: int) -> bool:
        return step % self.run.val_check_interval == 0 or step >= self.run.max_steps

    def _validate_late(self) -> None:
        """Makes up for the validation of a step that was saved in a hurry, from the weights that were saved; once."""
        resumed, self.resumed = self.resumed, None
        if not (resumed and self.validate and resumed.val_loss is None and self._is_validated(resumed.step)):
            return
        found = self._validated(leaves=lambda: False)  # there is nothing to save, so a stop ends it as an exception
        assert found is not None
        self._show(resumed.step, found)
        self._compare(found.loss)
        self._add(resumed.step, found)
        if self.metrics:
            self.metrics.set_val_loss(resumed.step, found.loss, found.error)
            if self.trackers:
                self.trackers.send_again(resumed.step)
            record_val_loss(resumed, found.loss)

    def _add(self, step: int, found: Evaluation) -> None:
        self.validations.append(Validation(step, found.loss, found.error or 0.0))

    def _is_over(self) -> bool:
        """Whether validation has not improved for as long as --early_stopping allows."""
        patience = self.run.config.early_stopping
        return patience is not None and bool(self.validations) and course_of(self.validations).without >= patience

    def _ends_early(self, step: int, found: Evaluation) -> bool:
        self._add(step, found)
        if not self._is_over() or step >= self.run.max_steps:
            return False
        course = course_of(self.validations)
        if self.display:
            self.display.message(
                t(
                    "step {step}: validation has not improved beyond its standard error since step {improved}; stopping early, "
                    "the best is {loss:.4f} at step {best}",
                    step=step,
                    improved=course.improved.step,
                    loss=course.best.loss,
                    best=course.best.step,
                )
            )
        return True

    def _validated(self, leaves: Callable[[], bool]) -> Evaluation | None:
        assert self.validate is not None
        with self.progress.during(Phase.VALIDATING):
            return self.validate(leaves)

    def _show(self, step: int, found: Evaluation) -> None:
        if self.display:
            self.display.message(
                t(
                    "step {step}: validation loss {loss:.4f}{error} (perplexity {perplexity:.2f}, {samples} sample{samples:s})",
                    step=step,
                    loss=found.loss,
                    error=f" ± {found.error:.4f}" if found.error is not None else "",
                    perplexity=found.perplexity,
                    samples=found.samples,
                )
            )

    def _publish(self, trainer: pl.Trainer, row: dict[str, Any], samples: np.ndarray, validation: Evaluation | None) -> None:
        logged = {name: float(value) for name, value in row.items() if name != "step" and value is not None}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in logged.items()})
        if not (self.display and self.metrics and self.ledger):
            return
        self.metrics.append(row)
        if self.trackers:
            self.trackers.wake()
        self.display.step(row["step"], row)
        if validation is not None:
            self._show(row["step"], validation)
        if time.monotonic() - self.status_written_at > UPDATE_INTERVAL_S:
            self.status_written_at = time.monotonic()
            write_status(
                self.folder,
                RUNNING,
                step=row["step"],
                max_steps=self.run.max_steps,
                train_loss=row["train_loss"],
                doing=self.progress.in_words,
                spent=self.progress.spent.so_far(),
            )
        self.ledger.append(ledger_entry(self.training_split, row["step"], samples))

    def _look_at_saves(self, step_s: float) -> None:
        """What the save under way costs, and whether it is done."""
        if self.saves.under_way and self.progress.usual_s:
            self.slowed_s += step_s - self.progress.usual_s
        saved = self.saves.newly_saved()
        if saved and not saved.weights_only and self.rule:
            self.rule.has_cost(saved.blocked_s + max(0.0, self.slowed_s))

    def _prepare_saves(self, trainer: pl.Trainer) -> None:
        """Memory for the copy, which the first save need not wait for; what the first one will cost is not known before."""
        assert isinstance(trainer.strategy, MeshStrategy)
        state = trainer.strategy.training_state()
        self.saves.prepare(state)
        if self.rule:
            self.rule.expect(bytes_of(state))

    def _compare(self, val_loss: float) -> None:
        if math.isfinite(val_loss):
            self.lowest_loss = min(self.lowest_loss, val_loss)

    def _lowest_loss_before(self) -> float:
        """The lowest validation loss of what is kept, up to the step that the run goes on from."""
        folder = self.folder / "checkpoints"
        kept = (*find_checkpoints(folder)[0], *find_weights(folder))
        best = best_of([checkpoint for checkpoint in kept if checkpoint.step < self.first_step])
        return math.inf if best is None or best.val_loss is None else best.val_loss

    def _save(self, trainer: pl.Trainer, step: int, val_loss: float | None) -> bool:
        """Returns whether some rank was asked to stop meanwhile, which then needs no further step."""
        assert isinstance(trainer.strategy, MeshStrategy)
        trainer.strategy.val_loss = val_loss
        if self.rule:
            self.rule.begins()
        self.slowed_s = 0.0
        trainer.save_checkpoint(self.folder / "checkpoints" / checkpoint_name(step))
        return not all_agree(not self.stop.requested)


class OwnCheckpoints(LightningCheckpoint):
    """Tells Lightning that checkpoints are taken care of (by StepRecord), so that it adds none of its own."""


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this process has used so far: of the GPU, or resident on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
