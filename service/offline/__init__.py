"""Classify pictures without a server: find them, decode them in parallel, batch them, name their classes."""

from service.offline.labels import classes_in_name
from service.offline.pipeline import Classifier, Decoded, Outcome, classify, decoded
from service.offline.sources import MAX_BYTES, SUFFIXES, Source, find

__all__ = [
    "MAX_BYTES",
    "SUFFIXES",
    "Classifier",
    "Decoded",
    "Outcome",
    "Source",
    "classes_in_name",
    "classify",
    "decoded",
    "find",
]
