"""The job script and the plan of a job, for clusters of many kinds; whether Slurm takes them is tested in tests/slurm."""

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from finetuning.config.rules import check_settings
from finetuning.config.run import Run
from finetuning.config.settings import CHOICES, RunConfig, field_types
from finetuning.config.strategy import Strategy
from finetuning.errors import InputError
from finetuning.launch.slurm.cluster import Cluster, Partition, count_gpus, parse_config, parse_partitions
from finetuning.launch.slurm.container import apptainer_reference, enroot_reference, folders_of
from finetuning.launch.slurm.job import parse_job
from finetuning.launch.slurm.job_script import TEMPLATE, plan_job, render_job, seconds_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent.parent
GPU_PARTITION = Partition(
    "defq", is_default=True, is_up=True, num_nodes=16, gpus_per_node=8, cpus_per_node=128, time_limit="1-0"
)
CLUSTER = Cluster((GPU_PARTITION,), ("root", "lab"), {"SelectType": "select/cons_tres"}, has_pyxis=True, apptainer=None)


def test_a_gpu_job_of_the_specification_s_flags_asks_for_what_they_say() -> None:
    plan = plan_job(config(num_nodes=2, num_gpus=8), CLUSTER)
    assert plan.problems == []
    assert plan.options == [
        "--job-name=llama31_pretraining",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--partition=defq",
        "--account=root",
        "--gpus-per-node=8",
        "--cpus-per-task=128",
        "--mem=0",
        "--requeue",
        "--open-mode=append",
        "--signal=USR1@300",
    ]
    assert plan.gpus_per_node == 8


def test_a_part_of_a_node_gets_its_share_of_cpus_and_leaves_the_memory_to_the_cluster() -> None:
    options = plan_job(config(num_gpus=2), CLUSTER).options
    assert "--cpus-per-task=32" in options
    assert not any(option.startswith("--mem") for option in options)


def test_every_option_of_sbatch_that_was_given_is_in_the_script() -> None:
    plan = plan_job(
        config(
            time="1-12:00:00",
            mem="200G",
            cpus_per_task=64,
            qos="high",
            constraint="h100",
            nodelist="node[1-2]",
            exclude="node7",
            dependency="afterok:17",
            exclusive=True,
            save_time_s=600,
            sbatch_options="--mail-type=END -x 'node 9' --reservation=r",
        ),
        CLUSTER,
    )
    assert plan.problems == []
    given = {
        "--time=1-12:00:00",
        "--mem=200G",
        "--cpus-per-task=64",
        "--qos=high",
        "--constraint=h100",
        "--nodelist=node[1-2]",
        "--exclude=node7",
        "--dependency=afterok:17",
        "--exclusive",
        "--signal=USR1@600",
        "--mail-type=END",
        "-xnode 9",
        "--reservation=r",
    }
    assert given <= set(plan.options)


@pytest.mark.parametrize(
    ("settings", "select_type", "option"),
    [
        ({}, "select/cons_tres", "--gpus-per-node=4"),
        ({}, "select/cons_res", "--gres=gpu:4"),
        ({"gpu_request": "gres"}, "select/cons_tres", "--gres=gpu:4"),
        ({"sbatch_options": "--gres=gpu:h100:4"}, "select/cons_tres", "--gres=gpu:h100:4"),
    ],
)
def test_gpus_are_asked_for_in_the_way_that_the_cluster_understands(
    settings: dict[str, Any], select_type: str, option: str
) -> None:
    plan = plan_job(config(num_gpus=4, **settings), dataclasses.replace(CLUSTER, config={"SelectType": select_type}))
    assert [word for word in plan.options if "gpu" in word] == [option]
    assert plan.gpus_per_node == 8


def test_nodes_without_gpus_run_cpu_processes_and_it_is_said() -> None:
    partition = dataclasses.replace(GPU_PARTITION, gpus_per_node=0)
    plan = plan_job(config(num_gpus=4), dataclasses.replace(CLUSTER, partitions=(partition,)))
    assert plan.gpus_per_node == 0
    assert "--cpus-per-task=4" in plan.options
    assert not any("gpu" in option or "gres" in option for option in plan.options)
    assert any(
        note.startswith("Slurm knows no GPU in partition defq: --num_gpus 4 means 4 CPU processes") for note in plan.notes
    )


