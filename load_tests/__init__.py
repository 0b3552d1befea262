"""Load and reliability tests of the service: `python -m load_tests COMMAND`.

Requests arrive in an open loop: each is sent when the scenario says, whether or not earlier requests have a
response, and its latency counts from that moment. `load_tests.peers` compares the service with other servers.
"""
