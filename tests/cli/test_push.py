"""finetune push against a hub on 127.0.0.1: the real huggingface_hub makes the repository and the commit."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest

from finetuning.cli import export, push
from finetuning.errors import EXIT_FINISHED, InputError, RunError
from finetuning.formats.model_card import Card, write_card
from finetuning.i18n import language
from tests.references import write_random_adapter

pytestmark = pytest.mark.unit

TOKEN = "hf_secret0123456789"


@dataclass
class Hub:
    address: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    status: int = 200


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.tokens.add(self.headers.get("Authorization"))
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            answer = {"url": f"{self.hub.address}/me/mine", "name": "me/mine", "id": "me/mine"}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]}
        elif "/commit/" in self.path:
            for line in body.splitlines():
                value = json.loads(line)
                if value["key"] == "file":
                    self.hub.files[value["value"]["path"]] = base64.b64decode(value["value"]["content"])
            answer = {"commitUrl": f"{self.hub.address}/me/mine/commit/1", "commitOid": "1" * 40, "success": True}
        self._send(answer)

    def do_GET(self) -> None:
        self._send({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def _send(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer if self.hub.status == 200 else {"error": "no"}).encode()
        self.send_response(self.hub.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


@pytest.fixture(autouse=True)
def _at_this_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library asks for these when it is called."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_adapter_is_published_with_a_card_and_no_path_of_this_machine(
    hub: Hub, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    write_random_adapter(tiny_model, adapter, 2, 6.0, ("q_proj",))
    origin = {"base_model": str(tiny_model), "base_path": str(tiny_model), "base_fingerprint": None, "prompt": None}
    (adapter / "finetuning.json").write_text(json.dumps(origin))
    (adapter / "SERVE.md").write_text(f"vllm serve {tiny_model}")
    capsys.readouterr()
    assert push.main([str(adapter), "me/mine", "--private", "--base", str(tiny_model)]) == EXIT_FINISHED
    printed = capsys.readouterr()
    assert "published: " in printed.out and TOKEN not in printed.out + printed.err
    assert hub.created[0]["name"] == "mine" and hub.tokens == {f"Bearer {TOKEN}"}
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert hub.files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert "SERVE.md" not in hub.files and json.loads(hub.files["finetuning.json"])["base_model"] == tiny_model.name
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == tiny_model.name
    assert not any(str(tiny_model.parent).encode() in content for content in hub.files.values())
    card = hub.files["README.md"].decode()
    assert "library_name: peft" in card and f'base_model: "{tiny_model.name}"' in card
    assert "An adapter (LoRA, PEFT format), fine-tuned from" in card and "微調" in card
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    assert not any(TOKEN in file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file())


def test_a_push_that_cannot_be_is_said(hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [str(tiny_model), "me/mine"]
    with pytest.raises(InputError, match="mine: not a name on the hub, which is ORGANIZATION/NAME"):
        push.main([str(tiny_model), "mine"])
    with pytest.raises(InputError, match=r"me/mi\.\.ne: not a name on the hub: "):
        push.main([str(tiny_model), "me/mi..ne"])
    hub.status = 403
    with pytest.raises(InputError, match="me/mine: the token may not write there"):
        push.main(given)
    hub.status = 422
    with pytest.raises(RunError, match="me/mine: the hub refused it: "):
        push.main(given)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"me/mine: the hub cannot be reached \(.*\); run the same command again"):
        push.main(given)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token of the hub: run `hf auth login`, or set HF_TOKEN"):
        push.main(given)


def test_a_file_for_llama_cpp_is_published_with_its_modelfile(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    assert export.main([str(tiny_model), str(tmp_path / "out"), "--to", "gguf"]) == EXIT_FINISHED
    assert push.main([str(tmp_path / "out"), "me/mine"]) == EXIT_FINISHED
    assert {"model-f32.gguf", "Modelfile", "chat_template.jinja", "README.md"} <= hub.files.keys()
    assert b"ollama create model --file model/Modelfile" in hub.files["README.md"]


def test_a_card_tells_data_settings_and_losses_in_both_languages() -> None:
    data, settings = {"training": ("a.jsonl", "12" * 32)}, {"lr": 1e-5, "lora_targets": ("a", "b")}
    card = Card("me/mine", "model", "meta/base", None, "abc", data, settings, {"val_loss": (2.0, 1.0)}, "Be kind.")
    text = write_card(card)
    for part in (
        "# mine",
        "`a.jsonl`",
        "12" * 32,
        "- lr: 1e-05",
        "- lora_targets: a, b",
        "- val_loss: 2.0000 → 1.0000",
        "    Be kind.",
    ):
        assert text.count(part) == (1 if part == "# mine" else 2), part
    assert "vllm serve me/mine" in text and language() == "en"
