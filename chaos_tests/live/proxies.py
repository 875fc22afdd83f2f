"""Every link of a fleet through its own toxiproxy proxy, and what can be done to a link.

    with Proxies() as proxies:
        link = proxies.link("a>b", ("127.0.0.1", port_of_b))
        connect(link.address)                       # instead of to b
        with link.poisoned(latency(200, jitter_ms=50)):
            ...
        link.down()                                 # connections break, new ones are refused

`a>b` is what a opens to b. `upstream` is what the opener sends, `downstream` what it is answered: so a toxic
on one of them cuts a link in one direction. Toxiproxy does TCP only, and does not delay or refuse a connect
unless the proxy is down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple

import toxiproxy
from toxiproxy.api import APIConsumer

from chaos_tests.live.toxiproxy import ToxiproxyServer
from tests.support.ports import lasting_port

Stream = Literal["upstream", "downstream"]
BOTH: Final[tuple[Stream, ...]] = ("upstream", "downstream")
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Toxic:
    """What is done to the bytes of a link. Make one with the functions below."""

    kind: str
    attributes: dict[str, int] = field(default_factory=dict)
    toxicity: float = 1.0  # share of the connections that it is done to


def latency(delay_ms: int, *, jitter_ms: int = 0) -> Toxic:
    """Everything arrives so much later, give or take the jitter."""
    return Toxic("latency", {"latency": delay_ms, "jitter": jitter_ms})


def bandwidth(kilobytes_per_second: int) -> Toxic:
    """No more than this passes; 0 is nothing, and it waits."""
    return Toxic("bandwidth", {"rate": kilobytes_per_second})


def slow_close(delay_ms: int) -> Toxic:
    """The end of a connection is told so much later."""
    return Toxic("slow_close", {"delay": delay_ms})


def black_hole() -> Toxic:
    """Nothing arrives and nobody is told. Taking it back breaks the connections: bytes are missing."""
    return Toxic("timeout", {"timeout": 0})


def timeout(after_ms: int) -> Toxic:
    """Nothing arrives, and after this time the connection breaks."""
    return Toxic("timeout", {"timeout": after_ms})


def reset_peer(after_ms: int = 0) -> Toxic:
    """A new connection is reset (RST) after this time; one that stands already is ended (FIN)."""
    return Toxic("reset_peer", {"timeout": after_ms})


def slicer(average_bytes: int, *, variation_bytes: int = 0, delay_us: int = 0) -> Toxic:
    """Bytes arrive in small pieces, with a pause between them."""
    attributes = {"average_size": average_bytes, "size_variation": variation_bytes, "delay": delay_us}
    return Toxic("slicer", attributes)


def limit_data(connection_bytes: int) -> Toxic:
    """Each connection breaks when so much has passed."""
    return Toxic("limit_data", {"bytes": connection_bytes})


class Standing(NamedTuple):
    """What toxiproxy does to a link."""

    enabled: bool
    toxics: dict[str, str]  # name -> kind


class Link:
    """One proxy. Connect to `address`."""

    def __init__(self, name: str, proxy: Any, address: Address) -> None:
        self.name = name
        self.address = address
        self._proxy = proxy
        self._downs = 0
        self._poisons = 0
        self._toxics: set[str] = set()

    def down(self) -> None:
        """Break all connections and refuse new ones."""
        self._downs += 1
        if self._downs == 1:
            self._proxy.disable()

    def up(self) -> None:
        """End one `down`; somebody else's may go on."""
        if self._downs:
            self._downs -= 1
            if not self._downs:
                self._proxy.enable()

    def poison(self, toxic: Toxic, *streams: Stream) -> list[str]:
        """Begin; without `streams` in both directions. Returns the names for `cure`."""
        names = []
        for stream in streams or BOTH:
            self._poisons += 1
            name = f"{toxic.kind}-{stream}-{self._poisons}"
            self._proxy.add_toxic(
                name=name,
                type=toxic.kind,
                stream=stream,
                toxicity=toxic.toxicity,
                attributes=toxic.attributes,
            )
            self._toxics.add(name)
            names.append(name)
        return names

    def cure(self, *names: str) -> None:
        """End what `poison` began; without names all of it."""
        for name in names or sorted(self._toxics):
            if name in self._toxics:
                self._toxics.remove(name)
                self._proxy.destroy_toxic(name)

    @contextmanager
    def poisoned(self, toxic: Toxic, *streams: Stream) -> Iterator[None]:
        names = self.poison(toxic, *streams)
        try:
            yield
        finally:
            self.cure(*names)

    def heal(self) -> None:
        """As if nothing had been done to it."""
        self.cure()
        self._downs = min(self._downs, 1)
        self.up()


class Proxies:
    """A toxiproxy server and its proxies. toxiproxy-python knows one server at a time, so there is one at a
    time in a process."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self._server = ToxiproxyServer()
        self._toxiproxy: Any = toxiproxy.Toxiproxy()

    def __enter__(self) -> Proxies:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Proxies:
        self._server.start()
        self._toxiproxy.update_api_consumer(self._server.host, self._server.port)
        return self

    def close(self) -> None:
        self._server.close()

    def link(self, name: str, upstream: Address) -> Link:
        """The link of this name, made when it is not there; `upstream` is where it leads."""
        if name not in self.links:
            address = ("127.0.0.1", lasting_port())
            proxy = self._toxiproxy.create(
                name=name, upstream="{}:{}".format(*upstream), listen="{}:{}".format(*address)
            )
            self.links[name] = Link(name, proxy, address)
        return self.links[name]

    def standing(self) -> dict[str, Standing]:
        """What toxiproxy itself says of each link."""
        return {
            name: Standing(proxy["enabled"], {toxic["name"]: toxic["type"] for toxic in proxy["toxics"]})
            for name, proxy in APIConsumer.get("/proxies").json().items()
        }

    def heal(self) -> None:
        """All links, as if nothing had been done to them."""
        for link in self.links.values():
            link.heal()
