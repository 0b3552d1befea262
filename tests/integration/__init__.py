"""Tests of a real server in a thread of this process, or of one real program."""
