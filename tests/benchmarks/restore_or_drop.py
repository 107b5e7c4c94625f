"""When to restore and when to drop: distances of training sets by share damaged, strength and size; no training.

    IDM_DATA=... python -m tests.benchmarks.restore_or_drop run --out FOLDER
    IDM_DATA=... python -m tests.benchmarks.restore_or_drop table --out FOLDER [--json FILE]

Truths are faces of faces-wild.zip, which idm-64 never saw, reduced from 200 to 64 pixels; only those that IDM
reads as clean, for the others are soft even so. Some are damaged, with recorded seeds; the severity that IDM reads, and
never the truth, says which are. The gates are the default policy's without faces. The reference are other faces, as
pristine as these. A set is measured as it is: what a generator makes of it is the business of a proof.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import cv2
import numpy as np
import numpy.typing as npt
import torch

from idm_core import Restorer, load_restorer
from idm_core.degradations import RECIPES
from pipelines.changes import psnr
from pipelines.detectors import EfficientNetLite0
from pipelines.exports.picture import pixels_at
from pipelines.metrics.frechet import Statistics, distances_to, statistics_of
from pipelines.metrics.kernel import kernel_distance
from pipelines.metrics.neighbours import neighbours
from pipelines.restore import Instruments
from pipelines.select import judge, load_policy
from tests.benchmarks.figures import plain
from tests.benchmarks.gates import HONEST, Case, manifests_of
from tests.benchmarks.held_out import SIDE, Truth, damaged

STRENGTHS: Final = ("mild", "heavy")
SHARES: Final = (0.4, 0.8, 0.15)
#: Images of a set, and how many disjoint sets of that size are measured.
SIZES: Final = {1_000: 4, 3_500: 2, 7_000: 1}
ARMS: Final = ("damaged", "cleaned", "filter", "combined")
#: Images of a checkpoint.
BLOCK: Final = 500
#: Of EfficientNet: at 96 pixels it costs a fifth of what it does at its own 224.
FEATURE_SIDE: Final = 96

Arrays = dict[str, npt.NDArray[Any]]
Features = npt.NDArray[np.float32]  # N x 1280


@click.group(help=(__doc__ or "").split("\n")[0])
def main() -> None:
    """Commands."""


@main.command("run")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def run(out: Path) -> None:
    """Restore, look, measure; what is in the folder already is not done again."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    restorer, detector = load_restorer("idm-64"), EfficientNetLite0(side=FEATURE_SIDE)
    names, images = read_truths(out / "truths.npz", restorer)
    clean = blocks(
        out, "clean", names, images, lambda truth: {"features": detector(np.stack([t.image for t in truth]))}
    )
    size = max(SIZES)
    reference: Features = clean["features"][size:]
    if not (out / "pristine.json").exists():
        pristine = {n: [clean["features"][part] for part in parts(n)] for n in SIZES}
        write(out / "pristine.json", plain({n: measured(sets, reference) for n, sets in pristine.items()}))
    for strength in STRENGTHS:
        hurt = place_of_damage(names[:size]) < max(SHARES)
        some = names[:size][hurt], images[:size][hurt]
        seen = blocks(out, strength, *some, partial(look, strength, restorer, detector))
        states = {name: np.zeros((size, *values.shape[1:]), values.dtype) for name, values in seen.items()}
        for name, values in seen.items():
            states[name][hurt] = values
        for share in SHARES:
            path = out / f"cell-{strength}-{round(100 * share)}.json"
            if not path.exists():
                hit = place_of_damage(names[:size]) < share
                write(path, plain(cell(hit, clean["features"][:size], states, restorer.config.threshold, reference)))
                click.echo(path.name)


def read_truths(path: Path, restorer: Restorer) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.uint8]]:
    """Names and pixels of the faces that are read as clean, in an order that their names' hashes give."""
    if not path.exists():
        with zipfile.ZipFile(Path(os.environ["IDM_DATA"]) / "faces-wild.zip") as members:
            names = [name for name in members.namelist() if name.endswith(".jpg")]
            names.sort(key=lambda name: hashlib.sha256(f"order {name}".encode()).digest())
            images = [pixels_at(members.read(name), SIDE, "center") for name in names]
        good = np.array(restorer.severity(images)) < restorer.config.threshold
        click.echo(f"{good.sum()} of {len(names)} faces are read as clean")
        save(path, {"names": np.array([Path(n).name for n in names])[good], "images": np.stack(images)[good]})
    with np.load(path) as found:
        return found["names"], found["images"]


