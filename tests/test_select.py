"""Decisions: each status for its reason, the first gate that fails is named, and unmeasured is not condemned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import rundir, schema, shards
from manifests.errors import ConfigError
from pipelines.select import (
    QUANTITIES,
    Gate,
    Policy,
    best_of_groups,
    decide,
    load_policy,
    quality_rank,
    select,
    splitter,
)

GATES = (Gate(quantity="severity_drop", min=0.1), Gate(quantity="noise_rise", max=1.0))


def decided(policy: Policy, duplicate: dict[str, Any] | None = None, **evidence: Any) -> dict[str, Any]:
    """One sample through ``decide``; by default a candidate that passes."""
    row: dict[str, Any] = {"key": "k", "shard": "s-000000", "source_name": "k.png"}
    place = {"ext": "jpg", "width": 64, "height": 48, "offset": 512, "nbytes": 10, "output_sha256": "source"}
    status, best = evidence.pop("status", "restored"), evidence.pop("best", None)
    source = row | place | {"status": "failed" if status == "failed" else "kept_original"}
    source |= {"label": 1, "noise_sigma": 2.0, "sharpness": 0.5, "exposure": 0.5}
    candidate = row | place | {"ext": "png", "offset": 1024, "nbytes": 20, "output_sha256": "candidate"}
    restored = candidate | {"status": status, "severity": 0.5, "severity_after": 0.2, "after_noise_sigma": 1.0}
    view = decide(
        schema.table_from_rows([source], schema.SOURCE),
        schema.table_from_rows([restored | evidence], schema.RESTORED),
        {"k": duplicate} if duplicate else {},
        policy,
        best,
    )
    (verdict,) = view.to_pylist()
    return dict(verdict)


def test_a_candidate_that_passes_is_taken_with_its_smallest_margin() -> None:
    row = decided(Policy(name="p", gates=GATES))
    assert (row["status"], row["origin"], row["output_sha256"]) == ("restored", "restored", "candidate")
    assert (row["ext"], row["offset"], row["nbytes"], row["label"]) == ("png", 1024, 20, 1)
    assert row["margin"] == pytest.approx(0.2) and row["gate"] is None


@pytest.mark.parametrize(
    ("evidence", "gate", "margin"),
    [
        ({"severity_after": 0.45}, "severity_drop", -0.05),
        ({"after_noise_sigma": 5.0}, "noise_rise", -2.0),
        ({"severity_after": 0.45, "after_noise_sigma": 5.0}, "severity_drop", -0.05),
    ],
)
def test_the_first_gate_that_fails_is_the_reason(evidence: dict[str, float], gate: str, margin: float) -> None:
    row = decided(Policy(name="p", gates=GATES, damaged="restore_or_keep"), **evidence)
    assert (row["status"], row["gate"], row["reason"]) == ("rejected", gate, f"gate_{gate}")
    assert row["margin"] == pytest.approx(margin, abs=1e-6)
    assert (row["origin"], row["output_sha256"], row["offset"]) == ("source", "source", 512)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ({"severity_after": 0.5}, "gate_severity_drop"),
        ({"status": "kept_original", "reason": "severity_rose"}, "severity_rose"),
        ({"status": "kept_original", "reason": "declined"}, "declined"),
    ],
)
def test_what_is_damaged_and_not_restored_leaves_if_the_policy_says_so(evidence: dict[str, Any], reason: str) -> None:
    stays = decided(Policy(name="p", gates=GATES, damaged="restore_or_keep"), **evidence)
    assert (stays["origin"], stays["reason"]) == ("source", reason)
    for damaged, why in (("restore_or_drop", reason), ("drop", "damaged")):
        leaves = decided(Policy.model_validate({"name": "p", "gates": GATES, "damaged": damaged}), **evidence)
        assert (leaves["status"], leaves["reason"]) == ("rejected", why)
        assert leaves["origin"] is leaves["offset"] is leaves["output_sha256"] is None


def test_what_is_damaged_leaves_with_a_good_candidate_too_if_the_policy_says_so() -> None:
    row = decided(load_policy("filter"))
    assert (row["status"], row["reason"], row["gate"], row["origin"]) == ("rejected", "damaged", None, None)
    assert decided(load_policy("filter"), status="kept_original", reason="clean")["origin"] == "source"


def test_what_is_not_damaged_never_leaves_for_not_being_restored() -> None:
    for policy in (
        Policy(name="p", gates=GATES, damaged="drop"),
        Policy(name="p", gates=GATES, damaged="drop", min_severity=0.9),
    ):
        assert decided(policy, status="kept_original", reason="clean")["origin"] == "source"
    assert decided(policy)["reason"] == "below_min_severity" and decided(policy)["origin"] == "source"


def test_what_could_not_be_measured_is_not_condemned() -> None:
    row = decided(Policy(name="p", gates=GATES), after_noise_sigma=None)
    assert row["status"] == "restored"


@pytest.mark.parametrize(
    ("evidence", "gate"),
    [
        ({"identity_cosine": 0.3, "same_person": 0.4}, "identity_margin"),
        ({"landmark_error": 0.4}, "landmark_error"),
        ({"redegradation": 18.0}, "redegradation"),
        ({"psnr_source": 12.0}, "psnr_source"),
        ({"colour_drift": 5.0}, "colour_drift"),
        ({"severity_after": 0.6}, "severity_drop"),
        ({"after_sharpness": 0.1}, "sharpness_gain"),
        ({"after_noise_sigma": 9.0}, "noise_rise"),
        ({"identity_cosine": 0.3, "same_person": 0.4, "redegradation": 18.0, "severity_after": 0.6}, "identity_margin"),
    ],
)
@pytest.mark.parametrize("policy", ["default", "strict"])
def test_the_shipped_policies_ask_for_identity_first_and_then_the_rest(
    evidence: dict[str, float], gate: str, policy: str
) -> None:
    good = {
        "identity_cosine": 0.9, "same_person": 0.4, "faces": 1, "faces_after": 1, "landmark_error": 0.02,
        "redegradation": 40.0, "psnr_source": 28.0, "colour_drift": 0.3, "after_sharpness": 1.0,
        "after_exposure": 0.5,
    }  # fmt: skip
    assert decided(load_policy(policy), **good)["status"] == "restored"
    row = decided(load_policy(policy), **good | evidence)
    assert (row["status"], row["gate"]) == ("rejected", gate) and row["margin"] < 0


def test_one_identity_gate_serves_models_with_other_scales() -> None:
    """dlib calls two faces one person from a cosine of 0.9 on, MobileFaceNet from 0.4 on."""
    policy = Policy(name="p", gates=(Gate(quantity="identity_margin", min=0.5),))
    for same_person in (0.4, 0.9):
        halfway = (1 + same_person) / 2
        passes = decided(policy, identity_cosine=halfway + 0.01, same_person=same_person)
        fails = decided(policy, identity_cosine=halfway - 0.01, same_person=same_person)
        assert (passes["status"], fails["status"]) == ("restored", "rejected")
        assert fails["margin"] == pytest.approx(-0.01 / (1 - same_person), abs=1e-4)


def test_a_candidate_that_equals_its_source_by_a_measure_has_not_escaped_its_gate() -> None:
    """An infinite PSNR was measured: it passes, and it is not the smallest margin."""
    policy = Policy(name="p", gates=(Gate(quantity="consistency", min=30), Gate(quantity="severity_drop", min=0.1)))
    row = decided(policy, consistency=float("inf"))
    assert row["status"] == "restored" and row["margin"] == pytest.approx(0.2)


def test_the_view_says_how_many_candidates_a_gate_could_not_be_asked_of(run: rundir.Run) -> None:
    gates = (Gate(quantity="severity_drop", min=0), Gate(quantity="landmark_error", max=1))
    marker = select(run, Policy(name="asked", gates=gates))
    rows = [r for s in run.shards() for r in shards.read_rows(run.url(rundir.restored(1)), s).to_pylist()]
    candidates = [r for r in rows if r["status"] == "restored"]
    unknown = sum(r["landmark_error"] is None for r in candidates)
    assert candidates and marker["unasked"] == {"severity_drop": 0, "landmark_error": unknown}


def test_a_slight_damage_is_left_alone_by_choice() -> None:
    row = decided(Policy(name="p", min_severity=0.6))
    assert (row["status"], row["reason"], row["origin"]) == ("kept_original", "below_min_severity", "source")


def test_kept_and_failed_pass_through() -> None:
    kept = decided(Policy(name="p", gates=GATES), status="kept_original", reason="clean")
    assert (kept["status"], kept["reason"], kept["origin"], kept["offset"]) == ("kept_original", "clean", "source", 512)
    failed = decided(Policy(name="p", gates=GATES), status="failed", reason="truncated")
    assert (failed["status"], failed["reason"], failed["origin"]) == ("failed", "truncated", None)


@pytest.mark.parametrize(
    ("kind", "policy", "kept"),
    [
        ("exact", "keep", True),
        ("exact", "drop_exact", False),
        ("near", "drop_exact", True),
        ("near", "drop_near", False),
        ("exact", "drop_near", False),
    ],
)
def test_duplicates_leave_as_the_policy_says_but_the_first_never(kind: str, policy: Any, kept: bool) -> None:
    group = {"duplicate_group": "a", "duplicate_kind": kind, "duplicate_distance": 0}
    assert (decided(Policy(name="p", duplicates=policy), group)["origin"] is not None) == kept
    assert decided(Policy(name="p", duplicates=policy), group | {"duplicate_group": "k"})["origin"] is not None


def test_of_a_group_the_best_stays() -> None:
    group = {"duplicate_group": "a", "duplicate_kind": "exact", "duplicate_distance": 0}
    policy = Policy(name="p", duplicates="keep_best")
    for best, reason in (({"a": "k"}, "passed"), ({"a": "b"}, "duplicate_of: b"), ({}, "passed")):
        assert decided(policy, group, best=best)["reason"] == reason


def test_the_best_is_the_least_damaged_then_the_largest_then_the_sharpest_then_the_first() -> None:
    source = {"key": "k", "width": 100, "height": 100, "effective_resolution": 0.5, "sharpness": 1.0}
    clean = {"severity": 0.2}
    ordered = [
        ({**source, "sharpness": 1.5, "key": "z"}, clean),
        (source, clean),
        (source | {"key": "l"}, {"severity": 0.198}),  # too little to matter
        (source | {"sharpness": None}, clean),
        ({**source, "width": 150, "height": 150, "effective_resolution": 0.33, "sharpness": 2.0}, clean),  # enlarged
        ({**source, "effective_resolution": None}, clean),
        ({**source, "width": 4000}, {"severity": 0.4}),
        ({**source, "width": 9000}, {"severity": 0.5}),
        ({**source, "width": 9000}, {"severity": None}),
    ]
    ranks = [quality_rank(*pair) for pair in ordered]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)


def rows_of(root: Path, view: str) -> dict[str, dict[str, Any]]:
    """The rows of a view by the stem of their source's name."""
    table = shards.read_parquet((root / "views" / f"{view}.parquet").open("rb"))
    return {Path(row["source_name"]).stem: row for row in table.to_pylist()}


