"""Duplicates: nothing near is missed, mirrored or not, nothing far is taken in, and the samples' order is no matter."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests import schema
from pipelines import duplicates
from pipelines.duplicates import MAX_DISTANCE, ODD, group_duplicates, near_pairs
from pipelines.measure import Bytes3, perceptual_hash
from tests.benchmarks.measurements import jpeg, shipped_photographs

Words = npt.NDArray[np.uint64]


def flipped(words: npt.NDArray[np.uint64], bits: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A hash with these bits of 256 turned over."""
    out = words.copy()
    for bit in bits.tolist():
        out[bit // 64] ^= np.uint64(1 << bit % 64)
    return out


def random_hashes(count: int, seed: int) -> Words:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 4), dtype=np.uint64)


def clustered_hashes(seed: int, clusters: int, size: int, most: int) -> Words:
    """Centres and, around each, hashes that differ from it in up to ``most`` bits, in one region or anywhere; every
    third of a mirrored image."""
    rng = np.random.default_rng(seed)
    rows = []
    for centre in random_hashes(clusters, seed):
        rows.append(centre)
        for n in range(size):
            span = int(rng.choice([32, 256]))
            near = flipped(centre, rng.choice(span, rng.integers(0, min(most, span) + 1), replace=False))
            rows.append(near ^ ODD if n % 3 == 0 else near)
    return np.unique(np.array(rows), axis=0)


def brute_force(hashes: Words, max_distance: int) -> set[tuple[int, int, int]]:
    pairs = hashes[:, None] ^ hashes[None]
    distance = np.minimum(np.bitwise_count(pairs).sum(-1), np.bitwise_count(pairs ^ ODD).sum(-1))
    i, j = np.nonzero(np.triu(distance <= max_distance, 1))
    return set(zip(i.tolist(), j.tolist(), distance[i, j].tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), distance=st.sampled_from([0, 1, 2, 7, 15, 16, 22, 23, 31, 48, 64]))
def test_the_search_finds_what_brute_force_finds(seed: int, distance: int) -> None:
    hashes = clustered_hashes(seed, clusters=6, size=15, most=distance + 2)
    found = list(zip(*(a.tolist() for a in near_pairs(hashes, distance)), strict=True))
    assert len(set(found)) == len(found)
    assert set(found) == brute_force(hashes, distance)


