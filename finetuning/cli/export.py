"""`finetune export MODEL [OUT] --to hf|nemo|gguf`: a checkpoint, experiment or model folder, in the format of other tools.

One process on the CPU, in memory that does not grow with the model. How to serve the result is printed and lies beside it.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from finetuning.cli.common_flags import verb_parser
from finetuning.cli.course_lines import checkpoint_lines
from finetuning.cli.model_argument import open_given_model, test_file_of
from finetuning.cli.prove import prove_export
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.formats.gguf.lora import DTYPES as ADAPTER_DTYPES
from finetuning.formats.gguf.lora import export_gguf_adapter
from finetuning.formats.gguf.ollama import MODELFILE, modelfile
from finetuning.formats.gguf.write import QUANTIZATIONS, export_gguf
from finetuning.formats.huggingface.fp8 import KIND as FP8
from finetuning.formats.huggingface.write import DTYPES, export_hugging_face, stored_dtypes
from finetuning.formats.peft import door as peft
from finetuning.formats.peft.write import export_peft
from finetuning.formats.serving import (
    LLAMA_CPP_URL,
    SERVE_FILE,
    VLLM_URL,
    adapter_commands,
    gguf_adapter_commands,
    gguf_commands,
    whole_model_commands,
    write_serving,
    write_template_file,
)
from finetuning.formats.stored_model import StoredModel
from finetuning.i18n import t
from finetuning.terminal import open_console

FORMATS = ("hf", "nemo", "gguf")


def main(argv: Sequence[str]) -> int:
    given = _parsed(argv)
    model = open_given_model(given.model, given.base)
    target = given.out or default_target(model, given.to)
    console = open_console()
    keeps_adapter = model.adapter is not None and not given.merge
    if problems := _problems(model, given, target):
        raise InputError(problems)
    if model.is_checkpoint:
        for line in checkpoint_lines(model.path.resolve()):
            console.print(line)
    name, served = served_name(given.model), target
    if given.to == "nemo":
        export_nemo_with_progress(model, target, given.dtype, console)
        console.print(t("model in NeMo 2's format: {path}", path=target))
    elif given.to == "gguf" and given.adapter:
        _export_gguf_adapter(model, target, given.quantize or "f32", _base_name(model, given), name, console)
    elif given.to == "gguf":
        served = _export_gguf(model, target, given.quantize, name, console)
    elif keeps_adapter:
        _export_adapter(model, target, _base_name(model, given), name, console)
    else:
        export_with_progress(model, target, given.dtype, console, fp8=given.quantize == FP8)
        console.print(t("model in Hugging Face format: {path}", path=target))
        say_how_to_serve(model, target, name, console)
    return prove_export(served, model) if given.prove else EXIT_FINISHED


def _parsed(argv: Sequence[str]) -> Namespace:
    parser = verb_parser("export", t("Writes a model in the format of other tools."))
    parser.add_argument("model", help=t("a checkpoint, an experiment, an adapter, a model folder or a GGUF file"))
    parser.add_argument("out", nargs="?", type=Path, help=t("folder to write; default: beside it, with the format in its name"))
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default="hf",
        help=t("hf: Hugging Face, adapters in PEFT format; nemo: NeMo 2; gguf: llama.cpp, Ollama, LM Studio"),
    )
    parser.add_argument(
        "--merge", action="store_true", help=t("merge the adapter into its base; to check it as well: finetune merge")
    )
    parser.add_argument(
        "--adapter", action="store_true", help=t("of --to gguf: the adapter alone, for llama-server --lora; default: merged")
    )
    parser.add_argument("--base", help=t("the model that it was trained from; default: the one it names"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=t("of the weights; default: the base model's"))
    parser.add_argument(
        "--quantize",
        choices=(*QUANTIZATIONS, FP8),
        help=t("of --to gguf: its type; of --to hf: fp8; default: the base model's dtype"),
    )
    parser.add_argument("--prove", action="store_true", help=t("serve the result and compare it, as finetune prove does"))
    return parser.parse_intermixed_args(argv)  # flags may stand between the positional arguments


def _base_name(model: StoredModel, given: Namespace) -> str:
    """The base of an adapter as others are to be told it: a folder or a hub name."""
    return given.base or model.found.kind.named_base(model.path) or str(model.base_folder)


def say_how_to_serve(model: StoredModel, target: Path, name: str, console: Console) -> None:
    """Of a folder in Hugging Face format that was written from `model`."""
    commands = whole_model_commands(target.resolve(), name, has_template=write_template_file(target, model))
    write_serving(target, model, commands, VLLM_URL)
    _show(commands, target, console)


def served_name(given: str) -> str:
    """What servers call the model: the experiment's name, or the last part of a path."""
    names = (part for part in reversed(Path(given).parts) if part not in ("checkpoints", "export", ".", "/"))
    return next(names, "model").replace("@", "-").replace("=", "-")


def default_target(model: StoredModel, suffix: str) -> Path:
    """A folder beside the model; of a checkpoint, beside its experiment's `checkpoints`."""
    inside = model.is_checkpoint and model.path.resolve().parent.name == "checkpoints"
    folder = model.path.resolve().parent.parent if inside else model.path.resolve().parent
    return folder / f"{model.path.resolve().name.replace('=', '-')}-{suffix}"


def export_with_progress(model: StoredModel, target: Path, dtype: str | None, console: Console, *, fp8: bool = False) -> None:
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        export_hugging_face(model, target, dtype, tell, fp8=fp8)


