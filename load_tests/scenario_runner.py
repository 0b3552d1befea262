"""Run scenarios against one service, at rates that are shares of its measured capacity."""

import random
from pathlib import Path
from typing import Final

from load_tests.http_connection import Request, post_request
from load_tests.images import encoded_images
from load_tests.load_generator import LoadGenerator, measure_capacity, run_async
from load_tests.request_log import RequestLog
from load_tests.scenarios import RequestKind, Scenario
from load_tests.service import LoadTestError
from resnet_service.client import APIError, Client, ServiceUnavailableError

_CAPACITY_S: Final = 10.0
_BATCHES_IN_PROGRESS: Final = 4
"""The clients of the capacity measurement fill this many batches."""


class ScenarioRunner:
    """Measures the capacity of the service at `url`, then runs scenarios.

    Requests carry the JPEG files of the folder `images`, or generated images if it is None. The measurement
    takes `seconds`, at most 10. Raises LoadTestError if the service does not respond as it should.
    """

    def __init__(self, url: str, images: Path | None, seconds: float = _CAPACITY_S) -> None:
        self._url = url
        self._images = images
        self._requests: dict[RequestKind, list[Request]] = {}
        try:
            with Client(url) as client:
                limits = client.info().limits
        except (APIError, ServiceUnavailableError) as error:
            raise LoadTestError(str(error)) from error
        self.full_queue_ms = limits.max_queue_wait_s * 1e3
        """The longest time that an accepted request waits."""
        clients = _BATCHES_IN_PROGRESS * limits.max_batch
        clients = min(clients, limits.max_queue or clients)
        self.capacity_rps = measure_capacity(
            url, self._requests_of("typical"), clients, min(seconds, _CAPACITY_S)
        )

    def run(self, scenario: Scenario, seconds: float, seed: int = 0) -> RequestLog:
        """Run a scenario, stretched to `seconds`, and wait for the last responses."""
        rng = random.Random(seed)
        arrivals = scenario.stretched_to(seconds).arrivals(self.capacity_rps, seed)
        plan = [(due_s, rng.choice(self._requests_of(kind))) for due_s, kind in arrivals]

        async def send_all() -> RequestLog:
            async with LoadGenerator(self._url) as generator:
                await generator.run_open_loop(plan)
                return generator.log(seconds)

        return run_async(send_all())

    def _requests_of(self, kind: RequestKind) -> list[Request]:
        if kind not in self._requests:
            images = encoded_images("typical" if kind == "disconnect" else kind, self._images)
            requests = [post_request(self._url, image, kind) for image in images]
            if kind == "disconnect":
                requests = [request._replace(disconnect_after=len(request.content)) for request in requests]
            self._requests[kind] = requests
        return self._requests[kind]
