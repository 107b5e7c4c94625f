"""Are copies of a photograph found, however they were made, and nothing else?

    IDM_DATA=DIR python -m tests.benchmarks.duplicates

Prints the README's table. Recall: 2,000 faces (``faces-wild.zip``) and 2,000 photographs (all of
``imagenet-sample.zip``, the rest from ``tiny-imagenet.zip``), each planted with one copy of each kind; a copy is found
if ``group_duplicates`` puts it into one group with its original. Intervals are Wilson's, 95 %.

False groups: the same search over all originals of both sets, 20,250. Wild faces hold real copies, so each pair that is
grouped is compared by what the hash does not see: the detail finer than its frequencies, at 96 px, wherever it matches
best within 8 px. At a correlation of 0.8 and more it is a copy (of 500 random pairs of aligned faces the highest has
0.46); a group with a pair below counts as false, though by eye the only one here is a blurred copy.
"""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.duplicates import MAX_DISTANCE, group_duplicates
from pipelines.measure import Bytes3, perceptual_hash
from pipelines.shares import wilson
from tests.benchmarks.measurements import cpu_ms, shipped_photographs

Rng = np.random.Generator
SAMPLE = 2000


def resized(rgb: Bytes3, factor: float) -> Bytes3:
    height, width = (max(1, round(n * factor)) for n in rgb.shape[:2])
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def compressed(rgb: Bytes3, quality: int) -> Bytes3:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def mirrored(rgb: Bytes3) -> Bytes3:
    return np.ascontiguousarray(rgb[:, ::-1])


def cut(rgb: Bytes3, share: float) -> Bytes3:
    """Without this share of the width on the left and right, and of the height above and below."""
    height, width = rgb.shape[:2]
    y, x = max(1, round(share * height)), max(1, round(share * width))
    return np.ascontiguousarray(rgb[y : height - y, x : width - x])


def anything(rgb: Bytes3, rng: Rng) -> Bytes3:
    return compressed(resized(mirrored(rgb), rng.uniform(0.5, 2)), int(rng.integers(30, 96)))


COPIES: dict[str, Callable[[Bytes3, Rng], Bytes3]] = {
    "resized, 50-200 %": lambda rgb, rng: resized(rgb, rng.uniform(0.5, 2)),
    "JPEG, quality 30-95": lambda rgb, rng: compressed(rgb, int(rng.integers(30, 96))),
    "mirrored": lambda rgb, rng: mirrored(rgb),
    "mirrored, resized and JPEG": anything,
    "the worst of it: mirrored, 50 %, quality 30": lambda rgb, rng: compressed(resized(mirrored(rgb), 0.5), 30),
    "beyond: cut by 1 % on each side (at least 1 px)": lambda rgb, rng: cut(rgb, 0.01),
    "beyond: cut by 2 % on each side": lambda rgb, rng: cut(rgb, 0.02),
}


def photographs(archive: Path) -> Iterator[Bytes3]:
    """Every photograph of an archive, in the order of their names."""
    with zipfile.ZipFile(archive) as zipped:
        for name in sorted(n for n in zipped.namelist() if n.lower().endswith((".jpg", ".jpeg"))):
            yield np.asarray(Image.open(io.BytesIO(zipped.read(name))).convert("RGB"))


def recall(originals: list[Bytes3]) -> dict[str, tuple[int, int]]:
    """How many of the copies of each kind are found, and of how many originals."""
    hashes = [perceptual_hash(rgb) for rgb in originals]
    known = [i for i, h in enumerate(hashes) if h is not None]
    found = {}
    for kind, copy in COPIES.items():
        rng = np.random.default_rng(0)
        copies = [perceptual_hash(copy(originals[i], rng)) for i in known]
        keys = [f"{i:06d}-{which}" for which in "ac" for i in known]
        groups = group_duplicates(keys, keys, [*(hashes[i] for i in known), *copies]).to_pylist()
        group = {row["key"]: row["duplicate_group"] for row in groups}
        found[kind] = sum(group.get(f"{i:06d}-c", "none") == group.get(f"{i:06d}-a") for i in known), len(known)
    return found


