"""Addresses by which machines reach each other: never a loopback that /etc/hosts gives a machine's own name."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from finetuning.errors import RunError
from finetuning.runtime import network
from finetuning.runtime.network import (
    choose_interface,
    interface_of,
    local_address,
    no_answer,
    own_address,
    port_of_job,
    rendezvous_address,
    resolve,
)

pytestmark = pytest.mark.unit


def test_ports_are_below_the_ephemeral_ones_and_differ_between_neighboring_jobs_and_restarts() -> None:
    ports = {port_of_job(job, restarts) for job in range(1000, 1010) for restarts in range(3)}
    assert len(ports) == 30
    assert all(20_000 <= port_of_job(job, 0) < 32_000 for job in (1, 11_999, 12_000, 999_999_999))


def test_the_first_node_may_reach_itself_by_loopback_but_no_other_node_may(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, {"node1": ["127.0.1.1"]})
    assert rendezvous_address("node1", is_first=True) == "127.0.1.1"
    with pytest.raises(RunError) as caught:
        rendezvous_address("node1", is_first=False)
    assert str(caught.value) == (
        "the first node's name node1 means 127.0.1.1 on this node, which is this node itself; mend its /etc/hosts, or set "
        "NodeAddr in slurm.conf"
    )


def test_a_name_with_a_loopback_and_another_address_means_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, {"node1": ["127.0.1.1", "10.1.2.3"]})
    assert rendezvous_address("node1", is_first=False) == "10.1.2.3"


def test_a_numeric_loopback_is_what_somebody_has_decided() -> None:
    assert rendezvous_address("127.0.0.1", is_first=False) == "127.0.0.1"


def test_a_name_that_means_nothing_is_an_error_with_advice() -> None:
    with pytest.raises(RunError) as caught:
        resolve("no-such-node.invalid")
    assert str(caught.value).startswith("the address no-such-node.invalid of the first node cannot be resolved here (")
    assert str(caught.value).endswith("); see `scontrol show node`, NodeAddr")


def test_the_interface_towards_a_peer_is_chosen_unless_the_user_has_named_one() -> None:
    assert local_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None
    environment: dict[str, str] = {}
    choose_interface(environment, "127.0.0.1")
    assert environment == {"GLOO_SOCKET_IFNAME": "lo"}
    environment = {"GLOO_SOCKET_IFNAME": "ib0"}
    choose_interface(environment, "127.0.0.1")
    assert environment == {"GLOO_SOCKET_IFNAME": "ib0"}


def test_this_machine_has_an_address_that_is_its_own() -> None:
    with socket.socket() as probe:
        probe.bind((own_address(), 0))  # fails with an address of another machine


def hosts(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    """Puts names into what this machine resolves; numbers stay numbers."""
    real = socket.getaddrinfo

    def resolved(host: str, port: int | None, **given: int) -> list[object]:
        if host not in names:
            return list(real(host, port, **given))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in names[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(int(self.path.removeprefix("/")))

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_a_refusal_is_an_answer_and_a_gateway_s_is_none(server: str) -> None:
    assert no_answer(f"{server}/404") is None
    assert no_answer(f"{server}/401") is None
    assert no_answer(f"{server}/503") == "HTTP 503"


def test_silence_is_named_within_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_TIMEOUT_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert no_answer(url) in ("timed out", "no answer in 0 s")
    assert no_answer(url) == "Connection refused"
    assert "port" in (no_answer("http://127.0.0.1:x") or "")


def test_a_server_that_answers_a_byte_at_a_time_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_TIMEOUT_S", 1.0)

    def drip() -> None:
        connection, _ = slow.accept()
        with connection, suppress(OSError):  # the other side has left
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                connection.sendall(b"x")
                time.sleep(0.1)

    with socket.socket() as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        assert no_answer(f"http://127.0.0.1:{slow.getsockname()[1]}") == "no answer in 1 s"
    assert time.monotonic() - started < 3
