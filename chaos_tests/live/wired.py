"""WiredFleet: three etcd members, nodes, and a proxy in every link between them and those that use them.

Links are called after who opens them: `a>b` between nodes (the one whose name sorts first opens the stream;
the other way there are only probes and questions), `a>etcd-0`, `client>a`, `w1>a`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Self

import pytest

from chaos_tests.live.proxies import Address, Link, Proxies
from chaos_tests.live.questions import Server
from tests.support.etcd import Etcd
from tests.support.faulty import FailingCalls
from tests.support.fleet import FLEET_SECONDS, SHORT_LEASE, Fleet, FleetNode
from tests.support.machine import NEEDS, need_command, need_root

CLOCKS_FACTOR: Final = 4  # of waits for fleets with faked clocks
SMALL_DISK_BYTES: Final = 24 * 1024 * 1024


class WiredFleet(Fleet):
    """Without options its leases are short."""

    def __init__(
        self,
        directory: Path,
        names: Sequence[str] = "abc",
        *options: str,
        spare: Sequence[str] = "",
        etcd_options: Sequence[str] = (),
        clocks: Sequence[str] = "",
        small_disks: Sequence[str] = "",
    ) -> None:
        """`spare`: nodes that may join later; the links to them exist from the beginning. `clocks`: nodes
        whose time of day can jump; skips without libfaketime. `small_disks`: nodes whose data directory is a
        file system of its own, of SMALL_DISK_BYTES; skips without root."""
        self.proxies = Proxies()
        self.disks: dict[str, FailingCalls] = {}
        self._clocks = tuple(clocks)
        self._mounts: list[Path] = []
        self._nodes_at: dict[str, str] = {}  # by the address of a link
        self._wired = False
        directory.mkdir(parents=True, exist_ok=True)
        etcd = Etcd(3, *etcd_options)
        super().__init__(directory, (*names, *spare), *(options or SHORT_LEASE), etcd=etcd, fleet="chaos")
        self._own_etcd = True
        self.spare = {name: self.nodes.pop(name) for name in spare}
        for name in small_disks:
            self._mount(directory / name)

    @property
    def all_nodes(self) -> dict[str, FleetNode]:
        """Those that wait to join, too."""
        return {**self.nodes, **self.spare}

    def make(self, name: str, *options: str, **settings: Any) -> FleetNode:
        disk = self.disks[name] = FailingCalls(self.directory / f"{name}.faults")
        environment = dict(disk.environment)
        if name in self._clocks:
            environment |= _fake_clock(self.directory / f"{name}.clock")
        node = self.nodes[name] = FleetNode(
            name,
            self.directory / name,
            *("--fleet", self.fleet, *self._options, *options),
            **{**self._settings, **settings, "environment": environment},
        )
        return node

    def start(self, *, wait: bool = True) -> Self:
        """Start etcd, the proxies, and all nodes that do not run but the spare ones."""
        if not self._wired:
            self.proxies.start()
            self._wire()
            self._wired = True
        super().start(wait=wait)
        return self

    def wait_until_in_sync(self, timeout_seconds: float = FLEET_SECONDS) -> None:
        """As in Fleet; libfaketime makes a node slow: each look at the clock is several system calls."""
        super().wait_until_in_sync(timeout_seconds * (CLOCKS_FACTOR if self._clocks else 1))

    def join(self, *names: str) -> None:
        """Start spare nodes."""
        for name in names:
            node = self.nodes[name] = self.spare.pop(name)
            node.spawn()

    def leave(self, name: str) -> None:
        """Drain a node for good; it is spare again."""
        self.drain(name)
        self.spare[name] = self.nodes.pop(name)

    def close(self) -> None:
        for node in self.spare.values():
            node.close()
        super().close()
        self.proxies.close()
        for path in self._mounts:
            subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)

    def _mount(self, path: Path) -> None:
        """A small file system in memory."""
        need_root()
        path.mkdir(parents=True)
        size = f"size={SMALL_DISK_BYTES}"
        command = [need_command("mount"), "-t", "tmpfs", "-o", size, "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{NEEDS}the right to mount a tmpfs: {done.stderr.strip()}")
        self._mounts.append(path)

    # ---- links

    def _wire(self) -> None:
        """Proxies for the links that nodes open; those of clients and workers are made when asked for."""
        nodes = self.all_nodes
        for node in nodes.values():
            members = [self.link(f"{node.name}>{member.name}") for member in self.etcd.members]
            node.options += ["--etcd", ",".join(_text(link.address) for link in members)]
            for other in nodes.keys() - {node.name}:
                link = self.link(f"{node.name}>{other}")
                node.options += ["--peer-remap", f"{other}={_text(link.address)}"]

    def link(self, name: str) -> Link:
        """The link of this name, made when it is not there."""
        if name in self.proxies.links:
            return self.proxies.links[name]
        who, _, where = name.partition(">")
        nodes = self.all_nodes
        if where in nodes:
            port = nodes[where].peer_port if who in nodes else nodes[where].port
            return self.proxies.link(name, (nodes[where].host, port))
        member = next(member for member in self.etcd.members if member.name == where)
        return self.proxies.link(name, (member.host, member.port))

    def server_at(self, link: Link) -> Server:
        """What answers at the other end."""
        who, _, where = link.name.partition(">")
        if where not in self.all_nodes:
            return "etcd"
        return "peer" if who in self.all_nodes else "node"

    def links(self, *patterns: str) -> list[Link]:
        """All links whose names match one of them: `links("a>*", "*>a")`."""
        found = [
            link
            for name, link in self.proxies.links.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        assert found, f"no link is called {' or '.join(patterns)}"
        return found

    # ---- how clients and workers reach the nodes (see workload.Roads)

    def servers(self, who: str) -> list[str]:
        return [_text(self.link(f"{who}>{name}").address) for name in self.nodes]

    def remap(self, who: str) -> Mapping[Address, Address]:
        nodes = self.all_nodes.values()
        return {(node.host, node.port): self.link(f"{who}>{node.name}").address for node in nodes}

    def node_at(self, server: str) -> str:
        if server not in self._nodes_at:
            for name, link in self.proxies.links.items():
                self._nodes_at[_text(link.address)] = name.partition(">")[2]
        return self._nodes_at.get(server, "")


def _fake_clock(path: Path) -> dict[str, str]:
    """The environment of a process whose time of day is what the file says; monotonic time is left alone."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip(f"{NEEDS}libfaketime: apt-get install libfaketime")
    path.write_text("+0")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_CACHE_DURATION": "1",  # seconds; reading the file at each call costs most of the processor
        "DONT_FAKE_MONOTONIC": "1",
    }


def _text(address: Address) -> str:
    return "{}:{}".format(*address)
