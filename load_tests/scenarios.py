"""What arrives, and when: each scenario's rate over time and its share of trouble."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

Kind = Literal["typical", "mixed", "bad", "hang-up"]
"""An image of the usual size, of any size, something that is none, or a client that does not wait."""


@dataclass(frozen=True)
class Scenario:
    """How requests arrive.

    `rate` has points (second, share of the service's capacity), with straight lines between them. `bad` and
    `hang_ups` are shares of the requests, 0..1; the others carry typical images, or images of many sizes
    where `mixed`.
    """

    description: str
    rate: tuple[tuple[float, float], ...]
    mixed: bool = False
    bad: float = 0.0
    hang_ups: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.rate[-1][0]

    @property
    def overloads(self) -> bool:
        """Whether more arrives at some time than the service can do, so that some must be rejected."""
        return max(share for _, share in self.rate) > 1

    def lasting(self, seconds: float) -> "Scenario":
        """Return the same scenario, stretched or squeezed to this length."""
        factor = seconds / self.seconds
        return replace(self, rate=tuple((second * factor, share) for second, share in self.rate))

    def share(self, second: float) -> float:
        """Return the rate at a time as a share of the capacity."""
        for (begin, low), (end, high) in zip(self.rate, self.rate[1:], strict=False):
            if begin <= second < end:
                return low + (high - low) * (second - begin) / (end - begin)
        return self.rate[-1][1]

    def arrivals(self, capacity: float, seed: int) -> Iterator[tuple[float, Kind]]:
        """Yield (second, kind) of each request: a Poisson process, the same for the same seed.

        `capacity` is in requests/s. A process of the highest rate is thinned to the rate of the moment
        (Lewis and Shedler, 1979).
        """
        chance = random.Random(seed)
        highest = max(share for _, share in self.rate)
        second = chance.expovariate(highest * capacity)
        while second < self.seconds:
            if chance.random() * highest < self.share(second):
                yield second, self._kind(chance.random())
            second += chance.expovariate(highest * capacity)

    def _kind(self, chance: float) -> Kind:
        if chance < self.bad:
            return "bad"
        if chance < self.bad + self.hang_ups:
            return "hang-up"
        return "mixed" if self.mixed else "typical"


SCENARIOS: Final = {
    "steady": Scenario("60 % of the capacity", ((0, 0.6), (30, 0.6))),
    "ramp": Scenario("from a tenth of the capacity to half as much again", ((0, 0.1), (45, 1.5))),
    "burst": Scenario(
        "twice the capacity for two seconds, twice",
        ((0, 0.3), (10, 0.3), (10, 2), (12, 2), (12, 0.3), (22, 0.3), (22, 2), (24, 2), (24, 0.3), (30, 0.3)),
    ),
    "mixed": Scenario("images of 32x32 to 4000x3000", ((0, 0.06), (30, 0.06)), mixed=True),
    "bad": Scenario("a fifth is no image that can be read", ((0, 0.5), (30, 0.5)), bad=0.2),
    "hang-ups": Scenario("a fifth hangs up before the answer", ((0, 0.5), (30, 0.5)), hang_ups=0.2),
}
"""What `make load-test` runs, in this order."""


def level(share: float) -> Scenario:
    """Return a scenario of one constant rate."""
    return Scenario(f"{share:.0%} of the capacity", ((0, share), (30, share)))
