"""Classify pictures without a server: find them, decode them in parallel, batch them, name their classes."""

from service.offline.labels import classes_in_name
from service.offline.pipeline import Outcome, classify, decoded
from service.offline.sources import Source, find

__all__ = ["Outcome", "Source", "classes_in_name", "classify", "decoded", "find"]
