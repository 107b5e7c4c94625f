"""FFHQ's alignment: its square against closed forms and against images that FFHQ's own script has aligned."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as skimage_data

from manifests import keys, rundir, shards
from manifests.verify import problems
from pipelines.align import crop_face, face_quad
from pipelines.cli import cli
from pipelines.faces import five_of_68, open_faces

Points = npt.NDArray[np.float64]

# Upright and symmetric: eyes 40 apart, the mouth 45 below them.
FACE = np.array([[80.0, 100], [120, 100], [100, 125], [85, 145], [115, 145]])


def turned(points: Points, degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0, 0)) -> Points:
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.asarray(points @ turn.T * scale + np.array(shift))


def in_68(five: Points) -> Points:
    """Sixty-eight landmarks whose eyes, nose and mouth are these; all others lie far off and must not matter."""
    points = np.full((68, 2), 1e4)
    ring = np.array([[-6, 0], [-2, -3], [2, -3], [6, 0], [2, 3], [-2, 3]], np.float64)
    points[36:42], points[42:48] = five[0] + ring, five[1] + ring
    points[30], points[48], points[54] = five[2:]
    return points


@pytest.mark.parametrize(
    ("mouth_below", "side"),
    [(45.0, 45 * 3.6), (44.0, 160.0), (10.0, 160.0), (90.0, 324.0)],  # 4 eye distances = 160, or 3.6 times the rest
)
def test_an_upright_face_gets_an_upright_square_of_the_stated_side(mouth_below: float, side: float) -> None:
    face = FACE.copy()
    face[3:, 1] = 100 + mouth_below
    left, right = 100 - side / 2, 100 + side / 2
    middle = 100 + 0.1 * mouth_below
    top, bottom = middle - side / 2, middle + side / 2
    np.testing.assert_allclose(face_quad(face), [[left, top], [left, bottom], [right, bottom], [right, top]])


@settings(max_examples=50, deadline=None)
@given(st.floats(-180, 180), st.floats(0.1, 20), st.floats(-500, 500), st.floats(-500, 500))
def test_the_square_turns_scales_and_moves_with_the_face(degrees: float, scale: float, x: float, y: float) -> None:
    face = FACE + np.array([[3, 1], [0, 2], [-4, 0], [1, 1], [5, -2]])
    expected = turned(face_quad(face), degrees, scale, (x, y))
    np.testing.assert_allclose(face_quad(turned(face, degrees, scale, (x, y))), expected, atol=1e-6)


def test_sixty_eight_landmarks_and_their_five_say_the_same() -> None:
    np.testing.assert_allclose(five_of_68(in_68(FACE)), FACE)
    np.testing.assert_allclose(face_quad(in_68(FACE)), face_quad(FACE))


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.zeros((4, 2)), np.zeros((5, 3))])
def test_landmarks_without_a_direction_are_refused(landmarks: Points) -> None:
    with pytest.raises(ValueError, match="landmarks"):
        face_quad(landmarks)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (35, 1.0), (-80, 0.4), (12, 2.2)])
def test_the_crop_shows_the_square_upright(degrees: float, scale: float) -> None:
    """A plane of colour is known everywhere: red grows along the face's x, green along its y, over the square."""
    face = turned(FACE, degrees, scale)
    face += 300 - face.mean(0)
    quad = face_quad(face)
    x, y = quad[3] - quad[0], quad[1] - quad[0]
    grid = np.stack(np.meshgrid(np.arange(600), np.arange(600)), -1) - quad[0]
    u, v = grid @ x / (x @ x), grid @ y / (y @ y)
    plane = np.stack([u, v, 0 * u + 0.5], -1) * 200 + 25
    crop = crop_face(np.clip(np.rint(plane), 0, 255).astype(np.uint8), face, 64, pad=False)
    at = (np.arange(64) + 0.5) / 64 * 200 + 25
    assert crop.padding == 0
    assert crop.side == pytest.approx(162 * scale) and crop.factor == pytest.approx(64 / (162 * scale))
    inner = slice(2, -2)  # Lanczos rings at the edge
    across = np.broadcast_to(at, (64, 64))
    np.testing.assert_allclose(crop.image[inner, inner, 0], across[inner, inner], atol=1.6)
    np.testing.assert_allclose(crop.image[inner, inner, 1], across.T[inner, inner], atol=1.6)


