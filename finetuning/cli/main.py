"""The command line: flags of the specification and ours, turned into a `RunConfig`.

`python finetune.py …` and `finetune train …` are the same command. Nothing heavy is imported before the flags are
understood, so that `--help` answers at once. Checking and launching belong to `finetuning.launch`.
"""

import argparse
import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from finetuning import __version__
from finetuning.config.secrets import refuse_secrets
from finetuning.config.settings import CHOICES, RunConfig, config_from_dict, field_types, read_config_file
from finetuning.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, InputError, RunError
from finetuning.files.atomic import NO_ROOM, no_room
from finetuning.i18n import language_of_environment, printable, set_language, t, translated
from finetuning.runtime.interrupts import Terminated, raise_on_end_signals
from finetuning.runtime.output import open_output

# Group title -> (flag, short form, help). The first six groups are the specification's.
FLAGS: dict[str, list[tuple[str, str | None, str]]] = {
    "Basic execution": [
        ("executor", None, "where it runs: torchrun on this machine, or a Slurm job"),
        ("experiment", "-E", "name of the experiment; its folder is experiments/NAME"),
    ],
    "Slurm": [
        ("account", "-a", "Slurm account"),
        ("partition", "-p", "Slurm partition"),
        ("container_image", "-i", "container image of the job, a name in a registry or a file; none: no container"),
        ("container_runtime", None, "what runs the image; auto: Pyxis where srun has it, else Apptainer"),
        ("mounts", None, "comma-separated folders to mount, FOLDER or FOLDER:TARGET; code, data and experiment always are"),
        ("python", None, "Python of the nodes; left out: this one, in a container python3"),
        ("time", None, "time limit of the job, e.g. 8:00:00; it saves, requeues itself and goes on"),
        ("save_time_s", None, "seconds before the time limit at which it starts to save"),
        ("gpu_request", None, "sbatch option that asks for GPUs; auto: what the nodes have; none: CPU processes"),
        ("gpu_memory_gib", None, "memory of each GPU of the nodes; default: as finetune doctor --slurm or Slurm says"),
        ("cpus_per_task", None, "CPUs of each node; left out: the share of its GPUs"),
        ("mem", None, "memory of each node, e.g. 200G; 0: all"),
        ("exclusive", None, "no other job on the nodes"),
        ("qos", None, "quality of service"),
        ("constraint", None, "features that the nodes must have"),
        ("nodelist", None, "nodes that the job must have"),
        ("exclude", None, "nodes that the job must not have"),
        ("dependency", None, "jobs to wait for, e.g. afterok:1234"),
        ("sbatch_options", None, "more options of sbatch in one text, e.g. \"--reservation=maintenance --mail-type=END\""),
        ("setup", None, "shell lines before the workers start, e.g. \"module load cuda\""),
        ("environment", None, "variables of the workers in one text, e.g. \"NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5\""),
        ("slurm_template", None, "job script of your own, a Jinja2 template; see docs/slurm.md"),
    ],
    "Hardware": [
        ("num_nodes", "-N", "number of machines"),
        ("num_gpus", "-G", "GPUs per machine; without CUDA, CPU processes"),
    ],
    "Model and data": [
        ("hf_model_id", None, "Hugging Face model id, or a local folder in its format (required without --nemo_model)"),
        ("nemo_model", "-n", "NeMo or Megatron checkpoint with the weights to start from"),
        ("dataset_path", "-D", "folder with training.jsonl, validation.jsonl and test.jsonl, or one raw .jsonl (required)"),
    ],
    "Training": [
        ("max_steps", None, "optimizer steps; left out: one epoch"),
        ("global_batch_size", "-g", "samples per optimizer step; a multiple of micro_batch_size x data parallel size"),
        ("micro_batch_size", "-m", "a packed row may hold micro_batch_size x seq_length tokens"),
    ],
    "Model parallelism": [
        ("tensor_model_parallel_size", "-T", "tensor parallel degree"),
        ("pipeline_model_parallel_size", "-P", "pipeline parallel degree"),
        ("context_parallel_size", "-C", "context parallel degree"),
        ("data_parallel_replicate_size", None, "whole copies of the sharded weights; a divisor of data parallel"),
        ("sharding", None, "full: weights are gathered for each use; step: once a step; replicated: frozen ones are whole"),
        ("pipeline_schedule", None, "order of forward and backward passes in a pipeline"),
    ],
    "Samples": [
        ("seq_length", None, "longest sample in tokens"),
        ("truncation", None, "of a longer sample: refuse the data, cut the end of its input, or drop it; always listed"),
        ("skip_bad_samples", None, "drop and list samples that cannot be used, instead of refusing the data"),
        ("prompt_template", None, r"text with {input} and {output} instead of the chat template; \n is a new line"),
        ("system_prompt", None, "system message put before every sample"),
    ],
    "What is trained": [
        ("peft", None, "none: all weights; lora: low-rank adapters"),
        ("lora_rank", None, "rank of the adapters"),
        ("lora_alpha", None, "adapters are scaled by alpha / rank"),
        ("lora_targets", None, "comma-separated linear layers that get adapters"),
    ],
    "Optimizer": [
        ("lr", None, "peak learning rate; left out: 5e-6, with LoRA 1e-4"),
        ("min_lr", None, "learning rate at the end of the cosine"),
        ("warmup_steps", None, "steps of linear warm-up; left out: a tenth of the steps, at most 50"),
        ("weight_decay", None, "decay of weight matrices"),
        ("adam_beta1", None, "AdamW beta 1"),
        ("adam_beta2", None, "AdamW beta 2"),
        ("adam_eps", None, "AdamW epsilon"),
        ("clip_grad", None, "largest global gradient norm; 0: no clipping"),
        ("seed", None, "decides sample order and adapter initialisation"),
    ],
    "Memory and speed": [
        ("activation_checkpointing", None, "recompute in backward; selective: cheap or wide; full: all; auto: the least"),
        ("compile", None, "compiled or fused blocks; auto: with CUDA only"),
        ("row_length", None, "tokens of a packed row; left out: micro_batch_size x seq_length, more where GPUs have room"),
        ("fp8", None, "products of linear layers in fp8: faster, a little less exact"),
        ("least_memory", None, "LoRA in the least GPU memory: recompute in pieces, keep the rest in host memory; slower"),
        ("optimizer_states", None, "of full fine-tuning: gradients and moments in fp32 or bf16, moments in 8bit"),
    ],
    "Evaluation, checkpoints and logs": [
        ("val_check_interval", None, "steps between validations; left out: ten in the run"),
        ("save_every_n_steps", None, "steps between checkpoints; left out: after each validation; 0: none"),
        ("keep_last", None, "newest checkpoints to keep, besides the best one"),
        ("num_sample_answers", None, "answers generated before and after training"),
        ("max_new_tokens", None, "longest generated answer, in tokens"),
        ("restore_config", None, "checkpoint whose weights to start from, e.g. experiments/NAME/checkpoints/step=000100"),
        ("accept_changes", None, "resume although data, template, batch size or sequence length changed"),
        ("wandb_project", None, "also log to this Weights & Biases project (needs the wandb package)"),
        ("mlflow_tracking_uri", None, "also log to this MLflow server (needs the mlflow package)"),
        ("log_artifacts", None, "upload data report, results and exported model there at the end"),
        ("profile_steps", None, "steps that are profiled, from the fourth one on; in profile/ of the experiment"),
        ("experiments_dir", None, "folder that holds the experiments"),
        ("lang", None, "language of the messages; left out: the locale's"),
    ],
}  # fmt: skip


