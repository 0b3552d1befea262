"""A lock that many threads share, or that one thread has alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """Lets any number of threads in, or one that waits until they have left.

    lock = SharedLock()
    with lock.shared(): ...
    with lock.alone(): ...
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._is_alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep out threads that need the lock alone; wait for one that has it or waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone)
            self._shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep out all other threads, once those that share the lock have left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone)
            self._is_alone = True
            self._changed.wait_for(lambda: self._shared == 0)
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()
