"""Servers that are found: by a DNS name, in etcd; at the start, and when all have moved."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from client_ha import (
    AsyncHAClient,
    AsyncHAWorker,
    DnsDiscovery,
    EtcdDiscovery,
    HAClient,
    InvalidArgument,
    JobContext,
    NoServerAvailable,
    Server,
    Timing,
    roster,
)
from client_ha.discovery import Discovery, parse_sources
from cluster.wire.packets import JOB_CREATED, SUBMIT_JOB, WORK_COMPLETE
from tests.client_ha.fake_server import FakeFleet, FakeServer, in_loop
from tests.client_ha.test_failover import turns_until
from tests.client_ha.test_fleet import knows
from tests.support.etcd import Etcd, make_certificates, needs_etcd


class Names:
    """A resolver whose answers the test writes."""

    def __init__(self, *servers: FakeServer) -> None:
        self.answers = [Server("127.0.0.1", server.port) for server in servers]
        self.error: Exception | None = None
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[Server]:
        self.asked.append((host, port))
        if self.error is not None:
            raise self.error
        return list(self.answers)


def by_name(names: Names) -> list[Discovery]:
    return [DnsDiscovery("gearfleet-headless", resolve=names)]


async def answer_one(server: FakeServer) -> None:
    connection, _ = await server.expect(SUBMIT_JOB)
    connection.send(JOB_CREATED, b"H:1")
    connection.send(WORK_COMPLETE, b"H:1", b"")


# ---- what may be written


@pytest.mark.parametrize(
    ("written", "servers", "found"),
    [
        ("a,b:1", [Server("a"), Server("b", 1)], []),
        ("dns://gearfleet", [], ["dns://gearfleet:4730"]),
        ("dns://gearfleet:4731, a", [Server("a")], ["dns://gearfleet:4731"]),
        ("etcd://a:2379,b/main", [], ["etcd://a:2379,b:2379/main"]),
        ("x,etcd://a,b/main,y", [Server("x"), Server("y")], ["etcd://a:2379,b:2379/main"]),
        ("etcd://user:secret@a/main/", [], ["etcd://a:2379/main"]),
        ("etcds://[::1]:5/main", [], ["etcds://[::1]:5/main"]),
    ],
)
def test_an_address_may_be_a_way_to_find_servers(
    written: str, servers: list[Server], found: list[str]
) -> None:
    sources = parse_sources(written)
    assert list(sources.servers) == servers
    assert [str(discovery) for discovery in sources.discoveries] == found
    assert parse_sources([written]) != ((), ())


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("http://a", "dns://NAME:4730 or etcd://HOST:2379/FLEET"),
        ("etcd://a:2379", "write etcd://HOST:2379,HOST2:2379/FLEET"),
        ("etcd:///main", "write etcd://HOST"),
        ("etcd://a:port/main", "must be a number"),
        ("dns://", "host is missing"),
        ("", "no servers"),
        (" , ", "no servers"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(written: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        HAClient(written)


def test_discoveries_say_what_they_need() -> None:
    with pytest.raises(InvalidArgument, match="no etcd endpoint"):
        EtcdDiscovery("")
    with pytest.raises(InvalidArgument, match="no name of a fleet"):
        EtcdDiscovery("a", "x/y")


def test_the_environment_may_have_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", "dns://gearfleet")
    assert str(parse_sources(None).discoveries[0]) == "dns://gearfleet:4730"


# ---- by name


@in_loop
async def test_all_addresses_of_a_name_are_connected_to(quick: Timing) -> None:
    async with FakeServer() as one, FakeServer() as two:
        names = Names(one, two)
        async with AsyncHAClient(by_name(names), timing=quick) as client:
            job = await client.submit("f")  # waits for the name's answer, not for a second one
            await turns_until(lambda: one.heard or two.heard)
            await answer_one(one if one.heard else two)
            await job
            await turns_until(lambda: one.connections and two.connections)
            assert set(names.asked) == {("gearfleet-headless", 4730)}
            assert set(client.servers) == set(names.answers)


@in_loop
async def test_the_operating_system_is_asked_unless_told_otherwise() -> None:
    async with FakeServer() as one, AsyncHAClient(f"dns://127.0.0.1:{one.port}") as client:
        job = await client.submit("f")
        await answer_one(one)
        await job


@in_loop
async def test_when_all_have_moved_the_name_is_asked_again_at_once(quick: Timing) -> None:
    async with FakeServer() as old, FakeServer() as new:
        names = Names(old)
        async with AsyncHAClient(by_name(names), timing=quick) as client:
            await old.until(lambda: old.connections)
            names.answers = [Server("127.0.0.1", new.port)]
            await old.stop()
            job = await client.submit("f")
            await answer_one(new)
            await job
            assert client.servers == (Server("127.0.0.1", new.port),)


@in_loop
async def test_while_all_is_well_it_is_asked_now_and_then(
    quick: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "DISCOVERY_SECONDS", 0.05)
    async with FakeServer() as one, FakeServer() as two:
        names = Names(one)
        async with AsyncHAClient(by_name(names), timing=quick):
            await one.until(lambda: one.connections)
            names.answers.append(Server("127.0.0.1", two.port))
            await two.until(lambda: two.connections)
            names.answers.pop(0)
            await one.until(lambda: not one.connections)
            # A name server that fails takes nobody away.
            asked = len(names.asked)
            names.error = OSError(-3, "Temporary failure in name resolution")
            await turns_until(lambda: len(names.asked) > asked + 1)
            assert two.connections


@in_loop
async def test_a_name_without_addresses_is_told_in_the_error_and_asked_until_it_has_some(
    quick: Timing,
) -> None:
    names = Names()
    async with AsyncHAClient(by_name(names), timing=quick) as client:
        with pytest.raises(NoServerAvailable, match=r"dns://gearfleet-headless:4730: .*has no address"):
            await client.submit("f", background=True, timeout=0.1)
        names.error = UnicodeError("label too long")
        await turns_until(lambda: "label too long" in str(client._engine and client._engine._attempts()))
        names.error = None
        async with FakeServer() as one:
            job = await client.submit("f")
            names.answers = [Server("127.0.0.1", one.port)]
            await answer_one(one)
            await job


@in_loop
async def test_a_name_is_a_way_into_a_fleet_and_nodes_are_not_connected_to_twice(quick: Timing) -> None:
    async with FakeFleet(2) as fleet:
        names = Names(*fleet.nodes)
        fleet.hosts = ["a.gearfleet-headless.invalid", "b.gearfleet-headless.invalid"]
        fleet._draw()
        async with AsyncHAClient(by_name(names), timing=quick) as client:
            await knows(client, *fleet.nodes)
        assert [node.accepted for node in fleet.nodes] == [1, 1]


@in_loop
async def test_a_worker_finds_its_servers_in_the_same_way(quick: Timing) -> None:
    async with FakeServer() as one:
        worker = AsyncHAWorker(by_name(Names(one)), timing=quick, drain_seconds=0.1)

        @worker.task("f")
        async def f(job: JobContext) -> None: ...

        async with worker:
            await worker.wait_connected()
            assert worker.connected == (Server("127.0.0.1", one.port),)
            with pytest.raises(NoServerAvailable, match="dns://gearfleet-headless:4730"):
                await worker.wait_connected(2, timeout=0.05)


@in_loop
async def test_what_is_found_is_reached_where_address_remap_says(quick: Timing) -> None:
    async with FakeServer() as one:
        names = Names()
        names.answers = [Server("10.0.0.1", 4730)]
        remap = {("10.0.0.1", 4730): ("127.0.0.1", one.port)}
        worker = AsyncHAWorker(by_name(names), timing=quick, drain_seconds=0.1, address_remap=remap)

        @worker.task("f")
        async def f(job: JobContext) -> None: ...

        async with worker:
            await worker.wait_connected()
            assert worker.connected == (Server("127.0.0.1", one.port),)


# ---- in etcd


def put(etcd: Etcd, key: str, value: object) -> None:
    etcd.put(key, json.dumps(value))


@pytest.fixture(scope="module")
def etcd() -> Iterator[Etcd]:
    server = Etcd()
    try:
        yield server.start()
    finally:
        server.close()


@needs_etcd()
def test_the_nodes_of_a_fleet_are_found_in_etcd(etcd: Etcd, quick: Timing) -> None:
    @in_loop
    async def scenario() -> None:
        async with FakeServer() as one:
            put(etcd, "/gearfleet/found/nodes/a", {"name": "a", "host": "127.0.0.1", "port": one.port})
            put(etcd, "/gearfleet/found/nodes/b", {"edited": "by hand"})
            put(etcd, "/gearfleet/found2/nodes/a", {"name": "a", "host": "127.0.0.1", "port": 1})
            put(etcd, "/gearfleet/found/map", {})
            # The first endpoint is down.
            async with AsyncHAClient(f"etcd://127.0.0.1:1,{etcd.address}/found", timing=quick) as client:
                job = await client.submit("f")
                await answer_one(one)
                await job
                assert client.servers == (Server("127.0.0.1", one.port),)

    scenario()


@needs_etcd()
def test_a_fleet_that_nobody_knows_and_an_etcd_that_is_none_are_named(etcd: Etcd, quick: Timing) -> None:
    @in_loop
    async def scenario() -> None:
        async with AsyncHAClient(f"etcd://{etcd.address}/nobody", timing=quick) as client:
            with pytest.raises(NoServerAvailable, match="no node of the fleet 'nobody' is registered"):
                await client.submit("f", background=True, timeout=0.3)

        async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n<html>")
            writer.close()

        listener = await asyncio.start_server(shout, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match="JSON gateway"):
            await EtcdDiscovery(f"127.0.0.1:{port}").look_up()
        listener.close()

    scenario()


@needs_etcd()
def test_etcd_with_tls(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    trusting = ssl.create_default_context(cafile=certificates.ca)
    trusting.load_cert_chain(certificates.client_certificate, certificates.client_key)
    etcd = Etcd(tls=certificates)

    @in_loop
    async def scenario() -> None:
        right = EtcdDiscovery(etcd.address, "main", tls=trusting)
        assert await right.look_up() == (Server("10.0.0.1", 4731),)
        with pytest.raises(OSError, match=r"(?i)certificate"):
            await EtcdDiscovery(etcd.address, "main", tls=ssl.create_default_context()).look_up()

    try:
        put(etcd.start(), "/gearfleet/main/nodes/a", {"name": "a", "host": "10.0.0.1", "port": 4731})
        scenario()
    finally:
        etcd.close()


@needs_etcd()
def test_etcd_with_users() -> None:
    etcd = Etcd()

    @in_loop
    async def scenario() -> None:
        sources = parse_sources(f"etcd://app:secret@{etcd.address}/main")
        assert await sources.discoveries[0].look_up() == (Server("10.0.0.1", 4731),)
        wrong = EtcdDiscovery(etcd.address, "main", user="app", password="guess")
        with pytest.raises(OSError, match=r"etcd refuses: .*invalid user ID or password"):
            await wrong.look_up()
        with pytest.raises(OSError, match=r"etcd refuses: .*user name is empty"):
            await EtcdDiscovery(etcd.address, "main").look_up()

    try:
        put(etcd.start(), "/gearfleet/main/nodes/a", {"name": "a", "host": "10.0.0.1", "port": 4731})
        etcd.enable_auth("app", "secret")
        scenario()
    finally:
        etcd.close()
