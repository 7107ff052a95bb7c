"""Where the records of a run can go besides metrics.csv: TensorBoard's files, an MLflow server, Weights & Biases.

Each is a thin layer over the tracker's own client, which is imported when it is first needed. Called by the thread of
`finetuning.training.delivery`, which expects that any of it may fail or wait; nothing here retries. Imports no torch.
"""

import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from finetuning.config.run import Run
from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.runtime.network import no_answer
from finetuning.training.parameters import parameters_of

REQUEST_TIMEOUT_S = 10  # of one request to a tracker
WANDB_FINISH_S = 20  # that W&B's client may upload at the end
MAX_REASON = 300  # characters of a client's error that are shown
CHECK_INTERVAL_S = 30.0  # between two looks at whether W&B's server answers; its client would not say
FINISHED, STOPPED, FAILED = "FINISHED", "KILLED", "FAILED"  # MLflow's words for how a run ended

Row = Mapping[str, str]  # of metrics.csv


class Tracker(Protocol):
    """What takes the records of one run."""

    kind: str  # names the file that remembers how far it got
    name: str  # as a person would call it
    address: str  # another one is another run
    max_rows: int  # of one `send`
    rewinds: bool  # steps that are done again replace those of the first time

    def open(self, run_id: str | None, delivered: int) -> str:
        """Goes on in the run of that id, or begins one where there is none (any more); returns its id."""

    def send(self, rows: Sequence[Row]) -> None:
        """Hands over finished steps, in order."""

    def finish(self, state: str, artifacts: Sequence[Path]) -> None:
        """Uploads the files and folders, and says how the run ended."""

    def reset(self) -> None:
        """After a failure: `open` is called before anything else."""


