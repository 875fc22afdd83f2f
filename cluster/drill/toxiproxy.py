"""A client of toxiproxy's HTTP API (github.com/Shopify/toxiproxy): as much of it as a drill needs.

The live tests make proxies of their own, with toxiproxy-python; a drill finds an operator's, must not wait
for them in its event loop, and needs no package that is not installed with the server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import quote

import aiohttp

ANSWER_SECONDS: Final = 5.0
TOXIC: Final = "gearfleet-drill"  # what this adds is called so, and nothing else is ever removed


class ToxiproxyError(Exception):
    """Toxiproxy did not do it; the text says why."""


@dataclass(frozen=True, slots=True)
class Proxy:
    name: str
    listen: str
    upstream: str
    enabled: bool
    toxics: tuple[str, ...]

    @property
    def ports(self) -> frozenset[str]:
        return frozenset(address.rpartition(":")[2] for address in (self.listen, self.upstream))

    def matches(self, pattern: str) -> bool:
        """A pattern as in a shell, of the name or of the upstream's address."""
        return fnmatchcase(self.name, pattern) or fnmatchcase(self.upstream, pattern)


class Toxiproxy:
    """One toxiproxy server; each call has a connection of its own. All raise ToxiproxyError."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    async def proxies(self) -> list[Proxy]:
        found = await self._ask("GET", "/proxies")
        try:
            return [
                Proxy(
                    value["name"],
                    value["listen"],
                    value["upstream"],
                    value["enabled"],
                    tuple(toxic["name"] for toxic in value["toxics"]),
                )
                for _, value in sorted(found.items())
            ]
        except (AttributeError, KeyError, TypeError):
            raise ToxiproxyError(f"{self.url} is no toxiproxy: it answers something else") from None

    async def slow(self, proxy: str, latency_milliseconds: int, jitter_milliseconds: int) -> None:
        """Delay what goes through, in both directions."""
        for stream in ("upstream", "downstream"):
            await self._ask(
                "POST",
                f"{_path(proxy)}/toxics",
                {
                    "name": f"{TOXIC}-{stream}",
                    "type": "latency",
                    "stream": stream,
                    "toxicity": 1.0,
                    "attributes": {"latency": latency_milliseconds, "jitter": jitter_milliseconds},
                },
            )

    async def unslow(self, proxy: str) -> None:
        """Take it back; also when only half of it, or nothing, was done."""
        failed: list[str] = []
        for stream in ("upstream", "downstream"):
            try:
                await self._ask("DELETE", f"{_path(proxy)}/toxics/{TOXIC}-{stream}", missing_is_fine=True)
            except ToxiproxyError as error:
                failed.append(str(error))
        if failed:
            raise ToxiproxyError(". ".join(failed))

    async def enable(self, proxy: str, enabled: bool) -> None:
        """Let connections through, or close them and refuse new ones."""
        await self._ask("POST", _path(proxy), {"enabled": enabled})

    async def _ask(self, method: str, path: str, body: Any = None, *, missing_is_fine: bool = False) -> Any:
        url = self.url + path
        try:
            async with (
                # Without a name of its own, toxiproxy takes the caller for a browser and refuses it.
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS), headers={"User-Agent": "gearfleet"}
                ) as session,
                session.request(method, url, json=body) as response,
            ):
                text = await response.text()
        except TimeoutError:
            raise ToxiproxyError(f"{url}: no answer within {ANSWER_SECONDS:g} s") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise ToxiproxyError(f"{url}: {error}") from None
        if response.status == 404 and missing_is_fine:
            return None
        if response.status >= 300:
            raise ToxiproxyError(f"{method} {url}: {response.status} {text.strip()[:500]}")
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise ToxiproxyError(f"{url} is no toxiproxy: its answer is no JSON") from None


def _path(proxy: str) -> str:
    return f"/proxies/{quote(proxy, safe='')}"


__all__ = ["TOXIC", "Proxy", "Toxiproxy", "ToxiproxyError"]
