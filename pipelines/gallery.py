"""The samples that a report shows: which ones, and their pixels as data URIs within a budget of bytes."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from manifests import listing, shards
from manifests.errors import SampleError, ShardError, SourceError
from manifests.rundir import Run
from pipelines import images
from pipelines.datasets.files import File
from pipelines.datasets.reading import read_file
from pipelines.evidence import Evidence

ROLES = ("original", "restored", "truth")
MOST_SAMPLES = 120
MAX_SIDE = 256  # of a shown image, pixels
# Up to here a photograph is a few kB without loss, and a lossy thumbnail would hide what restoration changed.
LOSSLESS_SIDE = 128

Indices = npt.NDArray[np.int64]
RGB = npt.NDArray[np.uint8]  # HWC


@dataclass(frozen=True, slots=True)
class Picture:
    """One displayed image: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Range:
    """Where the bytes of an image lie in one of the run's tars."""

    tar: str
    offset: int
    nbytes: int


@dataclass(slots=True)
class Shown:
    """One sample on the page: its row of evidence, why it was chosen, its pictures by role, and what went wrong."""

    row: dict[str, Any]
    chosen_as: list[str]
    pictures: dict[str, Picture] = field(default_factory=dict)  # original | restored | truth
    problem: str | None = None


def choose(evidence: Evidence, seed: int, most: int = MOST_SAMPLES) -> dict[int, list[str]]:
    """Row numbers of the samples to show -> why each was chosen. Fixed by the evidence and the seed.

    The lists take turns, so that a page cut short still has something of each.
    """
    severity, changed = evidence.numbers("severity"), evidence.numbers("psnr_source")
    gain = evidence.numbers("truth_psnr_after") - evidence.numbers("truth_psnr_before")
    identity = evidence.numbers("identity_cosine")
    rng = np.random.default_rng(seed)

    def drawn(status: str) -> Indices:
        return rng.permutation(np.flatnonzero(evidence.is_("status", status)))

    lists = {
        "lowest identity": _first(identity, 10),
        "lowest identity of restored": _first(np.where(evidence.is_("status", "restored"), identity, np.nan), 10),
        "largest LPIPS": _first(-evidence.numbers("lpips_source"), 10),
        "lowest re-degradation": _first(evidence.numbers("redegradation"), 10),
        "most severe": _first(-severity, 12),
        "most changed": _first(changed, 12),
        "largest loss": _first(np.where(gain < 0, gain, np.nan), 9),
        "largest gain": _first(np.where(gain > 0, -gain, np.nan), 9),
        "rejected, gate by gate": _gates_in_turn(evidence, drawn("rejected"))[:20],
        "restored, at random": drawn("restored")[:12],
        "kept, at random": drawn("kept_original")[:9],
    }
    chosen: dict[int, list[str]] = {}
    turns = itertools.zip_longest(*([(name, int(i)) for i in indices] for name, indices in lists.items()))
    for name, i in filter(None, itertools.chain.from_iterable(turns)):
        if i in chosen:
            chosen[i].append(name)
        elif len(chosen) < most:
            chosen[i] = [name]
    return chosen


def _gates_in_turn(evidence: Evidence, order: Indices) -> Indices:
    """These rows, in this order, but each gate has its turn: one that refuses seldom is seen too."""
    seen = Counter[str | None]()
    turns = []
    for gate in evidence.table["gate"].take(pa.array(order, pa.int64())).to_pylist():
        turns.append(seen[gate])
        seen[gate] += 1
    return order[np.argsort(np.array(turns, np.int64), kind="stable")]


def _first(values: npt.NDArray[np.float64], n: int) -> Indices:
    """Positions of the n smallest values; NaN never. Ties in order of position."""
    known = np.flatnonzero(np.isfinite(values))
    return known[np.argsort(values[known], kind="stable")[:n]]