def blocks(
    out: Path,
    state: str,
    names: npt.NDArray[np.str_],
    images: npt.NDArray[np.uint8],
    work: Callable[[list[Truth]], Arrays],
) -> Arrays:
    """What ``work`` finds of truths, block by block, each of them a file."""
    found: list[Arrays] = []
    for first in range(0, len(names), BLOCK):
        path = out / f"{state}-{first:05d}.npz"
        if not path.exists():
            some = zip(names[first : first + BLOCK], images[first : first + BLOCK], strict=True)
            save(path, work([Truth(str(name), 0, image) for name, image in some]))
            click.echo(path.name)
        with np.load(path) as arrays:
            found.append(dict(arrays))
    return {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}


def look(strength: str, restorer: Restorer, detector: EfficientNetLite0, truth: Sequence[Truth]) -> Arrays:
    """Damage truths, restore them as a run would, and ask the gates.

    Returns:
        ``severity``; ``accepted``: there is a candidate and it passes; ``candidate``: there is one; ``before`` and
        ``after``: PSNR to the truth, dB; ``features`` and ``cleaned``: of the damaged image, and of what stands for it
        in a cleaned set, the candidate if it is accepted.
    """
    source = damaged(list(truth), RECIPES[strength])
    results = restorer.restore(source, [t.key for t in truth])
    candidate = np.array([r.passes > 0 for r in results])
    cases = [
        Case(HONEST, t, strength, y, r.image, r.severity, nearer=False)
        for t, y, r in zip(truth, source, results, strict=True)
        if r.passes
    ]
    accepted = np.zeros(len(truth), bool)
    verdicts = judge(*manifests_of(cases, restorer, Instruments()), load_policy("default"))
    accepted[candidate] = [gate is None for gate, _ in verdicts]
    features = detector(np.stack(source))
    cleaned = features.copy()
    cleaned[accepted] = detector(np.stack([r.image for r, a in zip(results, accepted, strict=True) if a]))
    return {
        "severity": np.array([r.severity for r in results]),
        "candidate": candidate,
        "accepted": accepted,
        "before": np.array([psnr(y, t.image) for y, t in zip(source, truth, strict=True)], np.float64),
        "after": np.array([psnr(r.image, t.image) for r, t in zip(results, truth, strict=True)], np.float64),
        "features": features,
        "cleaned": cleaned,
    }


def cell(
    hit: npt.NDArray[np.bool_], clean: Features, states: Arrays, threshold: float, reference: Features
) -> dict[str, Any]:
    """Figures of every arm and size; ``hit`` says which truths are damaged, ``states`` what they are then."""
    severe = hit & (states["severity"] >= threshold)
    before = np.where(hit[:, None], states["features"], clean)
    after = np.where(hit[:, None], states["cleaned"], clean)
    left = {
        "damaged": np.ones(len(hit), bool),
        "cleaned": np.ones(len(hit), bool),
        "filter": ~severe,
        "combined": ~severe | states["accepted"],
    }
    of_arm = {"damaged": before, "cleaned": after, "filter": before, "combined": after}
    sets = {arm: {n: [of_arm[arm][part][left[arm][part]] for part in parts(n)] for n in SIZES} for arm in ARMS}
    return {
        "damaged": hit.mean(),
        "found": severe[hit].mean(),
        "candidates": states["candidate"][hit].mean(),
        "accepted": states["accepted"][hit].mean(),
        "nearer": (states["after"] > states["before"])[hit & states["accepted"]].mean(),
        "psnr": [states[name][hit & states["accepted"]].mean() for name in ("before", "after")],
        "arms": {arm: {n: measured(some, reference) for n, some in sizes.items()} for arm, sizes in sets.items()},
    }


def measured(sets: Sequence[Features], reference: Features) -> dict[str, Any]:
    """Frechet distance of each set, and of the first one also what costs more."""
    statistics: Statistics = statistics_of(reference)
    kernel = kernel_distance(sets[0], reference, subsets=5)
    return {
        "images": [len(features) for features in sets],
        "fd": distances_to(statistics, map(statistics_of, sets)),
        "kd": kernel.mean,
        **asdict(neighbours(sets[0], reference)),
    }


