"""The report's gallery: which samples it shows, and that its pictures are those of the manifests."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from manifests import rundir
from pipelines import evidence, gallery, images
from tests.report_fixture import png, write_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; nothing here changes it."""
    return write_run(tmp_path_factory.mktemp("report") / "run")


def test_chosen_samples_are_the_extremes_and_every_list_has_its_turn(finished: Path) -> None:
    found = evidence.read_evidence(rundir.read(str(finished)))
    chosen = gallery.choose(found, seed=1)
    severity, change = found.numbers("severity"), found.numbers("psnr_source")
    gain = found.numbers("truth_psnr_after") - found.numbers("truth_psnr_before")
    assert "most severe" in chosen[int(np.nanargmax(severity))]
    assert "most changed" in chosen[int(np.nanargmin(change))]
    assert "largest loss" in chosen[int(np.nanargmin(gain))] and "largest gain" in chosen[int(np.nanargmax(gain))]
    assert all(gain[i] < 0 for i, why in chosen.items() if "largest loss" in why)
    few = gallery.choose(found, seed=1, most=9)
    assert len(few) == 9 and len({name for why in few.values() for name in why}) >= 9
    assert gallery.choose(found, seed=1) == chosen != gallery.choose(found, seed=2)


def test_the_ten_with_the_lowest_identity_are_all_there(finished: Path) -> None:
    found = evidence.read_evidence(rundir.read(str(finished)))
    identity = found.numbers("identity_cosine")
    assert np.isfinite(identity).sum() > 10
    chosen = gallery.choose(found, seed=1)
    lowest = {i for i, why in chosen.items() if "lowest identity" in why}
    assert lowest == set(np.argsort(identity, kind="stable")[:10].tolist())
    restored = found.is_("status", "restored")
    accepted = [i for i, why in chosen.items() if "lowest identity of restored" in why]
    assert len(accepted) == 10 and restored[accepted].all()


def test_every_gate_that_refused_is_seen(finished: Path) -> None:
    found = evidence.read_evidence(rundir.read(str(finished)))
    gates = ["often"] * 40 + ["seldom"] + [None] * 19
    table = found.table.set_column(found.table.column_names.index("gate"), "gate", pa.array(gates))
    order = np.random.default_rng(0).permutation(41)
    turns = gallery._gates_in_turn(dataclasses.replace(found, table=table), order)
    assert 40 in turns[:2] and sorted(turns) == sorted(order)


def test_small_pictures_are_shown_without_loss(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    picture = gallery._pictures({"original": rgb}, gallery.MAX_SIDE)["original"]
    assert (picture.width, picture.height) == (48, 64)
    decoded = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))
    assert (np.asarray(decoded.convert("RGB")) == rgb).all()
    both = gallery._pictures({"original": np.zeros((300, 200, 3), np.uint8), "restored": rgb}, gallery.MAX_SIDE)
    assert {p.uri[:16] for p in both.values()} == {"data:image/jpeg;"}, "a pair is encoded in one way"
    assert max(both["original"].width, both["original"].height) == gallery.MAX_SIDE


def test_fixture_pictures_are_the_manifests_bytes(finished: Path) -> None:
    """The pictures on the page are those that offset and length in the manifests point to."""
    run = rundir.read(str(finished))
    found = evidence.read_evidence(run)
    (shown,) = gallery.load(run, found, {7: []}, 10**6)
    truth = (finished / "raw" / "truth" / f"{shown.row['key']}.png").read_bytes()
    pixels = {"truth": images.decode(truth).rgb}
    assert gallery._pictures(pixels, 256)["truth"] == shown.pictures["truth"]
    assert png(pixels["truth"]) == truth


@pytest.mark.parametrize(
    "metadata", ["[1]", "null", "no json", "[" * 100_000, '{"damage": 3}', None, '{"damage": null}']
)
def test_metadata_is_not_trusted(metadata: str | None) -> None:
    assert gallery._damage(metadata) in (None, "3")


def test_planted_damage_is_told_in_words() -> None:
    parameters = {"blur_sigma": [1.2345, 0.5], "jpeg_quality": None, "noise_sigma": 5.678}
    metadata = json.dumps({"damage": {"kind": "mixture", "parameters": parameters, "seed": 3}})
    assert gallery._damage(metadata) == "mixture: blur sigma 1.23 × 0.5, noise sigma 5.68"  # noqa: RUF001
    assert gallery._damage('{"damage": {"jpeg": 30}}') == "jpeg 30"
