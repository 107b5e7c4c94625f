"""How well each measurement ranks its own degradation, planted on real photographs, and what it costs.

    python -m tests.benchmarks.measurements

Prints the README's tables. The photographs are those that scikit-image and matplotlib carry and, where IDM_DATA is set,
some of its ``imagenet-sample.zip`` and ``faces-sharp.zip``: then only of the half (by a hash of the name) that the
estimators were not chosen on (except that the mask of padding and the window of the spectrum were settled on both
halves). Correlations are Spearman's, pooled over photographs and strengths, with a 95 % bootstrap
interval over photographs.

How far a pooled figure can go depends on the ladder where a measurement is a plain statistic of the picture. Exposure
was first planted from -3 to 3 stops, where the mean luma of the held-out half stays under 0.9; the wider ladder came
after that was seen, so both are shown. Colour in even steps ranks far worse than halved, for photographs differ by more
than a step. And what is planted for ``clipped`` is nearly the measurement itself: its row in stops says how it does
otherwise.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import stats

from pipelines import changes, faces, measure, weights
from pipelines.measure import Bytes3

Damaged = tuple[Bytes3, bytes | None]  # pixels, and the file's bytes where the measurement reads them


@dataclass(frozen=True, slots=True)
class Planted:
    """One measurement and a degradation that it should follow."""

    measurement: str
    degradation: str
    damage: Callable[[Bytes3, float], Damaged]
    strengths: tuple[float, ...]
    qualifies: Callable[[Bytes3], bool] = lambda rgb: True  # a photograph that has the damage already cannot show it


def blur(rgb: Bytes3, sigma: float) -> Bytes3:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma), np.uint8) if sigma else rgb


def noise(rgb: Bytes3, sigma: float) -> Bytes3:
    return _pixels(rgb + sigma * np.random.default_rng(0).standard_normal(rgb.shape))


def jpeg(rgb: Bytes3, quality: float) -> Damaged:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer)), buffer.getvalue()


def enlarge(rgb: Bytes3, factor: float) -> Bytes3:
    """Reduced by the factor and brought back to its size, bicubic both ways."""
    image = Image.fromarray(rgb)
    small = image.resize((max(1, round(image.width / factor)), max(1, round(image.height / factor))))
    return np.asarray(small.resize(image.size)) if factor > 1 else rgb


def expose(rgb: Bytes3, stops: float) -> Bytes3:
    return _pixels(255 * np.clip((rgb / 255) ** 2.2 * 2.0**stops, 0, 1) ** (1 / 2.2))


def clip(rgb: Bytes3, share: float) -> Bytes3:
    """Contrast stretched until this share of the values lies outside the range."""
    low, high = np.quantile(rgb, [share / 2, 1 - share / 2])
    return _pixels((rgb - low) / max(high - low, 1) * 255) if share else rgb


def fade(rgb: Bytes3, colour: float) -> Bytes3:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float64)
    return _pixels(grey + colour * (rgb - grey))


def _pixels(values: npt.NDArray[np.float64]) -> Bytes3:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _in_range(rgb: Bytes3) -> bool:
    return float(np.mean((rgb <= 1) | (rgb >= 254))) < 0.02


def _in_colour(rgb: Bytes3) -> bool:
    return float(np.mean(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1])) / 255 > 0.02


QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
FACTORS = (1, 1.5, 2, 3, 4, 6, 8)
SIGMAS = (0, 2, 5, 10, 15, 20, 25)

OWN = (
    Planted("sharpness", "Gaussian blur, sigma 0-4 px", lambda a, s: (blur(a, s), None), (0, 0.5, 1, 1.5, 2, 3, 4)),
    Planted("noise_sigma", "Gaussian noise, sigma 0-25", lambda a, s: (noise(a, s), None), SIGMAS),
    Planted("jpeg_quality", "JPEG quality 10-95, from the file", jpeg, QUALITIES),
    Planted("blockiness", "JPEG quality 10-95, from the pixels", lambda a, s: (jpeg(a, s)[0], None), QUALITIES),
    Planted("effective_resolution", "reduced and enlarged, 1-8 times", lambda a, s: (enlarge(a, s), None), FACTORS),
    Planted("exposure", "exposure, -4 to 4 stops", lambda a, s: (expose(a, s), None), tuple(range(-4, 5))),
    Planted(
        "clipped",
        "contrast stretched, 0-50 % out of range",
        lambda a, s: (clip(a, s), None),
        (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
        _in_range,
    ),
    Planted(
        "saturation",
        "colour halved, 0-4 times, and grey",
        lambda a, s: (fade(a, s), None),
        (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1),
        _in_colour,
    ),
)

#: Where something else happened as well, or the steps are smaller against what photographs differ by: shown beside the
#: others so that nobody takes those for more than they say, and promised by no test.
HARDER = (
    Planted("sharpness", "blur, then noise of sigma 5", lambda a, s: (noise(blur(a, s), 5), None), OWN[0].strengths),
    Planted("sharpness", "blur, then JPEG 70", lambda a, s: (jpeg(blur(a, s), 70)[0], None), OWN[0].strengths),
    Planted("noise_sigma", "noise, then JPEG 90", lambda a, s: (jpeg(noise(a, s), 90)[0], None), SIGMAS),
    Planted("noise_sigma", "noise, then JPEG 75", lambda a, s: (jpeg(noise(a, s), 75)[0], None), SIGMAS),
    Planted("noise_sigma", "noise, then enlarged by 2", lambda a, s: (_larger(noise(a, s), 2), None), SIGMAS),
    Planted("blockiness", "JPEG, then cropped by 3 and 5 px", lambda a, s: (jpeg(a, s)[0][3:, 5:], None), QUALITIES),
    Planted("blockiness", "JPEG, then enlarged by 1.3", lambda a, s: (_larger(jpeg(a, s)[0], 1.3), None), QUALITIES),
    Planted(
        "effective_resolution", "enlarged, then noise of sigma 5", lambda a, s: (noise(enlarge(a, s), 5), None), FACTORS
    ),
    Planted("effective_resolution", "enlarged, then JPEG 70", lambda a, s: (jpeg(enlarge(a, s), 70)[0], None), FACTORS),
    Planted("exposure", "exposure, -3 to 3 stops", lambda a, s: (expose(a, s), None), tuple(range(-3, 4))),
    Planted(
        "clipped", "exposure, 0 to 4 stops", lambda a, s: (expose(a, s), None), (0, 0.5, 1, 1.5, 2, 3, 4), _in_range
    ),
    Planted("saturation", "colour 0-100 %", lambda a, s: (fade(a, s), None), (0, 0.2, 0.4, 0.6, 0.8, 1), _in_colour),
)


def _larger(rgb: Bytes3, factor: float) -> Bytes3:
    height, width = rgb.shape[:2]
    return np.asarray(Image.fromarray(rgb).resize((round(width * factor), round(height * factor))))


#: Which of the held-out photographs are used: every so many of each archive.
HELD_OUT = {"imagenet-sample.zip": 1, "faces-sharp.zip": 20}


def held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def shipped_photographs() -> Iterator[tuple[str, Bytes3]]:
    """Name and pixels of the photographs that come with scikit-image and matplotlib."""
    import skimage.data
    from matplotlib import cbook

    for name in ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "rocket"):
        yield name, np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB"))
    yield "motorcycle", np.asarray(skimage.data.stereo_motorcycle()[0])
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        yield "grace_hopper", np.asarray(Image.open(file).convert("RGB"))


def data_photographs(folder: Path, every: dict[str, int]) -> Iterator[tuple[str, Bytes3]]:
    """Name and pixels of every so many photographs of the named zips, of those held out and at least 128 px."""
    for archive, step in every.items():
        with zipfile.ZipFile(folder / archive) as zipped:
            names = [
                n for n in sorted(zipped.namelist()) if n.lower().endswith((".jpg", ".jpeg")) and held_out(Path(n).name)
            ]
            for name in names[::step]:
                rgb = np.asarray(Image.open(io.BytesIO(zipped.read(name))).convert("RGB"))
                if min(rgb.shape[:2]) >= 128:
                    yield Path(name).name, rgb


def reduced(rgb: Bytes3) -> Bytes3:
    """Half the size: free of the camera's noise, softness and JPEG blocks, so that only what is planted is there."""
    image = Image.fromarray(rgb)
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX))


