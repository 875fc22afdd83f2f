"""The client of toxiproxy, against a small one that answers as the real one does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from cluster.drill.faults import EtcdOutage, FaultFailed, Means, NotMended, SlowLink
from cluster.drill.toxiproxy import Toxiproxy, ToxiproxyError
from cluster.server.control import NodeStatus


class FakeToxiproxy:
    """Proxies and toxics as toxiproxy 2 keeps them; see its README, "HTTP API"."""

    def __init__(self) -> None:
        self.proxies: dict[str, dict[str, Any]] = {}
        self.app = web.Application()
        self.app.add_routes(
            [
                web.get("/proxies", self._list),
                web.post("/proxies/{name}", self._update),
                web.post("/proxies/{name}/toxics", self._add),
                web.delete("/proxies/{name}/toxics/{toxic}", self._remove),
            ]
        )

    def add(self, name: str, upstream: str) -> None:
        self.proxies[name] = {
            "name": name,
            "listen": "127.0.0.1:20000",
            "upstream": upstream,
            "enabled": True,
            "toxics": [],
        }

    def _proxy(self, request: web.Request) -> dict[str, Any]:
        assert not request.headers["User-Agent"].startswith("Mozilla/")
        try:
            return self.proxies[request.match_info["name"]]
        except KeyError:
            raise web.HTTPNotFound(text='{"error":"proxy not found","status":404}') from None

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(self.proxies)

    async def _update(self, request: web.Request) -> web.Response:
        self._proxy(request).update(await request.json())
        return web.json_response(self._proxy(request))

    async def _add(self, request: web.Request) -> web.Response:
        toxics, toxic = self._proxy(request)["toxics"], await request.json()
        if any(each["name"] == toxic["name"] for each in toxics):
            return web.json_response({"error": "toxic already exists", "status": 409}, status=409)
        toxics.append(toxic)
        return web.json_response(toxic)

    async def _remove(self, request: web.Request) -> web.Response:
        toxics = self._proxy(request)["toxics"]
        for toxic in toxics:
            if toxic["name"] == request.match_info["toxic"]:
                toxics.remove(toxic)
                return web.Response(status=204)
        return web.json_response({"error": "toxic not found", "status": 404}, status=404)


def play(scene: Callable[[FakeToxiproxy, Toxiproxy], Awaitable[None]]) -> None:
    """Run a scene with a server and its client."""

    async def run() -> None:
        fake = FakeToxiproxy()
        runner = web.AppRunner(fake.app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            host, port = runner.addresses[0][:2]
            await scene(fake, Toxiproxy(f"http://{host}:{port}/"))
        finally:
            await runner.cleanup()

    asyncio.run(run())


def silent(_: str) -> None:
    pass


def test_a_link_is_slowed_both_ways_and_mended_by_name_only() -> None:
    async def scene(fake: FakeToxiproxy, toxiproxy: Toxiproxy) -> None:
        fake.add("a-b", "127.0.0.1:4831")
        (proxy,) = await toxiproxy.proxies()
        means = Means(toxiproxy=toxiproxy, slow_proxies=(proxy,), latency_ms=80)
        fault = SlowLink(proxy, means, [NodeStatus("a", peer_port=4731), NodeStatus("b", peer_port=4831)])
        assert fault.touches == ("b",)
        await fault.begin(silent)
        toxics = fake.proxies["a-b"]["toxics"]
        assert {(each["type"], each["stream"], each["attributes"]["latency"]) for each in toxics} == {
            ("latency", "upstream", 80),
            ("latency", "downstream", 80),
        }
        toxics.append({"name": "somebody's", "type": "latency"})
        await fault.mend(silent)
        await fault.mend(silent)  # also when there is nothing left to mend
        assert [each["name"] for each in toxics] == ["somebody's"]

    play(scene)


def test_half_a_fault_is_mended_as_well() -> None:
    async def scene(fake: FakeToxiproxy, toxiproxy: Toxiproxy) -> None:
        fake.add("a-b", "127.0.0.1:4831")
        fake.proxies["a-b"]["toxics"].append({"name": "gearfleet-drill-downstream"})
        (proxy,) = await toxiproxy.proxies()
        fault = SlowLink(proxy, Means(toxiproxy=toxiproxy), [])
        with pytest.raises(FaultFailed, match="already exists"):
            await fault.begin(silent)
        assert fake.proxies["a-b"]["toxics"]
        await fault.mend(silent)
        assert fake.proxies["a-b"]["toxics"] == []

    play(scene)


def test_links_to_etcd_are_cut_and_joined() -> None:
    async def scene(fake: FakeToxiproxy, toxiproxy: Toxiproxy) -> None:
        fake.add("a>etcd/1?", "127.0.0.1:2379")
        fake.add("etcd-2", "127.0.0.1:2379")
        fault = EtcdOutage(Means(toxiproxy=toxiproxy, etcd_proxies=tuple(await toxiproxy.proxies())))
        await fault.begin(silent)
        assert [proxy.enabled for proxy in await toxiproxy.proxies()] == [False, False]
        await fault.mend(silent)
        assert [proxy.enabled for proxy in await toxiproxy.proxies()] == [True, True]

    play(scene)


def test_one_link_that_cannot_be_mended_keeps_no_other_from_it() -> None:
    async def scene(fake: FakeToxiproxy, toxiproxy: Toxiproxy) -> None:
        fake.add("etcd-1", "127.0.0.1:2379")
        fake.add("etcd-2", "127.0.0.1:2379")
        fault = EtcdOutage(Means(toxiproxy=toxiproxy, etcd_proxies=tuple(await toxiproxy.proxies())))
        await fault.begin(silent)
        del fake.proxies["etcd-1"]
        with pytest.raises(NotMended, match="404"):
            await fault.mend(silent)
        assert [proxy.enabled for proxy in await toxiproxy.proxies()] == [True]

    play(scene)


def test_a_link_is_its_nodes_by_address_where_all_nodes_have_one_port() -> None:
    async def scene(fake: FakeToxiproxy, toxiproxy: Toxiproxy) -> None:
        fake.add("a-b", "10.0.0.2:4731")
        (proxy,) = await toxiproxy.proxies()
        nodes = [NodeStatus(name, host=f"10.0.0.{n}", peer_port=4731) for n, name in enumerate("abc", 1)]
        assert SlowLink(proxy, Means(toxiproxy=toxiproxy), nodes).touches == ("b",)
        unknown = [NodeStatus(name, host=name, peer_port=4731) for name in "abc"]
        # Not "all", which is a restored backup and explains more than a slow link can.
        assert SlowLink(proxy, Means(toxiproxy=toxiproxy), unknown).touches == ("a", "b", "c")
        elsewhere = [NodeStatus(name, host=name, peer_port=4831) for name in "abc"]
        assert SlowLink(proxy, Means(toxiproxy=toxiproxy), elsewhere).touches == ("a", "b", "c")

    play(scene)


def test_what_is_no_toxiproxy_is_told_apart() -> None:
    async def scene(fake: FakeToxiproxy, toxiproxy: Toxiproxy) -> None:
        fake.proxies["x"] = {"name": "x"}
        with pytest.raises(ToxiproxyError, match="is no toxiproxy"):
            await toxiproxy.proxies()
        with pytest.raises(ToxiproxyError, match=r"http://127\.0\.0\.1:1/proxies"):
            await Toxiproxy("http://127.0.0.1:1").proxies()
        with pytest.raises(ToxiproxyError, match="nowhere"):
            await Toxiproxy("nowhere").proxies()

    play(scene)
