"""The command line: flags of the specification and ours, turned into a `RunConfig`.

`python finetune.py …` and `finetune train …` are the same command. Nothing heavy is imported before the flags are
understood, so that `--help` answers at once. Checking and launching belong to `finetuning.launch`.
"""

import argparse
import dataclasses
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from finetuning import __version__
from finetuning.cli.common_flags import FlagParser
from finetuning.config.flag import MODEL_AND_DATA, Flag
from finetuning.config.read_settings import config_from_dict, read_config_file
from finetuning.config.secrets import refuse_secrets
from finetuning.config.settings import CHOICES, FLAGS, RunConfig, field_types
from finetuning.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, InputError, NoRoom, RunError
from finetuning.files.atomic import NO_ROOM, no_room, temporary_folder
from finetuning.i18n import language_of_environment, printable, set_language, t, translated
from finetuning.runtime.garbage import begin_imports, end_imports
from finetuning.runtime.interrupts import Terminated, raise_on_end_signals
from finetuning.runtime.output import open_output, what_was_lost

# What the system says of paths that cannot be used: they are another's, too long, links in a circle, on a disk that fails.
UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN),
}
MAX_PATH_SHOWN = 300  # characters


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser, with its help in the language that is set now."""
    parser = settings_parser(
        program,
        f"{program} --hf_model_id MODEL --dataset_path FOLDER [flags]",
        t('Fine-tunes Llama 3.1 on a folder of {{"input": …, "output": …}} JSONL.'),
        t(
            "Exit codes: 0 finished, 1 failed, 2 wrong input (nothing was started), 75 stopped and saved,\n"
            "130 interrupted: before the start, killed by a second Ctrl-C, or no longer following a Slurm job, which goes on."
        ),
    )
    group = parser.add_argument_group(t("This command"))
    group.add_argument("--config", metavar="FILE", type=Path, help=t("YAML file of settings; flags override it"))
    group.add_argument("--dryrun", action="store_true", help=t("check everything, print the resolved run and stop"))
    group.add_argument(
        "--detach", action="store_true", default=argparse.SUPPRESS, help=t("submit the Slurm job and return; do not follow it")
    )
    group.add_argument("-h", "--help", action="help", help=t("show this help and stop"))
    group.add_argument("--version", action="version", version=f"finetune {__version__}", help=t("show the version and stop"))
    return parser


def settings_parser(program: str, usage: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser of all settings; only those that were given appear in the result."""
    parser = FlagParser(
        prog=program,
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,  # below, so that its text is translated as well
        epilog=epilog,
    )
    for title in dict.fromkeys(flag.group for flag in FLAGS.values()):
        group = parser.add_argument_group(translated(title))
        for name, flag in FLAGS.items():
            if flag.group == title:
                _add_flag(group, name, flag)
        if title == MODEL_AND_DATA:
            group.add_argument(
                "--hf_token",
                metavar="TOKEN",
                default=None,
                help=t("Hugging Face token; also read from HF_TOKEN or `hf auth login`; not needed for a local folder"),
            )
    return parser


