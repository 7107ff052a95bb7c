"""`finetune export MODEL [OUT] --to hf|nemo`: a checkpoint, experiment or model folder, in the format of other tools.

One process on the CPU, in memory that does not grow with the model.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from finetuning.cli.common_flags import verb_parser
from finetuning.cli.model_argument import open_given_model
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.formats.huggingface.write import DTYPES, export_hugging_face, stored_dtypes
from finetuning.formats.nemo.write import export_nemo
from finetuning.formats.peft import door as peft
from finetuning.formats.peft.write import export_peft
from finetuning.formats.stored_model import StoredModel
from finetuning.i18n import t
from finetuning.terminal import open_console

FORMATS = ("hf", "nemo")


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("export", t("Writes a model in the format of other tools."))
    parser.add_argument("model", help=t("a checkpoint, an experiment, an adapter, a model folder or a GGUF file"))
    parser.add_argument("out", nargs="?", type=Path, help=t("folder to write; default: beside it, with the format in its name"))
    parser.add_argument(
        "--to", choices=FORMATS, default="hf", help=t("hf: Hugging Face, adapters in PEFT format; nemo: NeMo 2")
    )
    parser.add_argument(
        "--merge", action="store_true", help=t("merge the adapter into its base; to check it as well: finetune merge")
    )
    parser.add_argument("--base", help=t("the model that it was trained from; default: the one it names"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=t("of the weights; default: the base model's"))
    given = parser.parse_intermixed_args(argv)  # flags may stand between the positional arguments
    model = open_given_model(given.model, given.base)
    target = given.out or default_target(model, given.to)
    console = open_console()
    keeps_adapter = model.adapter is not None and not given.merge
    problems = _problems(model, given.dtype, merge=given.merge)
    if given.to == "nemo" and keeps_adapter:
        problems = [t("--to nemo writes whole models; give --merge to put the adapter into its base")]
    if problems:
        raise InputError(problems)
    if given.to == "nemo":
        export_nemo_with_progress(model, target, given.dtype, console)
        console.print(t("model in NeMo 2's format: {path}", path=target))
    elif keeps_adapter:
        export_peft(model, target, given.base or model.found.kind.named_base(model.path) or str(model.base_folder))
        console.print(t("adapter in PEFT format: {path}", path=target))
    else:
        export_with_progress(model, target, given.dtype, console)
        console.print(t("model in Hugging Face format: {path}", path=target))
    return EXIT_FINISHED


def default_target(model: StoredModel, suffix: str) -> Path:
    """A folder beside the model; of a checkpoint, beside its experiment's `checkpoints`."""
    inside = model.is_checkpoint and model.path.resolve().parent.name == "checkpoints"
    folder = model.path.resolve().parent.parent if inside else model.path.resolve().parent
    return folder / f"{model.path.resolve().name.replace('=', '-')}-{suffix}"


def export_with_progress(model: StoredModel, target: Path, dtype: str | None, console: Console) -> None:
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        export_hugging_face(model, target, dtype, lambda done, total: progress.update(task, completed=done, total=total))


def export_nemo_with_progress(model: StoredModel, target: Path, dtype: str | None, console: Console) -> None:
    dtype_of = stored_dtypes(model) if dtype is None else lambda _: DTYPES[dtype]
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        export_nemo(model, target, dtype_of, lambda done, total: progress.update(task, completed=done, total=total))


def _problems(model: StoredModel, dtype: str | None, *, merge: bool) -> list[str]:
    problems = []
    if merge and model.adapter is None:
        problems.append(t("--merge has no effect: {path} has no adapter", path=model.path))
    if model.adapter is not None and not merge:
        if model.found.kind is peft:
            problems.append(t("{path}: is in PEFT format already; give --merge for a whole model", path=model.path))
        if dtype is not None:
            problems.append(t("--dtype has no effect on an adapter, which stays in float32; give --merge for a whole model"))
    return problems
