"""Looking at experiments of others and at damaged ones: nothing is written, no entry stops the list, none is left out."""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuning.cli import cancel, list, logs, status
from finetuning.errors import InputError
from finetuning.launch.experiments import BROKEN, find_experiment, find_experiments
from finetuning.runtime.status import FINISHED, RUNNING, STATUS_FILE, write_status

pytestmark = pytest.mark.unit

NOBODY = 65534


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of experiments that others can read; pytest's own are for their owner alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def as_colleague() -> Iterator[None]:
    """Without the rights of root, where the tests have them."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    yield
    if root:
        os.seteuid(0)


def make(folder: Path, name: str, state: str = FINISHED, **facts: object) -> Path:
    (folder / name / "logs").mkdir(parents=True)
    write_status(folder / name, state, **{"step": 3, "max_steps": 10, **facts})
    return folder / name


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_colleague_sees_experiments_and_logs_and_writes_nothing(
    shared: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    make(shared, "done")
    died = make(shared, "died", RUNNING, launcher_pid=4_000_000)
    (died / ".lock").touch()
    make(shared, "by-hand", RUNNING)
    (died / "logs" / "train.log").write_text("step 3/10 \x1b[2J\n")
    hidden = make(shared, "hidden")
    hidden.chmod(0o700)
    secret = make(shared, "secret")
    (secret / STATUS_FILE).chmod(0o600)
    before = tree(shared)
    request.getfixturevalue("as_colleague")
    given = ["--experiments_dir", str(shared)]
    states = {found.name: (found.state, found.reason) for found in find_experiments(shared)}
    assert states["done"] == ("finished", "")
    assert states["by-hand"] == ("running", "")
    assert states["died"] == ("failed", "its launcher died without saying why; run the same command again")
    for name in ("hidden", "secret"):
        assert states[name] == (BROKEN, f"{shared}/{name}/status.json: cannot be read: Permission denied")
    assert list.main(given) == 0
    assert status.main([*given, "secret"]) == 0
    shown = capsys.readouterr().out
    assert "Permission denied" in shown and "done" in shown
    assert logs.main([*given, "died"]) == 0
    assert capsys.readouterr().out == "step 3/10 \ufffd[2J\n"
    with pytest.raises(InputError, match="experiment by-hand belongs to user 0, who alone can end it"):
        cancel.main([*given, "by-hand"])
    os.seteuid(0)
    assert tree(shared) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_folder_and_a_log_that_cannot_be_read_are_said(shared: Path, request: pytest.FixtureRequest) -> None:
    folder = make(shared / "inner", "mine")
    (folder / "logs" / "train.log").write_text("x\n")
    (folder / "logs" / "train.log").chmod(0o600)
    request.getfixturevalue("as_colleague")
    with pytest.raises(InputError, match=r"mine/logs/train\.log: cannot be read: Permission denied"):
        logs.main(["mine", "--experiments_dir", str(shared / "inner")])
    os.seteuid(0)
    (shared / "inner").chmod(0o700)
    os.seteuid(NOBODY)
    with pytest.raises(InputError, match="inner: cannot be read: Permission denied"):
        list.main(["--experiments_dir", str(shared / "inner")])


def test_damaged_entries_are_shown_as_broken_and_all_others_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "good")
    for name, text in {"empty": "", "cut": '{"state": "run', "list": "[]", "typed": '{"state": "running", "step": []}'}.items():
        (make(tmp_path, name) / STATUS_FILE).write_text(text, encoding="utf-8")
    (make(tmp_path, "folder") / STATUS_FILE).unlink()
    (tmp_path / "folder" / STATUS_FILE).mkdir()
    (make(tmp_path, "pipe") / STATUS_FILE).unlink()
    os.mkfifo(tmp_path / "pipe" / STATUS_FILE)
    (make(tmp_path, "dangling") / STATUS_FILE).unlink()
    (tmp_path / "dangling" / STATUS_FILE).symlink_to("/nowhere")
    (tmp_path / "gone").symlink_to("/nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a file").touch()
    (tmp_path / "no experiment").mkdir()
    (tmp_path / ".tokens").mkdir()
    found = {experiment.name: experiment for experiment in find_experiments(tmp_path)}
    broken = {"empty", "cut", "list", "typed", "folder", "pipe", "dangling", "gone", "loop"}
    assert {name for name, experiment in found.items() if experiment.state == BROKEN} == broken
    assert found.keys() == broken | {"good"}
    assert found["gone"].reason == f"{tmp_path}/gone: a link to nowhere"
    assert found["dangling"].reason == f"{tmp_path}/dangling/status.json: a link to nowhere"
    assert found["pipe"].reason == f"{tmp_path}/pipe/status.json: not a regular file"
    assert list.main(["--experiments_dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in found)
    for name in broken:
        assert status.main([name, "--experiments_dir", str(tmp_path)]) == 0
        assert "broken · " in capsys.readouterr().out
        with pytest.raises(InputError, match=f"experiment {name} does not run: broken "):
            cancel.main([name, "--experiments_dir", str(tmp_path)])
        with pytest.raises(InputError, match=f"experiment {name} has no .* yet "):
            logs.main([name, "--experiments_dir", str(tmp_path)])


def test_what_a_dead_run_has_left_damaged_stops_no_list(tmp_path: Path) -> None:
    folder = make(tmp_path, "mine", RUNNING, launcher_pid=4_000_000)
    (folder / "logs" / "rank_1.error.json").write_text("{")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest").symlink_to("step=new")
    found = find_experiment(tmp_path, "mine")
    assert (found.state, found.reason.partition(" (")[0]) == ("failed", "it has left no readable error")
    assert status.main(["mine", "--experiments_dir", str(tmp_path)]) == 0


def test_a_run_whose_lock_is_held_is_alive_and_looking_takes_no_lock(tmp_path: Path) -> None:
    import fcntl

    folder = make(tmp_path, "mine", RUNNING, launcher_pid=4_000_000)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert find_experiment(tmp_path, "mine").state == "running"
    assert find_experiment(tmp_path, "mine").state == "failed"
    (folder / ".lock").unlink()
    assert find_experiment(tmp_path, "mine").state == "failed"
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("name", ["../mine", ".", "", "/", "mine/logs"])
def test_a_name_is_that_of_a_folder_of_the_experiments_and_nothing_else(name: str, tmp_path: Path) -> None:
    make(tmp_path, "mine")
    (tmp_path / "mine" / "logs" / STATUS_FILE).write_text('{"state": "running"}')
    with pytest.raises(InputError, match="; there are: mine "):
        find_experiment(tmp_path, name)


def test_no_mutation_of_a_status_stops_the_list(tmp_path: Path) -> None:
    choice = random.Random(0)
    folder = make(tmp_path, "mine", RUNNING, job_id=None, host="here", launcher_pid=4_000_000, train_loss=1.5, reason="x")
    whole = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    values = [None, True, -1, 1.5, 10**30, "", "x" * 99, "\x1b[2J", [], [[]], {}, {"a": 1}, float("nan")]
    for _ in range(100):
        changed = dict(whole)
        for name in choice.sample(sorted(whole), 2):
            changed[name] = choice.choice(values)
        text = json.dumps(changed)
        if choice.random() < 0.3:
            text = text[: choice.randrange(len(text))] + choice.choice(["", "\0", "]", "9" * 5000])
        (folder / STATUS_FILE).write_text(text, encoding="utf-8")
        assert list.main(["--experiments_dir", str(tmp_path)]) == 0
        assert status.main(["mine", "--experiments_dir", str(tmp_path)]) == 0