def build_parser(program: str) -> argparse.ArgumentParser:
    """The parser, with its help in the language that is set now."""
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} --hf_model_id MODEL --dataset_path FOLDER [flags]",
        description=t('Fine-tunes Llama 3.1 on a folder of {{"input": …, "output": …}} JSONL.'),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,  # below, so that its text is translated as well
        epilog=t(
            "Exit codes: 0 finished, 1 failed, 2 wrong input (nothing was started), 75 stopped and saved,\n"
            "130 interrupted: before the start, killed by a second Ctrl-C, or no longer following a Slurm job, which goes on."
        ),
    )
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(translated(title))
        for name, short, text in flags:
            _add_flag(group, name, short, translated(text), defaults[name])
        if title == "Model and data":
            group.add_argument(
                "--hf_token", metavar="TOKEN", default=None,
                help=t("Hugging Face token; also read from HF_TOKEN or `hf auth login`; not needed for a local folder"),
            )  # fmt: skip
    group = parser.add_argument_group(t("This command"))
    group.add_argument("--config", metavar="FILE", type=Path, help=t("YAML file of settings; flags override it"))
    group.add_argument("--dryrun", action="store_true", help=t("check everything, print the resolved run and stop"))
    group.add_argument(
        "--detach", action="store_true", default=argparse.SUPPRESS, help=t("submit the Slurm job and return; do not follow it")
    )
    group.add_argument("-h", "--help", action="help", help=t("show this help and stop"))
    group.add_argument("--version", action="version", version=f"finetune {__version__}", help=t("show the version and stop"))
    return parser


