"""The worker: one process of a run, started by torchrun.

`torchrun --nproc_per_node N -m finetuning.train experiments/NAME/run.yaml` trains, evaluates and exports what run.yaml
says, from the newest complete checkpoint of the experiment on. Exit code 0 when it finished or was stopped cleanly
(`status.json` says which); 1 when it failed, with the reason in `logs/rank_N.error.json`.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from finetuning.runtime.garbage import end_imports
from finetuning.runtime.process_lifetime import begin_worker, end_with_siblings, leave

if __name__ == "__main__":  # before the imports below, which take seconds
    begin_worker()

# isort: split
import finetuning.runtime.fast_imports  # noqa: F401 - before Lightning

# isort: split
import lightning.pytorch as pl
import torch
import torch.distributed as dist
from rich.console import Console

from finetuning.checkpoint.background import BackgroundSaves
from finetuning.checkpoint.files import Checkpoint, find_checkpoints, find_weights
from finetuning.checkpoint.sound import newest_checkpoint
from finetuning.checkpoint.store import best_of, load_weights
from finetuning.config.llama import read_llama_config
from finetuning.config.rules import check_capability
from finetuning.config.run import Run, read_run
from finetuning.data.batches.global_batch import GlobalBatches
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.prompts.source_formats import formats_of_sources
from finetuning.data.sample_texts import answered_split, first_samples, read_samples
from finetuning.data.tokens.tokenized import open_split
from finetuning.errors import EXIT_FAILED, EXIT_FINISHED, InputError, StopRequested
from finetuning.files.atomic import write_text
from finetuning.formats.huggingface.write import export_model
from finetuning.formats.load_sharded import load_base_weights, load_source
from finetuning.formats.nemo.checkpoint import nemo_source, open_nemo
from finetuning.formats.peft import door as peft
from finetuning.formats.peft.sharded import initialize_adapters, load_adapters
from finetuning.formats.peft.write import export_adapters
from finetuning.formats.provenance import make_origin
from finetuning.i18n import set_language, t
from finetuning.model.attention import why_flash_4_is_unused
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import ParallelLlama, build_model
from finetuning.runtime.agreement import on_first_rank
from finetuning.runtime.failures import is_echo, write_failure
from finetuning.runtime.output import redirect_output
from finetuning.runtime.process_group import start_process_group
from finetuning.runtime.progress import Phase, Progress, stop_reason
from finetuning.runtime.status import FINISHED, RUNNING, STOPPED, write_status
from finetuning.runtime.stop_switch import StopSwitch
from finetuning.training import trackers
from finetuning.training.delivery import Trackers
from finetuning.training.display import TrainingDisplay
from finetuning.training.evaluate import Evaluation, evaluate
from finetuning.training.lightning_shell import FineTuning, MeshStrategy, OwnCheckpoints
from finetuning.training.metrics import source_column
from finetuning.training.sample_answers import generate
from finetuning.training.save_rule import SaveRule
from finetuning.training.step_record import StepRecord


def main(run_file: Path) -> int:
    """Runs this process's part of the run and returns its exit code."""
    rank = int(os.environ["RANK"])
    run = read_run(run_file)
    logs = Path(run.experiment_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    terminal = redirect_output(logs / f"rank_{rank}.log")
    set_language(run.config.lang)
    stop = StopSwitch(Progress())
    end_with_siblings(lambda: stop.waits)
    worker: Worker | None = None
    try:
        try:
            start_process_group(run.device)
            worker = Worker(run, rank, terminal, stop)
            worker.work()
        except BaseException as error:
            # A partner that was asked to stop a moment earlier breaks our collective. Our own signal is then pending and
            # raises StopRequested here, at the first call, or has come before.
            if stop.requested and is_echo(error):
                raise StopRequested from error
            if not isinstance(error, StopRequested):
                write_failure(logs, rank, error, run.config)
                if worker:
                    worker.end_trackers(trackers.FAILED)
            raise
    except StopRequested:
        if worker:
            worker.tell_stop()
        elif rank == 0:
            write_status(Path(run.experiment_dir), STOPPED, reason=t("asked to stop"))
        stop.progress.enter(Phase.LEAVING)
        if worker:
            worker.end_trackers(trackers.STOPPED)
    finally:
        with suppress(OSError):  # of a log on a full disk, which has been told
            sys.stdout.flush()
            sys.stderr.flush()
    return EXIT_FINISHED


class Worker:
    """One process of a run: its split views, its model, and the phases train, evaluate, export."""

    def __init__(self, run: Run, rank: int, terminal: Console, stop: StopSwitch):
        self.run, self.config, self.rank, self.stop, self.progress = run, run.config, rank, stop, stop.progress
        self.folder = Path(run.experiment_dir)
        self.results = self.folder / "results"
        self.model_path = Path(run.model_path)
        self.llama_config = read_llama_config(self.model_path)
        self.splits = {name: open_split(Path(run.tokens_dir) / name) for name in run.sources}
        kept = read_samples(self.folder / "data")
        self.answered = first_samples(self.splits, run) if kept is None else kept
        self.layout = Layout(run.device, run.strategy.degrees)
        self.prompt_format = load_prompt_format(
            self.model_path,
            self.config.prompt_template,
            self.config.system_prompt,
            needs_template=False,  # what the data need, the launching machine has seen to
            day=run.prompt_date,
            train_on=self.config.train_on,
        )
        self.formats = formats_of_sources(run, self.prompt_format)
        self.origin = make_origin(run, self.prompt_format)
        self.checkpoint, passed_over = newest_checkpoint(self.folder / "checkpoints")
        self.resume_step = self.checkpoint.step if self.checkpoint else 0
        self.progress.starts_at(self.resume_step)
        self.progress.told = self._tell_phase
        log = Console(file=(self.folder / "logs" / "train.log").open("a", encoding="utf-8"), width=160) if rank == 0 else None
        self.display = TrainingDisplay(terminal, log, run.max_steps, self.config.world_size) if log else None
        for text in passed_over:
            self._say(text)
        self.trackers = Trackers(run, self.resume_step, self._say) if rank == 0 else None
        self.rule = SaveRule() if rank == 0 and run.save_every_n_steps is None else None
        self.saves = BackgroundSaves(self._device(), self.progress, self._say)
        self.module = FineTuning(
            run,
            self._build,
            # A save that has failed ends the run with the step, on all ranks.
            lambda: stop.requested or self.saves.has_failed,
            has_checkpoint=lambda: self.progress.saved_step > 0 or self.saves.has_begun,
            save_is_due=self._save_is_due,
        )

    def work(self) -> None:
        self._status(
            RUNNING, step=self.resume_step, max_steps=self.run.max_steps, started_at=time.time(), pid=os.getpid(), saved=None
        )
        with self.saves:
            self._train()
            done = self.progress.step
            taken = self._take_best(done)
            self._evaluate_and_export(taken)
        early = done < self.run.max_steps
        self._status(
            FINISHED,
            step=done,
            early_stopping=self.config.early_stopping if early else None,
            reason=t("validation did not improve any more") if early else t("all steps done"),
            exit_code=EXIT_FINISHED,
            export=str(self.folder / "export"),
            exported_step=taken,
        )
        self.progress.enter(Phase.LEAVING)
        self.end_trackers(trackers.FINISHED)

    def end_trackers(self, state: str) -> None:
        """Waits a bounded time for records on their way to trackers; not when it is asked to stop meanwhile."""
        if self.trackers:
            with suppress(StopRequested):
                self.trackers.finish(state)

    def _train(self) -> None:
        config, run = self.config, self.run
        batches = GlobalBatches(
            self.splits["training"],
            start_step=self.resume_step,
            max_steps=run.max_steps,
            seed=config.seed,
            global_batch_size=config.global_batch_size,
            data_rank=self.layout.data_rank,
            data_parallel_size=config.data_parallel_size,
            plan=run.strategy.packs,
        )
        record = StepRecord(
            run,
            self.display,
            self.checkpoint,
            validate=partial(self._evaluated, "validation") if "validation" in self.splits else None,
            before_first_step=self._look_before,
            training_split=self.splits["training"],
            trackers=self.trackers,
            stop=self.stop,
            saves=self.saves,
            rule=self.rule,
        )
        if self.trackers:
            self.trackers.start()
        strategy = MeshStrategy(
            self.layout,
            self.saves,
            max_steps=run.max_steps,
            keep_last=config.keep_last,
            identity=run.identity,
            origin=self.origin,
        )
        trainer = pl.Trainer(
            accelerator="gpu" if run.device == "cuda" else "cpu",
            devices=int(os.environ["LOCAL_WORLD_SIZE"]),
            num_nodes=config.num_nodes,
            strategy=strategy,
            max_steps=run.max_steps,
            max_epochs=-1,
            callbacks=[record, OwnCheckpoints()],
            logger=False,
            limit_val_batches=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run.experiment_dir,
        )
        # Lightning 2.6 would turn SIGTERM into an exception without a checkpoint; ours finishes the step and saves.
        trainer._signal_connector.register_signal_handlers = self.stop.listen  # type: ignore[method-assign]
        self.progress.enter(Phase.LOADING)
        self.stop.waits = True
        try:
            trainer.fit(self.module, batches, ckpt_path=self.checkpoint.path if self.checkpoint else None)
        finally:
            self.stop.waits = False
        self.stop.training_ends()
        if record.stopped:  # another rank was asked
            raise StopRequested

    def tell_stop(self) -> None:
        """How far it has come, after `StopRequested`; on the screen and in the status."""
        step, saved, max_steps = self.progress.step, self.progress.saved_step, self.run.max_steps
        if step > self.resume_step and self.run.save_every_n_steps == 0:
            text = t("stopped after step {step}; nothing was saved (--save_every_n_steps 0)", step=step)
        elif step >= max_steps:
            text = t("stopped after the last step, {step}; run the same command for test loss, answers and export", step=step)
        elif saved > self.resume_step:
            text = t("saved at step {step} of {max_steps}; run the same command to go on", step=saved, max_steps=max_steps)
        else:
            text = t(
                "stopped at step {step} of {max_steps}, with nothing new to save; run the same command to go on",
                step=saved,
                max_steps=max_steps,
            )
        self._say(text)
        saves = self.run.save_every_n_steps != 0
        self._status(STOPPED, step=saved if saves else step, reason=stop_reason(step, max_steps), saved=saves)

    def _save_is_due(self) -> bool:
        return self.rule is not None and self.rule.is_due and not self.saves.under_way

    def _device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if self.run.device == "cuda" else torch.device("cpu")

    def _build(self) -> ParallelLlama:
        """Builds the model of this process and fills it: from the base model, then from where the run starts."""
        config, run = self.config, self.run
        lora = config.peft == "lora"
        if run.device == "cuda":
            if problems := check_capability(config, torch.cuda.get_device_capability()):
                raise InputError(problems)  # nodes of a cluster have GPUs that the launching machine does not know
            if reason := why_flash_4_is_unused():
                self._say(reason)
        model = build_model(self.llama_config, self.layout, self._device(), run.strategy)
        start = Path(run.initial_weights) if run.initial_weights and not self.checkpoint else None
        trained_come_later = self.checkpoint is not None or start is not None
        if lora or not trained_come_later:  # with all weights trained, every one of them comes from a checkpoint
            if run.nemo_model is not None:
                checkpoint = open_nemo(Path(run.nemo_model), self.folder)
                load_source(nemo_source(checkpoint, self.llama_config), model)
            else:
                load_base_weights(self.model_path, model)
        if lora and not trained_come_later:
            initialize_adapters(model, config.seed)
        if start is not None and peft.is_here(start):
            load_adapters(start, model)
        elif start is not None:
            load_weights(start, model)
        return model

    def _look_before(self) -> None:
        """Validation loss and answers of the untrained model, to compare with later."""
        with self.progress.during(Phase.VALIDATING):
            found = {}
            if "validation" in self.splits:
                before = self._loss("validation")
                found = {"val_loss": before.loss} | {
                    source_column("val_loss", name): each.loss for name, each in before.by_source.items()
                }
        self._write_result("before.json", found)
        self._answer("answers_before.jsonl")

    def _take_best(self, done: int) -> int:
        """Goes back to the weights of the best validation where they are the result; returns the step that these are of."""
        if not self.config.takes_best or "validation" not in self.splits:
            return done
        self.saves.finish()
        best = on_first_rank(self._best)
        if best is None or best.step == done:
            return done
        assert self.module.net is not None
        load_weights(best.path, self.module.net)
        self._say(t("the result has the weights of step {step}, whose validation loss was the lowest", step=best.step))
        return best.step

    def _best(self) -> Checkpoint | None:
        folder = self.folder / "checkpoints"
        return best_of([*find_checkpoints(folder)[0], *find_weights(folder)])

    def _evaluate_and_export(self, step: int) -> None:
        if "test" in self.splits:
            self.progress.enter(Phase.TESTING)
            found = self._loss("test")
            self._write_result("test.json", found.as_json() | {"step": step})
            self._say(
                t(
                    "test: loss {loss:.4f}, perplexity {perplexity:.2f} on {samples} sample{samples:s}",
                    loss=found.loss,
                    perplexity=found.perplexity,
                    samples=found.samples,
                )
            )
        self._answer("predictions.jsonl")
        self.progress.enter(Phase.EXPORTING)
        target = self.folder / "export"
        chat_template = self.prompt_format.chat_template()
        assert self.module.net is not None
        if self.config.peft == "lora":
            export_adapters(self.module.net, target, self.config, self.model_path, chat_template, self.origin)
        else:
            export_model(self.module.net, target, self.model_path, chat_template, self.origin)

    def _loss(self, split: str) -> Evaluation:
        found = self._evaluated(split, lambda: False)
        assert found is not None
        return found

    def _evaluated(self, split: str, leaves: Callable[[], bool]) -> Evaluation | None:
        assert self.module.net is not None
        packs = self.run.strategy.packs.without_gradients()
        return evaluate(self.module.net, self.splits[split], packs, self.progress.beat, leaves)

    def _answer(self, file_name: str) -> None:
        """Writes generated answers to the first samples of the test split (or validation), as NeMo names the fields."""
        samples = self.answered
        if answered_split(self.splits) is None or self.config.num_sample_answers == 0:
            return
        assert self.module.net is not None
        with self.progress.during(Phase.ANSWERING):
            answers = generate(
                self.module.net,
                [self.formats[sample.source].encode_prompt(sample) for sample in samples],
                end_token_ids=self.run.end_token_ids,
                max_new_tokens=self.config.max_new_tokens,
                beat=self.progress.beat,
            )
        rows = [
            {"input": sample.input, "label": sample.output, "prediction": self.prompt_format.decode(answer)}
            | ({"source": self.run.mixture[sample.source].name} if self.run.mixture else {})
            for sample, answer in zip(samples, answers, strict=True)
        ]
        if self.rank == 0:
            self.results.mkdir(exist_ok=True)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(self.results / file_name, text)

    def _say(self, text: str) -> None:
        if self.display:
            self.display.message(text)

    def _tell_phase(self) -> None:
        if self.progress.phase != Phase.LEAVING:
            self._status(RUNNING, step=self.progress.step, doing=self.progress.in_words)

    def _status(self, state: str, **facts: Any) -> None:
        if self.rank == 0:
            write_status(self.folder, state, spent=self.progress.spent.so_far(), **facts)

    def _write_result(self, name: str, values: dict[str, Any]) -> None:
        if self.rank == 0:
            self.results.mkdir(exist_ok=True)
            write_text(self.results / name, json.dumps(values, indent=1))


if __name__ == "__main__":
    end_imports()
    try:
        code = main(Path(sys.argv[1]))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - whatever it is, it has been written down, and ends the process
        traceback.print_exc()
        code = EXIT_FAILED
    leave(code)
