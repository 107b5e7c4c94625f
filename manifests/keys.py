"""WebDataset keys from the names that files happen to have."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

# A USTAR name holds 100 bytes; the longest member suffix is ".json", a hash suffix takes 9 and that of a face 8.
MAX_KEY = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_FACE = re.compile(r"-face\d{3}$")


def safe_stem(name: str) -> str:
    """Reduce a name to ``[A-Za-z0-9_-]``, at most ``MAX_KEY - 9`` long, never empty.

    A dot would end the key for every WebDataset reader and merge distinct images into one sample; a slash and
    anything outside ASCII would need tar extensions.
    """
    stem = _UNSAFE.sub("_", name.replace("/", "-")).strip("_-")
    return stem[: MAX_KEY - 9] or "sample"


def photograph_stem(stem: str) -> str:
    """A stem without hyphens, for a photograph that faces are cut out of.

    ``-`` sorts before everything else in a key. Left to ``face_key`` and ``unique_keys``, it keeps the faces
    of one photograph together and in the order of the photographs, as a shard needs them.
    """
    return stem.replace("/", "_").replace("-", "_")


def face_key(photograph: str, number: int) -> str:
    """The key of a face that was cut out of a photograph; ``number`` counts from 0, the largest first."""
    return f"{photograph}-face{number:03d}"


def photograph_key(key: str) -> str:
    """The key of the photograph that a face was cut out of; a photograph's own key stays as it is."""
    return _FACE.sub("", key)


def unique_keys(stems: Sequence[str], names: Sequence[str]) -> list[str]:
    """Give every sample a key: its stem where that is safe and unique, else the safe stem and a hash of its name.

    The key of a sample depends on the *set* of names only, never on their order. Keys are compared without case,
    so that unpacking on a case-insensitive file system loses nothing.

    Args:
        stems: the proposed keys.
        names: the full source names. Equal names (a tar may hold one twice) are told apart by their position.
    """
    safe = [safe_stem(stem) for stem in stems]
    count = Counter(s.lower() for s in safe)
    seen: Counter[str] = Counter()
    keys = []
    for stem, clean, name in zip(stems, safe, names, strict=True):
        if clean == stem and count[clean.lower()] == 1:
            keys.append(clean)
            continue
        occurrence = seen[name]
        seen[name] += 1
        salted = name if occurrence == 0 else f"{name}#{occurrence}"
        keys.append(f"{clean}-{hashlib.sha256(salted.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}")
    if len({k.lower() for k in keys}) != len(keys):
        # A stem that looks like another's stem-and-hash, or 32 bits that met: hash everything, at full length.
        keys = [
            f"{k[: MAX_KEY - 33]}-{hashlib.sha256(f'{n}#{i}'.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"
            for i, (k, n) in enumerate(zip(safe, names, strict=True))
        ]
    return keys