def test_the_default_names_of_partition_and_account_are_left_out_where_the_cluster_has_none() -> None:
    batch = dataclasses.replace(GPU_PARTITION, name="batch")
    plan = plan_job(config(), dataclasses.replace(CLUSTER, partitions=(batch,), accounts=None))
    assert plan.problems == []
    assert not any(option.startswith(("--partition", "--account")) for option in plan.options)
    assert "the cluster has no partition defq; the job goes to its default one, batch (all: batch)" in plan.notes
    assert "the cluster keeps no accounts; --account root is left out" in plan.notes


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"partition": "night"}, "--partition night: the cluster has no such partition; it has defq"),
        ({"account": "other"}, "--account other: not one of yours; you have root, lab"),
        ({"num_nodes": 17}, "--num_nodes 17: partition defq has 16 nodes"),
        ({"num_gpus": 16}, "--num_gpus 16: the nodes of partition defq have 8 GPUs; give --num_gpus 8 and more --num_nodes"),
        ({"cpus_per_task": 256}, "--cpus_per_task 256: the nodes of partition defq have 128 CPUs"),
        ({"time": "soon"}, "--time soon: not a time limit of Slurm; write minutes, hours:minutes:seconds or days-hours"),
        (
            {"time": "5"},
            ("--time 5: the job would be told to save at once, because --save_time_s is 300; give more time, or fewer seconds"),
        ),
        ({"environment": "NCCL_DEBUG"}, "--environment: 'NCCL_DEBUG' is not NAME=VALUE"),
        ({"environment": "NÄME=1"}, "--environment: 'NÄME' is not NAME=VALUE"),
        ({"environment": "A='b"}, '--environment "A=\'b": No closing quotation'),
        ({"sbatch_options": "--comment='a"}, '--sbatch_options "--comment=\'a": No closing quotation'),
        ({"sbatch_options": "--exclusive=user now"}, "--sbatch_options '--exclusive=user now': 'now' belongs to no option"),
        ({"sbatch_options": "now"}, "--sbatch_options 'now': 'now' belongs to no option"),
        (
            {"setup": "module load cuda\necho 'a"},
            "--setup: bash cannot read it: line 2: unexpected EOF while looking for matching `''",
        ),
        (
            {"sbatch_options": "--gres=gpu:8", "gpu_request": "gres"},
            "--gpu_request gres: --sbatch_options asks for GPUs already",
        ),
        (
            {"container_image": "none", "container_runtime": "pyxis"},
            "--container_runtime pyxis has no effect with --container_image none",
        ),
    ],
)
def test_what_slurm_would_refuse_is_said_with_what_would_work(settings: dict[str, Any], problem: str) -> None:
    assert plan_job(config(**settings), CLUSTER).problems[:1] == [problem]


def test_a_partition_that_is_down_is_refused() -> None:
    down = dataclasses.replace(GPU_PARTITION, is_up=False)
    plan = plan_job(config(), dataclasses.replace(CLUSTER, partitions=(down,)))
    assert plan.problems == ["--partition defq: is down; the cluster has defq"]


