"""A hub of the size that a test needs: serves folders of models and data sets by huggingface_hub's protocol on 127.0.0.1.

A public model answers everybody, a gated one lists its files to everybody and hands them out to the token with access
only, a private one does not exist for others. Status codes and X-Error-Code headers are those of huggingface.co.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOOD_TOKEN, OTHER_TOKEN = "hf_good0123456789", "hf_other0123456789"
PUBLIC, GATED, PRIVATE, UNWELL, CUT_SHORT = "meta/open", "meta/gated", "meta/private", "meta/unwell", "meta/cut-short"
KNOWN = (PUBLIC, GATED, PRIVATE, UNWELL, CUT_SHORT)


@dataclass
class Hub:
    """The server's address, and (method, path, Authorization header) of every request it has got."""

    folder: Path
    address: str = ""
    commit: str = COMMIT  # of everything that is there
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def authorizations(self, model: str) -> set[str | None]:
        return {authorization for _, path, authorization in self.requests if f"/{model}/" in path}

    def sent_files(self) -> list[str]:
        return sorted(path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path)


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serves the files of `folder` under every model's name."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        parts = path.strip("/").split("/")
        if parts[:1] == ["datasets"]:
            parts = parts[1:]
        if parts[:2] in (["api", "models"], ["api", "datasets"]):
            if parts[4:5] == ["revision"] and parts[5:6] not in (["main"], [self.hub.commit]):
                self._fail(HTTPStatus.NOT_FOUND, "RevisionNotFound", "Invalid rev id")
                return
            self._describe("/".join(parts[2:4]), parts[4:], token)
        else:
            self._file("/".join(parts[:2]), "/".join(parts[4:]), token)

    def _describe(self, model: str, rest: list[str], token: str) -> None:
        if self._refused(model, token):
            return
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": self._name(file), "size": file.stat().st_size, "oid": _etag(file)}
                for file in self._files()
            ]
            self._send(HTTPStatus.OK, json.dumps(entries).encode())
        else:
            siblings = [{"rfilename": self._name(file)} for file in self._files()]
            described = {"id": model, "modelId": model, "sha": self.hub.commit, "siblings": siblings}
            self._send(HTTPStatus.OK, json.dumps(described).encode())

    def _file(self, model: str, name: str, token: str) -> None:
        if self._refused(model, token):
            return
        if model == GATED and token != GOOD_TOKEN:
            status = HTTPStatus.FORBIDDEN if token else HTTPStatus.UNAUTHORIZED
            self._fail(status, "GatedRepo", f"Access to model {model} is restricted.")
            return
        file = self.hub.folder / name
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": self.hub.commit}
        self._send(HTTPStatus.OK, file.read_bytes(), headers, cut=model == CUT_SHORT and name == "model.safetensors")

    def _refused(self, model: str, token: str) -> bool:
        if token and token not in (GOOD_TOKEN, OTHER_TOKEN):
            self._fail(HTTPStatus.UNAUTHORIZED, None, "Invalid credentials in Authorization header")
        elif model not in KNOWN or (model == PRIVATE and token != GOOD_TOKEN):
            # To somebody without a token the hub does not say whether a model exists.
            code = HTTPStatus.NOT_FOUND if token else HTTPStatus.UNAUTHORIZED
            self._fail(code, "RepoNotFound", "Repository not found")
        elif model == UNWELL:
            self._fail(HTTPStatus.FORBIDDEN, None, "Please enable access to public gated repositories in your token settings")
        else:
            return False
        return True

    def _fail(self, status: HTTPStatus, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut and self.command == "GET":
            self.close_connection = True

    def _files(self) -> list[Path]:
        return sorted(file for file in self.hub.folder.rglob("*") if file.is_file())

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.hub.folder))

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent: the test looks at `Hub.requests`."""


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
