"""FFHQ's alignment: an oriented square around a face, cut out of its photograph (Karras et al., arXiv 1710.10196,
appendix C, as FFHQ's own script applies it)."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from manifests import keys
from manifests.errors import SampleError
from pipelines import images
from pipelines.datasets import Entry
from pipelines.datasets.ffhq import upscale_factor
from pipelines.faces.face import Bytes3, FaceModel
from pipelines.faces.landmarks import five_of_68

if TYPE_CHECKING:
    from PIL import Image

#: FFHQ's own size, px.
SIZE: Final = 1024
#: Of one photograph, the largest; what keys have room for.
MAX_FACES: Final = 1000
#: The square is sampled this many times as finely as it is put out, and then reduced.
_SUPERSAMPLING: Final = 4
#: In shares of the square's side: the border that is kept around it, the mirrored border where the photograph ends
#: within that, and the blur of the latter.
_BORDER, _MIRRORED, _BLUR = 0.1, 0.3, 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One aligned face."""

    image: Bytes3  # size size 3
    quad: npt.NDArray[np.float64]  # 4 2, pixels of the photograph: where it was
    side: float  # of the quad, pixels of the photograph
    padding: float  # share of the crop that lies outside the photograph, 0-1

    @property
    def factor(self) -> float:
        """Crop pixels per pixel of the photograph; above 1, the face was enlarged."""
        return len(self.image) / self.side