@pytest.fixture
def run(curated_run: Path, tmp_path: Path) -> rundir.Run:
    shutil.copytree(curated_run, tmp_path / "run")
    return rundir.read(str(tmp_path / "run"))


def test_of_real_copies_the_best_that_the_policy_allows_stays(run: rundir.Run) -> None:
    copies = ["photo 001.v1", "exact", "mirrored", "enlarged", "compressed"]
    for policy, best in (
        (Policy(name="best", duplicates="keep_best"), "photo 001.v1"),
        (Policy(name="large", duplicates="keep_best", min_side=100), "enlarged"),
        (Policy(name="none", duplicates="keep_best", min_side=1000), None),
    ):
        select(run, policy)
        rows = rows_of(Path(run.root), policy.name)
        assert {rows[name]["duplicate_group"] for name in copies} == {rows["photo 001.v1"]["duplicate_group"]}
        assert [name for name in copies if rows[name]["origin"] is not None] == ([best] if best else [])
        if best:
            reasons = {rows[name]["reason"] for name in copies if name != best}
            assert reasons == {f"duplicate_of: {rows[best]['key']}"}
        assert rows["no image"]["status"] == "failed"
    kinds = {name: rows[name]["duplicate_kind"] for name in copies}
    assert kinds["exact"] == "exact" and kinds["mirrored"] == "mirrored" and kinds["enlarged"] == "near"
    duplicates = {k: v for k, v in ((r["key"], r) for r in rows.values()) if v["duplicate_group"] is not None}
    assert best_of_groups(run, duplicates, Policy(name="p")) == {
        rows["photo 001.v1"]["duplicate_group"]: rows["photo 001.v1"]["key"]
    }


