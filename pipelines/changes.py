"""How far a candidate is from its source: the columns ``manifests.schema.CHANGES``.

The source is all that is known of the picture, and it is damaged: so no one distance says whether a change is honest.
SSIM and LPIPS say how much was changed; consistency, re-degradation and colour drift ask for what a restoration has no
business to change. ``python -m tests.benchmarks.gates`` plants changes and prints what each of them sees.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from manifests import schema

if TYPE_CHECKING:
    from idm_core.losses import Perceptual

Bytes3 = npt.NDArray[np.uint8]  # H W 3, RGB
Luma = npt.NDArray[np.float64]  # H W, ITU-R BT.601, 0-255

#: LPIPS, re-degradation and colour drift look at images reduced to at most this many pixels a side: LPIPS would take
#: over a second at 1024, and no identity or colour is lost.
MAX_SIDE: Final = 256
#: Sides under which there is no room for SSIM's window, and none for LPIPS' second pooling.
MIN_SSIM_SIDE: Final = 11
MIN_LPIPS_SIDE: Final = 32
#: Standard deviations of the blurs that a candidate is degraded with, in shares of the longer side: none, and from
#: what is hardly seen to the strongest that restorers are trained on (15 at 512 px), in steps of the root of two.
BLURS: Final = (0.0, *(2 ** (k / 2) / 256 for k in range(7)))
#: Noise and compression are no blur: both images lose what is finer than this, pixels, before they are compared.
FINEST: Final = 1.5
#: Side of the square that is compared at once, in shares of the longer side: about an eye in a portrait.
PLACE: Final = 1 / 8
#: Colours are compared over so many by so many areas.
AREAS: Final = 4


def compare(candidate: Bytes3, source: Bytes3, *, perceptual: Perceptual | None = None) -> dict[str, float | None]:
    """Exactly the columns ``manifests.schema.CHANGES``; the same two images always give the same numbers.

    Args:
        candidate: H x W x 3 uint8.
        source: of the same size.
        perceptual: LPIPS, as ``open_perceptual`` returns it; None leaves its column None.

    Raises:
        ValueError: the sizes differ.
    """
    from idm_core.restorer import consistency

    if candidate.shape != source.shape:
        raise ValueError(f"candidate and source differ in size: {candidate.shape} and {source.shape}")
    a, b = reduced(candidate), reduced(source)
    found = {
        "psnr_source": psnr(candidate, source),
        "ssim_source": ssim(candidate, source),
        "lpips_source": None if perceptual is None else lpips(a, b, perceptual),
        "consistency": consistency(candidate, source),
        "redegradation": redegradation(a, b),
        "colour_drift": colour_drift(a, b),
    }
    assert list(found) == schema.names(schema.CHANGES)
    return {name: None if value is None else round(value, 6) for name, value in found.items()}


def open_perceptual() -> Perceptual:
    """LPIPS in double precision, from the weights folder.

    Raises:
        ConfigError: its file is not there, or is another.
    """
    from idm_core.losses import Perceptual
    from pipelines import weights

    return Perceptual(weights.required_and_right(weights.LPIPS_TRUNK)).double()


def reduced(image: Bytes3) -> Bytes3:
    """The image at no more than ``MAX_SIDE`` a side; the very array if it is no larger."""
    from PIL import Image

    factor = max(image.shape[:2]) / MAX_SIDE
    if factor <= 1:
        return image
    size = max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))  # in whole numbers: exact


def psnr(a: Bytes3, b: Bytes3) -> float | None:
    """Peak signal-to-noise ratio of two uint8 images, dB, infinite if they are equal; None where the sizes differ."""
    if a.shape != b.shape:
        return None
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(a: Bytes3, b: Bytes3) -> float | None:
    """SSIM of the luma as in its paper (Wang et al., 2004): Gaussian window of sigma 1.5; None under 11 px."""
    from skimage.metrics import structural_similarity

    if min(a.shape[:2]) < MIN_SSIM_SIDE:
        return None
    options = {"data_range": 255, "gaussian_weights": True, "use_sample_covariance": False}
    return float(structural_similarity(luma(a), luma(b), **options))  # type: ignore[no-untyped-call]


def lpips(a: Bytes3, b: Bytes3, perceptual: Perceptual) -> float | None:
    """LPIPS (arXiv 1801.03924) between two images; None under 32 px."""
    import torch

    if min(a.shape[:2]) < MIN_LPIPS_SIDE:
        return None
    with torch.inference_mode():
        x, y = (torch.from_numpy(i.astype(np.float64) / 255).permute(2, 0, 1)[None] for i in (a, b))
        return float(perceptual(x, y))


def redegradation(candidate: Bytes3, source: Bytes3) -> float:
    """PSNR in dB between the source and the candidate blurred as suits the source best, where they agree least.

    Whatever an honest restoration adds is what the damage took away: blurred again, it is the source once more. Eyes
    of another person, a moved edge or another light are not, at any blur. Of every blur in ``BLURS`` the worst place
    counts, for an eye is little of a picture; and of these the best blur, for nobody knows the source's.
    """
    import cv2

    side = max(source.shape[:2])
    place = max(4, round(PLACE * side))
    x, y = luma(candidate), _blurred(luma(source), FINEST)
    worst = [
        float(cv2.blur((_blurred(x, math.hypot(blur * side, FINEST)) - y) ** 2, (place, place)).max()) for blur in BLURS
    ]
    least = min(worst)
    return 10 * math.log10(255**2 / least) if least > 0 else math.inf


def colour_drift(a: Bytes3, b: Bytes3) -> float:
    """Mean over 4 x 4 areas of the distance between their mean colours in the a*b* plane of CIELAB (D65).

    2.3 is what is just noticed. The mean of an area leaves out noise, and what sharpening does to fine colour.
    """
    import cv2
    from skimage.color import rgb2lab

    rows, columns = (min(AREAS, side) for side in a.shape[:2])
    means = [
        rgb2lab(cv2.resize(image.astype(np.float64), (columns, rows), interpolation=cv2.INTER_AREA) / 255)
        for image in (a, b)
    ]
    return float(np.hypot(*(means[0] - means[1])[..., 1:].reshape(-1, 2).T).mean())


def luma(image: Bytes3) -> Luma:
    """ITU-R BT.601, 0-255, in double precision."""
    return np.asarray(image.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))


def _blurred(image: Luma, sigma: float) -> Luma:
    import cv2

    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.float64)
