"""One image file in, 8-bit sRGB pixels out: every kind of file that datasets hold is handled and named, or refused.

What a file needed on the way (EXIF rotation, CMYK, 16 bits, alpha, ...) is recorded in ``Decoded.notes``; a file that
cannot be used raises ``SampleError`` with one of these reasons, and nothing else::

    empty_file  not_an_image  unsupported_format  unsupported_mode  truncated  corrupt  too_large  too_small
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms, ImageFile

from manifests.errors import SampleError
from pipelines.formats import end_of_image, png_pixel_chunks, sniff
from pipelines.formats import extension as extension
from pipelines.formats import notes_for_name as notes_for_name

#: Pixels; Pillow's own hard limit for decompression bombs. Read from the header, before any pixel is decoded.
MAX_PIXELS: Final = 178_956_970
#: Pixels. No measurement here means anything on less: an 8 x 8 block is the unit of JPEG and of the smallest filter.
MIN_SIDE: Final = 8

_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION: Final = 0x0112
_BITS_PER_SAMPLE: Final = 258
_SRGB: Final = ImageCms.createProfile("sRGB")

# What Pillow's parsers raise on hostile bytes; tests/test_images.py mutates files at random to see that nothing else
# comes out. struct.error, zlib.error and PyCMSError are no subclasses of the others.
_DECODER_ERRORS: Final = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)

# Pillow reports some damage as Python warnings, and warning filters belong to the process: one decode at a time.
# Parallelism comes from processes, one thread each.
_PILLOW = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One decoded image."""

    rgb: np.ndarray[Any, np.dtype[np.uint8]]  # HWC, uint8, sRGB, C-contiguous
    format: str  # a key of formats.EXTENSIONS
    mode: str  # Pillow's name for the pixels as stored; 16-bit colour, which Pillow calls RGB, is "RGB;16"
    width: int  # pixels, after EXIF orientation
    height: int  # pixels, after EXIF orientation
    notes: tuple[str, ...]  # sorted; what decoding had to handle
    pixel_md5: str | None = None  # MD5 of the pixels as stored, hex, where it was asked for


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, with_md5: bool = False) -> Decoded:
    """Decode the first frame of an image file to upright 8-bit sRGB.

    Transparent pixels are composited on white, as a viewer shows them: what lies under them is often rubbish.
    16 bits become 8 by taking the high byte (what libpng calls strip). An embedded profile that is not sRGB is
    converted, relative colorimetric with black point compensation. CMYK without a profile is converted naively;
    CMYK JPEGs are taken to be inverted, as Adobe writes them and browsers read them.

    Args:
        data: the whole file.
        max_pixels: width x height above this is ``too_large``; only values below ``MAX_PIXELS`` have an effect.
        with_md5: hash the pixels before any conversion, as FFHQ's ``pixel_md5`` does.

    Notes that may be set: ``1bit 16bit alpha_dropped alpha_on_white animated cmyk decoder_warning exif_rotated
    exif_unreadable grey icc_profile icc_profile_ignored metadata_ignored multipage palette trailing_bytes``.

    Raises:
        SampleError: with a reason from the module's list.
    """
    name = sniff(data)
    with _PILLOW, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # a process-wide switch that other libraries turn on
        try:
            decoded = _decode(data, name, max_pixels, with_md5)
        except (Image.DecompressionBombError, MemoryError) as error:
            raise SampleError("too_large", _message(error)) from error
        except _DECODER_ERRORS as error:
            reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
            raise SampleError(reason, f"{name}: {_message(error)}") from error
    if any(not issubclass(w.category, Image.DecompressionBombWarning | DeprecationWarning) for w in caught):
        return replace(decoded, notes=tuple(sorted({*decoded.notes, "decoder_warning"})))
    return decoded


