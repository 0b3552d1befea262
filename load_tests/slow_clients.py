"""Crowds that keep connections and ask nothing, or never finish asking: what they cost, and who notices."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

import psutil

from load_tests.images import payloads
from load_tests.load_generator import Client, Request, post, run
from load_tests.request_log import Record, Verdict

Kind = Literal["idle", "slow"]

_ASKED_EVERY_S: Final = 0.05
_DRIP_S: Final = 1.0
_AT_A_TIME: Final = 200
_SLOWER: Final = 2.0
_SLOWER_S: Final = 0.02
_KEPT_KB: Final = 64.0


@dataclass(frozen=True)
class Crowd:
    """What other clients met without and with the crowd, and what it took; `cut_off` of it were closed."""

    kind: Kind
    size: int
    seconds: float
    without: Record
    beside: Record
    rss_before: int
    rss_most: int
    cut_off: int

    def rows(self) -> Iterator[Verdict]:
        """Return each promise, its figure, and whether it was kept."""
        name = f"{self.size:,} {'connections that ask nothing' if self.kind == 'idle' else 'slow senders'}"
        alone_s, beside_s = (record.latency(99, record.were(200)) for record in (self.without, self.beside))
        others = len(self.beside) - int(self.beside.were(200).sum())
        yield Verdict(
            f"{name}: everybody else is answered", f"{others} of {len(self.beside):,} not", not others
        )
        yield Verdict(
            f"{name}: p99 of the others at most {_SLOWER:g} times what it is without, and 20 ms",
            f"{beside_s * 1e3:.1f} ms, {alone_s * 1e3:.1f} ms without",
            beside_s <= _SLOWER * alone_s + _SLOWER_S,
        )
        each_kb = (self.rss_most - self.rss_before) / self.size / 1e3
        yield Verdict(f"{name}: each takes under {_KEPT_KB:g} kB", f"{each_kb:.1f} kB", each_kb < _KEPT_KB)
        if self.kind == "slow":
            yield Verdict(
                f"{name}: all are cut off",
                f"{self.cut_off:,} after {self.seconds:.0f} s",
                self.cut_off == self.size,
            )


def crowd(url: str, pid: int, kind: Kind, size: int, seconds: float) -> Crowd:
    """Open `size` connections and keep them for `seconds`, while somebody classifies an image now and then.

    The slow ones send a byte of a head each second.
    """
    return run(_crowd(url, psutil.Process(pid), kind, size, seconds))


async def _crowd(url: str, process: psutil.Process, kind: Kind, size: int, seconds: float) -> Crowd:
    request = post(url, payloads("typical", None)[0], "typical")
    without = await _ask(url, request, seconds)
    before = process.memory_info().rss
    async with _opened(url, kind, size) as members:
        beside = await _ask(url, request, seconds)
        most = process.memory_info().rss
        cut_off = sum(member.closed for member in members)
    return Crowd(kind, size, seconds, without, beside, before, most, cut_off)


async def _ask(url: str, request: Request, seconds: float) -> Record:
    async with Client(url) as client:
        count = int(seconds / _ASKED_EVERY_S)
        await client.follow(zip(itertools.count(0, _ASKED_EVERY_S), [request] * count, strict=False))
        return client.record(seconds)


class _Member(asyncio.Protocol):
    transport: asyncio.Transport
    closed = False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.closed = True


@asynccontextmanager
async def _opened(url: str, kind: Kind, size: int) -> AsyncIterator[list[_Member]]:
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    members: list[_Member] = []
    while len(members) < size:
        some = min(_AT_A_TIME, size - len(members))
        opening = [loop.create_connection(_Member, host, port) for _ in range(some)]
        for transport, member in await asyncio.gather(*opening):
            member.transport = transport
            members.append(member)
    dripping = asyncio.create_task(_drip(members)) if kind == "slow" else None
    try:
        yield members
    finally:
        if dripping is not None:
            dripping.cancel()
        for member in members:
            member.transport.abort()


async def _drip(members: list[_Member]) -> None:
    head = itertools.chain(b"GET /healthz HTTP/1.1\r\nX-Slow: ", itertools.repeat(ord("x")))
    for byte in head:
        began = time.perf_counter()
        for member in members:
            if not member.closed:
                member.transport.write(bytes([byte]))
        await asyncio.sleep(max(0.0, _DRIP_S - (time.perf_counter() - began)))
