"""Which photographs are trained on, chosen by and tested on: by name, once, the same everywhere."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Literal

Split = Literal["train", "validation", "test"]


def split_of(name: str) -> Split:
    """80 % train, 10 % validation, 10 % test, by the SHA-256 of the file's base name.

    The folder does not count, so that the same photograph found at another place stays in its split.
    """
    digest = hashlib.sha256(PurePosixPath(name).name.encode()).digest()
    tenth = int.from_bytes(digest[:8], "big") % 10
    return "test" if tenth == 9 else "validation" if tenth == 8 else "train"
