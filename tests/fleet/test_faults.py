"""Nodes and etcd that die, freeze and return under load: nothing acknowledged is lost, nobody is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks.fleet import epoch_of
from benchmarks.fleet_load import Load
from client_ha import HAClient, ServerError
from cluster.wire import packets as wire
from tests.fleet.support import (
    StockClient,
    extended,
    key_led_by,
    keys_led_by,
    slot_of,
    work_off,
)
from tests.http.support import fetch, samples
from tests.support import Fleet, Peer, PeerClosed, eventually
from tests.support.fleet import SHORT_LEASE

FUNCTION = b"faults"


@pytest.fixture(scope="module")
def fleet_of_this_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("faults"), "abc", "--reclaim-seconds", "15", *SHORT_LEASE) as fleet:
        yield fleet


@pytest.fixture
def fleet(fleet_of_this_module: Fleet) -> Fleet:
    """Whatever befell it before, all its nodes are there and in sync."""
    fleet_of_this_module.start()
    fleet_of_this_module.wait_until_in_sync()
    return fleet_of_this_module


def check(load: Load) -> None:
    """Nothing lost, no caller with an error."""
    load.stop()
    load.drain()
    assert load.lost() == []
    assert load.errors == []


def check_stock(fleet: Fleet, *clients: StockClient) -> None:
    for client in clients:
        client.stop()
        assert client.errors == []
    acknowledged = set[bytes]().union(*(client.acknowledged for client in clients))
    work_off(fleet, FUNCTION, acknowledged)  # which fails if one never comes


def test_kill_9_loses_nothing_and_nobody_hears_of_it(fleet: Fleet) -> None:
    survivors = [fleet.nodes["b"], fleet.nodes["c"]]
    with (
        Load(fleet.addresses, rate=500) as load,
        StockClient(survivors, FUNCTION) as elsewhere,
        StockClient([fleet.nodes["a"], *survivors], FUNCTION) as at_the_victim,
    ):
        load.wait_for(100)
        at_the_victim.wait_for(100)
        led = [slot for slot, primary in enumerate(fleet.primaries()) if primary == "a"]
        killed_at = load.now()
        fleet.kill("a")
        acknowledged_at = load.probe(led)()
        elsewhere.wait_for(100)
        at_the_victim.wait_for(100)
        # All its slots are served again, soon: by proof of death, long before the lease has run out.
        assert len(acknowledged_at) == len(led)
        assert max(acknowledged_at.values()) - killed_at < 4.0
        assert elsewhere.broken == 0
        assert at_the_victim.broken == 1
        fleet.restart("a")
        fleet.wait_until_in_sync()
        check(load)
        check_stock(fleet, elsewhere, at_the_victim)


def remove(data_dir: Path) -> None:
    shutil.rmtree(data_dir)


def remove_last_segment(data_dir: Path) -> None:
    max((data_dir / "journal").iterdir()).unlink()


@pytest.mark.parametrize("fault", [remove, remove_last_segment])
def test_a_node_whose_journal_is_taken_away_stops_and_comes_back_with_nothing(
    fleet: Fleet, fault: Callable[[Path], None]
) -> None:
    victim = fleet.nodes["a"]
    assert victim.data_dir is not None
    identity = victim.data_dir / "identity"
    before = identity.read_text()
    with Load(fleet.addresses, rate=200) as load:
        load.wait_for(100)
        fault(victim.data_dir)
        assert victim.wait_for_exit() == 1
        event = victim.wait_for_event("this node stops: its journal cannot be written")
        assert str(victim.data_dir) in event["reason"]
        load.wait_for(100)
        fleet.restart("a")
        fleet.wait_until_in_sync()
        # What lacks entries does not count as a copy.
        assert json.loads(identity.read_text())["identity"] != json.loads(before)["identity"]
        check(load)


def test_a_frozen_node_is_replaced_and_commits_nothing_when_it_wakes(fleet: Fleet) -> None:
    keys = keys_led_by(fleet, "a", FUNCTION, 50)
    epochs = {slot.slot: slot.epoch for slot in fleet.status(slots=True).slots}
    with Load(fleet.addresses, rate=300) as load, fleet.connect("a") as stock:
        load.wait_for(100)
        stock.settle()
        fleet.freeze("a")
        # What it will find: submits for slots that it led.
        for unique in keys:
            stock.send(wire.SUBMIT_JOB_BG, FUNCTION, unique, b"late")
        fleet.wait_until_serving()
        load.wait_for(100)
        assert "a" not in fleet.primaries()
        fleet.wake("a")
        acknowledged = set()
        try:
            for unique in keys:
                packet = stock.receive()
                if packet.type == wire.JOB_CREATED:
                    assert epoch_of(packet.arguments[0]) > epochs[slot_of(FUNCTION, unique)]
                    acknowledged.add(unique)
        except PeerClosed:
            pass
        # It becomes a backup of all, and leads its share again in the end.
        fleet.wait_until_in_sync()
        check(load)
        work_off(fleet, FUNCTION, acknowledged)


def test_the_lag_of_a_peer_is_told(fleet: Fleet) -> None:
    def lags() -> dict[str, float]:
        found = samples(fetch(fleet.nodes["a"].http_port, "/metrics")[1])
        return {
            dict(labels)["peer"]: value
            for (name, labels), value in found.items()
            if name == "gearfleet_peer_lag_seconds"
        }

    assert lags().keys() == {"b", "c"}
    key = key_led_by(fleet, "a", FUNCTION)
    with fleet.connect("a") as client:
        fleet.freeze("b")
        client.send(wire.SUBMIT_JOB_BG, FUNCTION, key, b"")
        eventually(lambda: lags()["b"] > 0.2)
        assert lags()["c"] < lags()["b"]
        fleet.wake("b")
        client.expect(wire.JOB_CREATED)
    eventually(lambda: lags().get("b") == 0)
    work_off(fleet, FUNCTION, set())


def test_all_nodes_killed_at_once_lose_nothing(fleet: Fleet) -> None:
    with Load(fleet.addresses, rate=500) as load:
        load.wait_for(500)
        fleet.kill("a", "b", "c")
        fleet.etcd.kill()
        fleet.start()
        load.wait_for(100)
        check(load)


def test_without_etcd_all_goes_on_and_afterwards_a_node_may_die(fleet: Fleet) -> None:
    with Load(fleet.addresses, rate=300) as load:
        load.wait_for(100)
        # Given an etcd that is away for longer than a lease lasts
        fleet.etcd.kill()
        gone_at = load.now()
        eventually(lambda: load.now() - gone_at > 3.0)
        # then nobody notices;
        load.wait_for(100)
        assert load.errors == []
        # and after its return a node that dies is replaced as ever.
        fleet.etcd.start()
        eventually(lambda: fleet.status().etcd_reachable and len(fleet.status().nodes) == 3)
        fleet.wait_until_in_sync()
        led = [slot for slot, primary in enumerate(fleet.primaries()) if primary == "b"]
        fleet.kill("b")
        assert len(load.probe(led)()) == len(led)
        check(load)


def test_one_node_of_three_refuses_and_says_why_until_another_is_back(fleet: Fleet) -> None:
    unique = key_led_by(fleet, "a", FUNCTION)
    with Load(fleet.addresses, rate=300) as load:
        load.wait_for(100)
        fleet.kill("b", "c")
        with fleet.connect("a") as stock:
            stock.send(wire.SUBMIT_JOB_BG, FUNCTION, unique, b"")
            text = stock.expect_error(b"QUEUE_ERROR").decode()
        # Which of the two depends on whether their deaths are proven yet.
        assert re.search(r"1 of at least 2 in-sync copies .* start [bc]|do not answer: [bc]", text), text
        assert "nothing acknowledged is lost" in text
        http_port = fleet.nodes["a"].http_port
        refused = ("gearfleet_background_refused", ())
        eventually(lambda: samples(fetch(http_port, "/metrics")[1])[refused] == 1)
        with HAClient(fleet.addresses, submit_timeout=0.5) as client, pytest.raises(ServerError) as raised:
            client.submit("faults", background=True)
        assert re.search("Check that a server runs|submit again later", str(raised.value))
        fleet.restart("c")
        fleet.wait_until_serving()
        load.wait_for(100)
        eventually(lambda: samples(fetch(http_port, "/metrics")[1])[refused] == 0)
        check(load)


def is_known(client: Peer, handle: bytes) -> bytes:
    """b"1" while the fleet knows this job."""
    client.send(wire.GET_STATUS, handle)
    return client.expect(wire.STATUS_RES, handle)[1]  # type: ignore[no-any-return]


def test_a_late_result_is_taken_by_the_next_primary(fleet: Fleet) -> None:
    claimed, delivered, unanswered = (key_led_by(fleet, "a", name) for name in (b"f1", b"f2", b"f3"))
    functions = {claimed: b"f1", delivered: b"f2", unanswered: b"f3"}
    workers = {unique: fleet.connect("a") for unique in functions}
    handles = {}
    with fleet.connect("b") as client:
        for unique, function in functions.items():
            handles[unique] = client.submit(function, b"x", unique, background=True)
            workers[unique].can_do(function)
            assert workers[unique].wait_for_job().handle == handles[unique]
        client.submit(b"other", background=True)  # by now the others know that they run
        for name in ("b", "c"):
            with fleet.connect(name) as peer:
                peer.submit(b"other", b"", key_led_by(fleet, "a", b"other"), background=True)
        fleet.kill("a")
        fleet.wait_until_serving()
        heirs = fleet.primaries()
        known = (b"1", b"1", b"0", b"0")
        for unique, function in functions.items():
            client.send(wire.GET_STATUS, handles[unique])
            assert client.expect(wire.STATUS_RES, handles[unique])[1] == b"1", function
        # A worker that knows the extension says that it still has the job, and brings the result.
        with extended(fleet.nodes[heirs[slot_of(b"f1", claimed)]]) as worker:
            worker.send(wire.CLAIM_JOB, handles[claimed])
            worker.expect(wire.CLAIM_RES, handles[claimed], b"kept")
            client.send(wire.GET_STATUS, handles[claimed])
            client.expect(wire.STATUS_RES, handles[claimed], *known)
            worker.complete(handles[claimed], b"late")
            worker.settle()
        # A stock worker brings it by handle, to any node.
        other = next(name for name in ("b", "c") if name != heirs[slot_of(b"f2", delivered)])
        with fleet.connect(other) as worker:
            worker.complete(handles[delivered], b"late")
            worker.settle()
        for unique in (claimed, delivered):
            eventually(partial(is_known, client, handles[unique]), b"0")
        # A job of which nobody speaks is queued again after the reclaim time, not sooner.
        with fleet.connect(heirs[slot_of(b"f3", unanswered)]) as worker:
            worker.can_do(b"f3")
            assert worker.grab() is None
    for peer in workers.values():
        peer.close()
