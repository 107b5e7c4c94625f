"""An arm of a run as generators train on it: decoded once, at one resolution, in a file that is mapped into memory.

``x.npy`` holds the pixels, N x H x W x 3 uint8; ``x.parquet`` key, label and severity of each; ``x.json``, the marker,
comes last. Epochs then cost no decoding, any image is read at random at once, and the jobs on one machine share the
pages. It takes 3 resolution^2 bytes an image on a local disk: 0.9 GB for FFHQ at 64 pixels, 14 GB at 256.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import rundir, shards, storage
from manifests.errors import ConfigError, RunError
from manifests.rundir import Run
from pipelines.exports.arm import Row
from pipelines.exports.picture import Pixels

if TYPE_CHECKING:
    from idm_core.generators import Images

#: Of the files; a change of the resizer is one of it too.
VERSION: Final = 2
Split = Literal["train", "validation"]

_COLUMNS: Final = pa.schema([("key", pa.string()), ("label", pa.int64()), ("severity", pa.float32())])


@dataclass(frozen=True, slots=True, eq=False)
class TrainingImages:
    """One split of an arm, by shard and key.

    Attributes:
        pixels: N x H x W x 3 uint8, mapped from the file.
        keys: N.
        labels: N; -1 where an image has none.
        severities: N, 0 clean to 1 worst, of what is trained on: of a restored image, after its restoration. Not a
            number where it was not read.
        fingerprint: of pixels, keys and labels: arms that hold the same are the same, of whichever run.
    """

    pixels: npt.NDArray[np.uint8]
    keys: list[str]
    labels: npt.NDArray[np.int64]
    severities: npt.NDArray[np.float32]
    fingerprint: str

    def for_training(
        self, *, classes: bool = False, bad_from: float | None = None, least_sigma: float | None = None
    ) -> Images:
        """What ``idm_core.generators.train`` takes.

        Args:
            classes: hand over the labels.
            bad_from: severity from which an image counts as bad: a diffusion model sees it under noise of
                ``least_sigma`` and more alone (Ambient-o). None: all images are good.
            least_sigma: in EDM's units. Ambient-o found 1.6 for a blur of 0.6 pixels at 32 x 32.

        Raises:
            ConfigError: an image has no label or no severity, and it is needed; or all are bad.
        """
        from idm_core.generators import Images

        labels, least = None, None
        if classes:
            if (self.labels < 0).any():
                raise ConfigError(
                    f"{self.keys[int(self.labels.argmin())]} has no label; train without classes, or label it"
                )
            labels = self.labels
        if (bad_from is None) != (least_sigma is None):
            raise ConfigError("bad_from and least_sigma belong together: give both or none")
        if bad_from is not None and least_sigma is not None:
            if np.isnan(self.severities).any():
                key = self.keys[int(np.isnan(self.severities).argmax())]
                raise ConfigError(f"the severity of {key} is not known; run `idm-curate restore` first")
            least = np.where(self.severities >= bad_from, least_sigma, 0.0).astype(np.float32)
            if least.all():
                raise ConfigError(
                    f"all {len(least):,} images are of severity {bad_from:g} and more: none is left to learn from at "
                    "low noise; leave out the arm `weighted`, or raise severe_from"
                )
        levels = None if least is None else f"noise first, {hashlib.sha256(least.tobytes()).hexdigest()}"
        return Images(self.pixels, labels, least, rundir.fingerprint(self.fingerprint, classes, levels))


class Samples(Protocol):
    """What can be decoded, shard by shard; ``exports.arm.Arm`` says what each of these is."""

    @property
    def run(self) -> Run: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def samples(self, shard: str) -> list[Row]: ...
    def check(self, shard: str, samples: Sequence[Row]) -> None: ...
    def described(self, shard: str, samples: Sequence[Row]) -> list[Row]: ...
    def pixels(self, shard: str, samples: Sequence[Row], resolution: int) -> Iterator[Pixels]: ...


def prepare_images(arm: Samples, resolution: int, path: Path, *, split: Split = "train") -> TrainingImages:
    """Decode one split of an arm, or map what was decoded before.

    Images are cropped to their centre squares and resized as ``export`` does it. What is in ``path`` of another arm,
    view or resolution is replaced. Several processes may do this at the same time; the results are the same.

    Args:
        path: without a suffix, on a local disk.

    Raises:
        RunError: the split is empty, or what lies in a tar is not what its manifest says.
    """
    fingerprint = rundir.fingerprint(arm.fingerprint, VERSION, resolution, split)
    if _is_done(path, fingerprint):
        return open_images(path)
    chosen = {shard: [row for row in arm.samples(shard) if _belongs(row, split)] for shard in arm.run.shards()}
    count = sum(map(len, chosen.values()))
    if not count:
        raise RunError(f"{arm.run.root}: no image of arm {arm.name} is in the {split} split")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        staged = Path(folder) / path.name
        pixels = np.lib.format.open_memmap(
            _file(staged, "npy"), mode="w+", dtype=np.uint8, shape=(count, resolution, resolution, 3)
        )
        rows, place, content = list[dict[str, Any]](), itertools.count(), hashlib.sha256()
        for shard, samples in chosen.items():
            arm.check(shard, samples)
            for square in arm.pixels(shard, samples, resolution):
                pixels[next(place)] = square
                content.update(square.tobytes())
            rows += [
                {"key": r["key"], "label": r.get("label"), "severity": _severity(r)}
                for r in arm.described(shard, samples)
            ]
        pixels.flush()
        del pixels
        pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), _file(staged, "parquet"))
        sizes = {suffix: _file(staged, suffix).stat().st_size for suffix in ("npy", "parquet")}
        content.update(json.dumps([(row["key"], row["label"]) for row in rows]).encode())
        marker = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "content": rundir.fingerprint(content.hexdigest(), resolution),
            "images": count,
            "bytes": sizes,
        }
        _file(staged, "json").write_bytes(storage.json_bytes(marker))
        if _is_done(path, fingerprint):  # by another process, meanwhile: who maps it already keeps its marker
            return open_images(path)
        _file(path, "json").unlink(missing_ok=True)  # at no moment does it vouch for files that are not its own
        for suffix in ("npy", "parquet", "json"):
            storage.publish(_file(staged, suffix), str(_file(path, suffix)))
    return open_images(path)


def open_images(path: Path) -> TrainingImages:
    """Map images that ``prepare_images`` has written.

    Raises:
        RunError: they are not there, or not whole.
    """
    try:
        marker = json.loads(_file(path, "json").read_bytes())
        fingerprint, content = str(marker["fingerprint"]), str(marker["content"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: no training images ({error}); prepare them again") from error
    if not _is_done(path, fingerprint):
        raise RunError(f"{path}: these training images are not whole; remove {path}.json and prepare them again")
    with _file(path, "parquet").open("rb") as f:
        table = shards.read_parquet(f)
    return TrainingImages(
        np.load(_file(path, "npy"), mmap_mode="r", allow_pickle=False),
        table["key"].to_pylist(),
        table["label"].fill_null(-1).to_numpy(),
        table["severity"].fill_null(float("nan")).to_numpy(),
        content,
    )


def _is_done(path: Path, fingerprint: str) -> bool:
    try:
        marker = json.loads(_file(path, "json").read_bytes())
        sizes = {suffix: _file(path, suffix).stat().st_size for suffix in marker["bytes"]}
        return bool(marker["fingerprint"] == fingerprint and marker["bytes"] == sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _belongs(row: Row, split: Split) -> bool:
    return (row["split"] or "train") == split


def _severity(row: dict[str, Any]) -> float | None:
    value = row.get("severity_after") if row["origin"] == "restored" else row.get("severity")
    return None if value is None else float(value)