def test_padding_is_counted_and_leaves_the_photograph_alone() -> None:
    photograph = skimage_data.astronaut()
    face = FACE + np.array([120.0, 30.0])
    whole = crop_face(photograph, face, 128)
    assert whole.padding == 0
    cut = photograph[:, 180:]  # the square's left edge is at 139, its right one at 301
    share = (180 - 0.5 - (220 - 81)) / 162
    black = crop_face(cut, face - [180, 0], 128, pad=False)
    padded = crop_face(cut, face - [180, 0], 128)
    assert black.padding == padded.padding == pytest.approx(share, abs=0.01)
    edge = int(share * 128)
    assert black.image[:, : edge - 4].max() == 0
    assert padded.image[:, : edge - 4].min() > 0
    # A third of the way in from the border FFHQ's blur has ended; there all three are the photograph.
    inner = slice(edge + 45, None)
    for other in (black, padded):
        difference = np.abs(other.image[:, inner].astype(int) - whole.image[:, inner])
        assert difference.max() <= 2
    assert np.abs(padded.image[:, :2].astype(int) - np.median(cut[19:182, :121], (0, 1))).mean() < 60


def test_a_face_outside_the_photograph_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        crop_face(np.zeros((50, 50, 3), np.uint8), FACE + 1000)


def test_a_crop_repeats_to_the_byte_and_a_large_photograph_is_reduced_first() -> None:
    photograph = np.asarray(Image.fromarray(skimage_data.astronaut()).resize((2048, 2048)))
    face = turned(FACE, 5, 6.0)
    face += 1000 - face.mean(0)
    first, second = crop_face(photograph, face, 96), crop_face(photograph.copy(), face.copy(), 96)
    assert first.image.tobytes() == second.image.tobytes() and first.image.shape == (96, 96, 3)
    small = crop_face(np.asarray(Image.fromarray(photograph).reduce(4)), (face + 0.5) / 4 - 0.5, 96)
    assert np.abs(first.image.astype(int) - small.image).mean() < 2


def test_images_that_ffhqs_script_aligned_are_their_own_squares(data: Path) -> None:
    """Generated faces in FFHQ's alignment: landmarks scatter, but on the average the square is the image."""
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    model = open_faces("dlib", Path())
    assert model is not None
    quads = []
    with zipfile.ZipFile(data / "faces-1024.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith((".jpg", ".png")))[::5]
        for name in names:
            image = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB").reduce(2))
            if faces := model.detect(image):
                quads.append(face_quad(faces[0].landmarks) + 0.5)
    assert len(quads) >= 0.9 * len(names) >= 20
    square = np.array([[0, 0], [0, 512], [512, 512], [512, 0]])
    np.testing.assert_allclose(np.median(quads, 0), square, atol=5)
    assert np.abs(np.array(quads) - square).max() < 40


# -- ingest --align ---------------------------------------------------------------------------------------------------

NAMES = st.text("abAB01-_./ é", min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=12, unique=True), st.integers(1, 3))
def test_faces_keep_the_order_of_their_photographs_and_lead_back_to_them(names: list[str], count: int) -> None:
    photographs = sorted(keys.unique_keys([keys.photograph_stem(n) for n in names], names))
    of_all = [keys.face_key(key, i) for key in photographs for i in range(count)]
    assert of_all == sorted(set(of_all))
    assert [keys.photograph_key(key) for key in of_all[::count]] == photographs
    mixed = [key if i % 2 else keys.face_key(key, 0) for i, key in enumerate(photographs)]  # every other one failed
    assert mixed == sorted(set(mixed)) and [keys.photograph_key(key) for key in mixed] == photographs


