"""Figures of restored images: distances to the truth, to a set of truths, to oneself; and bootstrap intervals."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from idm_core.losses import Perceptual
from idm_core.restorer import Photograph
from pipelines.detectors import Detector
from pipelines.faces import FaceModel, identity_cosine
from pipelines.feature_sets import Sampling, features_of
from pipelines.metrics.frechet import Statistics, frechet_distance, statistics_of
from tests.benchmarks.held_out import Truth, to_tensor

Values = npt.NDArray[np.float64]  # one for each image
#: What a method is: images and their keys => images.
Apply = Callable[[list[Photograph], list[str]], list[Photograph]]
#: dB that stand for equality.
EQUAL_PSNR: Final = 90.0
DRAWS: Final = 1_000


def features_by(detector: Detector, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Features of images that are held at once, N x H x W x 3 => N x D."""
    return features_of(images, len(images), [detector], Sampling(kept=len(images), crops=0))[0].features


def psnrs(a: Sequence[Photograph], b: Sequence[Photograph]) -> Values:
    """PSNR of each pair, dB, at most ``EQUAL_PSNR``."""
    error = np.array([np.square(x.astype(np.float64) - y).mean() for x, y in zip(a, b, strict=True)]) / 255**2
    return -10 * np.log10(np.maximum(error, 10 ** (-EQUAL_PSNR / 10)))


def ssims(a: Sequence[Photograph], b: Sequence[Photograph]) -> Values:
    """SSIM of each pair over the three channels, with the Gaussian window of its paper (sigma 1.5)."""
    from skimage.metrics import structural_similarity

    options = {"channel_axis": 2, "data_range": 255, "gaussian_weights": True, "use_sample_covariance": False}
    return np.array([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)])


class Lpips:
    """LPIPS v0.1 on AlexNet, the very network that the restorer may have been trained with."""

    def __init__(self, trunk: Path) -> None:
        self._network = Perceptual(trunk)

    def __call__(self, a: Sequence[Photograph], b: Sequence[Photograph]) -> Values:
        """Distance of each pair."""
        parts = [slice(first, first + 16) for first in range(0, len(a), 16)]
        with torch.inference_mode():
            distances = [self._network(to_tensor(list(a[part])), to_tensor(list(b[part]))) for part in parts]
        return torch.cat(distances).double().numpy()


class Identity:
    """Cosine of face embeddings, image and truth aligned by the truth's landmarks; NaN where there is no face."""

    def __init__(self, faces: FaceModel, truth: Sequence[Truth]) -> None:
        self._faces = faces
        self._truth = truth
        self._known = [None if t.landmarks is None else faces.embed(t.image, t.landmarks) for t in truth]

    def __call__(self, images: Sequence[Photograph]) -> Values:
        """One image for each truth, in order."""
        cosines = np.full(len(images), np.nan)
        for i, (image, truth, known) in enumerate(zip(images, self._truth, self._known, strict=True)):
            if known is not None and truth.landmarks is not None:
                cosines[i] = identity_cosine(known, self._faces.embed(image, truth.landmarks))
        return cosines


