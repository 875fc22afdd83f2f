"""Streams between nodes over real sockets: who dials, who may, what breaks them and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cluster.replication.frames import Frame, Hello
from cluster.server.channels import PeerTls, load_peer_tls
from cluster.server.errors import StartError
from cluster.server.line_limit import LINES_PER_SECOND_MAX
from cluster.server.messages import (
    KEEP_ALIVE,
    Refusal,
    pack_frame,
    pack_hello,
    pack_proofs,
    unpack,
    unpack_greeting,
)
from cluster.server.openings import OPENINGS_PER_HOST_MAX
from cluster.server.peers import EXCHANGE, SERVICE, PeerAddress, PeerLimits
from cluster.server.proof import ACCEPTOR, DIALLER, NONCE_BYTES, SECRET_BYTES, stream_proofs
from tests.support.peering import (
    QUICK,
    SECRETS,
    News,
    Owner,
    Process,
    address,
    addresses,
    certificates,
    dialler,
    grpc,
    hello,
    nodes,
    run,
)

# A node with which a Dialler plays a node whose own port does not matter.
NOWHERE = 9  # discard: nothing listens there


# ---- streams come up


@pytest.mark.parametrize("first", ["dialler", "acceptor"])
def test_whoever_comes_first_there_is_one_stream_and_frames_pass_both_ways(first: str) -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a, b = await started.start("a", of_a), await started.start("b", of_b)
            known = addresses(a, b)
            early, late = (a, b) if first == "dialler" else (b, a)
            early.set_peers(known)
            # Both are told of at different times: whoever is early waits or tries again.
            await asyncio.wait({asyncio.ensure_future(asyncio.to_thread(int))})
            late.set_peers(known)
            assert await of_a.told("up", "b") == b.hello
            assert await of_b.told("up", "a") == a.hello
            of_a.queue.append(Frame(group=1, entries=b"forth"))
            of_b.queue.append(Frame(acknowledged=1))
            a.wake("b")
            b.wake("a")
            assert await of_b.told("frame", "a") == Frame(group=1, entries=b"forth")
            assert await of_a.told("frame", "b") == Frame(acknowledged=1)
            assert (of_a.count("up", "b"), of_b.count("up", "a")) == (1, 1)
            assert (a.trouble("b"), b.trouble("a"), a.is_up("b")) == ("", "", True)

    run(scene)


def test_three_nodes_have_three_streams() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owners = {name: Owner() for name in "abc"}
            ports = [await started.start(name, owner) for name, owner in owners.items()]
            for port in ports:
                port.set_peers(addresses(*ports))
            for name, owner in owners.items():
                for other in owners.keys() - {name}:
                    await owner.told("up", other)
            news = News("frame", "c", Frame(requests=b"for a"))  # keep-alives are frames, too
            owners["c"].to["a"].append(news.value)
            ports[2].wake("a")
            await owners["a"].until(lambda: news in owners["a"].news)
            assert news not in owners["b"].news

    run(scene)


def test_frames_arrive_in_order_and_one_at_a_time() -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a, b = await started.start("a", of_a), await started.start("b", of_b)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            frames = [Frame(group=number, entries=bytes(number * 7)) for number in range(1, 500)]
            of_a.queue.extend(frames)
            a.wake("b")
            await of_b.told("frame", "a", len(frames))
            assert [news.value for news in of_b.news if news.kind == "frame"] == frames

    run(scene)


def test_a_node_that_is_not_known_yet_is_kept_waiting_for_a_moment() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner, limits=replace(QUICK, introduce_seconds=20.0))
            async with dialler(b) as stream:
                greeting = asyncio.ensure_future(stream.greet(hello("a", incarnation=2)))
                known = PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)
                b.set_peers({"a": known})  # its older start
                b.set_peers({"a": known._replace(incarnation=2)})
                assert await greeting == b.hello
                await owner.told("up", "a")

    run(scene)


def test_the_next_version_of_the_protocol_is_welcome() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            a = await started.start("a", owner)
            b = await started.start(hello("b", protocol=2, version="0.2"))
            for port in (a, b):
                port.set_peers(addresses(a, b))
            assert (await owner.told("up", "b")).version == "0.2"

    run(scene)


# ---- restarts


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("anew", [True, False], ids=["a new start", "the same start"])
def test_a_node_that_comes_back_is_connected_again(who: str, anew: bool) -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            other = "b" if who == "a" else "a"
            stays = await started.start(other, owner)
            goes = await started.start(who)
            for port in (stays, goes):
                port.set_peers(addresses(stays, goes))
            await owner.told("up", who)
            await goes.close()
            await owner.told("down", who)
            greeting = hello(who, incarnation=2 if anew else 1)
            back = await started.start(greeting, port=goes.port)
            for port in (stays, back):
                port.set_peers(addresses(stays, back))
            assert await owner.told("up", who, 2) == greeting

    run(scene)


def test_a_stream_ends_when_its_node_leaves_or_is_started_anew() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            a, b = await started.start("a", owner), await started.start("b")
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await owner.told("up", "b")
            a.set_peers({"b": address(b, incarnation=2)})
            assert owner.count("down", "b") == 0, "told from within a call of the owner"
            assert await owner.told("down", "b") == "it was started anew"
            a.set_peers({"b": address(b)})
            await owner.told("up", "b", 2)
            a.set_peers({})
            assert await owner.told("down", "b", 2) == "it left the fleet"
            assert a.trouble("b") == "no such node"
            assert owner.count("refused", "b") == 0

    run(scene)


def test_a_newer_stream_takes_the_place_of_the_older() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            async with dialler(b) as old, dialler(b) as new:
                await old.greet(hello("a"))
                await new.greet(hello("a"))
                assert "replaced by a newer stream" in str((await old.end()).details())
                await new.call.write(pack_frame(Frame(group=7)))
                assert await owner.told("frame", "a") == Frame(group=7)
                kinds = [news.kind for news in owner.news if news.kind in ("up", "down")]
                assert kinds == ["up", "down", "up"]

    run(scene)


# ---- refusals


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (hello("a", protocol=3, version="0.3"), "speaks protocol 3, node b 1: upgrade node b .* one version"),
        (hello("a", fleet="other"), "belongs to fleet other, node b to fleet fleet: correct --fleet"),
        (hello("a", slots=64), "counts 64 slots, node b 1024: .* start the node with the etcd of its fleet"),
        (hello("b"), "two nodes are called b: give one of them another --name"),
        (hello("a", identity="f" * 32), "two nodes are called a: .* give one of them another --name"),
        (hello("a", incarnation=4), "an older start of node a than etcd lists: .* stop this one"),
        (hello("a", incarnation=6), "etcd lists an older start of node a still"),
        (hello("c"), "node b calls node c, not the other way round"),
        (hello("aa"), "sees no key of node aa in etcd: do both use the same etcd"),
    ],
)
def test_who_is_not_wanted_is_told_why_and_what_to_do(greeting: Hello, says: str) -> None:
    async def scene() -> Any:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            known = PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 5)
            b.set_peers({"a": known, "c": known})
            if greeting.identity == "f" * 32:
                b.set_peers({"a": known._replace(incarnation=1)})
            async with dialler(b) as stream:
                answer = await stream.greet(greeting)
            assert owner.news == []
            return answer

    with capture_logs() as logs:
        answer = run(scene)
    assert isinstance(answer, Refusal)

    assert re.search(says, answer.reason), answer.reason
    assert [log["reason"] for log in logs] == [answer.reason]


def test_the_dialler_logs_a_refusal_once_and_tries_again() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            a = await started.start(hello("a", slots=64), owner)
            b = await started.start("b", owner)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            with capture_logs() as logs:
                await seen(lambda: "refuses" in a.trouble("b"))
                known = address(b)
                await b.close()
                mended = await started.start(hello("b", slots=64), port=known.port)
                mended.set_peers(addresses(a, mended))
                await owner.told("up", "b")
            assert len([log for log in logs if log["event"] == "no stream to a node"]) == 1

    run(scene)


def test_an_address_that_leads_to_another_node_is_named() -> None:
    async def scene() -> None:
        async with nodes() as started:
            a, c = await started.start("a"), await started.start("c")
            c.set_peers(addresses(a))
            a.set_peers({"b": address(c, identity="b" * 32)})
            await seen(lambda: "node c answers at" in a.trouble("b"))
            assert "correct --advertise and --peer-port of node b" in a.trouble("b")

    run(scene)


def test_a_node_is_reached_where_the_settings_say_and_not_where_it_advertises() -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a = Owner()
            b = await started.start("b")
            a = await started.start("a", of_a, places={"b": ("127.0.0.1", b.port)})
            b.set_peers(addresses(a))
            a.set_peers({"b": address(b)._replace(host="no-such-host.invalid", port=1)})
            await of_a.told("up", "b")
            # Its death is proven there, too.
            await b.close()
            await of_a.told("refused", "b")

    run(scene)


def test_a_place_in_the_settings_that_leads_to_another_node_is_named() -> None:
    async def scene() -> None:
        async with nodes() as started:
            c = await started.start("c")
            a = await started.start("a", places={"b": ("127.0.0.1", c.port)})
            c.set_peers(addresses(a))
            a.set_peers({"b": PeerAddress("10.0.0.2", 1, "b" * 32, 1)})
            await seen(lambda: "correct --peer-remap" in a.trouble("b"))

    run(scene)


def test_a_host_that_does_not_exist_is_named() -> None:
    async def scene() -> None:
        async with nodes() as started:
            a = await started.start("a")
            a.set_peers({"b": PeerAddress("no-such-host.invalid", 1, "b" * 32, 1)})
            await seen(lambda: "cannot be reached" in a.trouble("b"))
            assert "is --advertise of node b an address" in a.trouble("b")

    run(scene)


# ---- death and silence


@pytest.mark.parametrize("dies", ["a", "b"])
def test_both_sides_prove_a_death(dies: str) -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            survivor = await started.start("b" if dies == "a" else "a", owner)
            victim = await started.start(dies)
            for port in (survivor, victim):
                port.set_peers(addresses(survivor, victim))
            await owner.told("up", dies)
            await victim.close()
            await owner.told("refused", dies)
            assert [news.kind for news in owner.news] == ["up", "down", "refused"]

    run(scene)


def test_a_broken_stream_to_a_port_that_answers_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.server.peers.PROBE_PAUSES_SECONDS", (0.0, 0.0, 0.0))

    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            with socket.create_server(("127.0.0.1", 0)) as alive:
                alive.setblocking(False)
                b.set_peers({"a": PeerAddress("127.0.0.1", alive.getsockname()[1], "a" * 32, 1)})
                async with dialler(b) as stream:
                    await stream.greet(hello("a"))
                    await owner.told("up", "a")
                await owner.told("down", "a")
                loop = asyncio.get_running_loop()
                for _ in range(3):
                    (await loop.sock_accept(alive))[0].close()
                await seen(lambda: b._peers["a"].probing is None)
            assert owner.count("refused", "a") == 0

    run(scene)


def test_silence_is_reported_and_then_ends_the_stream() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            async with dialler(b) as stream:
                await stream.greet(hello("a"))
                await owner.told("silent", "a")
                await stream.call.write(KEEP_ALIVE)
                await owner.told("heard", "a")
                await owner.told("silent", "a", 2)
                assert owner.count("down", "a") == 0
                assert await owner.told("down", "a") == "it said nothing for 0.6 s"

    run(scene)


def test_nodes_with_nothing_to_say_are_not_silent() -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a, b = await started.start("a", of_a), await started.start("b", of_b)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            await of_b.told("up", "a")
            # A third party's silence is the clock: b hears a for longer than that takes.
            async with dialler(b) as stream:
                b.set_peers({**addresses(a), "aa": PeerAddress("127.0.0.1", NOWHERE, "aa" * 32, 1)})
                await stream.greet(hello("aa"))
                assert await stream.read() == KEEP_ALIVE
                await of_b.told("down", "aa")
            for owner, other in ((of_a, "b"), (of_b, "a")):
                told = [news for news in owner.news if news.name == other]
                assert told[0].kind == "up"
                assert all(news[::2] == ("frame", Frame()) for news in told[1:])

    run(scene)


def test_who_slept_himself_does_not_call_the_others_silent() -> None:
    # A busy machine alone makes nobody silent for that long.
    limits = replace(QUICK, silence_seconds=0.8, drop_seconds=1.0)

    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a = await started.start("a", of_a, limits=limits)
            b = await started.start("b", of_b, limits=limits)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            await of_b.told("up", "a")
            loop = asyncio.get_running_loop()
            # The loop stands still for longer than it takes to be dropped.
            deadline = loop.time() + 2 * limits.drop_seconds
            while loop.time() < deadline:
                pass
            of_a.queue.append(Frame(group=1))
            a.wake("b")
            await of_b.told("frame", "a")
            assert {news.kind for news in of_a.news + of_b.news} == {"up", "frame"}

    run(scene)


@pytest.mark.parametrize("name", ["a", "b"], ids=["the dialler", "the acceptor"])
def test_a_frozen_process_is_dropped_comes_back_and_is_killed(name: str) -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("b" if name == "a" else "a", owner)
            with Process(name, port) as process:
                port.set_peers({name: process.address})
                await owner.told("up", name)
                owner.endless = Frame(entries=bytes(1024 * 1024))
                port.wake(name)
                await owner.until(lambda: owner.taken > 5)
                process.signal(signal.SIGSTOP)
                assert await owner.told("down", name) == "it said nothing for 0.6 s"
                assert owner.count("silent", name) >= 1
                assert port.pending_bytes(name) == 0
                assert owner.count("refused", name) == 0
                process.signal(signal.SIGCONT)
                await owner.told("up", name, 2)
                process.signal(signal.SIGKILL)
                await owner.told("refused", name)
            async with asyncio.timeout(5):
                await port.close()

    run(scene)


def test_a_frozen_peer_does_not_keep_a_node_from_closing() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            port = await started.start("b", owner)
            with Process("a", port) as process:
                port.set_peers({"a": process.address})
                await owner.told("up", "a")
                owner.endless = Frame(entries=bytes(1024 * 1024))
                port.wake("a")
                await owner.until(lambda: owner.taken > 5)
                process.signal(signal.SIGSTOP)
                await owner.told("silent", "a")
                async with asyncio.timeout(5):
                    await port.close()

    run(scene)


# ---- sizes and slowness


def test_the_largest_frame_passes() -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a = await started.start("a", of_a, limits=PeerLimits())
            b = await started.start("b", of_b, limits=PeerLimits())
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            frame = Frame(group=1, entries=bytes(PeerLimits().message_bytes_max - 64), requests=b"x")
            of_a.queue.append(frame)
            a.wake("b")
            assert await of_b.told("frame", "a") == frame

    run(scene)


def test_a_frame_that_is_too_large_is_not_sent() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            a, b = await started.start("a", owner), await started.start("b")
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await owner.told("up", "b")
            with capture_logs() as logs:
                owner.queue.append(Frame(entries=bytes(QUICK.message_bytes_max)))
                a.wake("b")
                assert "which is a defect" in await owner.told("down", "b")
            assert "a frame is too large" in [log["event"] for log in logs]
            await owner.told("up", "b", 2)

    run(scene)


def test_a_message_that_is_too_large_ends_its_stream_only() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            async with dialler(b) as stream:
                await stream.greet(hello("a"))
                await stream.call.write(pack_frame(Frame(entries=bytes(QUICK.message_bytes_max + 100))))
                error = await stream.end()
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                await owner.told("down", "a")
            async with dialler(b) as stream:
                assert await stream.greet(hello("a")) == b.hello

    run(scene)


def test_a_peer_that_does_not_read_takes_no_memory() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner, limits=replace(QUICK, drop_seconds=20.0))
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            frame = Frame(entries=bytes(1024 * 1024))
            size = len(pack_frame(frame))
            async with dialler(b) as stream:
                await stream.greet(hello("a"))
                await owner.told("up", "a")
                owner.endless = frame
                b.wake("a")
                # Nothing is taken any more while the other sends on and on: it is stuck, not slow.
                before = -1
                while before != owner.taken:
                    before = owner.taken
                    silences = owner.count("silent", "a")
                    await owner.told("silent", "a", silences + 1)
                    await stream.call.write(KEEP_ALIVE)
                    await owner.told("heard", "a", silences + 1)
                assert owner.taken <= 16
                assert b.pending_bytes("a") == size
                stuck = owner.taken
                for _ in range(stuck + 20):
                    await stream.read()
                assert owner.taken >= stuck + 20
            await owner.told("down", "a")
            assert b.pending_bytes("a") == 0

    run(scene)


# ---- who is no peer


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"\0REQ\0\0\0\x10\0\0\0\0",
        b"status\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(160),
        bytes(range(256)) * 400,
    ],
    ids=["gearman", "text", "http", "tls", "garbage"],
)
def test_what_is_no_peer_does_no_harm(bytes_sent: bytes) -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a, b = await started.start("a", of_a), await started.start("b", of_b)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            loop = asyncio.get_running_loop()
            with socket.create_connection(("127.0.0.1", b.port)) as stranger:
                stranger.setblocking(False)
                # Cut off in the middle, or after an answer in HTTP/2 that means nothing to it.
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(stranger, bytes_sent)
                    async with asyncio.timeout(20):
                        while await loop.sock_recv(stranger, 4096):
                            pass
            of_a.queue.append(Frame(group=1))
            a.wake("b")
            await of_b.told("frame", "a")
            assert of_b.count("down", "a") == 0

    run(scene)


def test_grpc_calls_of_strangers_are_logged_once_a_minute() -> None:
    async def scene() -> None:
        async with nodes() as started:
            b = await started.start("b")
            for bad in (b"garbage", pack_frame(Frame(group=1)), b""):
                async with dialler(b) as stream:
                    await stream.call.write(bad)
                    assert (await stream.end()).code() is grpc.StatusCode.INVALID_ARGUMENT

    with capture_logs() as logs:
        run(scene)
    assert [log["event"] for log in logs] == ["not a node of a fleet"]


@pytest.mark.parametrize("bad", [b"garbage", b"\x1a\x00"], ids=["garbage", "a refusal"])
def test_garbage_in_a_stream_ends_it(bad: bytes) -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            async with dialler(b) as stream:
                await stream.greet(hello("a"))
                await stream.call.write(bad)
                assert (await owner.told("down", "a")).startswith("it sent ")
                assert (await stream.end()).code() is grpc.StatusCode.ABORTED

    run(scene)


def test_a_defect_of_the_owner_ends_the_stream_and_a_new_one_begins() -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a, b = await started.start("a", of_a), await started.start("b", of_b)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            of_b.fails_on = Frame(group=1)
            of_a.queue.append(Frame(group=1))
            with capture_logs() as logs:
                a.wake("b")
                assert await of_b.told("down", "a") == "this node failed on a frame"
                await of_b.told("up", "a", 2)
            assert "failed on a frame" in [log["event"] for log in logs]
            assert of_b.count("refused", "a") == 0

    run(scene)


def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    async def scene() -> None:
        async with nodes() as started:
            a = await started.start("a")
            with pytest.raises(StartError, match=r"\(Address already in use\): stop what .* --peer-port"):
                await started.start("b", port=a.port)

    run(scene)


def test_closing_twice_and_closing_what_never_listened_is_fine() -> None:
    async def scene() -> None:
        async with nodes() as started:
            a = await started.start("a")
            a.set_peers({"b": PeerAddress("127.0.0.1", NOWHERE, "b" * 32, 1)})
            await a.close()
            await a.close()
            a.set_peers({})
            a.wake("b")

    run(scene)


# ---- TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> PeerTls:
    return certificates(tmp_path_factory.mktemp("tls"))


def test_nodes_with_certificates_of_one_authority_meet(tls: PeerTls) -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a, b = await started.start("a", of_a, tls=tls), await started.start("b", of_b, tls=tls)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            of_b.queue.append(Frame(entries=bytes(100_000)))
            b.wake("a")
            await of_a.told("frame", "b")

    run(scene)


@pytest.mark.parametrize("which", ["plain to TLS", "TLS to plain", "another authority"])
def test_without_the_same_authority_there_is_no_stream(tls: PeerTls, which: str, tmp_path: Path) -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            other = certificates(tmp_path) if which == "another authority" else None
            a = await started.start("a", tls=tls if which == "TLS to plain" else other)
            b = await started.start("b", owner, tls=None if which == "TLS to plain" else tls)
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await seen(lambda: "no gRPC stream" in a.trouble("b"))
            assert "TLS" in a.trouble("b")
            assert owner.news == []

    with capture_logs() as logs:
        run(scene)
    assert {log["event"] for log in logs} == {"no stream to a node"}


def test_settings_of_tls_are_checked_at_the_start(tls: PeerTls, tmp_path: Path) -> None:
    certificate, key, ca = tmp_path / "certificate", tmp_path / "key", tmp_path / "ca"
    for path, text in ((certificate, tls.certificate), (key, tls.key), (ca, tls.ca)):
        path.write_bytes(text)
    assert load_peer_tls(certificate, key, ca) == tls
    assert load_peer_tls(None, None, None) is None
    with pytest.raises(StartError, match="set peer_key and peer_ca too"):
        load_peer_tls(certificate, None, None)
    key.write_text("no key")
    with pytest.raises(StartError, match="check peer_certificate, peer_key and peer_ca"):
        load_peer_tls(certificate, key, ca)
    with pytest.raises(StartError, match="No such file"):
        load_peer_tls(certificate, tmp_path / "missing", ca)


async def seen(condition: Any) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ---- who knows the fleet's secret


OTHER_SECRETS = (b"o" * SECRET_BYTES,)


def test_a_stranger_who_says_who_another_node_is_gets_nothing() -> None:
    """It has read all that etcd and a Hello say of node a, but not the secret."""

    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            owner.queue.append(Frame(entries=b"a payload"))
            with capture_logs() as logs:
                async with dialler(b) as stream:
                    await stream.greet(hello("a"), OTHER_SECRETS)
                    with contextlib.suppress(grpc.aio.AioRpcError):  # a frame at once
                        await stream.call.write(pack_frame(Frame(group=1, acknowledged=7)))
                    refusal = unpack(await stream.read())
            assert isinstance(refusal, Refusal)
            assert "does not know the fleet's secret" in refusal.reason
            assert owner.news == []
            assert owner.taken == 0
            assert [log["address"] for log in logs if log["event"] == "refused a node"] == ["127.0.0.1"]
            assert "6f6f6f6f" not in repr(logs)

    run(scene)


def test_a_node_that_cannot_prove_itself_is_let_in_only_where_an_upgrade_says_so() -> None:
    async def scene() -> None:
        async with nodes() as started:
            strict, lenient = Owner(), Owner()
            b = await started.start("b", strict)
            c = await started.start("c", lenient, must_prove=False)
            for port in (b, c):
                port.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            async with dialler(b) as stream:
                refusal = await stream.greet(hello("a"), nonce=b"")
                assert isinstance(refusal, Refusal)
                assert "--peer-proof=optional" in refusal.reason
            async with dialler(c) as stream:
                assert await stream.greet(hello("a"), nonce=b"") == c.hello
                await lenient.told("up", "a")
            assert strict.news == []

    run(scene)


def test_a_nonce_that_could_be_guessed_is_refused() -> None:
    async def scene() -> None:
        async with nodes() as started:
            b = await started.start("b", must_prove=False)
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            async with dialler(b) as stream:
                refusal = await stream.greet(hello("a"), nonce=b"short")
            assert isinstance(refusal, Refusal)
            assert "nonce of 5 bytes" in refusal.reason

    run(scene)


def test_whoever_is_dialled_has_to_prove_itself_before_a_frame_goes_there() -> None:
    async def scene() -> None:
        async with nodes() as started:
            of_a, of_b = Owner(), Owner()
            a = await started.start("a", of_a)
            b = await started.start("b", of_b, secrets=lambda: OTHER_SECRETS)
            of_a.queue.append(Frame(entries=b"a payload"))
            for port in (a, b):
                port.set_peers(addresses(a, b))
            while not of_a.news and "does not know the fleet's secret" not in a.trouble("b"):
                await asyncio.wait({asyncio.ensure_future(asyncio.to_thread(int))})
            assert of_a.news == of_b.news == []
            assert of_a.taken == 0

    run(scene)


def test_a_secret_is_exchanged_under_running_streams_and_new_ones() -> None:
    async def scene() -> None:
        async with nodes() as started:
            known = {"a": SECRETS, "b": SECRETS}
            of_a, of_b = Owner(), Owner()
            a = await started.start("a", of_a, secrets=lambda: known["a"])
            b = await started.start("b", of_b, secrets=lambda: known["b"])
            for port in (a, b):
                port.set_peers(addresses(a, b))
            await of_a.told("up", "b")
            both = OTHER_SECRETS + SECRETS
            for count, step in enumerate(({"b": both}, {"a": both}, {"b": OTHER_SECRETS}), start=2):
                known |= step
                assert a.is_up("b")
                a.drop("b", "to see whether there is another one")
                await of_a.told("up", "b", count)
            known["a"] = OTHER_SECRETS
            of_a.queue.append(Frame(group=3))
            a.wake("b")
            await of_b.told("frame", "a")
            assert of_a.count("down", "b") == 3

    run(scene)


def test_the_proof_of_another_stream_is_not_good_again() -> None:
    async def scene() -> None:
        async with nodes() as started:
            owner = Owner()
            b = await started.start("b", owner)
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            nonce = bytes(NONCE_BYTES)
            async with dialler(b) as stream:
                await stream.call.write(pack_hello(hello("a"), nonce))
                seen = unpack_greeting(await stream.read())
                assert isinstance(seen.content, Hello)
                both = (hello("a"), nonce, seen.content, seen.nonce)
                proofs = stream_proofs(SECRETS, DIALLER, *both)
                await stream.call.write(pack_proofs(proofs))
                await owner.told("up", "a")
            await owner.told("down", "a")
            for shown in (proofs, seen.proofs, stream_proofs(SECRETS, ACCEPTOR, *both)):
                async with dialler(b) as stream:
                    await stream.call.write(pack_hello(hello("a"), nonce))
                    await stream.read()
                    await stream.call.write(pack_proofs(shown))
                    assert isinstance(unpack(await stream.read()), Refusal)
            assert owner.count("up", "a") == 1

    run(scene)


def test_several_hosts_are_listened_on_with_one_port() -> None:
    async def scene() -> None:
        async with nodes() as started:
            port = await started.start("a", host="127.0.0.2,127.0.0.1")
            for host in ("127.0.0.1", "127.0.0.2"):
                with socket.create_connection((host, port.port)):
                    pass
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.3", port.port))

    run(scene)


def test_a_stranger_who_says_nothing_holds_no_more_than_his_share_of_the_port() -> None:
    async def scene() -> None:
        async with nodes() as started:
            b = await started.start("b")
            b.set_peers({"a": PeerAddress("127.0.0.1", NOWHERE, "a" * 32, 1)})
            async with dialler(b) as first:
                calls = [first.channel.stream_stream(EXCHANGE)() for _ in range(OPENINGS_PER_HOST_MAX)]
                await asyncio.gather(*(call.wait_for_connection() for call in calls))
                while b._openings.by_host != {"127.0.0.1": OPENINGS_PER_HOST_MAX}:
                    await asyncio.wait({asyncio.ensure_future(asyncio.to_thread(int))})
                async with dialler(b) as one_more:
                    error = await one_more.end()
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                for call in calls:
                    call.cancel()
            while b._openings.by_host:
                await asyncio.wait({asyncio.ensure_future(asyncio.to_thread(int))})

    run(scene)


def test_strangers_with_ever_new_names_do_not_fill_the_log() -> None:
    async def scene() -> None:
        async with nodes() as started:
            b = await started.start("b")
            with capture_logs() as logs:
                for number in range(3 * LINES_PER_SECOND_MAX):
                    b._complain(f"a{number}", "refused a node")
            assert LINES_PER_SECOND_MAX <= len(logs) <= 2 * LINES_PER_SECOND_MAX

    run(scene)


@pytest.mark.parametrize("must_prove", [True, False])
def test_a_node_of_an_older_release_is_called_only_where_an_upgrade_says_so(must_prove: bool) -> None:
    async def older(_: Any, context: Any) -> None:
        await context.read()
        await context.write(pack_hello(hello("b")))
        while await context.read() is not grpc.aio.EOF:
            pass

    async def scene() -> None:
        server = grpc.aio.server()
        exchange = grpc.stream_stream_rpc_method_handler(older)
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Exchange": exchange})
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with nodes() as started:
                owner = Owner()
                a = await started.start("a", owner, must_prove=must_prove)
                a.set_peers({"b": PeerAddress("127.0.0.1", port, "b" * 32, 1)})
                if not must_prove:
                    await owner.told("up", "b")
                    return
                while "--peer-proof=optional" not in a.trouble("b"):
                    await asyncio.wait({asyncio.ensure_future(asyncio.to_thread(int))})
                assert owner.news == []
        finally:
            await server.stop(None)

    run(scene)