def main(argv: Sequence[str] | None = None, program: str = "finetune train") -> int:
    """Runs the command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _hide_token(arguments)
        _prepare_process()
    set_language(_language_asked_for(arguments))
    given = vars(build_parser(program).parse_args(arguments))
    token, config_file, dryrun = given.pop("hf_token", None), given.pop("config"), given.pop("dryrun")
    detach = given.pop("detach", False)
    try:
        config = _resolve_config(given, config_file)
        from finetuning.cli.train import launch

        token = (token or os.environ.get("HF_TOKEN") or "").strip() or None
        return launch(config, token, dryrun=dryrun, detach=detach)
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
    "selftest": ("finetuning.cli.selftest", "compare a parallel layout with one process, on this machine"),
    "data": ("finetuning.cli.data", "check, preview and convert training data; what a step was trained on"),
    "list": ("finetuning.cli.list", "all experiments and how they are"),
    "status": ("finetuning.cli.status", "how an experiment is, or how it ended"),
    "logs": ("finetuning.cli.logs", "what an experiment has printed; -f follows it"),
    "cancel": ("finetuning.cli.cancel", "make an experiment save and stop"),
    "evaluate": ("finetuning.cli.evaluate", "loss, perplexity and answers of a model on a data file"),
    "generate": ("finetuning.cli.generate", "answers of a model to prompts"),
    "chat": ("finetuning.cli.chat", "a conversation with a model in the terminal"),
    "merge": ("finetuning.cli.merge", "an adapter into its base model, with a comparison of the two"),
    "export": ("finetuning.cli.export", "a checkpoint or model in the format of other tools"),
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
        sys.exit(importlib.import_module(VERBS[verb][0]).main(sys.argv[1:]))
    except InputError as error:
        _print_problems(error.problems)
        sys.exit(EXIT_BAD_INPUT)
    except (RunError, OSError) as error:
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


def _language_asked_for(arguments: list[str]) -> str:
    """The language of `--help`, which answers while the flags are still being parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--lang", nargs="?")
    given = parser.parse_known_args(arguments)[0].lang
    return given if given in CHOICES["lang"] else language_of_environment()


def _resolve_config(given: dict[str, Any], config_file: Path | None) -> RunConfig:
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
    return config_from_dict(settings, str(config_file) if config_file else t("command line"))


def _add_flag(group: Any, name: str, short: str | None, text: str, default: Any) -> None:
    """Adds one flag; only flags that were given appear in the result, so that they override `--config`."""
    names = [short, f"--{name}"] if short else [f"--{name}"]
    hint = field_types()[name]
    if hint is bool:
        group.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if default not in (None, (), dataclasses.MISSING) and name != "lang":  # the command's comes from the locale
        shown = ",".join(default) if isinstance(default, tuple) else default
        text += t(" (default: {value})", value=shown)
    kind = int if hint in (int, int | None) else float if hint in (float, float | None) else str
    group.add_argument(
        *names, type=kind, default=argparse.SUPPRESS, help=text.replace("%", "%%"), choices=CHOICES.get(name),
        metavar=None if name in CHOICES else {int: "N", float: "X", str: "TEXT"}[kind],
    )  # fmt: skip


def _hide_token(arguments: list[str]) -> None:
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
    if isinstance(error, OSError):
        if error.errno not in NO_ROOM:
            raise error
        error = no_room(Path(error.filename).absolute().parent if isinstance(error.filename, str) else Path.cwd(), error)
    print(error, file=sys.stderr)
    return EXIT_FAILED


def _print_problems(problems: list[str]) -> None:
    print(t("Nothing was started. {count} to mend:", count=len(problems)), file=sys.stderr)
    for problem in problems:
        print(f"  - {printable(problem)}", file=sys.stderr)