def main(argv: Sequence[str] | None = None, program: str = "finetune train") -> int:
    """Runs the command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        hide_token(arguments)
        _prepare_process()
    set_language(_language_asked_for(arguments))
    if arguments and arguments[0] in VERBS:
        print(
            t("{verb} is a command of its own: finetune {verb} …, or python -m finetuning {verb} …", verb=arguments[0]),
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    given = vars(build_parser(program).parse_args(arguments))
    token, config_file, dryrun = given.pop("hf_token", None), given.pop("config"), given.pop("dryrun")
    detach = given.pop("detach", False)
    try:
        config = _readable(given, config_file)
        from finetuning.cli.train import launch

        token = (token or os.environ.get("HF_TOKEN") or "").strip() or None
        code = launch(config, token, dryrun=dryrun, detach=detach)
        _say_what_was_lost()  # train.log of the experiment has it all
        return code
    except InputError as error:
        _print_problems(error.problems)
        return EXIT_BAD_INPUT
    except (RunError, OSError) as error:
        return _say_why_it_ended(error)
    except (KeyboardInterrupt, Terminated):  # once the workers run, signals are theirs
        print(t("Stopped. Nothing was started."), file=sys.stderr)
        return EXIT_INTERRUPTED


# Verb -> module with main(arguments) -> exit code, which is loaded when it is asked for, and what it does.
VERBS = {
    "train": ("finetuning.cli.main", "fine-tune a model; `finetune train --help` lists the flags"),
    "plan": ("finetuning.cli.plan", "whether a run fits, how long it takes, which layout is best; needs no GPU"),
    "selftest": ("finetuning.cli.selftest", "compare a parallel layout with one process, on this machine"),
    "data": ("finetuning.cli.data", "check, preview and convert training data; what a step was trained on"),
    "list": ("finetuning.cli.list", "all experiments and their status"),
    "status": ("finetuning.cli.status", "status of an experiment, or how it ended"),
    "logs": ("finetuning.cli.logs", "what an experiment has printed; -f follows it"),
    "cancel": ("finetuning.cli.cancel", "make an experiment save and stop"),
    "evaluate": ("finetuning.cli.evaluate", "loss, perplexity and answers of a model on a data file"),
    "generate": ("finetuning.cli.generate", "answers of a model to prompts"),
    "chat": ("finetuning.cli.chat", "a conversation with a model in the terminal"),
    "merge": ("finetuning.cli.merge", "an adapter into its base model, with a comparison of the two"),
    "export": ("finetuning.cli.export", "a checkpoint or model in the format of other tools"),
    "prove": ("finetuning.cli.prove", "whether a served model is the one that was trained"),
    "push": ("finetuning.cli.push", "a result to the Hugging Face hub, with a model card"),
    "inspect": ("finetuning.cli.inspect", "what a file or folder with a model holds, whoever wrote it"),
    "doctor": ("finetuning.cli.doctor", "what would stop a run here, and what to do about it"),
}


def console() -> None:
    """Entry point of the `finetune` command: `finetune VERB …`."""
    set_language(_language_asked_for(sys.argv[1:]))
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        if len(sys.argv) > 1 and sys.argv[1] == "--version":
            print(f"finetune {__version__}")
            sys.exit(0)
        asked = len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help")
        lines = [t("usage: finetune VERB …"), ""] + [f"  {verb:<9}{translated(text)}" for verb, (_, text) in VERBS.items()]
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else EXIT_BAD_INPUT)
    verb = sys.argv.pop(1)
    if verb == "train":
        sys.exit(main())  # reads sys.argv itself, to hide the token
    _prepare_process()
    try:
        begin_imports()
        module = importlib.import_module(VERBS[verb][0])
        end_imports()
        code = module.main(sys.argv[1:])
        sys.exit(EXIT_FAILED if _say_what_was_lost() else code)
    except InputError as error:
        _print_problems(error.problems)
        sys.exit(EXIT_BAD_INPUT)
    except (RunError, OSError) as error:
        if isinstance(error, OSError) and (problem := _problem_of_path(error)) is not None:
            _print_problems([problem])
            sys.exit(EXIT_BAD_INPUT)
        sys.exit(_say_why_it_ended(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _prepare_process() -> None:
    """Makes it end in order when it is told to, and go on when nobody can see any more what it prints."""
    raise_on_end_signals()
    for name in ("stdout", "stderr"):
        stream: TextIO | None = vars(sys)[name]
        if stream is not None:  # it was closed by whoever started this
            setattr(sys, name, open_output(stream.fileno(), stream.encoding))


def _readable(given: dict[str, Any], config_file: Path | None) -> RunConfig:
    """`resolve_config`, where what a path is not good for is a problem as well."""
    try:
        return resolve_config(given, config_file)
    except OSError as error:
        if (problem := _problem_of_path(error)) is None:
            raise
        raise InputError(problem) from None


def _say_what_was_lost() -> bool:
    """Whether a part of what was printed is; a verb's output may be its result."""
    problem = what_was_lost(sys.stdout)
    if problem is not None:
        print(problem, file=sys.stderr)
    return problem is not None


def _language_asked_for(arguments: list[str]) -> str:
    """The language of `--help`, which answers while the flags are still being parsed."""
    parser = FlagParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--lang", nargs="?")
    given = parser.parse_known_args(arguments)[0].lang
    return given if given in CHOICES["lang"] else language_of_environment()


