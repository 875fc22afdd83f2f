"""What a simulated disk keeps."""

from __future__ import annotations

import os

import pytest

from chaos_tests.sim.shell.disk import Disk, SimOs, SimPath
from chaos_tests.sim.shell.kernel import Killed, Process, World


class Machine:
    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.process: Process = self.world.process(self.world.host("a"))
        self.world.current = self.process
        self.disk: Disk = self.process.host.disk
        self.os = SimOs(self.world)

    def path(self, *parts: str) -> SimPath:
        return SimPath(self.disk, *parts)

    def open(self, *parts: str) -> int:
        return self.os.open(self.path(*parts), os.O_CREAT | os.O_WRONLY)

    def cut_power(self) -> None:
        self.process.host.cut_power()
        self.process.host.power_on()
        self.world.current = self.process = self.world.process(self.process.host)


@pytest.fixture(params=range(20))
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(request.param)


def test_what_was_fsynced_with_its_name_outlives_a_loss_of_power(machine: Machine) -> None:
    file = machine.open("f")
    machine.os.pwrite(file, b"one", 0)
    machine.os.fsync(file)
    machine.disk.fsync(machine.disk.root)
    machine.os.pwrite(file, b"two", 3)
    machine.cut_power()
    data = machine.path("f").read_bytes()
    assert data.startswith(b"one")
    assert len(data) <= 6


def test_a_write_that_was_not_fsynced_may_be_lost_whole_or_torn_or_a_hole() -> None:
    found = set()
    for seed in range(200):
        machine = Machine(seed)
        file = machine.open("f")
        machine.os.fsync(file)
        machine.disk.fsync(machine.disk.root)
        machine.os.pwrite(file, b"abc", 0)
        machine.cut_power()
        found.add(machine.path("f").read_bytes())
    assert {b"", b"abc", b"a", b"ab", bytes(3)} <= found


def test_a_name_that_was_not_synced_may_be_lost() -> None:
    there = set()
    for seed in range(50):
        machine = Machine(seed)
        machine.os.fsync(machine.open("f"))
        machine.cut_power()
        there.add(machine.path("f").exists())
    assert there == {False, True}


def test_a_killed_process_loses_nothing_of_the_page_cache(machine: Machine) -> None:
    machine.os.pwrite(machine.open("f"), b"abc", 0)
    machine.process.kill()
    assert machine.path("f").read_bytes() == b"abc"


def test_a_killed_process_loses_its_files_and_locks(machine: Machine) -> None:
    file = machine.open("f")
    machine.process.kill()
    with pytest.raises(OSError, match="Bad file descriptor"):
        machine.disk.node(file)


def test_what_a_failed_fsync_was_for_never_reaches_the_disk_and_is_still_read(machine: Machine) -> None:
    file = machine.open("f")
    machine.os.fsync(file)
    machine.disk.fsync(machine.disk.root)
    machine.os.pwrite(file, b"abc", 0)
    machine.disk.fsync_fails = 1
    with pytest.raises(OSError, match="Input/output error"):
        machine.os.fsync(file)
    assert machine.path("f").read_bytes() == b"abc"
    on_disk = machine.disk.node(file).synced
    machine.os.fsync(file)
    machine.cut_power()
    assert machine.path("f").read_bytes() == on_disk


def test_a_full_disk_takes_no_more_than_a_part(machine: Machine) -> None:
    file = machine.open("f")
    machine.disk.full = True
    written = 0
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012
        while True:
            written += machine.os.pwrite(file, b"abc"[written:], written)
    assert written < 3


def test_a_process_dies_in_front_of_the_operation_that_was_chosen(machine: Machine) -> None:
    file = machine.open("f")
    machine.process.disk_operations_left = 1
    machine.os.pwrite(file, b"a", 0)
    with pytest.raises(Killed):
        machine.os.pwrite(file, b"b", 1)
    with pytest.raises(Killed):
        machine.os.fsync(file)
    assert machine.path("f").read_bytes() == b"a"
