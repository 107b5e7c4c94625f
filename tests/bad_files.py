"""Every kind of bad or odd image file that datasets have been seen to hold, and what should become of each."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as skimage_data

SIDE = 48


def write_bad_files(folder: Path) -> dict[str, str]:
    """Write them into a folder.

    Returns:
        Path below the folder (as ``source_name`` gives it) => ``failed:<reason>``, or ``ok:<note>`` where the file is
        odd but good (the note may be empty). Hidden files and files that are no images by name are written, too, but
        are no samples and not in the result.
    """
    expected: dict[str, str] = {}

    def write(name: str, data: bytes, outcome: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        expected[name] = outcome

    photo = photograph()
    png, jpg, webp = (save(photo, kind) for kind in ("PNG", "JPEG", "WEBP"))

    # No image at all.
    write("zero-bytes.jpg", b"", "failed:empty_file")
    write("text.jpg", b"this is not a photograph\n", "failed:not_an_image")
    write("page.png", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "failed:not_an_image")
    write("random.png", random.Random(7).randbytes(4096), "failed:not_an_image")
    write("zeros.png", bytes(4096), "failed:not_an_image")

    # Cut off or damaged.
    write("truncated.jpg", jpg[: len(jpg) // 2], "failed:truncated")
    write("truncated.png", png[: len(png) // 2], "failed:truncated")
    write("truncated.webp", webp[: len(webp) // 2], "failed:truncated")
    write("truncated.bmp", save(photo, "BMP")[:-500], "failed:truncated")
    write("truncated.gif", save(photo.quantize(64), "GIF")[:900], "failed:truncated")
    write("header-only.png", png[:33], "failed:truncated")
    write("bad-checksum.png", flip(png, len(png) // 2), "failed:corrupt")
    write("bad-header.png", flip(png, 20), "failed:corrupt")
    write("no-end-marker.jpg", jpg[:-2], "failed:truncated")
    write("filled-with-zeros.jpg", jpg[: len(jpg) // 2].ljust(len(jpg), b"\0"), "failed:truncated")
    write("trailing.jpg", jpg + b"\0" * 100, "ok:trailing_bytes")
    write("trailing.png", png + b"appended by a camera", "ok:trailing_bytes")

    # Sizes that cannot be right.
    write("bomb.png", png_file(60_000, 60_000, 8, 2, b"\0" * 64), "failed:too_large")
    write("bomb.jpg", jpeg_of_size(jpg, 65_000, 65_000), "failed:too_large")
    write("one-pixel.png", save(photo.resize((1, 1)), "PNG"), "failed:too_small")
    write("one-wide.png", save(photo.resize((1, SIDE)), "PNG"), "failed:too_small")

    # Images that are not read, and pixels whose meaning is unknown.
    write("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "failed:unsupported_format")
    write("new.avif", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(64), "failed:unsupported_format")
    write("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "failed:unsupported_format")
    write("layers.psd", b"8BPS\0\x01" + bytes(64), "failed:unsupported_format")
    write("float.tif", save(Image.fromarray(np.ones((SIDE, SIDE), np.float32)), "TIFF"), "failed:unsupported_mode")

    # Pixels that need conversion.
    cmyk = save(photo.convert("CMYK"), "JPEG")
    write("cmyk-adobe.jpg", cmyk, "ok:cmyk")
    write("cmyk-no-marker.jpg", without_segment(cmyk, 0xEE), "ok:cmyk")
    grey = photo.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    write("grey.jpg", save(grey, "JPEG"), "ok:grey")
    write("grey-16.png", save(Image.fromarray(deep), "PNG"), "ok:16bit")
    write("grey-16.tif", save(Image.fromarray(deep), "TIFF"), "ok:16bit")
    write("grey-16.pgm", b"P5 %d %d 65535\n" % (SIDE, SIDE) + deep.astype(">u2").tobytes(), "ok:16bit")
    write("colour-16.png", rgb16_png(photo), "ok:16bit")
    write("one-bit.png", save(grey.convert("1"), "PNG"), "ok:1bit")
    write("palette.png", save(photo.quantize(64), "PNG"), "ok:palette")
    write("palette-transparent.png", save(photo.quantize(64), "PNG", transparency=0), "ok:alpha_on_white")
    holed = photo.copy()
    holed.putalpha(grey.point(lambda v: 255 * (v > 128)))
    write("rgba.png", save(holed, "PNG"), "ok:alpha_on_white")
    write("rgba.webp", save(holed, "WEBP", lossless=True), "ok:alpha_on_white")
    write("rgba-opaque.png", save(photo.convert("RGBA"), "PNG"), "ok:alpha_dropped")
    write("grey-alpha.png", save(holed.convert("LA"), "PNG"), "ok:alpha_on_white")
    write("profile.jpg", save(photo, "JPEG", icc_profile=wide_profile()), "ok:icc_profile")
    write("wrong-profile.jpg", save(grey, "JPEG", icc_profile=wide_profile()), "ok:icc_profile_ignored")
    write("broken-profile.png", save(photo, "PNG", icc_profile=b"no profile"), "ok:icc_profile_ignored")
    write("huge-profile.png", save(photo, "PNG", icc_profile=bytes(2 << 20)), "ok:metadata_ignored")

    # Turned, and more than one picture in a file.
    for orientation in range(2, 9):
        write(f"orientation-{orientation}.jpg", turned(photo, orientation, "JPEG"), "ok:exif_rotated")
    write("orientation-6.png", turned(photo, 6, "PNG"), "ok:exif_rotated")
    write("orientation-6.webp", turned(photo, 6, "WEBP"), "ok:exif_rotated")
    write("orientation-6.tif", save(photo, "TIFF", tiffinfo={0x0112: 6}), "ok:exif_rotated")
    write("broken-exif.jpg", save(photo, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "ok:")
    more = [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for kind, suffix in (("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png")):
        write(f"animated.{suffix}", save(photo, kind, save_all=True, append_images=more), "ok:animated")
    write("pages.tif", save(photo, "TIFF", save_all=True, append_images=more), "ok:multipage")
    write("stereo.jpg", save(photo, "MPO", save_all=True, append_images=more), "ok:multipage")
    write("progressive.jpg", save(photo, "JPEG", progressive=True), "ok:")

    # Names.
    write("n02105855_2933.JPEG", png, "ok:mislabelled")
    write("no-extension", png, "ok:no_extension")
    write("UPPER.PNG", png, "ok:")
    write("größe-写真-😀.png", png, "ok:")
    write("many.dots.in.a.name.v1.2.png", png, "ok:")
    write("two  words.png", png, "ok:")
    write("-leading-dash.png", png, "ok:")
    write("new\nline and 'quotes\".png", png, "ok:")
    write(f"{'long' * 62}.png", png, "ok:")
    write("same.png", png, "ok:")
    write("same.jpg", jpg, "ok:")
    write("SAME.png", png, "ok:")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png)
    expected["caf\\xe9.png"] = "ok:"

    # No regular files.
    write("folder.jpg/inside.png", png, "ok:")
    links = {
        "link-inside.png": ("same.png", "ok:"),
        "link-outside.png": (str(Path(__file__).resolve()), "failed:link_outside_source"),
        "link-climbing.png": ("../" * 40 + "etc/passwd", "failed:link_outside_source"),
        "link-broken.png": ("nowhere.png", "failed:broken_link"),
        "link-loop.png": ("link-loop.png", "failed:broken_link"),
        "link-to-folder.png": ("folder.jpg", "failed:not_a_file"),
    }
    for name, (to, outcome) in links.items():
        (folder / name).symlink_to(to)
        expected[name] = outcome
    os.mkfifo(folder / "pipe.png")
    expected["pipe.png"] = "failed:not_a_file"
    write("unreadable.png", png, "ok:" if os.geteuid() == 0 else "failed:unreadable")
    (folder / "unreadable.png").chmod(0)

    for name in (".DS_Store", "._same.png", "Thumbs.db", "notes.txt", "__MACOSX/._same.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no sample")
    return expected


def photograph(side: int = SIDE) -> Image.Image:
    """A sharp colour photograph, ``side`` x ``side`` pixels, no two rows or columns alike."""
    with Image.open(Path(skimage_data.__file__).parent / "astronaut.png") as image:
        pixels = np.asarray(image.crop((128, 0, 384, 256)).resize((side, side)))
    return Image.fromarray(pixels)  # without what the file said beside its pixels


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(image, kind, exif=exif.tobytes())


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def png_file(width: int, height: int, depth: int, colour: int, raw: bytes) -> bytes:
    """A PNG with valid checksums, whether or not the pixels fit the header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def rgb16_png(image: Image.Image) -> bytes:
    rows = np.asarray(image).astype(">u2") * 257
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    return png_file(image.width, image.height, 16, 2, raw)


def jpeg_of_size(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG with another size in its frame header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def without_segment(data: bytes, marker: int) -> bytes:
    """The same JPEG without its first segment of a kind."""
    at = data.index(bytes([0xFF, marker]))
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def wide_profile() -> bytes:
    """An RGB colour profile that is not sRGB, out of one of scikit-image's photographs."""
    with Image.open(Path(skimage_data.__file__).parent / "rocket.jpg") as image:
        profile: bytes = image.info["icc_profile"]
    return profile