def parts(size: int) -> Iterator[slice]:
    """Disjoint sets of a size; the first of each is part of the first of the next."""
    return (slice(size * i, size * (i + 1)) for i in range(SIZES[size]))


def place_of_damage(names: Iterable[str]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) of each image: it is damaged at all shares above."""
    digests = [hashlib.sha256(f"damaged {name}".encode()).digest() for name in names]
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests])


def save(path: Path, arrays: Arrays) -> None:
    staged = path.with_name(f".{path.name}")
    with staged.open("wb") as f:
        np.savez(f, **arrays)
    staged.replace(path)


def write(path: Path, value: Any) -> None:
    staged = path.with_name(f".{path.name}")
    staged.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    staged.replace(path)


@main.command("table")
@click.option("--out", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
def table(out: Path, json_path: Path | None) -> None:
    """Print the map as far as it is made."""
    cells = {path.stem.removeprefix("cell-"): json.loads(path.read_text()) for path in sorted(out.glob("cell-*.json"))}
    report = {"pristine": json.loads((out / "pristine.json").read_text()), "cells": cells}
    report["even at"] = {name: even_at(report, name) for name in cells}
    click.echo(f"{cells_table(report)}\n\n{map_table(report)}")
    if json_path is not None:
        write(json_path, report)


def even_at(report: dict[str, Any], name: str) -> float:
    """Images of a set for which dropping and restoring give the same FD; with fewer, restoring gives the lower one.

    An FD falls by c / N. Dropping costs c (1 / left - 1 / N); what restoring leaves of the damage does not depend on N.
    """
    fds = [(1 / int(size), fd) for size, figures in report["pristine"].items() for fd in figures["fd"]]
    slope = float(np.polyfit(*zip(*fds, strict=True), 1)[0])
    most = max(SIZES)
    arms = {arm: figures[str(most)] for arm, figures in report["cells"][name]["arms"].items()}
    remains = arms["combined"]["fd"][0] - report["pristine"][str(most)]["fd"][0]
    return slope * (most / arms["filter"]["images"][0] - 1) / remains


def cells_table(report: dict[str, Any]) -> str:
    """What was found of the damage, what became of it, and at what size of the set it is all the same."""
    head = ["damage", "damaged", "found of these", "accepted of these", "nearer of the accepted", "PSNR before, after"]
    head.append("even at, images")
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, found in report["cells"].items():
        shares = [f"{100 * found[column]:.1f} %" for column in ("damaged", "found", "accepted", "nearer")]
        decibels = ", ".join(f"{value:.2f}" for value in found["psnr"])
        lines.append(" | ".join([name, *shares, decibels, f"{report['even at'][name]:.0f}"]))
    return "\n".join(f"| {line} |" for line in lines)


def map_table(report: dict[str, Any]) -> str:
    """Distances by size and damage: means over the disjoint sets, and how many of them favour restoring to dropping."""
    head = ["images", "damage", "left by filter, combined", "FD of pristine, damaged", "cleaned, filter, combined"]
    head += ["won back by these", "combined under filter", "KD x 1000, of all five", "recall", "coverage"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for size in map(str, SIZES):
        pristine = report["pristine"][size]
        for name, found in report["cells"].items():
            arms = {arm: found["arms"][arm][size] for arm in ARMS}
            fd = {arm: float(np.mean(figures["fd"])) for arm, figures in arms.items()}
            least, most = float(np.mean(pristine["fd"])), fd["damaged"]
            pairs = list(zip(arms["combined"]["fd"], arms["filter"]["fd"], strict=True))
            kd, recall, coverage = (
                ", ".join(f"{factor * figures[column]:.{digits}f}" for figures in (pristine, *arms.values()))
                for column, factor, digits in (("kd", 1e3, 1), ("recall", 1, 2), ("coverage", 1, 2))
            )
            lines.append(" | ".join([
                size,
                name,
                ", ".join(f"{np.mean(arms[arm]['images']):.0f}" for arm in ("filter", "combined")),
                f"{least:.1f}, {most:.1f}",
                ", ".join(f"{fd[arm]:.1f}" for arm in ARMS[1:]),
                ", ".join(f"{100 * (most - fd[arm]) / (most - least):.0f} %" for arm in ARMS[1:]),
                f"{sum(a < b for a, b in pairs)} of {len(pairs)}",
                kd, recall, coverage,
            ]))  # fmt: skip
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
