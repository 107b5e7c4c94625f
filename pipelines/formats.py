"""Image file formats as their bytes and their names show them, before anything is decoded."""

from __future__ import annotations

import re
import zlib
from pathlib import PurePosixPath
from typing import Final

from manifests.errors import SampleError

#: Format found in the bytes => extension in the shard, and the extensions that such a file may rightly have.
EXTENSIONS: Final[dict[str, tuple[str, ...]]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
}
#: Image files by name that no decoder here reads. They are samples all the same, and fail with ``unsupported_format``.
UNSUPPORTED_EXTENSIONS: Final = frozenset(
    {"heic", "heif", "avif", "jxl", "jp2", "j2k", "jpx", "svg", "psd", "tga", "ico", "exr", "hdr", "eps", "xcf", "qoi"}
    | {"dng", "cr2", "cr3", "nef", "arw", "raf", "orf", "rw2", "raw"}
)
IMAGE_EXTENSIONS: Final = frozenset(ext for exts in EXTENSIONS.values() for ext in exts) | UNSUPPORTED_EXTENSIONS

_SIGNATURES: Final[tuple[tuple[str, re.Pattern[bytes]], ...]] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("BMP", re.compile(rb"BM")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II\*\0|MM\0\*|II\+\0\x08\0|MM\0\+\0\x08")),
    ("PPM", re.compile(rb"P[1-6][\s#]")),
)
_FOREIGN_SIGNATURES: Final[tuple[tuple[str, re.Pattern[bytes]], ...]] = (
    ("HEIF", re.compile(rb"....ftyp(hei[cmsx]|he[vi][cmsx]|mif1|msf1)", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftypavi[fs]", re.DOTALL)),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("JPEG XL", re.compile(rb"\0\0\0\x0cJXL |\xff\x0a")),
    ("PSD", re.compile(rb"8BPS")),
    ("OpenEXR", re.compile(rb"v/1\x01")),
    ("PDF", re.compile(rb"%PDF")),
    ("SVG", re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.DOTALL)),
)


def sniff(data: bytes) -> str:
    """Name the container format found in the bytes: a key of ``EXTENSIONS``.

    Raises:
        SampleError: ``empty_file``, ``not_an_image``, or ``unsupported_format`` for images that are not read here.
    """
    if not data:
        raise SampleError("empty_file", "0 bytes")
    for name, signature in _SIGNATURES:
        if signature.match(data):
            return name
    for name, signature in _FOREIGN_SIGNATURES:
        if signature.match(data[:4096]):
            raise SampleError("unsupported_format", name)
    kind = "all bytes are zero" if not any(data[:4096]) else f"begins with {data[:8].hex(' ')}"
    raise SampleError("not_an_image", kind)


def extension(format: str) -> str:
    """Give the extension, without a dot, that a file of this format gets in a shard."""
    return EXTENSIONS[format][0]


def notes_for_name(name: str, format: str) -> tuple[str, ...]:
    """Say what is odd about a file's name, given the format in its bytes: ``mislabelled``, ``no_extension``."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    if not suffix:
        return ("no_extension",)
    return () if suffix in EXTENSIONS[format] else ("mislabelled",)


def end_of_image(data: bytes, name: str) -> int:
    """Find where the image ends in its file: the file's length for formats that do not say.

    Raises:
        SampleError: ``truncated``, or ``corrupt`` for a PNG checksum, which Pillow does not check in pixel data.
    """
    if name == "JPEG":
        return _end_of_jpeg(data)
    if name == "PNG":
        return _end_of_png(data)
    if name == "WEBP":
        end = 8 + int.from_bytes(data[4:8], "little")
        if end > len(data):
            raise SampleError("truncated", f"WEBP: {len(data)} of {end} bytes")
        return end
    return len(data)


def png_pixel_chunks(data: bytes) -> bytes:
    """Give the same PNG without profiles, comments and whatever else its pixels do not need."""
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _end_of_png(data: bytes) -> int:
    at = 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise SampleError("corrupt", f"PNG: wrong checksum in chunk {kind!r} at byte {at}")
        if kind == b"IEND":
            return end
        at = end
    raise SampleError("truncated", f"PNG: {len(data)} bytes and no IEND")


# In entropy-coded data FF is followed by 00 (a stuffed FF), by D0-D7 (restart) or by FF (fill); else a marker begins.
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


def _end_of_jpeg(data: bytes) -> int:
    # Pillow notices most cuts, but not one that was filled up with zeros, as an interrupted download may be.
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        marker = data[found.end() - 1]
        if marker == 0xD9:  # EOI
            return found.end()
        at = found.end()
        if marker != 0x01:  # TEM has no length; all other markers that may follow here have one
            at += int.from_bytes(data[at : at + 2], "big")
    raise SampleError("truncated", f"JPEG: {len(data)} bytes and no end marker")
