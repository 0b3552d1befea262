"""Load tests: `python -m load_tests run` (or `make load-test`), `capacity` and `incident`.

The arrivals are open-loop: requests come when the scenario says, however slow the answers are, and a
request's latency counts from when it was due. A closed loop, which sends only after an answer, hides the
queue.
"""
