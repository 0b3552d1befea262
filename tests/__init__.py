"""The test suite; each test states in one sentence the behavior it holds."""
