"""The simulated etcd as processes of a world: three hosts, gRPC on each, one cluster behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
from aetcd import rpc  # type: ignore[import-untyped]

from chaos_tests.sim.shell.etcd import EtcdError, State
from chaos_tests.sim.shell.etcd_cluster import Asked, Cluster, Watch
from chaos_tests.sim.shell.kernel import Process, World

PORT: Final = 2379
LEASE_SECONDS_MIN: Final = 1  # 2 in etcd with its default settings; runs are short


class _Timers:
    """The cluster's own time: what goes on between the members."""

    def __init__(self, world: World) -> None:
        self._world = world

    def time(self) -> float:
        return self._world.now

    def call_later(self, delay: float, callback: Callable[..., object], /, *arguments: Any) -> Any:
        return self._world.after(delay, callback, *arguments)


class EtcdMembers:
    """Begin with `start`; then each member can be killed, frozen, cut off and begun again."""

    def __init__(self, world: World, members: int = 3) -> None:
        self.world = world
        self.cluster = Cluster(
            _Timers(world),
            world.dice_for("etcd"),
            members=members,
            state=State(lease_seconds_min=LEASE_SECONDS_MIN),
            note=world.say,
        )
        self.names = tuple(f"etcd{number}" for number in range(members))
        self._processes: list[Process | None] = [None] * members

    @property
    def endpoints(self) -> str:
        """As the setting etcd takes them."""
        return ",".join(f"{name}:{PORT}" for name in self.names)

    def start(self) -> None:
        for number in range(len(self.names)):
            self._spawn(number)
        self.cluster.start()

    def _spawn(self, number: int) -> None:
        process = self.world.process(self.world.host(self.names[number]))
        self._processes[number] = process
        process.spawn(_serve(self.cluster, number, process))

    def kill(self, number: int) -> None:
        """kill -9. What it has agreed to is on its disk."""
        process = self._processes[number]
        if process is not None:
            process.kill()
            self._processes[number] = None
            self.cluster.stop(number)

    def restart(self, number: int) -> None:
        if self._processes[number] is None:
            self._spawn(number)
            self.cluster.restart(number)

    def freeze(self, number: int) -> None:
        """SIGSTOP: it takes connections and requests, and answers nothing."""
        process = self._processes[number]
        if process is not None:
            process.freeze()
            self.cluster.cut(number)

    def thaw(self, number: int) -> None:
        """SIGCONT."""
        process = self._processes[number]
        if process is not None and process.frozen:
            process.thaw()
            self.cluster.join(number)

    def restore(self, backup: State | None) -> None:
        """All members are made anew, with this content; None: with nothing."""
        if backup is None:
            backup = State(lease_seconds_min=LEASE_SECONDS_MIN).backup()
        for number in range(len(self.names)):
            self.kill(number)
        self.cluster.replace(backup)
        self.heal()

    def heal(self) -> None:
        """All run, and reach each other."""
        for number, process in enumerate(self._processes):
            if process is None:
                self.restart(number)
            elif process.frozen:
                process.thaw()
        self.cluster.heal()


async def _serve(cluster: Cluster, number: int, process: Process) -> None:
    """One member's gRPC."""

    async def ask(method: Callable[..., Asked], request: Any, context: Any) -> Any:
        future: asyncio.Future[Any] = process.loop.create_future()
        asked = method(number, request, lambda reply: process.post(_settle, future, reply))
        try:
            reply = await future
        except asyncio.CancelledError:
            asked.give_up()
            raise
        if isinstance(reply, EtcdError):
            await context.abort(reply.code, reply.details)
        return reply

    def unary(name: str, method: Callable[..., Asked]) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            return await ask(method, request, context)

        parse = getattr(rpc, f"{name}Request").FromString
        return grpc.unary_unary_rpc_method_handler(handle, parse, _bytes)

    async def keep_alive(_: object, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(await ask(cluster.keep_alive, request, context))

    async def watch(_: object, context: Any) -> None:
        wants_leader = ("hasleader", "true") in context.invocation_metadata()
        answers: asyncio.Queue[Any] = asyncio.Queue()
        watches: list[Watch] = []

        def tell(reply: Any) -> None:
            process.post(answers.put_nowait, reply)

        async def listen() -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                kind = request.WhichOneof("request_union")
                if kind == "create_request":
                    watches.append(
                        cluster.watch(number, request.create_request, tell, wants_leader=wants_leader)
                    )
                elif kind == "progress_request":
                    for each in watches:
                        cluster.progress(each)
                else:
                    raise NotImplementedError(kind)
            tell(None)

        listener = process.loop.create_task(listen())
        try:
            while (reply := await answers.get()) is not None:
                if isinstance(reply, EtcdError):
                    await context.abort(reply.code, reply.details)
                await context.write(reply)
        finally:
            listener.cancel()
            for each in watches:
                cluster.unwatch(each)

    def stream(name: str, handle: Callable[..., Any]) -> Any:
        return grpc.stream_stream_rpc_method_handler(
            handle, getattr(rpc, f"{name}Request").FromString, _bytes
        )

    services = {
        "KV": {"Txn": unary("Txn", cluster.txn)},
        "Lease": {
            "LeaseGrant": unary("LeaseGrant", cluster.grant),
            "LeaseRevoke": unary("LeaseRevoke", cluster.revoke),
            "LeaseTimeToLive": unary("LeaseTimeToLive", cluster.time_to_live),
            "LeaseKeepAlive": stream("LeaseKeepAlive", keep_alive),
        },
        "Watch": {"Watch": stream("Watch", watch)},
    }
    server = grpc.aio.server(
        handlers=tuple(
            grpc.method_handlers_generic_handler(f"etcdserverpb.{name}", methods)
            for name, methods in services.items()
        )
    )
    server.add_insecure_port(f"{process.host.address}:{PORT}")
    await server.start()


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
