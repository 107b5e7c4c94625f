"""Keys: unique, safe for WebDataset and tar, and a function of the set of names alone."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from manifests.keys import MAX_KEY, unique_keys

names = st.lists(st.text(min_size=0, max_size=120), max_size=40)


@given(names)
def test_keys_are_distinct_and_safe(stems: list[str]) -> None:
    keys = unique_keys(stems, stems)
    assert len({k.lower() for k in keys}) == len(stems)
    for key in keys:
        assert 0 < len(key) <= MAX_KEY and key.isascii() and "." not in key and "/" not in key


@given(st.lists(st.text(max_size=30), max_size=20, unique=True), st.randoms())
def test_a_key_does_not_depend_on_the_order_of_the_names(stems: list[str], rng: random.Random) -> None:
    there = dict(zip(stems, unique_keys(stems, stems), strict=True))
    shuffled = rng.sample(stems, len(stems))
    assert dict(zip(shuffled, unique_keys(shuffled, shuffled), strict=True)) == there


def test_a_good_name_is_kept_as_it_is() -> None:
    assert unique_keys(["00000", "n01440764_10026"], ["a/00000.png", "b"]) == ["00000", "n01440764_10026"]


def test_names_that_meet_are_told_apart() -> None:
    # One file twice in a tar, one name in two folders, names with dots, names that differ in case alone.
    names = ["a.png", "a.png", "x/a.jpg", "1_2.jpg.chip.jpg", "1_2.jpg", "Ä", "ä", "B", "b"]
    keys = unique_keys([n.rsplit(".", 1)[0] for n in names], names)
    assert max(Counter(k.lower() for k in keys).values()) == 1