def encode_png(rgb: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encode HWC uint8 RGB as PNG, losslessly and always to the same bytes with the same Pillow.

    zlib level 1 with run-length matching is 5x faster than Pillow's default on photographs, and smaller.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "PNG", compress_level=1, compress_type=3)
    return buffer.getvalue()


def _decode(data: bytes, name: str, max_pixels: int, with_md5: bool) -> Decoded:
    notes: set[str] = set()
    with _open(data, name, notes) as image:
        _check_size(image.size, max_pixels)
        end = end_of_image(data, name)
        if end < len(data) and image.format != "MPO":  # the other pictures of an MPO follow the first one's end
            notes.add("trailing_bytes")
        if getattr(image, "is_animated", False):
            notes.add("multipage" if image.format in ("TIFF", "MPO") else "animated")
        if _is_16bit(image, data):
            notes.add("16bit")
        mode = "RGB;16" if "16bit" in notes and image.mode == "RGB" else image.mode
        orientation = _orientation(image, notes)
        image.load()
        md5 = hashlib.md5(np.asarray(image).tobytes(), usedforsecurity=False).hexdigest() if with_md5 else None
        rgb = _to_rgb(image, notes)
    if orientation in _TRANSPOSE:
        notes.add("exif_rotated")
        if name != "TIFF":  # Pillow's TIFF reader turns the image itself
            rgb = rgb.transpose(_TRANSPOSE[orientation])
    pixels = np.array(rgb, dtype=np.uint8, order="C")
    height, width = pixels.shape[:2]
    return Decoded(pixels, name, mode, width, height, tuple(sorted(notes)), md5)


def _open(data: bytes, name: str, notes: set[str]) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=[name])
    except _DECODER_ERRORS:
        end_of_image(data, name)  # where a cut or a bad checksum is the cause, this says so
        if name != "PNG":
            raise
    # Pillow refuses a PNG for a large or broken colour profile or comment. The pixels do not need them.
    notes.add("metadata_ignored")
    return Image.open(io.BytesIO(png_pixel_chunks(data)), formats=[name])


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise SampleError("too_large", f"{width} x {height} pixels, the limit is {max_pixels} in all")
    if min(size) < MIN_SIDE:
        raise SampleError("too_small", f"{width} x {height} pixels, the shorter side must have {MIN_SIDE}")


def _is_16bit(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] == 16  # IHDR bit depth; Pillow opens 16-bit colour as plain RGB and says nothing
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, 1)  # type: ignore[attr-defined]
        return bool(np.max(bits) == 16)
    return image.format == "PPM" and image.mode == "I"


def _orientation(image: Image.Image, notes: set[str]) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:  # broken EXIF is common and says nothing about the pixels
        notes.add("exif_unreadable")
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, notes: set[str]) -> Image.Image:
    """Convert a loaded image of any mode to RGB in sRGB, noting how."""
    if "16bit" in notes and image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise SampleError("unsupported_mode", f"{image.mode}: the range of its values is unknown")
    if image.mode in ("P", "PA"):
        notes.add("palette")
    if image.mode == "1":
        notes.add("1bit")
    if image.mode in ("1", "L", "LA", "La"):
        notes.add("grey")
    if image.mode == "CMYK":
        notes.add("cmyk")
    profile = image.info.get("icc_profile")

    if not (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        return _to_srgb(image, profile, notes)
    notes.add("alpha_dropped")
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    rgb = _to_srgb(rgba.convert("L" if "grey" in notes else "RGB"), profile, notes)
    if alpha.getextrema() == (255, 255):
        return rgb
    notes.add("alpha_on_white")
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _to_srgb(image: Image.Image, profile: bytes | None, notes: set[str]) -> Image.Image:
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if not profile:
        return image.convert("RGB")
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        if space == "RGB" and "srgb" in ImageCms.getProfileDescription(opened).lower():
            return image.convert("RGB")
        if space != {"L": "GRAY"}.get(image.mode, image.mode):
            raise ValueError(f"a {space} profile on {image.mode} pixels")
        converted = ImageCms.profileToProfile(
            image,
            opened,
            _SRGB,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except _DECODER_ERRORS:  # the pixels are sound without their profile, and viewers show them so
        notes.add("icc_profile_ignored")
        return image.convert("RGB")
    assert converted is not None  # only None with inPlace=True
    notes.add("icc_profile")
    return converted


def _message(error: BaseException) -> str:
    """One line without memory addresses: reasons are written to manifests, which must not differ between runs."""
    text = re.sub(r"<_io\.BytesIO[^>]*>", "data", str(error))
    return f"{type(error).__name__}: {text}".splitlines()[0][:200]
