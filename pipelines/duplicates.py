"""Exact duplicates by SHA-256, near and mirrored ones by perceptual hash, across a dataset of a million and more."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests import schema

HASH_BITS: Final = 256

#: What mirroring turns over in each word of a ``measure.perceptual_hash``: the odd horizontal frequencies.
ODD: Final = np.uint64(0x5555555555555555)
_ODD_OF_WORD: Final = int(ODD).bit_count()

#: Settled on planted copies and on the groups among photographs (``python -m tests.benchmarks.duplicates``). Of 10,000
#: aligned faces the pairs that are mirrored or 20 to 44 apart were looked at: up to 42 they are of one photograph.
MAX_DISTANCE: Final = 26

TABLE: Final = pa.schema([schema.IDENTITY[0], *schema.DUPLICATES])


def group_duplicates(
    keys: Sequence[str],
    sha256: Sequence[str | None],
    phash: Sequence[bytes | None],
    *,
    max_distance: int = MAX_DISTANCE,
) -> pa.Table:
    """Group samples that are copies of one image or of its mirror image, whatever order they come in.

    Going through the samples in the order of their keys, each that is in no group yet is the first of a new one, and
    takes in all later ones of the same bytes, or within ``max_distance`` of it. So every member lies within
    ``max_distance`` of the first, as a policy that keeps only the first must be able to rely on; there are no chains of
    small differences between images that have nothing in common.

    Args:
        keys: unique sample keys.
        sha256: of the source file, or None where it could not be read: such a sample has no exact duplicate.
        phash: 32 bytes, or None for an image without structure: such a sample has no near duplicate.
        max_distance: Hamming distance up to which two hashes are near, in bits of 256. At 26 the search takes minutes
            for a million hashes; above 32 it comes close to comparing every pair.

    Returns:
        Columns ``key, duplicate_group, duplicate_kind, duplicate_distance``, sorted by group, then key; only samples in
        groups of two and more. A sample is ``exact`` if one before it in its group has the same bytes, so that dropping
        those leaves every content once; the group's first is ``exact`` if any other has its bytes; the rest are
        ``near``, or ``mirrored`` where the first's mirror image is nearer than the first.

    Raises:
        ValueError: lengths differ, a key comes twice, a hash is not 32 bytes, or the distance is outside 0-256.
    """
    if not len(keys) == len(sha256) == len(phash):
        raise ValueError(f"{len(keys)} keys, {len(sha256)} SHA-256 and {len(phash)} perceptual hashes: must be as many")
    if len(set(keys)) != len(keys):
        raise ValueError("a key comes twice; keys name samples and must be unique")
    if not 0 <= max_distance <= HASH_BITS:
        raise ValueError(f"max_distance is {max_distance}; it counts bits, 0 to {HASH_BITS}")

    # Samples of the same bytes are one content; contents of the same hash are one point (one without a hash is a point
    # of its own). Both are numbered in the order of their first key, and so is everything below.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    contents: dict[object, int] = {}
    content = [contents.setdefault(sha256[i] or ("no file", i), len(contents)) for i in order]
    content_hash: list[bytes | None] = [None] * len(contents)
    for c, i in zip(content, order, strict=True):
        content_hash[c] = content_hash[c] or phash[i]
    points: dict[object, int] = {}
    point = [points.setdefault(h or ("no hash", c), len(points)) for c, h in enumerate(content_hash)]

    hashed = np.array([p for h, p in points.items() if isinstance(h, bytes)], np.int64)
    words = _as_words([h for h in points if isinstance(h, bytes)])
    star, bits = _stars(words, max_distance)
    first, distance, mirrored = np.arange(len(points)), np.zeros(len(points), np.int64), np.zeros(len(points), np.bool_)
    first[hashed], distance[hashed], mirrored[hashed] = hashed[star], bits, _is_mirrored(words ^ words[star])

    group = first[np.array(point, np.int64)[np.array(content, np.int64)]]  # of every sample, in order
    members_of: dict[int, list[int]] = {}
    for position in np.flatnonzero(np.bincount(group)[group] > 1).tolist():
        members_of.setdefault(int(group[position]), []).append(position)
    rows: list[dict[str, object]] = []
    for members in members_of.values():
        samples_of = Counter(content[m] for m in members)
        seen: set[int] = set()
        for m in members:
            c = content[m]
            exact = c in seen or (not seen and samples_of[c] > 1)
            seen.add(c)
            rows.append(
                {
                    "key": keys[order[m]],
                    "duplicate_group": keys[order[members[0]]],
                    "duplicate_kind": "exact" if exact else "mirrored" if mirrored[point[c]] else "near",
                    "duplicate_distance": int(distance[point[c]]),
                }
            )
    return pa.Table.from_pylist(rows, schema=TABLE)


def _stars(hashes: npt.NDArray[np.uint64], max_distance: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For every hash, the first of its group and the distance to it; in order, each that is free takes in the free."""
    first, distance = np.arange(len(hashes)), np.zeros(len(hashes), np.int64)
    taken = np.zeros(len(hashes), np.bool_)
    near, far, bits = near_pairs(hashes, max_distance)
    edges = np.flatnonzero(np.diff(near, prepend=-1, append=-1))  # where the pairs of the next hash begin
    for start, stop in itertools.pairwise(edges.tolist()):
        if not taken[near[start]]:
            others = far[start:stop]
            free = ~taken[others]
            first[others[free]], distance[others[free]] = near[start], bits[start:stop][free]
            taken[others] = True
    return first, distance


