"""Helpers that several tests share: images, servers, processes, HTTP as bytes, and a browser."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

PHOTOGRAPHS = REPOSITORY / "service" / "resnet_service" / "images" / "photographs"
"""Photographs that are part of the package."""

REAL_IMAGES = Path(os.environ.get("REAL_IMAGES", REPOSITORY.parent / "shared" / "data"))
"""More photographs, which are not."""

FAULTS = Path(os.environ.get("FAULTS", REPOSITORY.parent / "shared" / "faults"))
"""Small files that once failed, which are not part of the repository either."""
