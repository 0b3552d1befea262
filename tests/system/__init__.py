"""Tests of processes, signals, training, Ray, load, fuzzing, containers and the documented commands."""