def near_pairs(
    hashes: npt.NDArray[np.uint64], max_distance: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every pair within ``max_distance`` bits, as they are or mirrored: arrays (i, j, distance) with i < j, sorted.

    Exact, by the pigeonhole principle: of two hashes that differ in d bits, cut into more than d / 2 bands, one band
    differs in at most one bit; leave out each of its bits in turn, and once the rest is equal (multi-index hashing;
    Norouzi, Punjani and Fleet, 2012). So there are as many passes as bits, each a sort of n short numbers, and only
    what falls into one bucket is compared. Fewer bits left out would mean shorter bands and many more to compare.
    An image and its mirror image fall into one bucket: what is left of a band is turned so that its first odd bit is 0.

    Args:
        hashes: n x 4 uint64, all different (equal ones would fill buckets with what is known already).
    """
    bands = max(max_distance // 2 + 1, HASH_BITS // 32)
    edges = [HASH_BITS * band // bands for band in range(bands + 1)]
    count = len(hashes)
    scattered, scattered_odd = _scatter_bits(hashes), _scatter_bits(np.full((1, HASH_BITS // 64), ODD))
    found = np.zeros(0, np.int64)  # i * count + j
    for low, high in itertools.pairwise(edges):
        band, band_odd = _bits_between(scattered, low, high), int(_bits_between(scattered_odd, low, high)[0])
        pairs = [found]
        for bit in range(high - low):
            key, odd = band & ~np.uint32(1 << bit), band_odd & ~(1 << bit)
            first_odd = np.uint32(max(odd.bit_length() - 1, 0))
            key ^= np.uint32(odd) * ((key >> first_odd) & np.uint32(1))
            # One sort of (key, index) as one number is several times faster than an argsort.
            ordered = np.sort((key.astype(np.uint64) << np.uint64(32)) | np.arange(count, dtype=np.uint64))
            index = (ordered & np.uint64(0xFFFFFFFF)).astype(np.int64)
            bucket = (ordered >> np.uint64(32)).astype(np.uint32)
            # Each with the next of its bucket, then with the one after, ...: no more is held than one array of pairs.
            left, offset = np.arange(count), 1
            while (left := left[left < count - offset]).size:
                left = left[bucket[left] == bucket[left + offset]]
                a, b = index[left], index[left + offset]
                close = np.flatnonzero(_distance(hashes[a, :1] ^ hashes[b, :1]) <= max_distance)
                a, b = a[close], b[close]
                close = np.flatnonzero(_distance(hashes[a] ^ hashes[b]) <= max_distance)
                pairs.append(np.minimum(a[close], b[close]) * count + np.maximum(a[close], b[close]))
                offset += 1
        found = np.unique(np.concatenate(pairs))
    i, j = np.divmod(found, max(count, 1))
    return i, j, _distance(hashes[i] ^ hashes[j])


def _distance(difference: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Bits of n x (1 to 4) words in which two hashes differ, as they are or one of them mirrored, whichever is less."""
    odd = np.bitwise_count(difference & ODD).sum(-1, dtype=np.int64)
    even = np.bitwise_count(difference & ~ODD).sum(-1, dtype=np.int64)
    return np.asarray(even + np.minimum(odd, _ODD_OF_WORD * difference.shape[-1] - odd), np.int64)


def _is_mirrored(difference: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.bitwise_count(difference & ODD).sum(-1, dtype=np.int64) > HASH_BITS // 4, np.bool_)


def _as_words(hashes: Sequence[bytes]) -> npt.NDArray[np.uint64]:  # n x 4
    if any(len(h) * 8 != HASH_BITS for h in hashes):
        raise ValueError(f"a perceptual hash is not {HASH_BITS // 8} bytes long")
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, HASH_BITS // 64)


def _scatter_bits(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:  # n x 32
    """Every hash with its bits in the same shuffled order: those of like frequencies go together, bands should not."""
    shuffle = np.random.default_rng(0).permutation(HASH_BITS)
    out = np.empty((len(hashes), HASH_BITS // 8), np.uint8)
    for start in range(0, len(hashes), 1 << 16):  # a bit takes a byte while it is moved
        block = slice(start, start + (1 << 16))
        bits = np.unpackbits(np.ascontiguousarray(hashes[block]).view(np.uint8), axis=1)
        out[block] = np.packbits(bits[:, shuffle], axis=1)
    return out


def _bits_between(packed: npt.NDArray[np.uint8], low: int, high: int) -> npt.NDArray[np.uint32]:
    """Bits low <= b < high of every row as one number; at most 32."""
    bits = np.unpackbits(packed[:, low // 8 : -(-high // 8)], axis=1)[:, low % 8 : low % 8 + high - low]
    number = np.zeros(len(packed), np.uint32)
    for column in bits.T:
        number = number << np.uint32(1) | column
    return number