def detail(rgb: Bytes3) -> npt.NDArray[np.float32]:
    """What is finer than eight periods over the image, at 96 px."""
    grey = np.asarray(Image.fromarray(rgb).convert("L").resize((96, 96), Image.Resampling.LANCZOS), np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 4), np.float32)


def resemblance(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Correlation of the details where they match best, of one or of its mirror image."""
    middles = (np.ascontiguousarray(side[8:-8, 8:-8]) for side in (b, b[:, ::-1]))
    return max(float(cv2.matchTemplate(a, middle, cv2.TM_CCOEFF_NORMED).max()) for middle in middles)


def false_groups(hashes: list[bytes | None], details: list[npt.NDArray[np.float32]]) -> tuple[int, int]:
    """How many groups there are, and in how many a member does not resemble the first."""
    keys = [f"{i:06d}" for i in range(len(hashes))]
    least: dict[str, float] = {}
    for row in group_duplicates(keys, keys, hashes).to_pylist():
        group = row["duplicate_group"]
        like = resemblance(details[int(group)], details[int(row["key"])])
        least[group] = min(like, least.get(group, like))
    return len(least), sum(like < 0.8 for like in least.values())


def main() -> None:
    cv2.setNumThreads(1)
    folder = Path(os.environ["IDM_DATA"])
    archives = {
        "faces": [folder / "faces-wild.zip"],
        "photographs": [folder / "imagenet-sample.zip", folder / "tiny-imagenet.zip"],
    }
    results = {}
    for name, paths in archives.items():
        hashes: list[bytes | None] = []
        details: list[npt.NDArray[np.float32]] = []
        sample: list[Bytes3] = []
        for path in paths:
            pictures = list(photographs(path))
            hashes += map(perceptual_hash, pictures)
            details += map(detail, pictures)
            room = SAMPLE - len(sample)
            sample += pictures[:: max(1, len(pictures) // room)][:room]
        results[name] = recall(sample), len(hashes), false_groups(hashes, details)
        del pictures, sample

    print(f"Found, of the copies planted within {MAX_DISTANCE} bits (95 % interval).\n")
    print(f"| copy | {' | '.join(f'{SAMPLE:,} {name}' for name in results)} |\n| --- |{' --- |' * len(results)}")
    for kind in COPIES:
        cells = []
        for planted, _, _ in results.values():
            low, high = wilson(*planted[kind])
            cells.append(f"{planted[kind][0] / planted[kind][1]:.4f} ({low:.4f}-{high:.4f})")
        print(f"| {kind} | {' | '.join(cells)} |")
    cells = []
    for _, count, (_, false) in results.values():
        cells.append(f"{1000 * false / count:.2f} (at most {1000 * wilson(false, count)[1]:.2f}), of {count:,}")
    print(f"| false groups per 1,000 | {' | '.join(cells)} |")
    print(f"| groups of copies that were there | {' | '.join(str(groups) for _, _, (groups, _) in results.values())} |")

    photo = next(rgb for name, rgb in shipped_photographs() if name == "astronaut")
    sides = (200, 1024, 4000)
    costs = [cpu_ms(partial(perceptual_hash, np.asarray(Image.fromarray(photo).resize((s, s))))) for s in sides]
    print("\nCPU ms a hash, one thread: " + ", ".join(f"{c:.1f} at {s} px" for c, s in zip(costs, sides, strict=True)))
    for count in (100_000, 200_000):
        words = np.random.default_rng(0).bytes(32 * count)
        keys = [f"{i:06d}" for i in range(count)]
        start = time.process_time()
        group_duplicates(keys, keys, [words[i * 32 : i * 32 + 32] for i in range(count)])
        print(f"{count:,} hashes are searched in {time.process_time() - start:.1f} s of CPU time, one thread")


if __name__ == "__main__":
    main()