@pytest.mark.parametrize(
    ("has_pyxis", "apptainer", "settings", "runtime", "note"),
    [
        (True, "apptainer", {}, "pyxis", "container nvcr.io/nvidia/nemo:dev through Pyxis"),
        (False, "apptainer", {}, "apptainer", "container nvcr.io/nvidia/nemo:dev through apptainer"),
        (False, "singularity", {}, "singularity", "container nvcr.io/nvidia/nemo:dev through singularity"),
        (True, None, {"container_runtime": "apptainer"}, "apptainer", "container nvcr.io/nvidia/nemo:dev through apptainer"),
        (True, "apptainer", {"container_image": "none"}, "none", "no container: the nodes run this Python environment"),
        (
            False,
            None,
            {},
            "none",
            (
                "no container: srun has no Pyxis and this machine no Apptainer, so the default image "
                "nvcr.io/nvidia/nemo:dev is left out and the nodes run this Python environment "
                "(--container_image none says the same)"
            ),
        ),
    ],
)
def test_what_runs_the_image_is_detected_and_said(
    has_pyxis: bool, apptainer: str | None, settings: dict[str, Any], runtime: str, note: str
) -> None:
    plan = plan_job(config(**settings), dataclasses.replace(CLUSTER, has_pyxis=has_pyxis, apptainer=apptainer))
    assert plan.problems == []
    assert plan.container.runtime == runtime
    assert note in plan.notes


def test_an_image_of_one_s_own_is_refused_where_nothing_can_run_it() -> None:
    plan = plan_job(config(container_image="lab/llama:1"), dataclasses.replace(CLUSTER, has_pyxis=False))
    (problem,) = plan.problems
    assert problem == (
        "--container_image lab/llama:1: srun has no Pyxis and this machine no Apptainer; give --container_image none for this "
        "Python environment, or --container_runtime apptainer if only the nodes have it"
    )


def test_images_are_named_as_enroot_and_apptainer_name_them() -> None:
    assert enroot_reference("nvcr.io/nvidia/nemo:dev") == "nvcr.io#nvidia/nemo:dev"
    assert enroot_reference("docker://registry:5000/a/b") == "registry:5000#a/b"
    assert enroot_reference("nvcr.io#nvidia/nemo:dev") == "nvcr.io#nvidia/nemo:dev"
    assert enroot_reference("ubuntu:24.04") == "ubuntu:24.04"
    assert enroot_reference("lab/llama") == "lab/llama"
    assert enroot_reference("/images/nemo.sqsh") == "/images/nemo.sqsh"
    assert apptainer_reference("nvcr.io/nvidia/nemo:dev") == "docker://nvcr.io/nvidia/nemo:dev"
    assert apptainer_reference("nvcr.io#nvidia/nemo:dev") == "docker://nvcr.io/nvidia/nemo:dev"
    assert apptainer_reference("oras://lab/llama:1") == "oras://lab/llama:1"
    assert apptainer_reference("/images/nemo.sif") == "/images/nemo.sif"


def test_pyxis_gets_the_image_and_every_folder_of_the_run_at_its_own_path(tmp_path: Path) -> None:
    given = run(tmp_path, mounts=("/scratch", "/opt/nccl:/nccl"))
    script = render_job(given, plan_job(given.config, CLUSTER))
    assert "--container-image=nvcr.io#nvidia/nemo:dev" in script
    mounts = re.search(r"--container-mounts=(\S+)", script)
    assert mounts is not None
    folders = [ROOT, tmp_path / "experiments" / "a", tmp_path / "model", tmp_path / "data"]
    assert mounts[1].split(",") == [*(f"{path}:{path}" for path in folders), "/scratch:/scratch", "/opt/nccl:/nccl"]
    assert f"--container-workdir={tmp_path}/experiments/a" in script
    assert f"env PYTHONPATH={ROOT} PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1" in script
    assert f"python3 -m finetuning.launch.slurm {tmp_path}/experiments/a/run.yaml" in script


def test_apptainer_runs_the_command_inside_with_the_gpus(tmp_path: Path) -> None:
    given = run(tmp_path)
    script = render_job(given, plan_job(given.config, dataclasses.replace(CLUSTER, has_pyxis=False, apptainer="apptainer")))
    assert "--container-image" not in script
    assert re.search(
        rf"^  apptainer exec --bind {ROOT}:\S+ --pwd {tmp_path}/experiments/a --nv docker://nvcr.io/nvidia/nemo:dev \\$",
        script,
        re.MULTILINE,
    )