def test_samples_are_held_out_in_the_view_and_its_marker(run: rundir.Run) -> None:
    marker = select(run, Policy(name="held", validation=0.4))
    rows = rows_of(Path(run.root), "held")
    copies = {rows[n]["split"] for n in ("photo 001.v1", "exact", "mirrored", "enlarged", "compressed")}
    assert len(copies) == 1 and {row["split"] for row in rows.values()} == {"train", "validation"}
    trained = [row for row in rows.values() if row["origin"] is not None]
    assert marker["splits"] == {s: sum(r["split"] == s for r in trained) for s in ("train", "validation")}
    assert json.loads((Path(run.root) / "views/held.json").read_text())["policy"]["validation"] == 0.4
    assert "splits" not in select(run, Policy(name="plain"))
    assert {row["split"] for row in rows_of(Path(run.root), "plain").values()} == {None}


names = st.integers(0, 30).map("k{:02d}".format)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.dictionaries(names, names, max_size=20),
    photographs=st.dictionaries(names, st.integers(0, 5), max_size=20),
    own=st.dictionaries(names, st.sampled_from(["train", "validation"]), max_size=3),
    share=st.floats(0.01, 0.99),
)
def test_what_hangs_together_is_never_divided(
    groups: dict[str, str], photographs: dict[str, int], own: dict[str, str], share: float
) -> None:
    keys = [f"k{i:02d}" for i in range(31)]
    samples = [{"key": k, "group": photographs.get(k), "split": own.get(k)} for k in keys]
    duplicates = {k: {"duplicate_group": g} for k, g in groups.items()}
    split = splitter(samples, duplicates, share)
    sides = {k: split(k, own.get(k)) for k in keys}
    for key, group in groups.items():
        assert sides[key] == sides[group]
    for a in photographs:
        for b in photographs:
            assert photographs[a] != photographs[b] or sides[a] == sides[b]
    assert all(sides[k] == "validation" for k, side in own.items() if side == "validation")
    again = splitter(reversed(samples), dict(reversed(duplicates.items())), share)
    assert {k: again(k, own.get(k)) for k in keys} == sides


