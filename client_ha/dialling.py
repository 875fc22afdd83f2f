"""Connecting to a name with several addresses, some of which are dead: happy eyeballs, RFC 8305.

The addresses are tried one after another, each a moment after the one before or as soon as that has failed;
the first that is connected is taken. So a dead address costs a moment, not the whole time to connect.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import Any, Final, TypeVar

# RFC 8305's "Connection Attempt Delay": an address has so long before the next is tried beside it.
ATTEMPT_SECONDS: Final = 0.25

Connected = TypeVar("Connected")
AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]  # as getaddrinfo has it


def is_address(host: str) -> bool:
    """Whether it needs no look-up."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def in_turns(found: Sequence[AddressInfo]) -> list[AddressInfo]:
    """The addresses without repeats, families by turns: where one has no route, the other comes soon."""
    families: dict[Any, dict[tuple[Any, ...], AddressInfo]] = {}
    for info in found:
        families.setdefault(info[0], {}).setdefault(info[4], info)
    rounds = zip_longest(*(family.values() for family in families.values()))
    return [info for info in chain.from_iterable(rounds) if info is not None]


def attempt_seconds(count: int, limit_seconds: float) -> float:
    """The pause between attempts: so short that each of `count` addresses has its turn within the limit."""
    return min(ATTEMPT_SECONDS, limit_seconds / (count + 1))


def host_of(info: AddressInfo) -> str:
    """The address as a host, with the scope that IPv6 may need."""
    address = info[4]
    scoped = len(address) == 4 and address[3] and "%" not in address[0]
    return f"{address[0]}%{address[3]}" if scoped else str(address[0])


def no_connection(faults: Sequence[tuple[str, str]]) -> OSError:
    """One error for all that was tried: (host, what happened there)."""
    return OSError("; ".join(f"{host}: {fault}" for host, fault in faults))


async def addresses_of(host: str, port: int) -> list[str]:
    """Every address of a name, in the order in which to try them. Raises OSError."""
    if is_address(host):
        return [host]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not found:
        raise OSError(f"{host!r} has no address")
    return list(dict.fromkeys(host_of(info) for info in in_turns(found)))


async def first_connected(
    hosts: Sequence[str],
    connect: Callable[[str], Coroutine[Any, Any, Connected]],
    let_go: Callable[[Connected], object],
    *,
    limit_seconds: float,
) -> Connected:
    """Connect to the first that answers; `let_go` of what comes second. Raises the only error, or all as one.

    The limit is the caller's to keep; here it only says how quickly to go through the hosts.
    """
    if len(hosts) == 1:
        return await connect(hosts[0])
    pause_seconds = attempt_seconds(len(hosts), limit_seconds)
    waiting = list(hosts)
    pending: dict[asyncio.Task[Connected], str] = {}
    faults: list[tuple[str, str]] = []
    winner: asyncio.Task[Connected] | None = None
    try:
        while winner is None and (waiting or pending):
            if waiting:
                host = waiting.pop(0)
                pending[asyncio.create_task(connect(host))] = host
            done, _ = await asyncio.wait(
                pending, timeout=pause_seconds if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is not None:
                    faults.append((pending.pop(task), fault_text(error)))
                elif winner is None:
                    winner = task
                    del pending[task]
    finally:
        for task in pending:
            task.add_done_callback(lambda late: _drop(late, let_go))
            task.cancel()
    if winner is None:
        raise no_connection(faults)
    return winner.result()


def _drop(late: asyncio.Task[Connected], let_go: Callable[[Connected], object]) -> None:
    if not late.cancelled() and late.exception() is None:
        let_go(late.result())


def fault_text(error: BaseException) -> str:
    """What happened, in a few words."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or ("timed out" if isinstance(error, TimeoutError) else type(error).__name__)
