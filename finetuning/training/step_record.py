"""What is recorded, shown, validated and saved after each step: a callback of Lightning's, around the step that is ours."""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from typing_extensions import override

from finetuning.checkpoint.background import BackgroundSaves
from finetuning.checkpoint.files import Checkpoint, checkpoint_name, find_checkpoints, find_weights
from finetuning.checkpoint.host_copy import bytes_of
from finetuning.checkpoint.store import best_of, record_val_loss
from finetuning.config.run import Run
from finetuning.data.batches.global_batch import StepBatch
from finetuning.data.batches.ledger import LEDGER_FILE, Ledger, ledger_entry
from finetuning.data.tokens.tokenized import Split
from finetuning.i18n import t
from finetuning.runtime.agreement import all_agree, on_first_rank
from finetuning.runtime.progress import Phase
from finetuning.runtime.status import RUNNING, UPDATE_INTERVAL_S, write_status
from finetuning.runtime.stop_switch import StopSwitch
from finetuning.training.delivery import Trackers
from finetuning.training.display import TrainingDisplay
from finetuning.training.early_stopping import Validation, course_of, validations_in
from finetuning.training.evaluate import Evaluation
from finetuning.training.lightning_shell import FineTuning, MeshStrategy
from finetuning.training.metrics import MetricsFile, read_metrics, source_column
from finetuning.training.save_rule import SaveRule
from finetuning.training.step import StepResult


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
        self.source_names = [source.name for source in self.run.mixture]
        self.metrics = MetricsFile(self.folder / "metrics.csv", resume_step, self.source_names) if self.display else None
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
            **_losses_of(found),
            **{source_column("train_loss", name): loss for name, loss in self._by_source(result)},
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
            self.metrics.fill_in(resumed.step, _losses_of(found))
            if self.trackers:
                self.trackers.send_again(resumed.step)
            record_val_loss(resumed, found.loss)

    def _by_source(self, result: StepResult) -> list[tuple[str, float | None]]:
        return list(zip(self.source_names, result.source_losses or (), strict=True)) if self.source_names else []

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
                + _in_words(found.by_source)
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


def _in_words(by_source: Mapping[str, Evaluation]) -> str:
    """Example: ` · mine 1.2345 · general 2.3456`."""
    return "".join(f" · {name} {each.loss:.4f}" for name, each in by_source.items())


def _losses_of(found: Evaluation | None) -> dict[str, float | None]:
    """The columns of a validation."""
    if found is None:
        return {"val_loss": None, "val_error": None}
    by_source = {source_column("val_loss", name): each.loss for name, each in found.by_source.items()}
    return {"val_loss": found.loss, "val_error": found.error, **by_source}


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this process has used so far: of the GPU, or resident on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