def rows(run: Run, evidence: Evidence, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The evidence of some rows, with the source's columns that only a shown sample needs."""
    found = evidence.table.take(pa.array(indices, pa.int64())).to_pylist()
    details = _details(run, evidence, found, pairs=False)
    return [row | details[row["key"]]["row"] for row in found]


def load(
    run: Run,
    evidence: Evidence,
    chosen: dict[int, list[str]],
    budget: int,
    *,
    max_side: int = MAX_SIDE,
    pairs: bool = True,
) -> list[Shown]:
    """Read the chosen samples, in the order of ``chosen``, until their pictures have used up ``budget`` bytes.

    A picture that cannot be read is left out, and the sample's ``problem`` says why.

    Args:
        run: the run.
        evidence: its rows.
        chosen: row number -> why, as ``choose`` gives it.
        budget: bytes of all data URIs together.
        max_side: larger images are reduced to this, pixels.
        pairs: also the candidate and the truth, where there are any.
    """
    found = evidence.table.take(pa.array(chosen, pa.int64())).to_pylist()
    details = _details(run, evidence, found, pairs)
    shown = []
    for row, why in zip(found, chosen.values(), strict=True):
        places = details[row["key"]]
        sample = Shown(row | places.pop("row"), why)
        arrays: dict[str, RGB] = {}
        for role, place in places.items():
            try:
                arrays[role] = images.decode(_bytes_of(place)).rgb
            except (SampleError, ShardError, SourceError, OSError) as error:
                told = f"{sample.problem}; " if sample.problem else ""
                sample.problem = f"{told}the {role} image cannot be read: {error}"
        sample.pictures = _pictures(arrays, max_side)
        budget -= sum(len(p.uri) for p in sample.pictures.values())
        if budget < 0:
            break
        shown.append(sample)
    return shown


def _details(run: Run, evidence: Evidence, found: Sequence[dict[str, Any]], pairs: bool) -> dict[str, dict[str, Any]]:
    """By key: under ``row`` the columns that only a shown sample needs, and under each role the place of its pixels."""
    keys_by_shard: dict[str, set[str]] = defaultdict(set)
    for row in found:
        keys_by_shard[row["shard"]].add(row["key"])
    details: dict[str, dict[str, Any]] = defaultdict(dict)
    columns = ["source_name", "class_name", "metadata", "width", "height", "format", "notes"]
    for shard, keys in keys_by_shard.items():
        for row, place in _rows_of(run, evidence.source.name, shard, keys, columns):
            row["damage"] = _damage(row.pop("metadata"))
            details[row["key"]] |= {"row": row} | ({"original": place} if place else {})
        if pairs and shard in evidence.restored.done:
            for row, place in _rows_of(run, evidence.restored.name, shard, keys, []):
                details[row["key"]] |= {"restored": place} if place else {}
        for row in listing.read(run, shard) if pairs else ():
            if row["key"] in keys and row["truth"] is not None:
                details[row["key"]]["truth"] = File(**row["truth"])
    return details


def _rows_of(
    run: Run, stage: str, shard: str, keys: set[str], columns: list[str]
) -> Iterator[tuple[dict[str, Any], Range | None]]:
    """Rows of some keys in a stage's shard, and where their bytes lie in its tar; None where it holds none."""
    for row in shards.read_rows(run.url(stage), shard, ["key", "offset", "nbytes", *columns]).to_pylist():
        offset, nbytes = row.pop("offset"), row.pop("nbytes")
        if row["key"] in keys:
            yield row, None if offset is None else Range(run.url(stage, f"{shard}.tar"), offset, nbytes)


def _bytes_of(place: Range | File) -> bytes:
    if isinstance(place, File):
        return read_file(place)
    (data,) = shards.read_samples(place.tar, [(place.offset, place.nbytes)])
    return data


def _damage(metadata: str | None) -> str | None:
    """The planted damage, where the source's metadata tells of one, in words."""
    try:
        damage = json.loads(metadata or "{}").get("damage")
        if not isinstance(damage, dict):
            return None if damage is None else str(damage)
        parameters = damage.get("parameters", {k: v for k, v in damage.items() if k != "kind"})
        return f"{damage['kind']}: {_words(parameters)}" if "kind" in damage else _words(parameters)
    except (ValueError, AttributeError, RecursionError):
        return None  # metadata is the source's own text: it need not be an object, nor be meant well


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_words(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return " \N{MULTIPLICATION SIGN} ".join(_words(v) for v in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _pictures(arrays: dict[str, RGB], max_side: int) -> dict[str, Picture]:
    """Encode the images of one sample, all in the same way, so that what differs is not the encoding."""
    lossless = max((max(a.shape[:2]) for a in arrays.values()), default=0) <= LOSSLESS_SIDE
    pictures = {}
    for role, array in arrays.items():
        image = Image.fromarray(array)
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        if lossless:
            image.save(out, "WEBP", lossless=True)
            kind = "webp"
        else:
            image.save(out, "JPEG", quality=90, subsampling=0)  # full chroma: colour is part of what is judged
            kind = "jpeg"
        uri = f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
        pictures[role] = Picture(uri, image.width, image.height)
    return pictures