def test_the_share_is_held_out_and_stays_when_the_dataset_grows() -> None:
    samples = [{"key": f"{i:06d}", "group": None, "split": None} for i in range(20_000)]
    few, all_ = splitter(samples[:100], {}, 0.1), splitter(samples, {}, 0.1)
    sides = [all_(s["key"], None) for s in samples]
    assert sides[:100] == [few(s["key"], None) for s in samples[:100]]
    assert sides.count("validation") / len(sides) == pytest.approx(0.1, abs=0.01)
    more = splitter(samples, {}, 0.2)
    assert all(more(s["key"], None) == "validation" for s, side in zip(samples, sides, strict=True) if side != "train")


def test_without_a_share_the_dataset_says_what_is_held_out() -> None:
    split = splitter([], {}, 0)
    assert [split("k", own) for own in (None, "train", "validation")] == [None, "train", "validation"]


def test_small_samples_leave() -> None:
    assert decided(Policy(name="p", min_side=49))["reason"] == "too_small"
    assert decided(Policy(name="p", min_side=48))["origin"] == "restored"


def test_every_quantity_is_made_of_columns_that_exist() -> None:
    for columns, _ in QUANTITIES.values():
        assert set(columns) <= set(schema.CLEANED.names)


@pytest.mark.parametrize("name", ["default", "filter", "strict"])
def test_the_shipped_policies_load(name: str) -> None:
    assert load_policy(name).name == name


@pytest.mark.parametrize(
    "text",
    [
        "name: p\ngates: [{quantity: beauty, min: 1}]",
        "name: p\ngates: [{quantity: psnr_source}]",
        "name: ../p",
        "[",
        "nam: p",
        "name: p\nvalidation: 1",
        "name: p\nduplicates: keep_worst",
    ],
)
def test_a_wrong_policy_is_an_error_with_the_file_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        load_policy(str(tmp_path / "p.yaml"))
