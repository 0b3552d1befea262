"""Measure models on devices, from crop or from encoded image to classes, and compare machines and models."""
