"""Clients of a fleet: they learn the map, follow it, and reach every node once."""

# ruff: noqa: SIM117  (servers outside, clients inside)

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from client_ha import AddressRemap, AsyncHAClient, DnsDiscovery, HAClient, NoServerAvailable, Server, Timing
from client_ha.routing import SlotRouter
from cluster.wire.packets import (
    ERROR,
    JOB_CREATED,
    SUBMIT_JOB,
    SUBMIT_JOB_BG,
    WORK_COMPLETE,
    WORK_EXCEPTION,
)
from tests.client_ha.fake_server import FakeFleet, FakeServer, in_loop
from tests.client_ha.test_failover import turns_until


def router_of(client: AsyncHAClient) -> SlotRouter:
    assert isinstance(client._router, SlotRouter)
    return client._router


async def knows(client: AsyncHAClient, *nodes: FakeServer) -> None:
    """Wait until the client is connected to exactly these, and routes by the map."""
    wanted = {Server("127.0.0.1", node.port) for node in nodes}

    def reached() -> set[Server]:
        engine = client._engine
        assert engine is not None
        if engine._roster.map is None or engine._roster._unsettled:
            return set()
        return {server for server, link in engine._links.items() if link.connection is not None}

    await turns_until(lambda: reached() == wanted)


async def prefers(client: AsyncHAClient, key: str, node: FakeServer) -> None:
    """Wait until the map says so."""
    await turns_until(lambda: router_of(client).order(b"f", key.encode())[0].port == node.port)


async def hears(node: FakeServer) -> None:
    await node.until(lambda: node.heard)


async def acknowledged_by(client: AsyncHAClient, node: FakeServer, key: str) -> None:
    """Submit it in the background; it must go to this node."""
    submit = asyncio.create_task(client.submit("f", unique=key, background=True))
    connection, _ = await node.expect(SUBMIT_JOB_BG)
    connection.send(JOB_CREATED, b"H:1")
    await submit


@in_loop
async def test_the_option_comes_first_and_the_first_job_waits_for_nothing(quick: Timing) -> None:
    async with FakeServer() as stock, AsyncHAClient(stock.address, timing=quick) as client:
        job = await client.submit("f")
        connection, _ = await stock.expect(SUBMIT_JOB)
        assert connection.options == [b"gearfleet", b"exceptions"]
        assert not connection.follows_map
        connection.send(JOB_CREATED, b"H:1")
        connection.send(WORK_EXCEPTION, b"H:1", b"oh")
        await job.wait()
        # An error that comes later is the job's own: the options were answered.
        job = await client.submit("f")
        await stock.expect(SUBMIT_JOB)
        connection.send(ERROR, b"INVALID_COMMAND", b"no")
        await job.wait()
        assert "INVALID_COMMAND" in str(job.error)


@in_loop
async def test_jobs_go_to_their_slot_s_primary_and_follow_it(quick: Timing) -> None:
    async with FakeFleet(3) as fleet, AsyncHAClient(fleet.addresses, timing=quick) as client:
        await knows(client, *fleet.nodes)
        for slot in range(4):
            await acknowledged_by(client, fleet.nodes[slot % 3], fleet.key(slot))
        # When the slot moves while a job of it is under way, then that job is not disturbed
        first = await client.submit("f", unique=fleet.key(0))
        connection, _ = await fleet.nodes[0].expect(SUBMIT_JOB)
        fleet.primaries[0] = 2
        fleet.tell()
        await prefers(client, fleet.key(0), fleet.nodes[2])
        connection.send(JOB_CREATED, b"H:1")
        connection.send(WORK_COMPLETE, b"H:1", b"undisturbed")
        assert await first == b"undisturbed"
        # and the next goes to the new primary.
        await acknowledged_by(client, fleet.nodes[2], fleet.key(0))
        assert [node.accepted for node in fleet.nodes] == [1, 1, 1]


@in_loop
@pytest.mark.parametrize("as_mapping", [True, False])
async def test_nodes_are_reached_where_address_remap_says(quick: Timing, as_mapping: bool) -> None:
    async with FakeFleet(3) as fleet:
        ports = [node.port for node in fleet.nodes]
        fleet.hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]  # what is told in the map, and leads nowhere
        fleet.tell()
        places = {(host, port): ("127.0.0.1", port) for host, port in zip(fleet.hosts, ports, strict=True)}
        remap: AddressRemap = places if as_mapping else places.__getitem__
        async with AsyncHAClient(fleet.nodes[0].address, timing=quick, address_remap=remap) as client:
            await knows(client, *fleet.nodes)
            for slot in range(3):
                await acknowledged_by(client, fleet.nodes[slot], fleet.key(slot))


