"""The test suite; each test states in one sentence the behaviour it holds."""
