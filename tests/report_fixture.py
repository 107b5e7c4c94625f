"""A small, real run directory with every status in it, written with the contract's own writers; no stage is run."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from manifests import rundir, schema, shards, storage
from pipelines.report import write_report

STAGES = ("source", "restored", "view", "cleaned")
POLICY = {
    "name": "default",
    "gates": [{"quantity": "severity_after", "max": 0.6}, {"quantity": "psnr_source", "min": 24.0}],
    "damaged": "restore_or_keep",
}
HOSTILE = '<script>alert("key")</script>\'"><img src=x onerror=alert(1)>&amp;.png'

RGB = npt.NDArray[np.uint8]  # HWC
Row = dict[str, Any]


class PlainTar:
    """The ``SampleWriter`` of these tests: the standard library's tar, so that no test of the report loads torch."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def write(self, obj: dict[str, Any], /) -> None:
        for ext in sorted(k for k in obj if k != "__key__"):
            info = tarfile.TarInfo(f"{obj['__key__']}.{ext}")
            info.size = len(obj[ext])
            self._tar.addfile(info, io.BytesIO(obj[ext]))

    def close(self) -> None:
        self._tar.close()


def photographs(count: int, size: int) -> list[RGB]:
    """Square crops of the photographs that scikit-image carries."""
    from skimage import data

    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.stereo_motorcycle()[0]]
    rng = np.random.default_rng(7)
    crops = []
    for i in range(count):
        photo = photos[i % len(photos)]
        side = int(rng.integers(120, min(photo.shape[:2]) // 2))
        y, x = (int(rng.integers(0, n - side + 1)) for n in photo.shape[:2])
        crop = photo[y : y + side, x : x + side, :3]
        crops.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8))
    return crops


def degrade(image: RGB, rng: np.random.Generator) -> tuple[RGB, dict[str, float]]:
    """Blur, noise and JPEG of random strength, and what was done."""
    blur, sigma, quality = float(rng.uniform(0.6, 2.2)), float(rng.uniform(0, 12)), int(rng.integers(20, 70))
    soft = cv2.GaussianBlur(image, (0, 0), blur).astype(np.float64) + rng.normal(0, sigma, image.shape)
    _, data = cv2.imencode(
        ".jpg", np.clip(soft, 0, 255).astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1].astype(np.uint8), {"blur": blur, "noise": sigma, "jpeg": quality}


