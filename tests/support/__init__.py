"""What several tests share: files made here, servers, processes, raw HTTP and a browser."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
REAL_IMAGES = Path(os.environ.get("REAL_IMAGES", REPOSITORY.parent / "shared" / "data"))
"""Photographs that are not part of the repository."""