def resolve_config(given: dict[str, Any], config_file: Path | None, *, needs_data: bool = True) -> RunConfig:
    """What flags and a file of settings ask for together; sets the language.

    Raises:
        InputError: some of it is no setting, or has no such value.
    """
    settings = read_config_file(config_file) if config_file else {}
    if "hf_token" in settings:
        raise InputError(
            t("--config {path}: hf_token does not belong in a file; set HF_TOKEN or run `hf auth login`", path=config_file)
        )
    settings.update(given)
    refuse_secrets(settings)  # first, as other messages show what was given
    settings.setdefault("lang", language_of_environment())
    if settings["lang"] in CHOICES["lang"]:
        set_language(settings["lang"])
    if settings.get("peft") == "lora" and settings.get("restore_config"):
        from finetuning.launch.resume import with_adapter_settings

        settings = with_adapter_settings(settings)
    return config_from_dict(settings, str(config_file) if config_file else t("command line"), needs_data=needs_data)


def _add_flag(group: Any, name: str, flag: Flag) -> None:
    """Adds one flag; only flags that were given appear in the result, so that they override `--config`."""
    names = [flag.short, f"--{name}"] if flag.short else [f"--{name}"]
    text, hint = translated(flag.help), field_types()[name]
    if hint is bool:
        group.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text.replace("%", "%%"))
        return
    if shown := shown_default(name):
        text += t(" (default: {value})", value=shown)
    kind = int if hint in (int, int | None) else float if hint in (float, float | None) else str
    group.add_argument(
        *names,
        type=partial(_number_or_auto, kind) if flag.auto else kind,
        default=argparse.SUPPRESS,
        help=text.replace("%", "%%"),
        choices=flag.choices or None,
        metavar=None if flag.choices else {int: "N", float: "X", str: "TEXT"}[kind],
    )


def _number_or_auto(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return text if text == "auto" else kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(t("{value!r} is neither a number nor auto", value=text)) from None


def shown_default(name: str) -> str:
    """The default as a reader sees it; empty where there is none."""
    flag, default = FLAGS[name], {field.name: field.default for field in dataclasses.fields(RunConfig)}[name]
    if flag.default_means is not None:
        return translated(flag.default_means)
    if default in (None, (), dataclasses.MISSING):
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def hide_token(arguments: list[str]) -> None:
    """Starts this program again with the token in the environment, so that no process list shows it.

    Returns without effect when no `--hf_token` was given.
    """
    kept, token, values = [], None, iter(arguments)
    for argument in values:
        if argument == "--hf_token":
            token = next(values, None)
            if token is None:
                return  # argparse reports the missing value
        elif argument.startswith("--hf_token="):
            token = argument.partition("=")[2]
        else:
            kept.append(argument)
    if token is not None:
        os.environ["HF_TOKEN"] = token
        own_arguments = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
        os.execv(sys.executable, [sys.executable, *own_arguments[1:], *kept])


def _say_why_it_ended(error: RunError | OSError) -> int:
    """Of a full disk the system does not say in the middle of a file which one it is; any other OSError is a fault of ours."""
    if isinstance(error, FileNotFoundError) and error.filename is None:  # which torch meets as well
        try:
            temporary_folder()
        except NoRoom as found:
            error = found
    if isinstance(error, OSError) and (problem := _problem_of_path(error)) is not None:
        error = RunError(problem)
    if isinstance(error, OSError):
        if error.errno not in NO_ROOM:
            raise error
        error = no_room(Path(error.filename).absolute().parent if isinstance(error.filename, str) else Path.cwd(), error)
    print(printable(str(error)), file=sys.stderr)
    return EXIT_FAILED


def _problem_of_path(error: OSError) -> str | None:
    """What keeps a path from being used that somebody gave, or that lies below one; None: it is something else."""
    if error.errno not in UNUSABLE or not isinstance(error.filename, str):
        return None
    path = error.filename if len(error.filename) <= MAX_PATH_SHOWN else error.filename[:MAX_PATH_SHOWN] + "…"
    return t("{file}: cannot be read or written: {reason}", file=path, reason=error.strerror)


def _print_problems(problems: list[str]) -> None:
    print(t("Nothing was started. {count} to fix:", count=len(problems)), file=sys.stderr)
    for problem in problems:
        print(f"  - {printable(problem)}", file=sys.stderr)
