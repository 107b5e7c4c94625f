"""No-reference measurements of one image, and its perceptual hash.

Each measure is normalised for content as far as it can be, so that one threshold serves a whole dataset;
``python -m tests.benchmarks.measurements`` plants each one's own degradation on photographs and prints how
well it ranks them.
"""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Bytes3 = npt.NDArray[np.uint8]  # H W 3, RGB
Luma = npt.NDArray[np.uint8]  # H W, ITU-R BT.601

#: Detail is measured in the central window of at most this many pixels at their own scale, and tone on an even grid of
#: about as many over the whole image: the cost of an image is bounded, and up to 1024 x 1024 every pixel counts.
MAX_PIXELS: Final = 1 << 20

#: Table K.1 of ITU-T T.81, row by row: the luminance quantisation table that libjpeg calls quality 50.
_STANDARD_LUMINANCE: Final = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()


def measure(rgb: Bytes3, data: bytes | None = None) -> dict[str, float | None]:
    """Measure one decoded image: exactly the columns ``manifests.schema.MEASUREMENTS``, units as given there.

    Args:
        rgb: the decoded image, H x W x 3 uint8.
        data: the bytes of its file; only a JPEG's quantisation tables are read from them.

    Returns:
        Finite floats, or None for what cannot be measured: no tables, no edge, no detail, too few pixels.

    Raises:
        ValueError: ``rgb`` is not a non-empty H x W x 3 uint8 array.
    """
    import cv2

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ValueError(f"measure() takes a non-empty uint8 array of H x W x 3, not {rgb.dtype} {rgb.shape}")
    window = np.ascontiguousarray(central_window(rgb))
    luma = np.asarray(cv2.cvtColor(window, cv2.COLOR_RGB2GRAY), np.uint8)
    stride = int(np.ceil(np.sqrt(rgb.shape[0] * rgb.shape[1] / MAX_PIXELS)))
    tone = np.ascontiguousarray(rgb[::stride, ::stride])
    found = {
        "sharpness": sharpness(luma),
        "noise_sigma": noise_sigma(window),
        "jpeg_quality": None if data is None else jpeg_quality(data),
        "blockiness": blockiness(luma),
        "effective_resolution": effective_resolution(luma),
        "exposure": float(np.mean(cv2.cvtColor(tone, cv2.COLOR_RGB2GRAY))) / 255,
        # One level of grace at each end: JPEG ringing moves clipped pixels by that much.
        "clipped": float(np.mean((tone <= 1) | (tone >= 254))),
        "saturation": float(np.mean(cv2.cvtColor(tone, cv2.COLOR_RGB2HSV)[..., 1])) / 255,
    }
    # Six decimals say more than any of them knows, and leave out the rounding errors of the order of summation.
    return {name: None if value is None else round(value, 6) for name, value in found.items()}