def face_quad(landmarks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The square of a face: its corners top left, bottom left, bottom right, top right, like FFHQ's ``face_quad``.

    With x' from eye to eye and y' from the middle of the mouth's corners to the middle of the eyes, the square is
    centred a tenth of y' below the eyes, its axis is the mean direction of x' and of y' turned by a right angle, and
    its side is the larger of 4 |x'| and 3.6 |y'|.

    Args:
        landmarks: 68 x 2 (iBUG's order, as dlib gives them) or 5 x 2 (eyes, nose, corners of the mouth), pixels.

    Returns:
        4 x 2, pixels; (0, 0) is the middle of the top left pixel, as it is for the landmarks.

    Raises:
        ValueError: another number of landmarks; or they are all in one place.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape not in ((5, 2), (68, 2)):
        raise ValueError(f"5 x 2 or 68 x 2 landmarks are needed, not {' x '.join(map(str, points.shape))}")
    left_eye, right_eye, _, left_mouth, right_mouth = five_of_68(points) if len(points) == 68 else points
    eyes = (left_eye + right_eye) / 2
    across, down = right_eye - left_eye, (left_mouth + right_mouth) / 2 - eyes
    axis = across + np.array([down[1], -down[0]])
    length = float(np.hypot(*axis))
    half = max(2.0 * float(np.hypot(*across)), 1.8 * float(np.hypot(*down)))
    if length < 1e-6 or half < 1e-6:
        raise ValueError("the landmarks are all in one place: they have no direction")
    x = axis / length * half
    y = np.array([-x[1], x[0]])
    centre = eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def crop_face(photograph: Bytes3, landmarks: npt.NDArray[np.float64], size: int = SIZE, *, pad: bool = True) -> Crop:
    """Cut one face out of its photograph and turn it upright.

    Where the square reaches beyond the photograph, that is continued by its mirror image, which is blurred the more
    the further out, and fades to the photograph's median colour: FFHQ's way. ``Crop.padding`` says how much of the
    crop is such invention.

    Args:
        photograph: H x W x 3, uint8, upright.
        landmarks: as ``face_quad`` takes them.
        size: side of the crop, px.
        pad: False leaves black what lies outside.

    Raises:
        ValueError: the landmarks have no direction; or they lie outside the photograph altogether.
    """
    from PIL import Image

    quad = face_quad(landmarks)
    side = float(np.hypot(*(quad[3] - quad[0])))
    height, width = photograph.shape[:2]
    padding = _share_outside(quad, width, height)
    if padding >= 1:
        raise ValueError("the face lies outside the photograph")
    image, corners = Image.fromarray(photograph), quad + 0.5  # from here on 0 is the left edge
    reduction = math.floor(side / size / 2)
    if reduction > 1:
        smaller = (max(1, round(width / reduction)), max(1, round(height / reduction)))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
        corners = corners * (smaller[0] / width, smaller[1] / height)
    corners_side = float(np.hypot(*(corners[3] - corners[0])))
    border = max(round(corners_side * _BORDER), 3)
    low, high = np.floor(corners.min(0)).astype(int) - border, np.ceil(corners.max(0)).astype(int) + border
    inside = (max(low[0], 0), max(low[1], 0), min(high[0], image.width), min(high[1], image.height))
    beyond = [max(-low[0], 0), max(-low[1], 0), max(high[0] - image.width, 0), max(high[1] - image.height, 0)]
    image, corners = image.crop(inside), corners - inside[:2]
    if pad and max(beyond) > 4:  # FFHQ's tolerance
        margins = np.maximum(beyond, round(corners_side * _MIRRORED))
        image, corners = _mirrored(image, margins, corners_side * _BLUR), corners + margins[:2]
    fine = size * _SUPERSAMPLING
    image = image.transform((fine, fine), Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BILINEAR)
    aligned = image.resize((size, size), Image.Resampling.LANCZOS)
    return Crop(np.asarray(aligned), quad, side, padding)


def cut_faces(
    entry: Entry, data: bytes, model: FaceModel, size: int, min_side: int, max_pixels: int
) -> list[tuple[Entry, bytes]]:
    """Every face of a photograph as an entry and a PNG of its own, largest first.

    Keys are ``keys.face_key`` of the photograph's; the group is the photograph. The metadata gain the object ``photo``:
    its name, bytes' SHA-256 and decoder's notes, the face model, ``face_quad`` and its side (px of the photograph), the
    crop factor, and the share of padding.

    Args:
        entry: the photograph.
        data: its file.
        model: finds the faces.
        size: side of the crops, px.
        min_side: a face whose square is smaller in the photograph is left out, px.
        max_pixels: as ``images.decode`` takes it.

    Raises:
        SampleError: it cannot be decoded; or ``no_face``: it shows none that is large enough.
    """
    decoded = images.decode(data, max_pixels=max_pixels)
    known = json.loads(entry.metadata) if entry.metadata else {}
    photo = {
        "source_name": entry.source_name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "notes": list(decoded.notes),
        "face_model": model.name,
    }
    found = model.detect(decoded.rgb)
    cut: list[tuple[Entry, bytes]] = []
    for face in found[:MAX_FACES]:
        quad = face_quad(face.landmarks)
        if math.dist(quad[0], quad[3]) < min_side or _share_outside(quad, decoded.width, decoded.height) >= 1:
            continue
        crop = crop_face(decoded.rgb, face.landmarks, size)
        where = {
            "face_quad": np.round(crop.quad, 3).tolist(),
            "side": round(crop.side, 3),
            "factor": round(crop.factor, 6),
            "padding": round(crop.padding, 6),
        }
        part = replace(
            entry,
            key=keys.face_key(entry.key, len(cut)),
            group=entry.group or entry.key,
            upscale_factor=upscale_factor(crop.quad.tolist(), size),
            pixel_md5=None,
            metadata=json.dumps(known | {"photo": photo | where}, sort_keys=True),
        )
        cut.append((part, images.encode_png(crop.image)))
    if not cut:
        raise SampleError("no_face", f"{len(found)} found, none of {min_side} px" if found else "")
    return cut


def _share_outside(quad: npt.NDArray[np.float64], width: int, height: int) -> float:
    """Share of the square that lies outside the image, counted at 256 x 256 points of it."""
    at = (np.arange(256) + 0.5) / 256
    points = quad[0] + at[:, None, None] * (quad[3] - quad[0]) + at[None, :, None] * (quad[1] - quad[0])
    inside = ((points >= -0.5) & (points <= np.array([width, height]) - 0.5)).all(-1)
    return 1.0 - float(inside.mean())


def _mirrored(image: Image.Image, margins: npt.NDArray[np.int64], sigma: float) -> Image.Image:
    """The image with mirrored margins (left, top, right, bottom; px), ever more blurred towards their outer edges and
    in the end of the median colour."""
    from PIL import Image, ImageFilter

    left, top, right, bottom = (int(m) for m in margins)
    padded = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), "reflect")
    blurred = np.asarray(Image.fromarray(padded).filter(ImageFilter.GaussianBlur(sigma)), np.float32)
    height, width = padded.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    # 1 at the outer edge, 0 where the photograph begins, below 0 within it.
    out_x = 1 - np.minimum(x / left, x[::-1] / right)
    out_y = 1 - np.minimum(y / top, y[::-1] / bottom)
    outness = np.maximum(out_x[None, :], out_y[:, None])[..., None]
    median = np.median(padded, (0, 1)).astype(np.float32)
    result = padded.astype(np.float32)
    result += (blurred - result) * np.clip(outness * 3 + 1, 0, 1)
    result += (median - result) * np.clip(outness, 0, 1)
    return Image.fromarray(np.clip(np.rint(result), 0, 255).astype(np.uint8))
