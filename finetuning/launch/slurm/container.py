"""How the job enters the container of `--container_image`: Pyxis, Apptainer, or not at all.

In all three the code, the data, the model and the experiment are at the same paths as outside.
Syntax: Pyxis 0.20 (https://github.com/NVIDIA/pyxis/wiki/Usage) and Apptainer 1.3 (https://apptainer.org/docs/user/1.3/).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import finetuning
from finetuning.config.run import Run
from finetuning.config.settings import RunConfig
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.slurm.cluster import Cluster

NO_IMAGE = "none"


@dataclass(frozen=True)
class Container:
    """What runs the image; `runtime` is pyxis, apptainer, singularity or none."""

    runtime: str
    image: str


def choose_container(config: RunConfig, cluster: Cluster, problems: list[str], notes: list[str]) -> Container:
    """Decides for the job; adds to `problems` and `notes`."""
    image, asked = config.container_image, config.container_runtime
    if image == NO_IMAGE:
        if asked != "auto":
            problems.append(t("--container_runtime {runtime} has no effect with --container_image none", runtime=asked))
        notes.append(t("no container: the nodes run this Python environment"))
        return Container("none", "")
    if asked == "pyxis" or (asked == "auto" and cluster.has_pyxis):
        notes.append(t("container {image} through Pyxis", image=image))
        return Container("pyxis", enroot_reference(image))
    if asked == "apptainer" or (asked == "auto" and cluster.apptainer):
        runtime = cluster.apptainer or "apptainer"
        notes.append(t("container {image} through {runtime}", image=image, runtime=runtime))
        return Container(runtime, apptainer_reference(image))
    if image == RunConfig.container_image:
        notes.append(
            t(
                "no container: srun has no Pyxis and this machine no Apptainer, so the default image {image} is left out and "
                "the nodes run this Python environment (--container_image none says the same)",
                image=image,
            )
        )
    else:
        problems.append(
            t(
                "--container_image {image}: srun has no Pyxis and this machine no Apptainer; give --container_image none for "
                "this Python environment, or --container_runtime apptainer if only the nodes have it",
                image=image,
            )
        )
    return Container("none", "")


def enroot_reference(image: str) -> str:
    """The image as Enroot names it: a registry is followed by `#`, not `/`; files stay as they are."""
    image = image.removeprefix("docker://")
    registry, slash, rest = image.partition("/")
    if not slash or "#" in image or _is_file(image) or not any(mark in registry for mark in ".:"):
        return str(Path(image).expanduser().resolve()) if _is_file(image) else image
    return f"{registry}#{rest}"


def apptainer_reference(image: str) -> str:
    """The image as Apptainer names it: a file, an address with its scheme, or an image of a Docker registry."""
    if _is_file(image):
        return str(Path(image).expanduser().resolve())
    return image if "://" in image else "docker://" + image.replace("#", "/")


def container_command(container: Container, run: Run, folders: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments for srun, and words between srun's arguments and the command that runs inside.

    Raises:
        InputError: a folder's name would be several in the list of what is mounted.
    """
    if container.runtime == "none":
        return [], []
    own = [folder for folder in folders if folder not in run.config.mounts]
    if wrong := [folder for folder in own if "," in folder or ":" in folder]:
        rule = t("a container's list of folders cannot hold ',' or ':'; rename it, or give --container_image none")
        raise InputError([f"{folder}: {rule}" for folder in wrong])
    mounts = [folder if ":" in folder else f"{folder}:{folder}" for folder in folders]
    if container.runtime == "pyxis":
        return [
            f"--container-image={container.image}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={run.experiment_dir}",
        ], []
    inside = [container.runtime, "exec", "--bind", ",".join(mounts), "--pwd", run.experiment_dir]
    if run.device == "cuda":
        inside.append("--nv")
    return [], [*inside, container.image]


def folders_of(run: Run) -> list[str]:
    """What the workers read and write: code, experiment, model, data, weights to start from, and --mounts."""
    needed = [package_folder().parent, Path(run.experiment_dir), Path(run.model_path), *map(Path, run.all_files)]
    needed += [Path(path) for path in (run.initial_weights, run.nemo_model) if path]
    whole = []
    for path in needed:
        if path.parent.name == "snapshots":  # the hub's cache: files are links into blobs/ beside it
            path = path.parent.parent
        whole.append(path if path.is_dir() else path.parent)
    outermost = [path for path in whole if not any(other != path and path.is_relative_to(other) for other in whole)]
    return [*dict.fromkeys(map(str, outermost)), *run.config.mounts]


def package_folder() -> Path:
    return Path(finetuning.__file__).resolve().parent


def _is_file(image: str) -> bool:
    return "://" not in image and (image.startswith(("/", "./", "../", "~")) or image.endswith((".sif", ".sqsh")))
