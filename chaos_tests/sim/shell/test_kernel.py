"""What processes of a world may rely on, and what may happen to them."""

from __future__ import annotations

import asyncio

import pytest

from chaos_tests.sim.shell.kernel import Process, World
from chaos_tests.sim.shell.network import End
from chaos_tests.sim.worlds import Broken


def two_processes(seed: int = 1) -> tuple[World, Process, Process]:
    world = World(seed)
    return world, world.process(world.host("a")), world.process(world.host("b"))


def connected(world: World, one: Process, other: Process) -> tuple[End, End]:
    """Both ends of a connection from one to the other."""
    ends: list[End] = []
    world.network.listen(other, 7, ends.append)

    async def connect() -> None:
        ends.append(await world.network.connect(one, other.host.name, 7))

    one.spawn(connect())
    world.run(1.0)
    far, near = ends
    return near, far


def test_time_passes_only_when_nobody_has_anything_to_do() -> None:
    world, one, _ = two_processes()
    times: list[float] = []

    async def sleep() -> None:
        for seconds in (0.0, 5.0, 60.0):
            await asyncio.sleep(seconds)
            times.append(asyncio.get_running_loop().time())

    one.spawn(sleep())
    began = world.now
    world.run(100.0)
    assert [round(time - began, 3) for time in times] == [0.0, 5.0, 65.0]


def test_a_process_dies_between_two_callbacks_and_never_runs_again() -> None:
    world, one, _ = two_processes()
    steps: list[int] = []

    async def step() -> None:
        for number in range(10):
            steps.append(number)
            await asyncio.sleep(0)

    one.callbacks_left = 4
    one.fuse = one.kill
    one.spawn(step())
    world.run(1.0)
    assert steps == [0, 1, 2, 3]


def test_a_frozen_process_does_later_what_was_due() -> None:
    world, one, _ = two_processes()
    due: list[float] = []
    one.loop.call_later(1.0, lambda: due.append(world.now))
    one.freeze()
    world.run(5.0)
    assert not due
    thawed_at = world.now
    one.thaw()
    world.run(1.0)
    assert due[0] == pytest.approx(thawed_at, abs=0.001)


def test_an_error_that_nobody_catches_breaks_the_run() -> None:
    world, one, _ = two_processes()

    async def fail() -> None:
        raise KeyError("x")

    one.spawn(fail())
    with pytest.raises(Broken, match=r"^KeyError in fail: .*KeyError"):
        world.run(1.0)


def test_messages_of_a_connection_come_in_order() -> None:
    world, one, other = two_processes()
    near, far = connected(world, one, other)
    came: list[object] = []
    far.listen(came.append, lambda error: None)
    for number in range(50):
        near.send(number)
    world.run(1.0)
    assert came == list(range(50))


def test_nobody_listens_is_refused_and_a_host_that_is_off_does_not_answer() -> None:
    world, one, other = two_processes()
    errors: list[OSError] = []

    async def connect() -> None:
        try:
            await world.network.connect(one, "b", 7)
        except OSError as error:
            errors.append(error)

    one.spawn(connect())
    world.run(1.0)
    other.host.cut_power()
    one.spawn(connect())
    world.run(60.0)
    assert [type(error) for error in errors] == [ConnectionRefusedError, TimeoutError]


def test_the_peers_of_a_killed_process_hear_of_it_and_those_of_one_without_power_do_not() -> None:
    for power in (False, True):
        world, one, other = two_processes()
        near, _ = connected(world, one, other)
        lost: list[Exception | None] = []
        near.listen(lambda message: None, lost.append)
        if power:
            other.host.cut_power()
        else:
            other.kill()
        world.run(30.0)
        assert bool(lost) != power
        other.host.power_on()
        world.run(5.0)
        assert len(lost) == 1


def test_what_came_before_anybody_listened_is_heard_in_order_and_so_is_the_end() -> None:
    world, one, other = two_processes()
    near, far = connected(world, one, other)
    far.send("last words")
    far.close()
    world.run(1.0)
    heard: list[object] = []
    near.listen(heard.append, lambda error: heard.append(("lost", error)))
    world.run(1.0)
    assert heard == ["last words", ("lost", None)]
    assert near.gone
    assert near not in world.network.ends


def test_a_cut_keeps_back_what_is_sent_in_its_direction_and_loses_nothing() -> None:
    world, one, other = two_processes()
    near, far = connected(world, one, other)
    here: list[object] = []
    there: list[object] = []
    near.listen(here.append, lambda error: None)
    far.listen(there.append, lambda error: None)
    world.network.cut("a", "b")
    near.send(1)
    far.send(2)
    world.run(5.0)
    assert (here, there) == ([2], [])
    near.send(3)
    world.network.heal("a", "b")
    world.run(1.0)
    assert there == [1, 3]


def test_a_cut_that_heals_on_a_slow_link_keeps_the_order() -> None:
    world, one, other = two_processes()
    near, far = connected(world, one, other)
    came: list[object] = []
    far.listen(came.append, lambda error: None)
    world.network.slow("a", "b", 0.5)
    near.send("caught")
    world.run(0.3)
    near.send("under way")
    world.network.cut("a", "b")
    world.run(0.3)
    near.send("held")
    world.network.heal("a", "b")
    world.run(2.0)
    assert came == ["caught", "under way", "held"]


def test_a_thread_s_work_is_one_event_and_its_result_another() -> None:
    world, one, _ = two_processes()
    order: list[str] = []

    async def ask() -> None:
        order.append(await asyncio.to_thread(lambda: order.append("work") or "result"))  # type: ignore[func-returns-value]

    one.spawn(ask())
    world.run(1.0)
    assert order == ["work", "result"]