def export_nemo_with_progress(model: StoredModel, target: Path, dtype: str | None, console: Console) -> None:
    from finetuning.formats.nemo.write import export_nemo  # with torch's checkpoints, which take a second

    dtype_of = stored_dtypes(model) if dtype is None else lambda _: DTYPES[dtype]
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        export_nemo(model, target, dtype_of, lambda done, total: progress.update(task, completed=done, total=total))


def _export_gguf(model: StoredModel, target: Path, quantization: str | None, name: str, console: Console) -> Path:
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        written = export_gguf(
            model, target, quantization, lambda done, total: progress.update(task, completed=done, total=total)
        )
    console.print(t("GGUF file: {path}", path=written.file))
    if written.chat_template is None:
        console.print(t("note: the model has no chat template; servers will continue texts, not answer questions"))
    for end in written.vocabulary.other_ends:
        console.print(
            t("note: answers may end with {token} too, which a GGUF file has no place for; give it as a stop", token=end)
        )
    reason = None
    if written.chat_template is not None:
        try:
            text = modelfile(written, model.prompt_format(), model.tokenizer_folder)
            (target / MODELFILE).write_text(text, encoding="utf-8")
        except InputError as error:
            reason = error
    if reason is not None:
        console.print(t("note: no Modelfile for Ollama: {reason}", reason=reason))
    has_modelfile = (target / MODELFILE).is_file()
    commands = gguf_commands(written.file.resolve(), name, has_modelfile=has_modelfile)
    write_serving(target, model, commands, str(written.file.resolve()))
    _show(commands, target, console)
    return written.file


def _export_gguf_adapter(model: StoredModel, target: Path, kind: str, base: str, name: str, console: Console) -> None:
    file = export_gguf_adapter(model, target, kind)
    console.print(t("adapter as a GGUF file: {path}", path=file))
    commands = gguf_adapter_commands(file.resolve(), base, name)
    write_serving(target, model, commands, LLAMA_CPP_URL)
    _show(commands, target, console)


def _export_adapter(model: StoredModel, target: Path, base: str, name: str, console: Console) -> None:
    assert model.adapter is not None
    export_peft(model, target, base)
    console.print(t("adapter in PEFT format: {path}", path=target))
    rank = max(len(update.a) for update in model.adapter.updates.values())
    has_template = write_template_file(target, model)
    commands = adapter_commands(target.resolve(), base, name, rank, has_template=has_template)
    write_serving(target, model, commands, VLLM_URL)
    _show(commands, target, console)


def _show(commands: dict[str, list[str]], target: Path, console: Console) -> None:
    console.print(t("to serve it (also in {file}):", file=target / SERVE_FILE))
    for server, lines in commands.items():
        for line in lines:
            console.print(f"  {server}: {line}", soft_wrap=True)


def _problems(model: StoredModel, given: Namespace, target: Path) -> list[str]:
    problems = []
    keeps_adapter = model.adapter is not None and not given.merge and given.to != "gguf"
    if given.prove and (given.to == "nemo" or keeps_adapter or given.adapter):
        problems.append(
            t("--prove serves GGUF files and whole models only; serve the result and give its address to finetune prove")
        )
    elif given.prove and test_file_of(model.path)[0] is None:
        problems.append(t("--prove: the data that it was trained on are not known; use finetune prove with --data"))
    if given.merge and model.adapter is None:
        problems.append(t("--merge has no effect: {path} has no adapter", path=model.path))
    if given.adapter:
        problems += _adapter_problems(model, given)
    if given.to == "gguf":
        problems += _gguf_problems(given, target)
    elif given.quantize == FP8:
        if given.to == "nemo" or keeps_adapter:
            problems.append(
                t("--quantize fp8 is for whole models in Hugging Face format; give --to hf, and --merge for an adapter")
            )
    elif given.quantize is not None:
        problems.append(t("--quantize {kind} has no effect without --to gguf", kind=given.quantize))
    if given.to == "nemo" and keeps_adapter:
        problems.append(t("--to nemo writes whole models; give --merge to put the adapter into its base"))
    elif keeps_adapter:
        if model.found.kind is peft:
            problems.append(t("{path}: is in PEFT format already; give --merge for a whole model", path=model.path))
        if given.dtype is not None:
            problems.append(t("--dtype has no effect on an adapter, which stays in float32; give --merge for a whole model"))
    return problems


def _adapter_problems(model: StoredModel, given: Namespace) -> list[str]:
    """Of --adapter."""
    problems = []
    if given.to != "gguf":
        problems.append(t("--adapter is for --to gguf; --to hf leaves an adapter as it is, without --merge"))
    if given.merge:
        problems.append(t("--adapter and --merge: give one of them"))
    if model.adapter is None:
        problems.append(t("--adapter: {path} has no adapter", path=model.path))
    if given.quantize not in (None, FP8, *ADAPTER_DTYPES):
        problems.append(t("--quantize {kind} is for whole models; an adapter is f32 or f16", kind=given.quantize))
    return problems


def _gguf_problems(given: Namespace, target: Path) -> list[str]:
    """Of --to gguf."""
    problems = []
    if given.quantize == FP8:
        problems.append(t("--quantize fp8: GGUF files have no such type; give --to hf, or --quantize q8_0"))
    if given.dtype is not None:
        problems.append(t("--dtype has no effect with --to gguf; give --quantize"))
    if target.suffix == ".gguf":
        folder = target.with_suffix("")
        problems.append(
            t(
                "{path}: is a name for a file, and a folder is written; give for example {folder}",
                path=target,
                folder=folder,
            )
        )
    return problems
