"""The scenarios: how the request rate changes over time, and the shares of bad images and disconnects."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

RequestKind = Literal["typical", "mixed", "bad", "disconnect"]
"""An image of the usual size, of any size, one that cannot be decoded, or a client that disconnects."""


@dataclass(frozen=True)
class Scenario:
    """How requests arrive.

    `rate` has points (second, share of the service's capacity), connected by straight lines. `bad` and
    `disconnects` are shares of the requests, 0..1. The other requests carry typical images, or images of
    many sizes if `mixed`.
    """

    description: str
    rate: tuple[tuple[float, float], ...]
    mixed: bool = False
    bad: float = 0.0
    disconnects: float = 0.0

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.rate[-1][0]

    @property
    def exceeds_capacity(self) -> bool:
        """Whether the rate is above the capacity at some time, so that requests have to be rejected."""
        return max(share for _, share in self.rate) > 1

    def stretched_to(self, seconds: float) -> "Scenario":
        """Return the same scenario with this duration."""
        factor = seconds / self.seconds
        return replace(self, rate=tuple((second * factor, share) for second, share in self.rate))

    def rate_at(self, second: float) -> float:
        """Return the rate at a time, as a share of the capacity."""
        for (start, start_share), (end, end_share) in zip(self.rate, self.rate[1:], strict=False):
            if start <= second < end:
                return start_share + (end_share - start_share) * (second - start) / (end - start)
        return self.rate[-1][1]

    def arrivals(self, capacity_rps: float, seed: int) -> Iterator[tuple[float, RequestKind]]:
        """Yield (second, kind) of each request: a Poisson process, the same for the same seed.

        A process of the highest rate is thinned to the current rate (Lewis and Shedler, 1979).
        """
        rng = random.Random(seed)
        highest = max(share for _, share in self.rate)
        second = rng.expovariate(highest * capacity_rps)
        while second < self.seconds:
            if rng.random() * highest < self.rate_at(second):
                yield second, self._kind(rng.random())
            second += rng.expovariate(highest * capacity_rps)

    def _kind(self, number: float) -> RequestKind:
        if number < self.bad:
            return "bad"
        if number < self.bad + self.disconnects:
            return "disconnect"
        return "mixed" if self.mixed else "typical"


SCENARIOS: Final = {
    "steady": Scenario("60 % of the capacity", ((0, 0.6), (30, 0.6))),
    "ramp": Scenario("from 10 % to 150 % of the capacity", ((0, 0.1), (45, 1.5))),
    "burst": Scenario(
        "two bursts of two seconds at twice the capacity",
        ((0, 0.3), (10, 0.3), (10, 2), (12, 2), (12, 0.3), (22, 0.3), (22, 2), (24, 2), (24, 0.3), (30, 0.3)),
    ),
    "mixed": Scenario("images of 32x32 to 4000x3000 pixels", ((0, 0.06), (30, 0.06)), mixed=True),
    "bad": Scenario("20 % of the images cannot be decoded", ((0, 0.5), (30, 0.5)), bad=0.2),
    "disconnects": Scenario(
        "20 % of the clients disconnect before the response", ((0, 0.5), (30, 0.5)), disconnects=0.2
    ),
}
"""The scenarios that `make load-test` runs, in this order."""


def constant_rate(share: float) -> Scenario:
    """Return a scenario of one constant rate, as a share of the capacity."""
    return Scenario(f"{share:.0%} of the capacity", ((0, share), (30, share)))
