"""Decisions: each status for its reason, the first gate that fails is named, and unmeasured is not condemned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests import schema
from manifests.errors import ConfigError
from pipelines.select import QUANTITIES, Gate, Policy, decide, load_policy

GATES = (Gate(quantity="severity_drop", min=0.1), Gate(quantity="noise_rise", max=1.0))


def decided(policy: Policy, duplicate: dict[str, Any] | None = None, **evidence: Any) -> dict[str, Any]:
    """One sample through ``decide``; by default a candidate that passes."""
    row: dict[str, Any] = {"key": "k", "shard": "s-000000", "source_name": "k.png"}
    place = {"ext": "jpg", "width": 64, "height": 48, "offset": 512, "nbytes": 10, "output_sha256": "source"}
    status = evidence.pop("status", "restored")
    source = row | place | {"status": "failed" if status == "failed" else "kept_original"}
    source |= {"label": 1, "noise_sigma": 2.0}
    candidate = row | place | {"ext": "png", "offset": 1024, "nbytes": 20, "output_sha256": "candidate"}
    restored = candidate | {"status": status, "severity": 0.5, "severity_after": 0.2, "after_noise_sigma": 1.0}
    view = decide(
        schema.table_from_rows([source], schema.SOURCE),
        schema.table_from_rows([restored | evidence], schema.RESTORED),
        {"k": duplicate} if duplicate else {},
        policy,
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
    row = decided(Policy(name="p", gates=GATES), **evidence)
    assert (row["status"], row["gate"], row["reason"]) == ("rejected", gate, f"gate_{gate}")
    assert row["margin"] == pytest.approx(margin, abs=1e-6)
    assert (row["origin"], row["output_sha256"], row["offset"]) == ("source", "source", 512)


def test_a_rejected_sample_leaves_if_the_policy_says_so() -> None:
    row = decided(Policy(name="p", gates=GATES, rejected="drop"), severity_after=0.5)
    assert row["status"] == "rejected" and row["origin"] is row["offset"] is row["output_sha256"] is None


def test_what_could_not_be_measured_is_not_condemned() -> None:
    row = decided(Policy(name="p", gates=GATES), after_noise_sigma=None)
    assert row["status"] == "restored"


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


def test_small_samples_leave() -> None:
    assert decided(Policy(name="p", min_side=49))["reason"] == "too_small"
    assert decided(Policy(name="p", min_side=48))["origin"] == "restored"


def test_every_quantity_is_made_of_columns_that_exist() -> None:
    for columns, _ in QUANTITIES.values():
        assert set(columns) <= set(schema.CLEANED.names)


@pytest.mark.parametrize("name", ["default", "strict"])
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
    ],
)
def test_a_wrong_policy_is_an_error_with_the_file_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        load_policy(str(tmp_path / "p.yaml"))