def ingest(root: Path, source: Path, *more: str) -> rundir.Run:
    size = ["--set", "ingest.align_size=64", "--workers", "0"]
    arguments = ["ingest", "--dataset", "folder", "--source", str(source), "--run", str(root), *size, *more]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return rundir.read(str(root))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, two portraits in one photograph, a cup of coffee, and half a file."""
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    folder = tmp_path_factory.mktemp("photographs")
    astronaut = skimage_data.astronaut()[:300, 60:360]
    both = np.zeros((600, 900, 3), np.uint8)
    both[:, :600] = np.asarray(Image.fromarray(astronaut).resize((600, 600), Image.Resampling.BICUBIC))
    both[150:450, 600:] = astronaut
    Image.fromarray(astronaut).save(folder / "one.v2.jpg", quality=95)
    Image.fromarray(both).save(folder / "two-face000.png")
    Image.fromarray(skimage_data.coffee()).save(folder / "coffee.png")
    (folder / "half.jpg").write_bytes((folder / "one.v2.jpg").read_bytes()[:900])
    return folder


def test_every_face_becomes_a_sample_and_every_photograph_is_accounted_for(photographs: Path, tmp_path: Path) -> None:
    run = ingest(tmp_path / "run", photographs, "--align", "ffhq", "--faces", "dlib")
    assert [p for p in problems(run, hashes=True) if p.startswith("source")] == []  # nothing was restored yet
    assert run.config["faces"]["model"] == "dlib"
    (shard,) = run.shards()
    rows = shards.read_rows(run.url("source"), shard).to_pylist()
    assert {keys.photograph_key(r["key"]).split("-")[0] for r in rows} == {"coffee", "half", "one_v2", "two_face000"}
    by_key = {r["key"]: r for r in rows}
    assert by_key["coffee"]["status"] == "failed" and by_key["coffee"]["reason"] == "no_face"
    assert by_key["half"]["reason"].startswith("truncated")
    faces = [r for r in rows if r["status"] == "kept_original"]
    assert len(faces) == 3 and len(rows) == 5
    assert len({r["group"] for r in faces}) == 2  # two of them are of one photograph
    for row in faces:
        photo = json.loads(row["metadata"])["photo"]
        assert (row["width"], row["height"], row["format"]) == (64, 64, "PNG")
        assert photo["face_model"] == "dlib" and photo["source_name"] == row["source_name"]
        assert photo["sha256"] == hashlib.sha256((photographs / row["source_name"]).read_bytes()).hexdigest()
        assert photo["factor"] == pytest.approx(64 / photo["side"], abs=1e-3) and 0 <= photo["padding"] < 0.5
        assert row["upscale_factor"] == pytest.approx(max(1, photo["factor"]), abs=1e-3)
    sides = [json.loads(r["metadata"])["photo"]["side"] for r in faces]
    assert sides[1] == pytest.approx(2 * sides[2], rel=0.1)  # largest first, the second at half the size
    aside = pq.read_metadata(tmp_path / "run/source" / f"{shard}.parquet").num_rows
    assert aside == 5 and (tmp_path / "run/failures" / f"source-{shard}.tar").exists()


def test_the_same_photographs_give_the_same_bytes(photographs: Path, tmp_path: Path) -> None:
    runs = [ingest(tmp_path / name, photographs, "--align", "ffhq", "--faces", "dlib") for name in ("a", "b")]
    tars = [Path(r.root, "source", "folder-000000.tar").read_bytes() for r in runs]
    assert tars[0] == tars[1]


def test_faces_that_are_too_small_are_left_out(photographs: Path, tmp_path: Path) -> None:
    least = ("--set", "ingest.align_min_side=250")
    run = ingest(tmp_path / "run", photographs, "--align", "ffhq", "--faces", "dlib", *least)
    rows = shards.read_rows(run.url("source"), run.shards()[0]).to_pylist()
    assert sum(r["status"] == "kept_original" for r in rows) == 1
    assert [p for p in problems(run, hashes=True) if p.startswith("source")] == []  # nothing was restored yet


def test_a_photograph_that_lost_its_faces_is_noticed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.align.cut_faces", lambda *_: [])
    run = ingest(tmp_path / "run", photographs, "--align", "ffhq", "--faces", "dlib")
    assert any("photographs of the listing" in problem for problem in problems(run))


@pytest.mark.parametrize("more", [("--faces", "off"), ("--faces", "facexlib"), ("--faces", "dlib", "--truth", "x")])
def test_what_cannot_be_aligned_is_said_before_anything_is_written(more: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ["ingest", "--dataset", "folder", "--source", str(tmp_path), "--run", str(tmp_path / "run")]
    environment = {"IDM_WEIGHTS": str(tmp_path)}
    result = CliRunner().invoke(cli, [*arguments, "--align", "ffhq", *more], env=environment)
    assert result.exit_code == 2 and "Error" in result.output
    assert not (tmp_path / "run").exists()
