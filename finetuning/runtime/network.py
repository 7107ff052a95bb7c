"""Addresses by which the nodes of a run reach each other.

`/etc/hosts` of many machines maps their own name to a loopback address, so a node's own name is never asked. What counts is
the address that Slurm itself uses for a node, and the local end of the way to another node.
"""

import fcntl
import http.client
import ipaddress
import queue
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import MutableMapping

from finetuning.errors import RunError
from finetuning.i18n import t

FIRST_PORT, NUM_PORTS = 20_000, 12_000  # below Linux's ephemeral ports, which start at 32768
SOMEWHERE_ELSE = "192.0.2.1"  # belongs to nobody (RFC 5737), and nothing is sent there
ANSWER_TIMEOUT_S = 3.0  # a refusal is to take less than 5 s in all
SIOCGIFADDR = 0x8915  # netdevice(7)


def no_answer(url: str) -> str | None:
    """Why nothing answers at an address of http or https, where that is so; any answer will do, also a refusal.

    Goes through the proxies of the environment, as clients do. Takes `ANSWER_TIMEOUT_S` at most: also where names do not
    resolve, and where something answers a byte a second, which no time limit of a socket sees.
    """
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answer.put(_no_answer(url)), name="probe", daemon=True).start()
    try:
        return answer.get(timeout=ANSWER_TIMEOUT_S)
    except queue.Empty:
        return t("no answer in {seconds:.0f} s", seconds=ANSWER_TIMEOUT_S)


def _no_answer(url: str) -> str | None:
    try:
        urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}" if error.code in (502, 503, 504) else None  # a gateway, for who does not
    except urllib.error.URLError as error:
        reason = error.reason
        return reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    return None


def port_of_job(job_id: int, restarts: int) -> int:
    """The same on all nodes; another for each of two jobs at once, and after a restart."""
    return FIRST_PORT + (job_id + 1009 * restarts) % NUM_PORTS


def resolve(address: str) -> str:
    """A numeric address of a node, not a loopback one if it has another.

    Raises:
        RunError: the name means nothing here.
    """
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)]
    except socket.gaierror as error:
        raise RunError(
            t(
                "the address {address} of the first node cannot be resolved here ({reason}); see `scontrol "
                "show node`, NodeAddr",
                address=address,
                reason=error.strerror,
            )
        ) from None
    return next((text for text in found if not ipaddress.ip_address(text).is_loopback), found[0])


def rendezvous_address(first_node: str, is_first: bool) -> str:
    """The address at which this node reaches the first one.

    Raises:
        RunError: it would be this node itself: the name of the first node means a loopback address here.
    """
    numeric = resolve(first_node)
    if is_first or not ipaddress.ip_address(numeric).is_loopback or _is_numeric(first_node):
        return numeric
    raise RunError(
        t(
            "the first node's name {name} means {address} on this node, which is this node itself; mend its /etc/hosts, or set "
            "NodeAddr in slurm.conf",
            name=first_node,
            address=numeric,
        )
    )


def choose_interface(environment: MutableMapping[str, str], peer: str) -> None:
    """Makes gloo use the network that leads to `peer`, unless the user has named another."""
    interface = interface_of(local_address(peer))
    if interface is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)


def local_address(peer: str) -> str:
    """This machine's own address on the way to `peer`; nothing is sent."""
    address = resolve(peer)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return str(probe.getsockname()[0])


def own_address() -> str:
    """An address of this machine that others are likely to reach: the one it would use for the way out."""
    try:
        return local_address(SOMEWHERE_ELSE)
    except OSError:  # no way out; its name may be known in the local network
        return resolve(socket.gethostname())


def interface_of(address: str) -> str | None:
    """The name of the interface with this IPv4 address; None: there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _is_numeric(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True
