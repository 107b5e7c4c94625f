"""Evaluating one set of images against another: figures by name, what is left out and why, and the command."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli import cli
from pipelines.evaluate import as_text, evaluate
from pipelines.feature_sets import Sampling
from pipelines.image_sets import open_images
from pipelines.metrics.extrapolation import at_infinity
from pipelines.metrics.frechet import frechet_distance, statistics_of
from pipelines.metrics.kernel import squared_mmd
from tests.colour_detector import ColourDetector
from tests.photographs import blurred, crops, png

NEIGHBOURS = {"precision", "recall", "density", "coverage"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """60 photographs, and 50 others darkened."""
    here = tmp_path_factory.mktemp("sets")
    images = crops(110, side=40)
    for name, some in (("sharp", images[:60]), ("dark", [pixels // 2 for pixels in images[60:]])):
        (here / name).mkdir()
        for i, pixels in enumerate(some):
            (here / name / f"{i:02d}.png").write_bytes(png(pixels))
    return here / "sharp", here / "dark"


def colours(folder: Path) -> np.ndarray:
    return ColourDetector()(np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))]))


def test_all_figures_have_names_and_are_those_of_the_features(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sharp, dark = folders
    found = evaluate(str(dark), str(sharp), ColourDetector, cache=tmp_path)
    figures, a, b = found["figures"], colours(dark), colours(sharp)
    expected = {"FD-colour", "FD-colour_infinity", "crop-FD-colour", "KD-colour", "KD-colour_std"} | NEIGHBOURS
    assert set(figures) == expected and found["left_out"] == {}
    assert figures["FD-colour"] == pytest.approx(frechet_distance(statistics_of(a), statistics_of(b)), rel=1e-6)
    at_all = at_infinity(a, statistics_of(b)).value
    assert figures["FD-colour_infinity"] == pytest.approx(at_all, rel=1e-6) != figures["FD-colour"]
    assert abs(figures["KD-colour"] - squared_mmd(a, b)) < figures["KD-colour_std"]
    assert found["samples"]["images"] == 50 and found["reference"]["images"] == 60
    assert json.loads(json.dumps(found)) == found
    text = "\n".join(as_text(found))
    assert all(name in text for name in figures)


def test_a_set_against_itself(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sharp, _ = folders
    figures = evaluate(str(sharp), str(sharp), ColourDetector, cache=tmp_path)["figures"]
    assert figures["FD-colour"] < 1e-9 and figures["crop-FD-colour"] < 1e-9
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1


def test_damage_that_is_gone_when_reduced_shows_in_crops(tmp_path: Path) -> None:
    """What crops are for: a detector that reduces images does not see whether they are sharp at their own size."""

    class Fine(ColourDetector):
        """Differences of neighbours, of the image reduced to 16 px as a detector reduces it."""

        def __call__(self, images: np.ndarray) -> np.ndarray:
            step = images.shape[1] // 16
            reduced = images[:, : 16 * step, : 16 * step].reshape(len(images), 16, step, 16, step, 3).mean(axis=(2, 4))
            return super().__call__(np.abs(np.diff(reduced, axis=1)).astype(np.uint8))

    for name in ("sharp", "soft"):
        (tmp_path / name).mkdir()
        for i, pixels in enumerate(crops(40, side=64)):
            (tmp_path / name / f"{i:02d}.png").write_bytes(png(pixels if name == "sharp" else blurred(pixels, 1.0)))
    found = evaluate(str(tmp_path / "soft"), str(tmp_path / "sharp"), Fine, cache=tmp_path / "cache")["figures"]
    assert found["crop-FD-colour"] > 3 * found["FD-colour"]


def test_what_cannot_be_measured_is_left_out_with_the_reason(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sharp, dark = folders
    few = open_images(str(dark))
    few = replace(few, entries=few.entries[:5])
    found = evaluate(few, str(sharp), ColourDetector, sampling=Sampling(crop=41), cache=tmp_path)
    assert set(found["figures"]) == {"FD-colour", "KD-colour", "KD-colour_std"}
    assert set(found["left_out"]) == {"FD-colour_infinity", "crop-FD-colour"} | NEIGHBOURS
    assert found["left_out"]["FD-colour_infinity"] == "a line needs 48 samples, there are 5"
    assert found["left_out"]["crop-FD-colour"] == "65 of 65 images are smaller than a crop of 41 px"
    assert "left out: neighbours need 6 images" in "\n".join(as_text(found))


def test_files_that_cannot_be_read_are_counted_and_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted(folders[1].glob("*.png")):
            archive.write(path, path.name)
        archive.writestr("zz.png", b"no image")
    found = evaluate(str(tmp_path / "x.zip"), str(folders[0]), ColourDetector, cache=tmp_path / "cache")
    assert (found["samples"]["images"], found["samples"]["failed"]) == (50, 1)
    assert any("1 more cannot be read; the first: zz.png" in line for line in as_text(found))


def test_images_without_a_crop_are_left_out_of_that_distance_and_counted(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for i, path in enumerate(sorted(folders[1].glob("*.png"))):
        with Image.open(path) as image:
            (image.crop((0, 0, 30, 30)) if i < 2 else image).save(tmp_path / path.name)
    found = evaluate(str(tmp_path), str(folders[0]), ColourDetector, sampling=Sampling(crop=32), cache=tmp_path / "c")
    assert found["samples"]["without_crop"] == 2 and found["reference"]["without_crop"] == 0
    assert found["figures"]["crop-FD-colour"] > 0
    assert any("2 are too small for a crop" in line for line in as_text(found))
    assert evaluate(str(tmp_path), str(folders[0]), ColourDetector, sampling=Sampling(crops=0), cache=tmp_path / "c")[
        "left_out"
    ] == {"crop-FD-colour": "no crops were asked for"}


def test_the_command_measures_fd_effnet_and_never_calls_it_fid(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sharp, dark = map(str, folders)
    arguments = ["evaluate", dark, "--reference", sharp, "--side", "32", "--crop", "32", "--cache", str(tmp_path)]
    environment = {"IDM_WEIGHTS": str(tmp_path / "none")}
    result = CliRunner().invoke(cli, [*arguments, "--json"], env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["detector"] == "efficientnet-lite0-32"
    assert {"FD-EffNet", "crop-FD-EffNet", "KD-EffNet"} < set(found["figures"])
    assert not any("FID" in name or "KID" in name for name in (*found["figures"], *found["left_out"]))
    assert found["figures"]["FD-EffNet"] > 0
    again = CliRunner().invoke(cli, arguments, env=environment, catch_exceptions=False)
    assert f"FD-EffNet              {found['figures']['FD-EffNet']:.6g}" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--detector", "inception"], "inception-2015-12-05.pt is missing"),
        (["--side", "100"], "multiple of 32"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(
    arguments: list[str], named: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ["evaluate", str(folders[0]), "--reference", str(folders[1]), "--cache", str(tmp_path / "c"), *arguments]
    result = CliRunner().invoke(cli, command, env={"IDM_WEIGHTS": str(tmp_path)})
    assert result.exit_code in (1, 2) and named in result.stderr
    assert not (tmp_path / "c").exists()