def test_a_model_of_the_hub_s_cache_is_mounted_with_the_files_that_it_links_to(tmp_path: Path) -> None:
    given = dataclasses.replace(run(tmp_path), model_path=str(tmp_path / "hub" / "models--a--b" / "snapshots" / "123"))
    (tmp_path / "hub" / "models--a--b" / "snapshots" / "123").mkdir(parents=True)
    assert str(tmp_path / "hub" / "models--a--b") in folders_of(given)


def test_setup_and_environment_are_in_the_script_before_the_workers(tmp_path: Path) -> None:
    given = run(tmp_path, setup="module load cuda\nulimit -l unlimited", environment="NCCL_DEBUG=INFO NOTE='a b' HCA=x,y")
    script = render_job(given, plan_job(given.config, CLUSTER))
    assert "module load cuda\nulimit -l unlimited\n" in script
    assert "export NCCL_DEBUG=INFO\nexport NOTE='a b'\nexport HCA=x,y\n" in script
    assert script.index("export HCA") < script.index("srun")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, "a\ntouch HERE") for name in ("partition", "account", "qos", "mem", "constraint")),
        *((name, "a\ntouch HERE") for name in ("nodelist", "exclude", "dependency")),
        ("sbatch_options", "--comment='a\ntouch HERE'"),
        ("sbatch_options", "--comment='a\rtouch HERE'"),
    ],
)
def test_nothing_that_was_given_becomes_a_line_of_the_script(field: str, value: str, tmp_path: Path) -> None:
    given = run(tmp_path, **{field: value})
    cluster = dataclasses.replace(
        CLUSTER,
        partitions=(dataclasses.replace(GPU_PARTITION, name=value),) if field == "partition" else CLUSTER.partitions,
        accounts=(value,),
    )
    with pytest.raises(InputError, match="would be more than one line of the job script"):
        render_job(given, plan_job(given.config, cluster))


@pytest.mark.parametrize(
    "name", ["$(touch HERE)", "`touch HERE`", 'a"; touch HERE; "', "a'b", "a b #", "a;b&c|d", "%j-%u", "\\"]
)
def test_whatever_the_folders_are_called_the_script_runs_the_step_only(name: str, tmp_path: Path) -> None:
    given = run(tmp_path, container_image="none", python="/bin/false", sbatch_options=f"--comment={shlex.quote(name)}")
    given = dataclasses.replace(given, experiment_dir=str(tmp_path / name / "a"))
    (tmp_path / name / "a" / "logs").mkdir(parents=True)
    (tmp_path / name / "a" / "logs" / "job-7.outcome").write_text("stopped")
    script = render_job(given, plan_job(given.config, CLUSTER))
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("scontrol", "srun"):  # stand-ins, so that the script runs to its end
        (tools / tool).write_text("#!/bin/sh\n")
        (tools / tool).chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_CPUS_PER_TASK": "1"}
    ended = subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 75, "the outcome was found"
    assert not (tmp_path / "HERE").exists()
    assert f"--output={tmp_path / name.replace('%', '%%')}/a/logs/slurm-%j.out" in shlex.split(script.splitlines()[4])


