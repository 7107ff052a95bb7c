"""`--engine vllm` against a stand-in: a command `vllm` that hands on what it is asked to a server with our own decoder."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuning.cli import evaluate, export, generate
from finetuning.errors import EXIT_FINISHED, InputError, RunError
from tests.inference.openai_server import Engine, serving
from tests.references import write_random_adapter

pytestmark = pytest.mark.dist  # starts processes

# Tells what it was started with, and hands its port's connections on.
STAND_IN = """#!{python}
import json, socket, sys, threading
json.dump(sys.argv[1:], open({log!r}, "w"))
def hand_on(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
server = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
while True:
    asker, _ = server.accept()
    answerer = socket.create_connection(("127.0.0.1", {port}))
    for ends in ((asker, answerer), (answerer, asker)):
        threading.Thread(target=hand_on, args=ends, daemon=True).start()
"""


@pytest.fixture
def engine(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """What answers; the command that leads to it is on the PATH."""
    found = Engine(tiny_model)
    with serving(found) as url:
        port = int(url.removesuffix("/v1").rpartition(":")[2])
        install(tmp_path / "bin", STAND_IN.format(python=sys.executable, log=str(tmp_path / "started.json"), port=port))
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        yield found


def install(folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "vllm").write_text(script)
    (folder / "vllm").chmod(0o755)


def test_vllm_is_asked_with_our_prompts_and_answers_as_this_command(
    tiny_model: Path, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("你好\nhi\n", encoding="utf-8")
    printed = []
    for flags in ([], ["--engine", "vllm", "--dtype", "float32"]):
        assert generate.main([str(tiny_model), "--file", str(file), "--max_new_tokens", "6", *flags]) == EXIT_FINISHED
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    started = json.loads((tmp_path / "started.json").read_text())
    longest = max(len(asked["prompt"]) for asked in engine.completions) + 6
    assert started[:4] == ["serve", str(tiny_model), "--served-model-name", "trained"]
    assert started[4:8] == ["--dtype", "float32", "--max-model-len", str(longest)]
    generate.main([str(tiny_model), "hi", "--max_new_tokens", "6", "--engine", "vllm"])
    alone = capsys.readouterr().out
    generate.main([str(tiny_model), "hi", "--max_new_tokens", "6"])
    assert capsys.readouterr().out == alone
    drawn = ["--temperature", "0.5", "--top_p", "0.9", "--top_k", "7", "--seed", "3"]
    generate.main([str(tiny_model), "hi", "--max_new_tokens", "1", "--engine", "vllm", *drawn])
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3_000_009, "max_tokens": 1, "ignore_eos": True}
    assert wanted.items() <= engine.completions[-1].items()


def test_an_evaluation_by_vllm_is_the_same(tiny_model: Path, engine: Engine, tiny_dataset: Path, tmp_path: Path) -> None:
    written = []
    for name, flags in (("own", []), ("vllm", ["--engine", "vllm"])):
        more = ["--limit", "2", "--max_new_tokens", "5", "--out", str(tmp_path / name), *flags]
        assert evaluate.main([str(tiny_model), str(tiny_dataset), *more]) == EXIT_FINISHED
        written.append([(tmp_path / name / file).read_text() for file in ("summary.json", "samples.csv", "predictions.jsonl")])
    assert written[0] == written[1] and len(engine.completions) == 2


def test_an_adapter_is_served_on_its_base(tiny_model: Path, engine: Engine, tmp_path: Path) -> None:
    write_random_adapter(tiny_model, tmp_path / "adapter", 9, 6.0, ("q_proj",))
    generate.main([str(tmp_path / "adapter"), "--base", str(tiny_model), "hi", "--max_new_tokens", "1", "--engine", "vllm"])
    started = json.loads((tmp_path / "started.json").read_text())
    assert started[:5] == ["serve", str(tiny_model), "--enable-lora", "--max-lora-rank", "16"]
    assert started[5:7] == ["--lora-modules", f"trained={tmp_path / 'adapter'}"]


def test_what_vllm_cannot_do_is_refused(
    tiny_model: Path, tiny_dataset: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [str(tiny_model), "hi", "--max_new_tokens", "1", "--engine", "vllm"]
    engine.tells_no_tokens = True
    with pytest.raises(RunError, match=r"/v1: does not tell the tokens of its answers; vLLM does from 0\.10\.2 on"):
        generate.main(asked)
    with pytest.raises(InputError, match="--device has no effect with --engine vllm"):
        generate.main([*asked, "--device", "cpu"])
    with pytest.raises(InputError, match="--engine vllm has no effect with --no_answers"):
        evaluate.main([str(tiny_model), str(tiny_dataset), "--engine", "vllm", "--no_answers"])
    assert export.main([str(tiny_model), "--to", "gguf", str(tmp_path / "gguf")]) == EXIT_FINISHED
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    with pytest.raises(
        InputError, match=r"--engine vllm: .*\.gguf is neither a model folder nor an adapter on one; make one by"
    ):
        generate.main([str(file), *asked[1:]])
    install(tmp_path / "bin", f"#!{sys.executable}\nprint('no GPU')\nraise SystemExit(1)\n")
    with pytest.raises(RunError, match="vllm does not start: no GPU"):
        generate.main(asked)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--engine vllm: there is no command vllm here; install vLLM, or leave --engine out"):
        generate.main(asked)
