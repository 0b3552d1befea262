"""Measure models on devices, alone or from file to answer, and lay the results of machines side by side."""