def png(image: RGB) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def psnr(a: RGB, b: RGB) -> float | None:
    """PSNR in dB, None for equal images."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * float(np.log10(255**2 / mse)) if mse else None


def severity(image: RGB, pristine: RGB) -> float:
    """0-1, from the distance to the truth; a real restorer sees no truth."""
    return float(np.clip((45 - (psnr(image, pristine) or 45)) / 30, 0.02, 1))


def measurements(image: RGB, prefix: str = "") -> Row:
    """Plausible numbers under the manifest's names; not the product's measures."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    detail = cv2.Laplacian(grey, cv2.CV_64F)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    values = {
        "sharpness": float(np.abs(detail).mean()),
        "noise_sigma": float(np.median(np.abs(detail)) / 6),
        "jpeg_quality": None if prefix else 75.0,
        "blockiness": float(np.abs(np.diff(grey[:, 7::8][:, :-1] - grey[:, 8::8], axis=0)).mean() / 100),
        "effective_resolution": float(np.clip(np.abs(detail).mean() / 40, 0, 1)),
        "exposure": float(grey.mean() / 255),
        "clipped": float(((grey < 2) | (grey > 253)).mean()),
        "saturation": float(hsv[..., 1].mean() / 255),
    }
    return {f"{prefix}{name}": value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: its columns as restore leaves them, what the policy makes of them, and its three images."""

    row: Row
    verdict: Row
    pristine: RGB
    original: RGB
    candidate: RGB


def write_run(
    root: Path,
    *,
    count: int = 60,
    size: int = 64,
    until: str = "cleaned",
    truth: bool = True,
    damaged: float = 0.5,
    nulls: bool = False,
    hostile: str | None = None,
    classes: bool = False,
    shard_size: int = 20,
) -> Path:
    """Write a run as the stages would leave it after the stage ``until``.

    Every 20th sample fails, and the first six are two groups of duplicates.

    Args:
        root: a directory that is not there yet.
        count: samples.
        size: side of an image, pixels.
        until: one of ``STAGES``.
        truth: whether the pristine images are known.
        damaged: share of samples that are degraded, and then restored.
        nulls: leave out every measurement.
        hostile: the run's name and every source name.
        classes: whether the samples are of three classes.
        shard_size: samples per shard.
    """
    config = {
        "dataset": {"name": "sample", "source": None, "truth": None, "limit": None, "shard_size": shard_size},
        "restore": {"restorer": "idm-64", "sha256": "5f" * 32, "threshold": 0.2, "steps": None, "passes": 2},
    }
    run = rundir.create_or_open(str(root), hostile or "sample-run", config)
    (root / "source").mkdir()
    listed = {"rows": count, "prefix": "sample", "shard_size": shard_size, "sha256": "ab" * 32}
    listed |= {"licence": "CC0-1.0 and others", "homepage": "https://scikit-image.org", "problems": []}
    storage.write_json(listed, run.url("source", "listing.json"))

    samples = _samples(run, count, size, truth=truth, damaged=damaged, hostile=hostile, nulls=nulls, classes=classes)
    listing = [_only(s.row, schema.LISTING.names) | {"container": "skimage"} for s in samples]
    _write_table(listing, schema.LISTING, root / "source" / "listing.parquet", shard_size)
    stages = STAGES[: STAGES.index(until) + 1]
    for stage in set(stages) - {"view"}:
        for n, shard in enumerate(run.shards()):
            _write_shard(run, stage, shard, samples[n * shard_size : (n + 1) * shard_size])
    groups = [_only(s.row, ["key", *schema.names(schema.DUPLICATES)]) for s in samples]
    columns = pa.schema([schema.IDENTITY[0], *schema.DUPLICATES])
    _write_table(groups, columns, root / "source" / "duplicates.parquet", count)
    if "view" in stages:
        view = [_only(s.row | s.verdict, schema.VIEW.names) for s in samples]
        (root / "views").mkdir()
        _write_table(view, schema.VIEW, root / "views" / "default.parquet", shard_size)
        counts = dict(Counter(row["status"] for row in view))
        marker = {"policy": POLICY, "fingerprint": run.view_fingerprint(POLICY), "rows": count, "counts": counts}
        with (root / "views" / "default.parquet").open("rb") as f:
            nbytes, digest = shards.sha256_of(f)
        marker["files"] = {"parquet": {"name": "default.parquet", "bytes": nbytes, "sha256": digest}}
        storage.write_json(marker, run.url("views", "default.json"))
    if "cleaned" in stages:
        (root / "cleaned" / "README.md").write_text("# sample, cleaned\n\nLicence: CC0, <b>bold</b>.\n")
    return root


def _write_table(rows: list[Row], columns: Any, path: Path, row_group_size: int) -> None:
    pq.write_table(schema.table_from_rows(rows, columns), path, row_group_size=row_group_size)


def _only(row: Row, names: list[str]) -> Row:
    return {name: row[name] for name in names if name in row}


def _samples(
    run: rundir.Run,
    count: int,
    size: int,
    *,
    truth: bool,
    damaged: float,
    hostile: str | None,
    nulls: bool,
    classes: bool,
) -> list[Sample]:
    rng = np.random.default_rng(3)
    samples: list[Sample] = []
    for i, pristine in enumerate(photographs(count, size)):
        original, damage = degrade(pristine, rng) if rng.random() < damaged else (pristine, None)
        if 0 < i < count // 10 and i % 2 == 0:  # an exact duplicate of the sample before
            pristine, original = samples[-1].pristine, samples[-1].original
        share = 0.4 if i % 7 else 1.6  # of the damage that is left; every seventh restoration makes it worse
        candidate = np.clip(pristine + share * (original.astype(np.float64) - pristine), 0, 255).astype(np.uint8)
        key = f"s{i:05d}"
        row: Row = {
            "key": key,
            "shard": run.shards()[i // run.listing()["shard_size"]],
            "source_name": hostile or f"photographs/{i % 5}/{key}.png",
            "status": "kept_original",
            "class_name": f"{hostile or 'class'} {i % 3}" if classes else None,
        }
        if truth:
            row["truth"] = {"source_name": f"truth/{key}.png", "container": run.url("raw", "truth", f"{key}.png")}
            row["metadata"] = json.dumps({"truth": f"truth/{key}.png", "damage": damage})
            storage.write_bytes(png(pristine), row["truth"]["container"])
        if i < min(6, count - 1):
            kind, distance = ("exact", 0) if i % 2 == 0 else ("near", 3 * i)
            row |= {"duplicate_group": f"s{i - i % 3:05d}", "duplicate_kind": kind, "duplicate_distance": distance}
        row |= _findings(i, pristine, original, candidate, truth=truth)
        verdict = _verdict(row)
        if nulls:
            numbers = {
                f.name for f in [*schema.MEASUREMENTS, *schema.RESTORATION, *schema.DECISION] if f.name != "origin"
            }
            row = {name: None if name in numbers else value for name, value in row.items()}
            verdict = {name: None if name in numbers else value for name, value in verdict.items()}
        samples.append(Sample(row, verdict, pristine, original, candidate))
    return samples


def _findings(i: int, pristine: RGB, original: RGB, candidate: RGB, *, truth: bool) -> Row:
    """What ingest and restore would write of this image."""
    if i % 20 == 13:
        reason = "truncated: 3 bytes not processed" if i % 40 == 13 else "too_small: 3 x 3"
        return {"status": "failed", "reason": reason, "source_bytes": 17}
    data = png(original)
    row: Row = {"source_bytes": len(data), "source_sha256": hashlib.sha256(data).hexdigest(), "ext": "png"}
    row |= {"format": "PNG", "mode": "RGB", "height": original.shape[0], "width": original.shape[1], "notes": []}
    row |= measurements(original) | {"severity": severity(original, pristine), "passes": 0, "evaluations": 1}
    row |= {"truth_psnr_before": psnr(original, pristine)} if truth else {}
    if row["severity"] < 0.2:
        return row | {"reason": "clean"}
    row |= {"status": "restored", "passes": 1 + i % 2, "evaluations": 4 * (1 + i % 2)}
    row |= {"severity_after": severity(candidate, pristine), "psnr_source": psnr(candidate, original)}
    if i % 3:  # every third has no face
        row |= {"face_model": "mobilefacenet", "faces": 1, "faces_after": 1}
        row |= {"identity_cosine": 1 - row["severity"] / (2 + i % 5), "landmark_error": i / 500}
    row |= {"truth_psnr_after": psnr(candidate, pristine)} if truth else {}
    return row | measurements(candidate, "after_")


def _verdict(row: Row) -> Row:
    """What ``POLICY`` makes of a row, in the columns of the view."""
    if row["status"] != "restored":
        return {"origin": None if row["status"] == "failed" else "source"}
    margins = {"severity_after": 0.6 - row["severity_after"], "psnr_source": row["psnr_source"] - 24}
    gate = next((name for name, margin in margins.items() if margin < 0), None)
    if gate is None:
        return {"reason": "passed", "margin": min(margins.values()), "origin": "restored"}
    verdict = {"status": "rejected", "reason": f"gate_{gate}", "gate": gate, "margin": margins[gate]}
    return verdict | {"origin": "source"}


def _write_shard(run: rundir.Run, stage: str, shard: str, samples: list[Sample]) -> None:
    folder = rundir.restored(1) if stage == "restored" else stage
    columns = {"source": schema.SOURCE, "restored": schema.RESTORED, "cleaned": schema.CLEANED}[stage]
    extra, fingerprint = {"stage": folder}, run.stage_fingerprint(folder) if stage != "cleaned" else packed_by(run)
    rows = []
    with run.scratch() as scratch:
        tar = shards.StagedTar(scratch / f"{shard}.tar", PlainTar)
        for sample in samples:
            row = sample.row | (sample.verdict if stage == "cleaned" else {})
            if stage == "source" and row["status"] != "failed":
                row |= {"status": "kept_original", "reason": None}
            origin = {"source": "source", "restored": "restored", "cleaned": sample.verdict["origin"]}[stage]
            if row["status"] == "failed" or (stage == "restored" and row["status"] != "restored"):
                origin = None
            if origin is not None:
                pixels = sample.candidate if origin == "restored" else sample.original
                tar.add(row["key"], {"png": png(pixels), "json": b"{}"})
            rows.append(_only(row, columns.names))
        index = tar.close()
        for row in rows:
            row["offset"], row["nbytes"] = index.get(f"{row['key']}.png", (None, None))
        if stage == "cleaned":
            extra["view"] = "default"
        shards.commit(run.url(folder), shard, fingerprint, tar.path, rows, columns, rubbish=run.staging, extra=extra)


def packed_by(run: rundir.Run) -> str:
    """The fingerprint of shards packed by ``POLICY``."""
    return rundir.fingerprint(run.view_fingerprint(POLICY), rundir.CLEANED)


def figures_of(root: Path) -> dict[str, Any]:
    """Write the report and read its JSON back, strictly."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    write_report(root)
    figures: dict[str, Any] = json.loads((root / "report.json").read_text(), parse_constant=refuse)
    return figures
