"""The images that a proof measures: made by a snapshot, an arm's own data, or left by a trainer that is not ours.

Whichever they are, they come one after the other as arrays of one size, and what is drawn follows from names alone.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from manifests import rundir, storage
from manifests.errors import RunError, SampleError, SourceError
from manifests.rundir import Run
from pipelines import images as image_files
from pipelines import progress
from pipelines.datasets import read_entries
from pipelines.exports.picture import pixels_at
from pipelines.image_sets import ImageSet, open_images
from pipelines.proof.plan import local_root
from pipelines.training_images import TrainingImages

Pixels = npt.NDArray[np.uint8]  # H W 3

#: Images that a snapshot makes at once: its weights are read anew for each such block.
_BLOCK: Final = 1024


@dataclass(frozen=True, slots=True)
class Made:
    """Images number 0 to ``count - 1`` of a snapshot: each a function of (snapshot, seed, its number)."""

    snapshot: Path
    seed: int
    count: int

    def identity(self) -> str:
        """Of all that the images depend on, but for the kind of device."""
        from idm_core.checkpoint import CheckpointError
        from idm_core.generators.snapshot import read_config, steps_of

        try:
            steps = steps_of(read_config(self.snapshot).preset)
        except CheckpointError:  # whoever asks for the images is told
            steps = None
        with self.snapshot.open("rb") as f:
            weights = hashlib.file_digest(f, "sha256").hexdigest()
        return rundir.fingerprint("made", weights, self.seed, self.count, steps)

    def images(self, device: str) -> Iterator[Pixels]:
        """RunError: the snapshot is damaged."""
        from idm_core.checkpoint import CheckpointError
        from idm_core.generators import sample

        try:
            for first in range(0, self.count, _BLOCK):
                count = min(_BLOCK, self.count - first)
                yield from sample(self.snapshot, count, self.seed, first=first, device=device)
        except CheckpointError as error:
            raise RunError(f"{error}; remove it and the job's done.json, and train it again") from error


@dataclass(frozen=True, slots=True)
class Rows:
    """Images of a ``.npy``, N x H x W x 3 uint8: all of them, or those of some rows."""

    path: Path
    fingerprint: str
    count: int
    rows: tuple[int, ...] | None = None

    def identity(self) -> str:
        """Of all that the images depend on."""
        return rundir.fingerprint("rows", self.fingerprint, self.count, self.rows)

    def images(self, device: str) -> Iterator[Pixels]:
        """Mapped, not read at once."""
        pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return (np.asarray(pixels[row]) for row in (range(self.count) if self.rows is None else self.rows))


@dataclass(frozen=True, slots=True)
class Left:
    """The first images, by name, of a folder that a trainer of another project wrote."""

    folder: Path
    count: int

    def identity(self) -> str:
        """Of names, sizes and times."""
        try:
            there = open_images(str(self.folder)).fingerprint()
        except SourceError:  # whoever asks for the images is told
            there = "nothing"
        return rundir.fingerprint("left", there, self.count)

    def images(self, device: str) -> Iterator[Pixels]:
        """RunError: there are too few, or one cannot be read: arms that are measured on fewer images look worse."""
        try:
            entries = open_images(str(self.folder)).entries
        except SourceError as error:
            raise RunError(
                f"{self.folder}: {error}; the trainer's `sample` command is to write images there"
            ) from error
        if len(entries) < self.count:
            raise RunError(
                f"{self.folder} holds {len(entries)} images, {self.count} are declared; let `sample` make more"
            )
        for entry, data in read_entries(entries[: self.count]):
            try:
                if isinstance(data, SampleError):
                    raise data
                yield image_files.decode(data).rgb
            except SampleError as error:
                raise RunError(f"{self.folder}: {entry.source_name}: {error}") from error


Images = Made | Rows | Left


def all_rows(images: TrainingImages, path: Path) -> Rows:
    """An arm's whole data set.

    Args:
        images: the arm, decoded.
        path: of its ``.npy``.
    """
    return Rows(path, images.fingerprint, len(images.keys))


def some_rows(images: TrainingImages, path: Path, count: int) -> Rows:
    """So many of an arm's images, in the order of a hash of their keys: of two arms the same, where both have them."""
    ranks = [hashlib.sha256(key.encode()).digest() for key in images.keys]
    chosen = heapq.nsmallest(count, range(len(ranks)), key=ranks.__getitem__)
    return Rows(path, images.fingerprint, len(chosen), tuple(chosen))


def reference_rows(run: Run, reference: ImageSet, resolution: int) -> Rows:
    """The reference at the size that is trained at, cropped and resized as the arms are; decoded once.

    Its fingerprint is of the pixels, so that a run that was moved knows its figures again.

    Raises:
        SourceError: fewer than two images can be read.
    """
    path = local_root(run) / "jobs" / "images" / f"reference-{resolution}.npy"
    marker = path.with_suffix(".json")
    wanted = rundir.fingerprint(reference.fingerprint(), resolution)
    there: dict[str, Any] = storage.read_json(str(marker)) if marker.exists() and path.exists() else {}
    if there.get("fingerprint") != wanted:
        marker.unlink(missing_ok=True)  # at no moment does it vouch for pixels that are not its own
        there = _decode_reference(run, reference, resolution, path) | {"fingerprint": wanted}
        storage.write_json(there, str(marker))
    return Rows(path, there["pixels"], there["images"])


def _decode_reference(run: Run, reference: ImageSet, resolution: int, path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    total, done, failures = len(reference.entries), 0, list[str]()
    with run.scratch() as scratch:
        staged = scratch / path.name
        shape = (total, resolution, resolution, 3)
        with progress.bar(f"decoding {reference.source}", total, 0, "images") as bar:
            pixels = np.lib.format.open_memmap(staged, mode="w+", dtype=np.uint8, shape=shape)
            for i, (entry, data) in enumerate(read_entries(reference.entries)):
                try:
                    if isinstance(data, SampleError):
                        raise data
                    pixels[done] = pixels_at(data, resolution, "center")
                    done += 1
                except SampleError as error:
                    failures.append(f"{entry.source_name}: {error}")
                bar.within(i + 1)
            pixels.flush()
        if done < 2:
            raise SourceError(f"{reference.source}: {done} of {total} images can be read; {failures[:1]}")
        digest = hashlib.sha256(f"{resolution} {done}".encode())
        for first in range(0, done, _BLOCK):
            digest.update(pixels[first : min(first + _BLOCK, done)].tobytes())
        del pixels
        storage.publish(staged, str(path))
    if failures:
        progress.log.warning(
            "%s: %d of %d images cannot be read and are left out; the first: %s",
            reference.source,
            len(failures),
            total,
            failures[0],
        )
    return {"pixels": digest.hexdigest(), "images": done, "failed": len(failures), "source": reference.source}
