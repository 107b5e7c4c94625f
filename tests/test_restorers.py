"""Restorers of others: what they are handed, what is believed of them, how they are pinned, and a run with one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from idm_core import load_restorer
from manifests import rundir, shards
from manifests.errors import ConfigError
from manifests.verify import problems
from pipelines.restorers import Photograph, digest, file_of, open_restorer
from pipelines.restorers.by_severity import BySeverity
from tests.command_line import curate
from tests.photographs import blurred, crops, write_folder

Make = Callable[[Photograph, str], Photograph | None]

UNSHARP = """
import numpy as np
from PIL import Image, ImageFilter

class Unsharp:
    def __init__(self, device):
        assert device in ("cpu", "cuda")

    def restore(self, images, keys):
        return [np.asarray(Image.fromarray(i).filter(ImageFilter.UnsharpMask(1.5, 150, 0))) for i in images]

class Failing(Unsharp):
    def restore(self, images, keys):
        if any(i[0, 0, 0] % 4 == 0 for i in images):
            raise OSError("no more of these")
        return super().restore(images, keys)

class WithWeights(Unsharp):
    sha256 = "of the weights"
"""


class Listed:
    """A model that notes what it is handed."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.seen: list[str] = []

    def restore(self, images: Sequence[Photograph], keys: Sequence[str]) -> list[Photograph | None]:
        self.seen += keys
        return [self.make(image, key) for image, key in zip(images, keys, strict=True)]


def by_severity(make: Make) -> tuple[BySeverity, Listed]:
    model = Listed(make)
    return BySeverity(model, "0" * 64, load_restorer("idm-64")), model


@pytest.fixture(scope="module")
def photos() -> list[Photograph]:
    """A damaged photograph, an undamaged one, and a damaged one of another size."""
    good = crops(12)
    return [blurred(good[2], 1.5), good[5], blurred(good[8], 1.5)[:50, :41]]


KEYS = ["a", "b", "c"]


def test_an_undamaged_photograph_is_never_handed_over(photos: list[Photograph]) -> None:
    restorer, model = by_severity(lambda image, key: image + 1)
    results = restorer.restore(photos, KEYS)
    assert model.seen == ["a/1", "c/1"]
    assert results[1].image is photos[1] and (results[1].passes, results[1].stop) == (0, "clean")
    assert [r.passes for r in results] == [r.evaluations for r in results] == [1, 0, 1]
    assert restorer.restore(photos, KEYS, threshold=0.0)[1].passes == 1
    assert restorer.restore(photos, KEYS, threshold=1.0)[0].passes == 0


def test_the_severity_is_idms_before_and_after(photos: list[Photograph]) -> None:
    reader = load_restorer("idm-64")
    restorer, _ = by_severity(lambda image, key: np.flip(image, 1).copy())
    for image, result in zip(photos, restorer.restore(photos, KEYS, threshold=0.0), strict=True):
        assert result.severity == reader.severity([image])[0]
        assert result.severity_after == reader.severity([image[:, ::-1].copy()])[0]
        assert np.array_equal(result.image, image[:, ::-1]) and result.consistency < 40
    assert restorer.config.threshold == reader.config.threshold


def test_it_may_decline_and_it_may_write_to_what_it_is_handed(photos: list[Photograph]) -> None:
    def declining(image: Photograph, key: str) -> Photograph | None:
        image[:] = 0
        return None

    before = [image.copy() for image in photos]
    restorer, _ = by_severity(declining)
    results = restorer.restore(photos, KEYS, passes=3)
    assert [r.stop for r in results] == ["declined", "clean", "declined"]
    assert all(r.passes == 0 and np.array_equal(r.image, b) for r, b in zip(results, before, strict=True))


def test_further_passes_have_keys_of_their_own_and_the_last_good_one_stays(photos: list[Photograph]) -> None:
    good = crops(12)
    better = [blurred(good[2], 0.8), blurred(good[2], 2.5)]
    restorer, model = by_severity(lambda image, key: better[int(key[-1]) - 1])
    result = restorer.restore(photos[:1], ["a"], passes=5, threshold=0.0)[0]
    assert model.seen == ["a/1", "a/2"] and np.array_equal(result.image, better[0])
    assert (result.passes, result.evaluations, result.stop) == (1, 2, "severity_rose")


def test_the_first_candidate_is_for_the_gates_however_bad_it_is(photos: list[Photograph]) -> None:
    restorer, _ = by_severity(
        lambda image, key: image ^ np.random.default_rng(0).integers(0, 128, image.shape, np.uint8)
    )
    result = restorer.restore(photos[:1], ["a"])[0]
    assert result.passes == 1 and result.severity_after > result.severity and math.isfinite(result.consistency)