class TensorBoardTracker:
    """Event files in a folder of the experiment; what is written is on the disk when `send` returns."""

    kind, name, run_id = "tensorboard", "TensorBoard", "tensorboard"
    max_rows, rewinds = 1000, True

    def __init__(self, folder: Path):
        self.folder, self.address = folder, str(folder)
        self.file: BinaryIO | None = None

    def open(self, run_id: str | None, delivered: int) -> str:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.folder.mkdir(exist_ok=True)  # not its parent: an experiment that was removed does not come back
        now = time.time_ns()  # files are read in the order of their names
        name = f"events.out.tfevents.{now // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{now % 10**9:09d}"
        self.file = (self.folder / name).open("xb", buffering=0)
        start = SessionLog(status=SessionLog.START)  # TensorBoard forgets this step and later ones of other files
        self._write(
            [
                Event(wall_time=time.time(), file_version="brain.Event:2"),
                Event(wall_time=time.time(), step=delivered + 1, session_log=start),
            ]
        )
        return self.run_id

    def send(self, rows: Sequence[Row]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(
            [
                Event(
                    wall_time=_time_of(row),
                    step=int(row["step"]),
                    summary=Summary(
                        value=[Summary.Value(tag=name, simple_value=value) for name, value in _numbers(row).items()]
                    ),
                )
                for row in rows
            ]
        )

    def finish(self, state: str, artifacts: Sequence[Path]) -> None:
        self.reset()

    def reset(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def _write(self, events: Sequence[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self.file is not None
        end = self.file.tell()
        try:
            writer = RecordWriter(_Whole(self.file))
            for event in events:
                writer.write(event.SerializeToString())
            os.fsync(self.file.fileno())
        except OSError:
            self.file.truncate(end)  # half a record would hide everything behind it
            self.file.seek(end)
            raise


class _Whole:
    """A file on which a short write, which a full disk gives first, is followed by the rest or the error."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def write(self, content: bytes) -> None:
        while content:
            content = content[self.file.write(content) :]


class MlflowTracker:
    """A run on an MLflow server, in the MLflow experiment of the same name."""

    kind, rewinds = "mlflow", False
    max_rows = 80  # a request takes 1000 numbers

    def __init__(self, run: Run, address: str):
        self.run, self.address, self.experiment = run, address, run.config.experiment
        self.name = f"MLflow ({address})"
        self.client: Any = None
        self.run_id = ""

    def open(self, run_id: str | None, delivered: int) -> str:
        self.client = mlflow_client(self.address)
        # Read first: where the server does not answer, nothing is begun twice.
        experiment = self.client.get_experiment_by_name(self.experiment)
        run = self._find(run_id) if run_id is not None else None
        if run is None:
            number = experiment.experiment_id if experiment else self.client.create_experiment(self.experiment)
            run = self.client.create_run(number, run_name=self.experiment)
        elif run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
        self.run_id = run.info.run_id
        self._describe(run.data.params)
        return self.run_id

    def send(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(_time_of(row) * 1000), int(row["step"]))
            for row in rows
            for name, value in _numbers(row).items()
        ]
        self.client.log_batch(self.run_id, metrics=metrics)

    def finish(self, state: str, artifacts: Sequence[Path]) -> None:
        for path in artifacts:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), path.name)
            else:
                self.client.log_artifact(self.run_id, str(path))
        self.client.set_terminated(self.run_id, state)

    def reset(self) -> None:
        self.client = None

    def _find(self, run_id: str) -> Any:
        """The run, or None where the server does not have it, because it was deleted or the server begun anew."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _describe(self, there: Mapping[str, str]) -> None:
        """Parameters. MLflow never changes one: what is another when a run goes on becomes the tag `resumed.NAME`."""
        from mlflow.entities import Param, RunTag

        parameters = {name: str(value) for name, value in parameters_of(self.run).items()}
        new = [Param(name, value) for name, value in parameters.items() if name not in there]
        for start in range(0, len(new), 100):  # of one request
            self.client.log_batch(self.run_id, params=new[start : start + 100])
        changed = [RunTag(f"resumed.{name}", value) for name, value in parameters.items() if there.get(name, value) != value]
        if changed:
            self.client.log_batch(self.run_id, tags=changed)


def mlflow_client(address: str) -> Any:
    """A client of the server that does not try again by itself, which takes minutes where it is not told otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # another address, which may not answer either
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=address)


class WandbTracker:
    """A run of a W&B project. Its client keeps what it takes in `wandb/` of the experiment and uploads it by itself."""

    kind, max_rows, rewinds = "wandb", 1000, False

    def __init__(self, run: Run, project: str):
        self.settings, self.project, self.experiment = run, project, run.config.experiment
        self.name, self.address = f"W&B ({project})", f"wandb:{project}"
        self.run: Any = None
        self.has_finished = False
        self.checked_at = float("-inf")

    def open(self, run_id: str | None, delivered: int) -> str:
        import wandb

        self._require_answer()
        if self.run is None:
            self.run = wandb.init(
                project=self.project,
                name=self.experiment,
                id=run_id or f"{self.experiment[:100]}-{secrets.token_hex(4)}",
                resume="allow",
                dir=self.settings.experiment_dir,
                config=parameters_of(self.settings),
                allow_val_change=True,
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    disable_git=True,
                    init_timeout=2 * REQUEST_TIMEOUT_S,
                    finish_timeout=WANDB_FINISH_S,
                    finish_timeout_raises=True,
                ),
            )
            # Steps are numbers of our own, as W&B's must never decrease.
            self.run.define_metric("step", hidden=True)
            self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    def send(self, rows: Sequence[Row]) -> None:
        self._require_answer()
        for row in rows:
            self.run.log({"step": int(row["step"]), **_numbers(row)})

    def finish(self, state: str, artifacts: Sequence[Path]) -> None:
        if self.has_finished:  # again, so the first time was not enough
            raise RunError(self._unsent())
        if artifacts:
            import wandb

            artifact = wandb.Artifact(self.experiment, type="result")
            for path in artifacts:
                if path.is_dir():
                    artifact.add_dir(str(path), name=path.name)
                else:
                    artifact.add_file(str(path))
            self.run.log_artifact(artifact)
        self.has_finished = True
        try:
            self.run.finish(exit_code=0 if state == FINISHED else 1)
        except TimeoutError:
            raise RunError(self._unsent()) from None

    def reset(self) -> None:
        self.checked_at = float("-inf")  # the client's run stays open, and goes on by itself

    def _unsent(self) -> str:
        return t("its client has not uploaded everything; `wandb sync {folder}` does", folder=Path(self.run.dir).parent)

    def _require_answer(self) -> None:
        import wandb

        settings, now = wandb.setup().settings, time.monotonic()
        if settings.mode not in ("online", "shared") or now - self.checked_at < CHECK_INTERVAL_S:
            return
        if reason := no_answer(settings.base_url):
            raise RunError(f"{settings.base_url}: {reason}")
        self.checked_at = now


def one_line(error: object) -> str:
    """A client's error as a part of a sentence."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + " …"


def _numbers(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name not in ("step", "time") and value}


def _time_of(row: Row) -> float:
    """When the step ended; rows of earlier versions do not say."""
    return float(row.get("time") or time.time())