@pytest.mark.parametrize("container", ["pyxis", "apptainer", "none"])
@pytest.mark.parametrize(
    "text",
    [
        "a$(true >HERE)b",
        "a`true >HERE`b",
        "a'; true >HERE; 'b",
        'a"; true >HERE; "b',
        "a; true >HERE & true >HERE || b",
        "${a=$(true >HERE)}",
        "a\\",
        "a\ntrue >HERE",
        "a\rtrue >HERE",
        "a\u2028true >HERE",
        "a\n#SBATCH --wrap=x",
    ],
)
def test_a_text_in_any_flag_is_refused_or_stays_a_text(text: str, container: str, tmp_path: Path) -> None:
    """All flags that hold texts at once, but for those that refuse this one, and --setup, which is shell."""
    words = {"sbatch_options": f"--comment={shlex.quote(text)}", "environment": f"A={shlex.quote(text)}"}
    given: dict[str, Any] = {}
    for name, hint in field_types().items():
        if (
            hint not in (str, str | None, tuple[str, ...])
            or name in CHOICES
            or name in ("setup", "hf_model_id", "dataset_path")
        ):
            continue
        value = (text,) if hint == tuple[str, ...] else words.get(name, text)
        alone = config(**{name: value})
        if not any(
            problem.startswith(f"--{name} ") for problem in check_settings(alone) + plan_job(alone, cluster_of(alone)).problems
        ):
            given[name] = value
    breaks_a_line = any(character in text for character in "\n\r\u2028")
    assert breaks_a_line == ("partition" not in given), "only what breaks a line is refused"
    folder = text if not breaks_a_line else "a"
    if given.pop("slurm_template", None) is not None:  # a file that this names
        given["slurm_template"] = str(tmp_path / text)
        (tmp_path / text).write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    if container == "none":
        given["container_image"] = "none"
    else:
        given["container_runtime"] = container
    made = dataclasses.replace(
        run(tmp_path, **given),
        experiment_dir=str(tmp_path / folder / "a"),
        model_path=str(tmp_path / folder / "model"),
        nemo_model=str(tmp_path / folder / "nemo"),
        initial_weights=str(tmp_path / folder / "start"),
        sources={"training": str(tmp_path / folder / "data" / "t")},
    )
    plan = plan_job(made.config, cluster_of(made.config))
    assert plan.problems == []
    script = render_job(made, plan)
    # No command is found, so that nothing else is run: what bash makes of a text, it makes before it looks for one.
    environment = {"PATH": "", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_CPUS_PER_TASK": "1"}
    ended = subprocess.run(
        ["/bin/bash"], input=script, text=True, cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert "syntax error" not in ended.stderr
    assert not (tmp_path / "HERE").exists(), script
    head, _, _ = script.partition("\nset -u\n")  # where Slurm stops to look for options
    options = [shlex.split(line.removeprefix("#SBATCH ")) for line in head.splitlines() if line.startswith("#SBATCH")]
    assert options[2:] == [[option] for option in plan.options]
    command = shlex.split(re.search(r"setsid \\\n(.*?) &\n", script, re.DOTALL)[1])
    assert command[-1] == f"{tmp_path / folder / 'a' / 'run.yaml'}"
    if not breaks_a_line:
        assert command[-4] == text, "--python"


def test_a_folder_with_a_line_break_is_refused(tmp_path: Path) -> None:
    given = dataclasses.replace(run(tmp_path), experiment_dir=f"{tmp_path}/a\nb")
    with pytest.raises(InputError, match="would be more than one line of the job script"):
        render_job(given, plan_job(given.config, CLUSTER))


@pytest.mark.parametrize("name", ["a,b", "a:/etc", ","])
def test_a_folder_that_would_be_several_of_a_container_s_is_refused(name: str, tmp_path: Path) -> None:
    given = dataclasses.replace(run(tmp_path), experiment_dir=str(tmp_path / name / "e"))
    with pytest.raises(InputError) as caught:
        render_job(given, plan_job(given.config, CLUSTER))
    rule = "a container's list of folders cannot hold ',' or ':'; rename it, or give --container_image none"
    assert caught.value.problems == [f"{tmp_path / name}: {rule}"]


def test_a_folder_with_a_blank_is_quoted(tmp_path: Path) -> None:
    given = dataclasses.replace(run(tmp_path), experiment_dir=str(tmp_path / "my runs" / "a"))
    script = render_job(given, plan_job(given.config, CLUSTER))
    assert f"#SBATCH '--chdir={tmp_path}/my runs/a'" in script
    assert f"finetuning.launch.slurm '{tmp_path}/my runs/a/run.yaml'" in script


def test_a_template_of_one_s_own_gets_the_same_values(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("#!/bin/bash\n#SBATCH {{ options[2] }}\n# site rules\n{{ step_command }}\n", encoding="utf-8")
    given = run(tmp_path, slurm_template=str(template))
    script = render_job(given, plan_job(given.config, CLUSTER))
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=llama31_pretraining\n# site rules\nsrun ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ nodes }}", "own.jinja: 'nodes' is undefined; known variables: experiment, script, options, "),
        ("{{ ''.__class__.__mro__ }}", "own.jinja: access to attribute '__class__' of 'str' object is unsafe."),
        ("#!/bin/bash\necho 'a", "own.jinja: bash cannot read it: line 2: unexpected EOF while looking for matching `''"),
        ("export PGPASSWORD=word", "own.jinja holds a value of PGPASSWORD, which would stand in run.yaml, in job scripts"),
        ("{% if %}", "own.jinja: Expected an expression, got 'end of statement block'; known variables: "),
        (None, "own.jinja: there is no such file"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, text: str | None, message: str) -> None:
    template = tmp_path / "own.jinja"
    if text is not None:
        template.write_text(text, encoding="utf-8")
    given = run(tmp_path, slurm_template=str(template))
    with pytest.raises(InputError) as caught:
        render_job(given, plan_job(given.config, CLUSTER))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:00:00", 7200),
        ("1-0", 86400),
        ("1-12:30", 131400),
        ("2-01:02:03", 176523),
        ("x", None),
        ("1:2:3:4", None),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("gres", "count"),
    [("(null)", 0), ("gpu:8", 8), ("gpu:h100:8(S:0-1)", 8), ("gpu:a100:4(S:0),gpu:h100:2(S:1),nvme:1", 6), ("nvme:2", 0)],
)
def test_gpus_are_counted_in_what_sinfo_prints(gres: str, count: int) -> None:
    assert count_gpus(gres) == count


def test_nodes_of_different_kinds_in_one_partition_are_summed_up() -> None:
    text = "main*|up|2|gpu:8|128+|1-00:00:00\nmain*|up|4|(null)|64|1-00:00:00\ncpu|down|1|(null)|32|infinite\n"
    assert parse_partitions(text) == (
        Partition(
            "main",
            is_default=True,
            is_up=True,
            num_nodes=6,
            gpus_per_node=8,
            cpus_per_node=64,
            time_limit="1-00:00:00",
            gpu_types=("",),
        ),
        Partition("cpu", is_default=False, is_up=False, num_nodes=1, gpus_per_node=0, cpus_per_node=32, time_limit="infinite"),
    )


def test_the_configuration_and_a_job_are_read_from_scontrol_s_text() -> None:
    assert parse_config("KillWait                = 30 sec\nSelectType = select/linear\nX = \n")["KillWait"] == "30 sec"
    job = parse_job("JobId=7 JobName=a b JobState=RUNNING Reason=None Restarts=2 ReqNodeList=(null) NodeList=node[1-2] x=1")
    assert (job.name, job.reason, job.restarts, job.nodes) == ("RUNNING", "", 2, "node[1-2]")


def cluster_of(given: RunConfig) -> Cluster:
    """One that has the partition and the account that are asked for."""
    return dataclasses.replace(
        CLUSTER,
        partitions=(dataclasses.replace(GPU_PARTITION, name=given.partition),),
        accounts=(given.account,),
        has_pyxis=given.container_runtime != "apptainer",
        apptainer="apptainer",
    )


def config(**changed: Any) -> RunConfig:
    return RunConfig(hf_model_id="model", dataset_path="data", executor="slurm", **changed)


def run(folder: Path, **changed: Any) -> Run:
    """A run on GPUs in `folder`, which holds model and data."""
    for name in ("model", "data", "experiments"):
        (folder / name).mkdir()
    (folder / "experiments" / "a").mkdir()
    (folder / "data" / "training.jsonl").touch()
    return Run(
        config=config(**changed),
        experiment_dir=str(folder / "experiments" / "a"),
        device="cuda",
        model_path=str(folder / "model"),
        tokens_dir=str(folder / "experiments" / "a" / "data" / "x"),
        sources={"training": str(folder / "data" / "training.jsonl")},
        max_steps=10,
        warmup_steps=0,
        val_check_interval=1,
        save_every_n_steps=1,
        end_token_ids=(1,),
        initial_weights=None,
        identity={},
        strategy=Strategy(sharding="full", optimizer_states="bf16"),
    )