def test_what_a_model_raises_or_returns_amiss_is_one_named_error(photos: list[Photograph]) -> None:
    def raising(image: Photograph, key: str) -> Photograph:
        raise OSError("disk")

    with pytest.raises(RuntimeError, match="Listed raised OSError: disk"):
        by_severity(raising)[0].restore(photos, KEYS)
    with pytest.raises(RuntimeError, match="returned a list"):
        by_severity(lambda image, key: image.tolist())[0].restore(photos, KEYS)
    restorer, model = by_severity(lambda image, key: image)
    model.restore = lambda images, keys: [images[0]]  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="1 images for 2"):
        restorer.restore(photos, KEYS)
    with pytest.raises(ValueError, match="3 images but 1 keys"):
        restorer.restore(photos, ["a"])
    with pytest.raises(ValueError, match="only IDM has steps"):
        restorer.restore(photos, KEYS, steps=4)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, importable here and by processes that are started from here."""
    folder = tmp_path / "code"
    folder.mkdir()
    path = folder / f"models_{tmp_path.name.replace('-', '_')}.py"  # a name of its own: modules stay imported
    path.write_text(UNSHARP)
    monkeypatch.syspath_prepend(folder)
    return path


def test_a_class_is_pinned_by_its_module_and_by_what_it_says_it_loads(module: Path) -> None:
    name, found = f"python:{module.stem}", hashlib.sha256(module.read_bytes()).hexdigest()
    assert file_of(f"{name}:Unsharp") == module and digest(f"{name}:Unsharp") == found
    both = hashlib.sha256(f"{found} of the weights".encode()).hexdigest()
    assert digest(f"{name}:WithWeights") == both == open_restorer(f"{name}:WithWeights").model_sha256


def test_finding_a_class_does_not_run_its_module(module: Path) -> None:
    module.write_text("raise SystemExit('it ran')")
    assert file_of(f"python:{module.stem}:Unsharp") == module


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("idm-9000", "idm-64"),
        ("nowhere/mine.safetensors", "no checkpoint"),
        ("spandrel:nowhere/gan.pth", "nowhere/gan.pth"),
        ("python:no_such_module:Mine", "PYTHONPATH"),
        ("python:no_such_package.models:Mine", "no_such_package"),
        ("python:math", "python:module:Class"),
        ("python:os.path; import evil:Mine", "python:module:Class"),
        ("python:json:Mine", "no class Mine"),
    ],
)
def test_what_cannot_be_a_restorer_is_said(name: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        open_restorer(name)


def run(source: Path, root: Path, restorer: str, *more: object, code: int = 0) -> str:
    arguments = ["run", "--dataset", "folder", "--source", source, "--run", root, "--shard-size", 6, "--workers", 0]
    return curate(*arguments, "--until", "select", "--restorer", restorer, *more, code=code)


def rows(root: Path) -> list[dict[str, object]]:
    found = rundir.read(str(root))
    return [row for s in found.shards() for row in shards.read_rows(found.url("restored/round1"), s).to_pylist()]


def hashes(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.glob("restored/round1/*")}


def test_a_run_with_a_class_is_pinned_measured_and_resumed(module: Path, tmp_path: Path) -> None:
    source, root, name = write_folder(tmp_path / "in", 12), tmp_path / "run", f"python:{module.stem}:Unsharp"
    run(source, root, name)
    stored = rundir.read(str(root)).config["restore"]
    assert stored["restorer"] == name and stored["sha256"] == hashlib.sha256(module.read_bytes()).hexdigest()
    assert (stored["severity"], stored["severity_sha256"]) == ("idm-64", digest("idm-64"))
    found = rows(root)
    candidates = [r for r in found if r["status"] == "restored"]
    assert 3 <= len(candidates) < len(found) == 12
    assert all(r["severity"] >= 0.3 and r["severity_after"] is not None and r["passes"] == 1 for r in candidates)  # type: ignore[operator]
    assert all(r["passes"] == 0 and r["reason"] == "clean" for r in found if r["status"] == "kept_original")
    before = hashes(root)
    (root / "restored/round1/folder-000001.json").unlink()
    curate("restore", root, "--workers", 0)
    assert hashes(root) == before
    curate("pack", root, "--workers", 0)
    assert list(problems(rundir.read(str(root)), hashes=True)) == []

    module.write_text(UNSHARP.replace("150", "200"))
    assert "restore.sha256" in run(source, root, name, code=1)  # another class in the same directory
    assert "restore.sha256" in curate("restore", root, "--workers", 0, code=2)
    curate("select", root)  # deciding needs no restorer


def test_actors_run_the_class_and_give_the_same_bytes(tmp_path: Path, local_ray: None) -> None:
    source, name = write_folder(tmp_path / "in", 12), "python:tests.benchmarks.two_restorers:BlurThenSharpen"
    run(source, tmp_path / "here", name)
    run(source, tmp_path / "there", name, "--workers", 2)
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")


def test_a_model_that_fails_on_some_costs_those_alone(module: Path, tmp_path: Path) -> None:
    source, root = write_folder(tmp_path / "in", 18), tmp_path / "run"
    run(source, root, f"python:{module.stem}:Failing", "--set", "restore.max_failed=1", "--set", "restore.threshold=0")
    found = rows(root)
    failed = [r["reason"] for r in found if r["status"] == "failed"]
    assert 0 < len(failed) < 18 and set(failed) == {"restorer_error: Failing raised OSError: no more of these"}
    assert sum(r["status"] == "restored" for r in found) == 18 - len(failed)


@pytest.mark.parametrize(
    ("restorer", "setting", "said"),
    [
        ("python:{}:Unsharp", "restore.steps=4", "only IDM has steps"),
        ("python:{}:Unsharp", "restore.severity=python:a:B", "only IDM reads a severity"),
        ("python:{}:Unsharp", f"restore.sha256={'a' * 64}", "the SHA-256 of python"),
        ("python:{}:Unsharp", f"restore.severity_sha256={'a' * 64}", "the SHA-256 of idm-64"),
        ("idm-64", "restore.severity=idm-64", "reads its own"),
    ],
)
def test_settings_without_effect_are_refused(
    restorer: str, setting: str, said: str, module: Path, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "in", 1)
    output = run(source, tmp_path / "run", restorer.format(module.stem), "--set", setting, code=2)
    assert said in output and not (tmp_path / "run").exists()