class FrechetToTruth:
    """Frechet distance of the patches of images to the same patches of the truths.

    A few hundred images say little about 1280 x 1280 covariances: with 252 whole faces the distance of restored to
    damaged ones is .56, with 2,016 patches .32. So each image is looked at whole, and in square windows of 32 and 48
    pixels, at places that are the same for all methods, half of them mirrored. As both sets show the same scenes at the
    same places, equal sets are at distance 0, and the bias of a finite number is the same for every method.

    Args:
        patches: at least so many in all, the same number for each image.
    """

    def __init__(self, detector: Detector, truth: Sequence[Truth], patches: int = 2_000) -> None:
        self._detector = detector
        count = -(-patches // len(truth))
        self._windows = [[_window(t, i) for i in range(count)] for t in truth]
        self._known: dict[tuple[int, bytes], npt.NDArray[np.float32]] = {}
        self.patches = count * len(truth)
        self._reference = self._statistics([t.image for t in truth])

    def __call__(self, images: Sequence[Photograph]) -> float:
        """One image for each truth, in order."""
        return frechet_distance(self._reference, self._statistics(images))

    def _statistics(self, images: Sequence[Photograph]) -> Statistics:
        # Methods often agree on an image, to the byte: it is looked at once.
        wanted = [(i, hashlib.sha256(image.tobytes()).digest()) for i, image in enumerate(images)]
        self._look(images, wanted)
        return statistics_of(np.concatenate([self._known[key] for key in wanted]))

    def _look(self, images: Sequence[Photograph], keys: list[tuple[int, bytes]]) -> None:
        """Fill ``_known`` for these images; windows of one size go through the detector together."""
        new = [(key, image) for key, image in zip(keys, images, strict=True) if key not in self._known]
        windows = [(key, image, window) for key, image in new for window in self._windows[key[0]]]
        found: dict[tuple[int, bytes], list[npt.NDArray[np.float32]]] = {key: [] for key, _ in new}
        for size in sorted({window[0] for _, _, window in windows}):
            some = [(key, image, w) for key, image, w in windows if w[0] == size]
            cut = [image[y : y + s, x : x + s][:, :: -1 if m else 1] for _, image, (s, y, x, m) in some]
            for (key, _, _), features in zip(some, self._detector(np.stack(cut)), strict=True):
                found[key].append(features)
        self._known |= {key: np.stack(features) for key, features in found.items()}


def _window(truth: Truth, number: int) -> tuple[int, int, int, bool]:
    """Side, top, left and whether mirrored."""
    side = truth.image.shape[0]
    if number == 0:
        return side, 0, 0, False
    draw = np.random.default_rng(list(hashlib.sha256(f"{truth.key} window {number}".encode()).digest()))
    size = int(draw.choice((side // 2, 3 * side // 4)))
    top, left = draw.integers(0, side - size + 1, 2)
    return size, int(top), int(left), bool(draw.integers(2))


def interval(
    truth: Sequence[Truth], values: Values, per: Values | None = None, draws: int = DRAWS
) -> tuple[float, float, float]:
    """Mean of ``values``, or ratio of their mean to that of ``per``, and its 95 % bootstrap interval.

    Photographs are drawn, not images: those that were cut from one photograph come and go together. NaN is left out.
    """
    keep = np.isfinite(values) if per is None else np.isfinite(values) & np.isfinite(per)
    names = sorted({t.name for t, kept in zip(truth, keep, strict=True) if kept})
    if not names:
        return np.nan, np.nan, np.nan
    index = {name: i for i, name in enumerate(names)}
    sums = np.zeros((3, len(names)))
    for t, kept, value, base in zip(truth, keep, values, values if per is None else per, strict=True):
        if kept:
            sums[:, index[t.name]] += value, base, 1
    bottom = sums[2] if per is None else sums[1]
    chosen = np.random.default_rng(0).integers(0, len(names), (draws, len(names)))
    low, high = np.percentile(sums[0][chosen].sum(axis=1) / bottom[chosen].sum(axis=1), (2.5, 97.5))
    return float(sums[0].sum() / bottom.sum()), float(low), float(high)


def rms_levels(a: Sequence[Photograph], b: Sequence[Photograph]) -> Values:
    """Root mean square difference of each pair, 1/255."""
    return np.array([np.sqrt(np.square(x.astype(np.float64) - y).mean()) for x, y in zip(a, b, strict=True)])


def contraction(
    apply: Apply, images: list[Photograph], keys: list[str], identity: Identity | None = None, times: int = 5
) -> dict[str, Any]:
    """What happens when a method is applied again and again.

    Returns:
        ``change``: mean RMS change of each application, 1/255; ``ratio``: of each to the one before, 0 where both are
        none; ``identity``: mean cosine to the truth after each.
    """
    change, cosines = [], []
    for _ in range(times):
        after = apply(images, keys)
        change.append(float(rms_levels(images, after).mean()))
        if identity is not None:
            cosines.append(float(np.nanmean(identity(after))))
        images = after
    ratio = [new / old if old else 0.0 for old, new in itertools.pairwise(change)]
    return {"change": change, "ratio": ratio} | ({"identity": cosines} if identity is not None else {})


def plain(value: Any) -> Any:
    """Figures as JSON has them: no numpy, no NaN, five digits."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value