@pytest.mark.parametrize("distance", [15, 16, 22, 23, 24, 31])
def test_the_search_finds_differences_spread_as_evenly_as_can_be(distance: int) -> None:
    # The worst case for bands, that chance does not come upon: the differences lie evenly in the shuffled order.
    ones = np.packbits(np.eye(256, dtype=np.uint8), axis=1).view(np.uint64)  # row b: bit b alone
    place = np.unpackbits(duplicates._scatter_bits(ones), axis=1).argmax(1)
    spread = np.argsort(place)[np.arange(distance) * 256 // distance]
    hashes = np.array([np.zeros(4, np.uint64), np.bitwise_xor.reduce(ones[spread])])
    assert np.bitwise_count(hashes[1]).sum() == distance
    assert [a.tolist() for a in near_pairs(hashes, distance)] == [[0], [1], [distance]]
    assert [a.tolist() for a in near_pairs(hashes, distance - 1)] == [[], [], []]


def test_a_hundred_thousand_hashes() -> None:
    hashes = random_hashes(100_000, 1)
    rng = np.random.default_rng(2)
    copies = rng.permutation(len(hashes))[:1000]
    planted = set()
    for original, copy in copies.reshape(-1, 2).tolist():
        bits = rng.choice(256, rng.integers(1, MAX_DISTANCE + 1), replace=False)
        hashes[copy] = flipped(hashes[original], bits)
        planted.add((min(original, copy), max(original, copy), len(bits)))
    assert set(zip(*(a.tolist() for a in near_pairs(hashes, MAX_DISTANCE)), strict=True)) == planted


def a_dataset(seed: int) -> tuple[list[str], list[str | None], list[bytes | None]]:
    """Clusters of near hashes, equal hashes, equal bytes, unread files and flat images, in no order."""
    rng = np.random.default_rng(seed)
    hashes: list[bytes | None] = [h.tobytes() for h in clustered_hashes(seed, 5, 8, 30)]
    digests: list[str | None] = [f"{i:064x}" for i in range(len(hashes))]
    for i in rng.choice(len(hashes), 20).tolist():  # the same file again
        hashes.append(hashes[i])
        digests.append(digests[i])
    for i in range(5):  # the same pixels in another file; flat images, two files of which are the same; unread files
        hashes += [hashes[i], None, None]
        digests += [f"other {i}", f"flat {i // 2}", None]
    keys = [f"k{i:04d}" for i in rng.permutation(len(hashes)).tolist()]
    return keys, digests, hashes


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_stars_around_their_first(seed: int) -> None:
    keys, digests, hashes = a_dataset(seed)
    about = {k: (d, None if h is None else np.frombuffer(h, np.uint64)) for k, d, h in zip(keys, digests, hashes)}  # noqa: B905
    rows = group_duplicates(keys, digests, hashes, max_distance=20).to_pylist()
    members: dict[str, list[str]] = {}
    for row in rows:
        members.setdefault(row["duplicate_group"], []).append(row["key"])
    assert all(group == min(found) and len(found) > 1 for group, found in members.items())
    assert [row["key"] for row in rows] == [key for group in sorted(members) for key in sorted(members[group])]

    def apart(a: str, b: str) -> int:
        (digest, words), (other_digest, other_words) = about[a], about[b]
        if digest is not None and digest == other_digest:
            return 0
        if words is None or other_words is None:
            return 999
        return min(int(np.bitwise_count(words ^ other_words ^ mirror).sum()) for mirror in (np.uint64(0), ODD))

    for row in rows:
        first, key = row["duplicate_group"], row["key"]
        assert row["duplicate_distance"] == (0 if key == first else apart(key, first)) <= 20
        others = members[first] if key == first else [m for m in members[first] if m < key]
        same_bytes = any(about[m][0] == about[key][0] is not None for m in others if m != key)
        words, first_words = about[key][1], about[first][1]
        turned = (
            words is not None and first_words is not None and np.bitwise_count((words ^ first_words) & ODD).sum() > 64
        )
        assert row["duplicate_kind"] == ("exact" if same_bytes else "mirrored" if turned else "near")
    # And nothing was left out: no two firsts are copies of each other, and no sample alone is a copy of a first.
    grouped = {row["key"] for row in rows}
    firsts = [*members, *sorted(set(keys) - grouped)]
    assert min(apart(a, b) for n, a in enumerate(firsts) for b in firsts[:n]) > 20


def test_the_order_of_the_samples_does_not_matter() -> None:
    keys, digests, hashes = a_dataset(7)
    expected = group_duplicates(keys, digests, hashes, max_distance=20)
    shuffle = np.random.default_rng(0).permutation(len(keys)).tolist()
    again = group_duplicates(*([column[i] for i in shuffle] for column in (keys, digests, hashes)), max_distance=20)
    assert again.equals(expected)
    assert expected.schema.names == ["key", *schema.names(schema.DUPLICATES)]


def test_a_mirrored_copy_says_that_it_is_one() -> None:
    start = random_hashes(1, 5)[0]
    hashes = [start, start ^ ODD, flipped(start ^ ODD, np.arange(4)), flipped(start, np.arange(9)), start ^ ODD]
    rows = group_duplicates(list("abcde"), list("12342"), [h.tobytes() for h in hashes], max_distance=8).to_pylist()
    assert [(r["key"], r["duplicate_kind"], r["duplicate_distance"]) for r in rows] == [
        ("a", "near", 0),
        ("b", "mirrored", 0),
        ("c", "mirrored", 4),
        ("e", "exact", 0),  # the bytes of b
    ]


def test_small_differences_do_not_chain() -> None:
    start = random_hashes(1, 3)[0]
    steps = [flipped(start, np.arange(10 * n)) for n in range(4)]  # 10 bits from one to the next
    keys = ["a", "b", "c", "d"]
    rows = group_duplicates(keys, ["1", "2", "3", "4"], [h.tobytes() for h in steps], max_distance=10).to_pylist()
    assert [(r["key"], r["duplicate_group"], r["duplicate_distance"]) for r in rows] == [
        ("a", "a", 0),
        ("b", "a", 10),
        ("c", "c", 0),
        ("d", "c", 10),
    ]


def test_what_is_near_two_firsts_belongs_to_the_earlier() -> None:
    start = random_hashes(1, 4)[0]
    hashes = [flipped(start, np.arange(8)), flipped(start, np.arange(100, 108)), start]  # a and b 16 apart, c between
    rows = group_duplicates(["a", "b", "c"], ["1", "2", "3"], [h.tobytes() for h in hashes], max_distance=8).to_pylist()
    assert [(r["key"], r["duplicate_group"], r["duplicate_distance"]) for r in rows] == [("a", "a", 0), ("c", "a", 8)]


def test_thousands_of_copies_of_one_image() -> None:
    count = 20_000
    keys = [f"{i:06d}" for i in range(count)]
    same_hash = group_duplicates(keys, keys, [b"\x0f" * 32] * count, max_distance=MAX_DISTANCE)
    assert len(same_hash) == count and set(same_hash["duplicate_kind"].to_pylist()) == {"near"}
    same_bytes = group_duplicates(keys, ["1"] * count, [None] * count, max_distance=MAX_DISTANCE)
    assert len(same_bytes) == count and set(same_bytes["duplicate_kind"].to_pylist()) == {"exact"}
    assert len(group_duplicates(keys, keys, [None] * count, max_distance=MAX_DISTANCE)) == 0


def test_no_samples_and_wrong_arguments() -> None:
    assert len(group_duplicates([], [], [], max_distance=16)) == 0
    with pytest.raises(ValueError, match="2 keys, 1 SHA-256"):
        group_duplicates(["a", "b"], ["1"], [None, None], max_distance=16)
    with pytest.raises(ValueError, match="twice"):
        group_duplicates(["a", "a"], ["1", "2"], [None, None], max_distance=16)
    with pytest.raises(ValueError, match="32 bytes"):
        group_duplicates(["a"], ["1"], [b"short"], max_distance=16)
    with pytest.raises(ValueError, match="max_distance"):
        group_duplicates(["a"], ["1"], [None], max_distance=257)


def copies_of(rgb: Bytes3) -> list[Bytes3]:
    """Near duplicates as they happen: another size or quality, a little darker or brighter, mirrored, and all of it."""
    image = Image.fromarray(rgb)
    half, twice = (np.asarray(image.resize((image.width * n // 2, image.height * n // 2))) for n in (1, 4))
    dark, bright = ((rgb * factor).clip(0, 255).astype(np.uint8) for factor in (0.85, 1.05))
    found = [half, twice, dark, bright, *(jpeg(rgb, q)[0] for q in (30, 75, 95)), jpeg(half, 30)[0], jpeg(twice, 50)[0]]
    return [*found, *(np.ascontiguousarray(copy[:, ::-1]) for copy in (rgb, dark)), jpeg(half[:, ::-1], 30)[0]]


def apart(a: bytes | None, b: bytes | None) -> int:
    assert a is not None and b is not None
    difference = int.from_bytes(a) ^ int.from_bytes(b)
    return min(difference.bit_count(), (difference ^ int.from_bytes(b"\x55" * 32)).bit_count())


def test_the_hash_of_a_mirror_image_is_the_hash_with_its_odd_bits_turned() -> None:
    for _, rgb in shipped_photographs():
        plain, mirrored = perceptual_hash(rgb), perceptual_hash(np.ascontiguousarray(rgb[:, ::-1]))
        assert plain is not None and mirrored is not None
        turned = np.frombuffer(plain, np.uint64) ^ ODD
        assert np.bitwise_count(turned ^ np.frombuffer(mirrored, np.uint64)).sum() <= 2  # where a resize rounds


def test_copies_of_photographs_are_near_and_photographs_are_not() -> None:
    photographs = [rgb for _, rgb in shipped_photographs()]
    hashes = [perceptual_hash(rgb) for rgb in photographs]
    for rgb, original in zip(photographs, hashes, strict=True):
        assert max(apart(original, perceptual_hash(copy)) for copy in copies_of(rgb)) <= MAX_DISTANCE
    assert min(apart(a, b) for n, a in enumerate(hashes) for b in hashes[:n]) > 2 * MAX_DISTANCE


def test_near_duplicates_among_real_faces(data: Path) -> None:
    with zipfile.ZipFile(data / "faces-wild.zip") as zipped:
        names = [n for n in sorted(zipped.namelist()) if n.endswith(".jpg")]
        faces = [np.asarray(Image.open(io.BytesIO(zipped.read(n))).convert("RGB")) for n in names[::50]]
    hashes = [perceptual_hash(rgb) for rgb in faces]
    near = [apart(h, perceptual_hash(copy)) for h, rgb in zip(hashes, faces, strict=True) for copy in copies_of(rgb)]
    assert np.mean(np.array(near) <= MAX_DISTANCE) > 0.999
    # Aligned faces are the most alike of all photographs. Of the whole archive's pairs one in 250,000 is near, and each
    # of those is a copy: in 20,000 pairs there is at most one.
    assert sum(apart(a, b) <= MAX_DISTANCE for n, a in enumerate(hashes) for b in hashes[:n]) <= 1
