"""Two lanes, interactive and bulk: who is first when entries of both wait."""

from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, Generic, TypeVar

Entry = TypeVar("Entry")

BULK_INTERVAL: Final = 8
"""While entries of both lanes wait, at least one of so many that are taken is bulk."""


class Lane(IntEnum):
    """The priority of a request: a person waits for an interactive one, only a program for a bulk one."""

    INTERACTIVE = 0
    BULK = 1


class Lanes(Generic[Entry]):
    """Entries of two lanes, each lane first in, first out.

    Interactive entries are taken first, but bulk ones never starve: see `BULK_INTERVAL`. All operations take
    constant time.

        lanes: Lanes[str] = Lanes()
        lanes.add("many", Lane.BULK)
        lanes.add("one", Lane.INTERACTIVE)
        lanes.pop()  # "one"
    """

    def __init__(self) -> None:
        # Mappings, because removing a cancelled entry from any position must be O(1).
        self._interactive: OrderedDict[Entry, None] = OrderedDict()
        self._bulk: OrderedDict[Entry, None] = OrderedDict()
        self._passed = 0  # interactive entries taken since the last bulk one, while bulk entries waited

    def __len__(self) -> int:
        return len(self._interactive) + len(self._bulk)

    def __iter__(self) -> Iterator[Entry]:
        yield from self._interactive
        yield from self._bulk

    def count(self, lane: Lane) -> int:
        """Return the number of entries of a lane."""
        return len(self._entries(lane))

    def first(self, lane: Lane) -> Entry | None:
        """Return the entry of a lane that has waited longest."""
        return next(iter(self._entries(lane)), None)

    def add(self, entry: Entry, lane: Lane) -> None:
        """Append an entry to its lane."""
        self._entries(lane)[entry] = None

    def remove(self, entry: Entry) -> None:
        """Remove an entry if it still waits."""
        self._interactive.pop(entry, None)
        self._bulk.pop(entry, None)

    def pop(self, *, allow_bulk: bool = True) -> Entry:
        """Remove and return the next entry. Raises KeyError without one that is allowed."""
        is_bulk = allow_bulk and self._bulk and (not self._interactive or self._passed >= BULK_INTERVAL - 1)
        if is_bulk:
            self._passed = 0
            entry, _ = self._bulk.popitem(last=False)
            return entry
        entry, _ = self._interactive.popitem(last=False)
        self._passed = self._passed + 1 if self._bulk else 0
        return entry

    def clear(self) -> None:
        """Remove all entries."""
        self._interactive.clear()
        self._bulk.clear()

    def _entries(self, lane: Lane) -> OrderedDict[Entry, None]:
        return self._bulk if lane is Lane.BULK else self._interactive


def entries_ahead(lane: Lane, interactive: int, bulk: int) -> int:
    """Return how many of the entries that wait are taken before a new one of `lane`.

    For the bulk lane, without the interactive entries that come later.
    """
    passing = BULK_INTERVAL - 1
    if lane is Lane.BULK:
        return bulk + min(interactive, (bulk + 1) * passing)
    return interactive + min(bulk, interactive // passing)