def central_window(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The middle of an image, at most ``MAX_PIXELS`` large; a narrow image keeps more of its long side."""
    height, width = image.shape[:2]
    side = int(MAX_PIXELS**0.5)
    rows = min(height, max(side, MAX_PIXELS // width))
    columns = min(width, MAX_PIXELS // rows)
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def sharpness(luma: Luma) -> float | None:
    """Inverse blur radius of the strongest edges, 1/px: about 1.3 where an edge is one pixel wide, 0.25 at sigma 4.

    An ideal step blurred by sigma loses the factor R = sqrt(1 + 1/sigma^2) of its slope when it is blurred by one
    pixel more, whatever its height (Zhuo and Sim, "Defocus map estimation from a single image", 2011). Strong edges
    only, because noise has little say in them; the median, because they are not all in focus; and none at solid black
    or white, for those are made by padding and clipping, not by a lens.
    None where nothing rises above the rounding of pixels.
    """
    import cv2

    if min(luma.shape) < 8:
        return None
    image = luma.astype(np.float64)
    outside = _solid(luma)
    inside = slice(None) if outside.all() else ~outside
    slope = _gradient(image)[inside].ravel()
    count = max(16, slope.size // 50)
    threshold = float(np.partition(slope, -count)[-count]) if slope.size > count else 0.0
    edges = slope >= max(threshold, 0.5)
    if not edges.any():
        return None
    blurred = _gradient(np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0), np.float64))[inside].ravel()
    ratio = float(np.median(slope[edges] / np.maximum(blurred[edges], 1e-3)))
    return float(np.sqrt(max(ratio**2 - 1, 0.0)))


def _solid(luma: Luma) -> npt.NDArray[np.bool_]:
    """Where areas of solid black or white are, and 12 px around them: as far as JPEG and a blur carry their edges."""
    import cv2

    ends = ((luma <= 4) | (luma >= 251)).astype(np.uint8)
    core = cv2.erode(ends, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.dilate(core, np.ones((29, 29), np.uint8)), np.bool_)


def _gradient(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Double precision throughout: in single, the last bits depend on how the array happens to be aligned in memory, and
    # a manifest has to come out the same every time.
    import cv2

    dx = cv2.Sobel(image, cv2.CV_64F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(image, cv2.CV_64F, 0, 1, scale=1 / 8)
    return np.asarray(cv2.magnitude(dx, dy), np.float64)


def noise_sigma(image: npt.NDArray[np.uint8]) -> float | None:
    """Standard deviation of the noise, mean over channels, 1/255 of full scale; None below 8 px.

    Immerkaer's mixed second difference ("Fast noise variance estimation", 1996), here with the plain ones along rows
    and columns, whichever is least, in each 8 x 8 block: a block without texture along one direction shows the noise.
    From the one block in a hundred that shows least, all blocks within twice its variance are averaged, so that uniform
    noise is measured without bias. Blocks that are clipped or exactly flat hide the noise and have no say.
    """
    return None if min(image.shape[:2]) < 8 else float(np.sqrt(_noise_variance(image)))


def _noise_variance(image: npt.NDArray[np.uint8]) -> float:
    import cv2

    flat, second = np.ones(1), np.array([1.0, -2.0, 1.0])
    shape = (image.shape[1] // 8, image.shape[0] // 8)  # cv2 counts columns first
    whole = (slice(shape[1] * 8), slice(shape[0] * 8))

    def block_means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:  # sums of integers: exact
        means = np.asarray(cv2.resize(values[whole], shape, interpolation=cv2.INTER_AREA), np.float64)
        return means.reshape(shape[1], shape[0], -1)

    variance = np.full(shape[::-1], np.inf)
    for along_x, along_y, gain in ((second, second, 36), (second, flat, 6), (flat, second, 6)):
        response = np.asarray(cv2.sepFilter2D(image, cv2.CV_64F, along_x, along_y), np.float64)
        variance = np.minimum(variance, block_means(response**2).mean(-1) / gain)
    clipped = block_means(((image <= 1) | (image >= 254)).astype(np.float64)).max(-1)
    usable = variance[(clipped <= 0.05) & (variance > 0)]
    if usable.size == 0:
        return 0.0
    least = np.percentile(usable, 1)
    return float(usable[usable <= 2 * least].mean())


def jpeg_quality(data: bytes) -> float | None:
    """Quality setting 1-100 of the JPEG encoder, from the file's luminance quantisation table; None if there is none.

    The libjpeg table nearest in the logarithm, by least squares: exact for every encoder that scales Annex K's table,
    the setting of like coarseness for one that does not (Photoshop, cameras).
    """
    from PIL import JpegImagePlugin

    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        # Not Image.open: the pixels have been decoded, and the limits of that have been judged, elsewhere; and so have
        # Pillow's complaints about metadata become notes there.
        with warnings.catch_warnings(action="ignore"), JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            tables = image.quantization
    except (OSError, SyntaxError):  # what Pillow raises for a header that ends or breaks off: no table can be read
        return None
    if not tables or len(tables[min(tables)]) != 64:
        return None
    found = np.log(np.maximum(np.asarray(tables[min(tables)], np.float64), 1))
    return float(1 + int(np.argmin(((_libjpeg_tables() - found) ** 2).sum(1))))


@cache
def _libjpeg_tables() -> npt.NDArray[np.float64]:  # 100 x 64, logarithm, qualities 1 to 100
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.asarray(np.log(np.clip((_STANDARD_LUMINANCE * scale + 50) // 100, 1, 255)), np.float64)


def blockiness(luma: Luma) -> float | None:
    """Strength of the edges of an 8 x 8 grid: 0 without one, 0.5 at JPEG quality 80, 2 at 10; None below 32 px.

    A pixel's jump is the step to its neighbour less the mean of the steps on either side, so that slopes do not count.
    The mean root of the jumps on the lines of the strongest of the 8 phases, less that of the median phase: a crop
    moves the phase and changes nothing, enlarging or reducing the picture destroys the grid. The root keeps a few
    strong edges of the picture from speaking louder than the many weak ones of the grid.
    """
    if min(luma.shape) < 32:
        return None
    excess = []
    for image in (luma, luma.T):
        jumps = np.abs(np.diff(image.astype(np.int16), n=3, axis=0)) * np.float32(0.5)
        lines = np.sqrt(jumps).mean(1)
        phases = np.array([lines[phase::8].mean() for phase in range(8)])
        strongest = int(np.argmax(phases))
        excess.append(phases[strongest] - np.median(np.delete(phases, strongest)))
    return float(max(np.mean(excess), 0.0))


def effective_resolution(luma: Luma) -> float | None:
    """Share of the pixel grid's bandwidth that holds detail, 0-1: about 1/f after an enlargement by f.

    Welch's mean periodogram over Hann windows, averaged over rings of equal frequency. In a photograph it falls like
    1/f^2 (Field, 1987); times f^2 it is level as far as the lens or the original pixels reached and then drops. Counted
    are the rings that stand above the noise and hold a tenth of the level. Enlarging by repeating pixels is not seen:
    that keeps the bandwidth full. None below 32 px, and where nothing stands above the noise.
    """
    from scipy import fft

    if min(luma.shape) < 32:
        return None
    size = 32
    step = size // 2 if luma.size <= 1 << 18 else size  # a large image has windows enough without overlap
    taper, ring, ring_size = _spectrum_grid(size)

    def windows_of(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.lib.stride_tricks.sliding_window_view(image, (size, size))[::step, ::step].reshape(-1, size, size)

    outside = windows_of(_solid(luma)).any((1, 2))
    windows = windows_of(luma) if outside.all() else windows_of(luma)[~outside]
    centred = windows - windows.mean((1, 2), keepdims=True, dtype=np.float32)
    power = (np.abs(fft.rfft2(centred * taper)) ** 2).mean(0)
    rings = np.bincount(ring, power.ravel(), minlength=len(ring_size))[1:-1] / ring_size[1:-1]
    floor = 1 / 12 + 2 * _noise_variance(luma)
    frequency = np.arange(1, len(rings) + 1) / len(rings)
    whitened = np.maximum(rings - floor, 0) * frequency**2
    level = float(np.percentile(whitened, 90))
    if level <= 0:
        level = float(whitened.max())
    return None if level <= 0 else float(np.minimum(whitened / (0.1 * level), 1).mean())


@cache
def _spectrum_grid(size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Unit-energy Hann taper; ring of each rfft2 coefficient (1 .. size/2, then all beyond); coefficients in a ring."""
    hann = np.hanning(size + 2)[1:-1]
    taper = np.outer(hann, hann)
    taper /= np.sqrt((taper**2).sum())
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    ring = np.minimum(np.rint(radius), size // 2 + 1).astype(np.intp).ravel()
    return taper.astype(np.float32), ring, np.bincount(ring)


def perceptual_hash(rgb: Bytes3) -> bytes | None:
    """256-bit DCT hash: equal or close (``pipelines.duplicates``) for copies at another size, quality or brightness.

    The 16 x 16 lowest frequencies of the luma at 64 x 64, row by row, a bit each: its sign (after pHash; Zauner, 2010,
    which asks whether it is above their median). Mirroring an image turns the sign of each odd horizontal frequency and
    of no other, so the hash of the mirror image is this one with every second bit turned.

    Returns:
        32 bytes, or None for an image with too little structure to be told from others: flat, or a plain gradient.
    """
    import cv2

    luma = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    low = np.asarray(cv2.dct(luma.astype(np.float64)))[:16, :16].ravel()
    # Over 2 a coefficient is more than rounding. Photographs, 20 times darkened too, have 95 and more of these,
    # flats, gradients, vignettes and straight edges under 20.
    if np.count_nonzero(np.abs(low[1:]) > 2) < 64:
        return None
    bits = np.round(low, 3) > 0  # rounding errors alone have no sign: they are other ones on another machine
    bits[0] = False  # the mean says nothing about structure
    return np.packbits(bits).tobytes()