def readings(planted: Planted, photographs: Sequence[Bytes3]) -> npt.NDArray[np.float64]:
    """The measurement of every photograph that qualifies (rows) at every strength (columns); nan where it is None."""
    rows = []
    for rgb in filter(planted.qualifies, photographs):
        values = [measure.measure(*planted.damage(rgb, s))[planted.measurement] for s in planted.strengths]
        rows.append([np.nan if v is None else v for v in values])
    return np.array(rows)


def pooled(values: npt.NDArray[np.float64], strengths: Sequence[float]) -> float:
    """Absolute rank correlation over all photographs and strengths together."""
    return abs(float(stats.spearmanr(values.ravel(), np.tile(strengths, len(values)), nan_policy="omit").statistic))


def interval(values: npt.NDArray[np.float64], strengths: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of ``pooled``, resampling photographs."""
    rng = np.random.default_rng(0)
    draws = [pooled(values[rng.integers(0, len(values), len(values))], strengths) for _ in range(200)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def within(values: npt.NDArray[np.float64], strengths: Sequence[float]) -> float:
    """Median over the photographs of the absolute rank correlation in one."""
    return statistics.median(abs(float(stats.spearmanr(row, strengths).statistic)) for row in values)


def cpu_ms(function: Callable[[], object], repeats: int = 9) -> float:
    """Median CPU time of this process, ms."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times[1:])


def _row(planted: Planted, values: npt.NDArray[np.float64]) -> str:
    low, high = interval(values, planted.strengths)
    return (
        f"| {planted.measurement} | {planted.degradation} | {pooled(values, planted.strengths):.3f} "
        f"({low:.3f}-{high:.3f}) | {within(values, planted.strengths):.2f} |"
    )


def _medians(values: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{v:.2g}" for v in np.nanmedian(values, axis=0))


def _of_candidates(sources: Sequence[Bytes3]) -> Iterator[tuple[str, Callable[[int], object]]]:
    """What looks at a candidate beside its source; LPIPS and faces where this machine has them."""
    candidates = [blur(rgb, 1) for rgb in sources]
    small = [(changes.reduced(a), changes.reduced(b)) for a, b in zip(candidates, sources, strict=True)]
    yield "candidate: ssim_source", lambda i: changes.ssim(candidates[i], sources[i])
    yield "candidate: redegradation", lambda i: changes.redegradation(*small[i])
    yield "candidate: colour_drift", lambda i: changes.colour_drift(*small[i])
    yield "candidate: all of `changes.compare` but LPIPS", lambda i: changes.compare(candidates[i], sources[i])
    if weights.state(weights.LPIPS_TRUNK, weights.weights_folder()) == "present":
        perceptual = changes.open_perceptual()
        yield "candidate: lpips_source", lambda i: changes.lpips(*small[i], perceptual)
    if (model := faces.open_faces("auto", weights.weights_folder())) is not None:
        yield f"source: faces by {model.name}", lambda i: faces.compare(model, sources[i])
        yield f"candidate: faces by {model.name}", lambda i: faces.compare(model, sources[i], candidates[i])


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    photographs = list(shipped_photographs())
    if os.environ.get("IDM_DATA"):
        photographs = [p for p in photographs if held_out(p[0])]
        photographs += data_photographs(Path(os.environ["IDM_DATA"]), HELD_OUT)
    as_they_are = [rgb for _, rgb in photographs]
    halves = [reduced(rgb) for rgb in as_they_are]
    print(f"{len(halves)} photographs.\n")
    print("| measurement | planted | pooled | median within one | pooled, not halved | median readings |")
    print("| --- | --- | --- | --- | --- | --- |")
    for planted in OWN:
        values, raw = readings(planted, halves), readings(planted, as_they_are)
        print(f"{_row(planted, values)} {pooled(raw, planted.strengths):.3f} | {_medians(values)} |", flush=True)
    print("\n| measurement | harder | pooled | median within one | median readings |\n| --- | --- | --- | --- | --- |")
    for planted in HARDER:
        values = readings(planted, halves)
        print(f"{_row(planted, values)} {_medians(values)} |", flush=True)

    print("\n| CPU ms, one thread | 200 px | 1024 px | 4000 px |\n| --- | --- | --- | --- |")
    photo = next(rgb for name, rgb in shipped_photographs() if name == "astronaut")
    sizes = [np.asarray(Image.fromarray(photo).resize((side, side))) for side in (200, 1024, 4000)]
    windows = [np.ascontiguousarray(measure.central_window(rgb)) for rgb in sizes]
    lumas = [np.asarray(cv2.cvtColor(w, cv2.COLOR_RGB2GRAY), np.uint8) for w in windows]
    data = [jpeg(rgb, 90)[1] or b"" for rgb in sizes]
    rows: list[tuple[str, Callable[[int], object]]] = [
        ("sharpness", lambda i: measure.sharpness(lumas[i])),
        ("noise_sigma", lambda i: measure.noise_sigma(windows[i])),
        ("jpeg_quality", lambda i: measure.jpeg_quality(data[i])),
        ("blockiness", lambda i: measure.blockiness(lumas[i])),
        ("effective_resolution", lambda i: measure.effective_resolution(lumas[i])),
        ("all of `measure`", lambda i: measure.measure(sizes[i], data[i])),
        ("`perceptual_hash`", lambda i: measure.perceptual_hash(sizes[i])),
        *_of_candidates(sizes),
        ("for scale: decoding the JPEG", lambda i: Image.open(io.BytesIO(data[i])).load()),
    ]
    for name, function in rows:
        print(f"| {name} | " + " | ".join(f"{cpu_ms(partial(function, i)):.1f}" for i in range(3)) + " |")


if __name__ == "__main__":
    main()