class Unspeakable(Exception):
    """An exception of which nothing can be shown."""

    def __str__(self) -> str:
        raise self

    __repr__ = __str__


def unspeakable(*_: object) -> Any:
    raise Unspeakable


@pytest.mark.parametrize("remap", [{}.__getitem__, unspeakable])
@in_loop
async def test_a_node_on_which_address_remap_fails_is_reached_as_it_is(
    quick: Timing, caplog: pytest.LogCaptureFixture, remap: AddressRemap
) -> None:
    async with FakeFleet(2) as fleet:
        async with AsyncHAClient(fleet.nodes[0].address, timing=quick, address_remap=remap) as client:
            await knows(client, *fleet.nodes)
    assert len([r for r in caplog.records if "address_remap failed" in r.message]) == 2  # once for each node


@in_loop
async def test_an_old_map_changes_nothing_and_neither_does_one_that_cannot_be_read(
    quick: Timing, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeFleet(2) as fleet, AsyncHAClient(fleet.addresses, timing=quick) as client:
        fleet.revision = 9
        fleet.tell()
        await knows(client, *fleet.nodes)
        fleet.primaries[0] = 1
        fleet.revision = 3
        fleet.tell()  # revision 4
        fleet.nodes[0].map = {"fleet": 7}
        fleet.nodes[0].connections[0].tell_map()
        fleet.nodes[0].connections[0].tell_map()
        await acknowledged_by(client, fleet.nodes[0], fleet.key(0))
    assert len([r for r in caplog.records if "cannot be read" in r.message]) == 1


@in_loop
async def test_one_address_is_enough_and_nodes_may_come_and_go(quick: Timing) -> None:
    async with FakeFleet(3) as fleet:
        a, b, c = fleet.nodes
        fleet.members = [0, 1]
        fleet._draw()
        async with AsyncHAClient(a.address, timing=quick) as client:
            await knows(client, a, b)
            fleet.members = [0, 1, 2]
            fleet.primaries[0] = 2
            fleet.tell()
            await knows(client, a, b, c)
            assert len(client.servers) == 3
            await acknowledged_by(client, c, fleet.key(0))
            # A node that has left is kept as long as it owes something
            job = await client.submit("f", unique=fleet.key(0))
            connection, _ = await c.expect(SUBMIT_JOB)
            connection.send(JOB_CREATED, b"H:2")
            fleet.members = [0, 1]
            fleet.primaries[0] = 1
            fleet.tell()
            await prefers(client, fleet.key(0), b)
            await acknowledged_by(client, b, fleet.key(0))
            connection.send(WORK_COMPLETE, b"H:2", b"goodbye")
            assert await job == b"goodbye"
            await knows(client, a, b)
            await c.until(lambda: not c.connections)
            # And the address that was configured stays, whatever the map says.
            fleet.members = [1]
            fleet.tell()
            await turns_until(lambda: len(client.servers) == 2)
            assert a.connections


@in_loop
async def test_a_node_reached_at_another_address_is_not_connected_to_twice(quick: Timing) -> None:
    # Given nodes that call themselves something that is not reachable from here
    async with FakeFleet(2) as fleet:
        fleet.hosts = ["a.invalid", "b.invalid"]
        fleet._draw()
        async with AsyncHAClient(fleet.addresses, timing=quick) as client:
            await knows(client, *fleet.nodes)
            assert len(client.servers) == 2
            for slot in range(4):
                await acknowledged_by(client, fleet.nodes[slot % 2], fleet.key(slot))
    assert [node.accepted for node in fleet.nodes] == [1, 1]


@in_loop
async def test_two_addresses_of_one_node_become_one_connection(quick: Timing) -> None:
    async with FakeFleet(1) as fleet:
        (node,) = fleet.nodes
        two_names = f"localhost:{node.port},127.0.0.1:{node.port}"
        async with AsyncHAClient(two_names, timing=quick) as client:
            await node.until(lambda: node.accepted == 2 and len(node.connections) == 1)
            assert client.servers == (Server("127.0.0.1", node.port),)  # the one in the map
            # The other is the way back when that one is lost.
            node.connections[0].drop()
            await acknowledged_by(client, node, fleet.key(0))


@in_loop
async def test_nodes_that_do_not_say_their_name_are_known_by_their_address(quick: Timing) -> None:
    async with FakeFleet(2) as fleet:
        fleet.names_itself = False
        fleet._draw()
        async with AsyncHAClient(fleet.nodes[0].address, timing=quick) as client:
            await knows(client, *fleet.nodes)
            for slot in range(4):
                await acknowledged_by(client, fleet.nodes[slot % 2], fleet.key(slot))


@in_loop
async def test_draining_and_dead_nodes_get_no_new_jobs(quick: Timing) -> None:
    async with FakeFleet(3) as fleet, AsyncHAClient(fleet.addresses, timing=quick) as client:
        a, b, c = fleet.nodes
        await knows(client, a, b, c)
        fleet.states = ["draining", "down", "up"]
        fleet.tell()
        await prefers(client, fleet.key(0), c)
        for slot in range(4):
            await acknowledged_by(client, c, fleet.key(slot))
        # They are better than nobody, though.
        await c.stop()
        await acknowledged_by(client, a, fleet.key(0))


@in_loop
async def test_what_was_not_acknowledged_goes_to_the_next_with_the_same_key(quick: Timing) -> None:
    async with FakeFleet(3) as fleet, AsyncHAClient(fleet.addresses, timing=quick) as client:
        await knows(client, *fleet.nodes)
        submit = asyncio.create_task(client.submit("f", "p", unique=fleet.key(1), background=True))
        _, arguments = await fleet.nodes[1].expect(SUBMIT_JOB_BG)
        await fleet.nodes[1].stop()
        others = (fleet.nodes[0], fleet.nodes[2])
        await asyncio.wait(
            [asyncio.ensure_future(hears(node)) for node in others],
            return_when=asyncio.FIRST_COMPLETED,
        )
        heir = next(node for node in others if node.heard)
        connection, again = await heir.expect(SUBMIT_JOB_BG)
        assert again == arguments
        # It says "not now": the third is asked.
        connection.send(ERROR, b"QUEUE_ERROR", b"slot 1 has no primary")
        last = next(node for node in others if node is not heir)
        connection, again = await last.expect(SUBMIT_JOB_BG)
        assert again == arguments
        connection.send(JOB_CREATED, b"H:1")
        assert (await submit).server == last.address


@in_loop
async def test_a_node_that_was_silent_is_used_again_only_when_it_answers(quick: Timing) -> None:
    async with FakeFleet(2) as fleet, AsyncHAClient(fleet.addresses, timing=quick) as client:
        a, b = fleet.nodes
        await knows(client, a, b)
        a.silent = True
        submit = asyncio.create_task(client.submit("f", unique=fleet.key(0), background=True))
        await a.expect(SUBMIT_JOB_BG)
        connection, _ = await b.expect(SUBMIT_JOB_BG)
        connection.send(JOB_CREATED, b"H:1")
        await submit
        # It accepts connections, as a stopped process does; no job is lost on them.
        await a.until(lambda: a.accepted == 3)
        await acknowledged_by(client, b, fleet.key(0))
        assert a.heard == []
        a.silent = False
        await knows(client, a, b)
        await acknowledged_by(client, a, fleet.key(0))


@in_loop
async def test_a_stock_server_among_the_nodes_comes_last_and_another_fleet_s_node_too(
    quick: Timing, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeFleet(1) as fleet, FakeFleet(1, fleet="other") as other, FakeServer() as stock:
        async with AsyncHAClient(f"{stock.address},{fleet.addresses}", timing=quick) as client:
            await knows(client, fleet.nodes[0], stock)
            for slot in range(4):
                await acknowledged_by(client, fleet.nodes[0], fleet.key(slot))
            await fleet.nodes[0].stop()
            await acknowledged_by(client, stock, fleet.key(0))
            await fleet.nodes[0].start()
        async with AsyncHAClient(f"{fleet.addresses},{other.addresses}", timing=quick) as client:
            await knows(client, fleet.nodes[0], other.nodes[0])
    assert any("use one fleet" in record.message for record in caplog.records)


@in_loop
async def test_a_node_that_stands_alone_is_used_as_before(quick: Timing) -> None:
    async with FakeServer() as one:
        one.knows_gearfleet = True
        one.map = {"revision": 0, "fleet": None, "nodes": [], "slots": 1024, "primaries": []}
        async with AsyncHAClient(one.address, timing=quick) as client:
            await acknowledged_by(client, one, "k")
            await one.until(lambda: one.connections[0].follows_map)
            await acknowledged_by(client, one, "k")


@in_loop
async def test_a_fleet_made_anew_is_believed_when_the_old_one_is_gone(quick: Timing) -> None:
    async with FakeFleet(1) as fleet, AsyncHAClient(fleet.addresses, timing=quick) as client:
        fleet.revision = 1000
        fleet.tell()
        await knows(client, fleet.nodes[0])
        await fleet.nodes[0].stop()
        fleet.revision = 1
        fleet.names = ["z"]
        fleet._draw()
        await fleet.nodes[0].start()
        await acknowledged_by(client, fleet.nodes[0], fleet.key(0))
        engine = client._engine
        assert engine is not None
        await turns_until(lambda: engine._roster.map is not None and engine._roster.map.revision == 1)


@in_loop
async def test_the_error_lists_nodes_that_only_the_map_named(quick: Timing) -> None:
    async with FakeFleet(2) as fleet:
        async with AsyncHAClient(fleet.nodes[0].address, timing=quick) as client:
            await knows(client, *fleet.nodes)
            for node in fleet.nodes:
                await node.stop()
            with pytest.raises(NoServerAvailable) as caught:
                await client.submit("f", background=True, timeout=0.1)
            assert {address for address, _ in caught.value.attempts} == {n.address for n in fleet.nodes}


@in_loop
async def test_a_router_of_the_user_s_own_is_obeyed(quick: Timing) -> None:
    async with FakeFleet(2) as fleet:
        last = Server("127.0.0.1", fleet.nodes[1].port)

        class Always:
            servers = (last,)

            def order(self, function: bytes, unique: bytes) -> tuple[Server, ...]:
                return self.servers

        async with AsyncHAClient(router=Always(), timing=quick) as client:
            await acknowledged_by(client, fleet.nodes[1], fleet.key(0))
            assert not fleet.nodes[1].connections[0].follows_map  # but its submits are remembered
            assert fleet.nodes[0].accepted == 0


def test_the_synchronous_client_follows_the_map_too(quick: Timing) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with FakeFleet(2) as fleet:
            with contextlib.closing(HAClient(fleet.nodes[0].address, timing=quick)) as client:
                submit = loop.run_in_executor(None, lambda: client.submit("f", background=True, timeout=10))
                await fleet.nodes[0].until(lambda: fleet.nodes[0].heard)
                fleet.nodes[0].heard.pop()[0].send(JOB_CREATED, b"H:1")
                await submit
                await fleet.nodes[1].until(lambda: fleet.nodes[1].connections)
                await turns_until(lambda: len(client.servers) == 2)

    asyncio.run(asyncio.wait_for(scenario(), 15))


@in_loop
async def test_a_router_that_raises_costs_no_job(quick: Timing) -> None:
    class Broken:
        def __init__(self, server: FakeServer) -> None:
            self.servers = (Server("127.0.0.1", server.port),)
            self.order = unspeakable

    async with FakeServer() as one, AsyncHAClient(router=Broken(one), timing=quick) as client:
        submit = asyncio.create_task(client.submit("f", background=True))
        connection, _ = await one.expect(SUBMIT_JOB_BG)
        connection.send(JOB_CREATED, b"H:1")
        assert (await submit).handle == "H:1"


@in_loop
async def test_a_discovery_whose_error_has_no_text_is_asked_again(quick: Timing) -> None:
    async with FakeServer() as one:
        answers = iter([unspeakable, lambda: [Server("127.0.0.1", one.port)]])

        async def resolve(host: str, port: int) -> list[Server]:
            return next(answers)()

        found = DnsDiscovery("name", one.port, resolve=resolve)
        async with AsyncHAClient([found], timing=quick) as client:
            await client.submit("f")
            await one.expect(SUBMIT_JOB)
