"""The samples on a report's page: why each ended as it did, and the numbers that they can be put in order by."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from manifests import schema
from pipelines.evidence import Evidence
from pipelines.gallery import Shown

#: What a reader looks for first, with the end that is worth a look. The others follow, lowest first.
_ASKED_FOR: Final = {
    "severity": ("severity", "high"),
    "psnr_source": ("PSNR to source", "low"),
    "identity_cosine": ("identity cosine", "low"),
    "lpips_source": ("LPIPS to source", "high"),
    "redegradation": ("re-degradation", "low"),
    "landmark_error": ("landmark error", "high"),
    "colour_drift": ("colour drift", "high"),
    "margin": ("margin", "low"),
    "truth_gain": ("gain in truth", "low"),
}
_NUMBERS: Final = tuple(
    f.name
    for f in [*schema.CHANGES, *schema.NATURALNESS, *schema.FACES, *schema.RESTORATION, *schema.MEASUREMENTS]
    if str(f.type) in ("float", "double", "int32", "int64")
)


def sample_figures(shown: Shown, evidence: Evidence) -> dict[str, Any]:
    """A sample's row of evidence, with what follows from it."""
    before, after = shown.row["truth_psnr_before"], shown.row["truth_psnr_after"]
    return {
        **shown.row,
        "token": (shown.row["reason"] or "").split(":")[0] or None,
        "asked": _asked(shown.row, evidence.view_marker.get("policy") or {}),
        "truth_gain": after - before if before is not None and after is not None else None,
        "chosen_as": shown.chosen_as,
        "problem": shown.problem,
    }


def _asked(row: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any] | None:
    """What the gate that decided found, and what it asked for; the margin is one less the other."""
    bounds = [("min_severity", "min", policy.get("min_severity"))]
    bounds += [(gate["quantity"], side, gate.get(side)) for gate in policy.get("gates", []) for side in ("min", "max")]
    asked = [(side, bound) for name, side, bound in bounds if name == row["gate"] and bound is not None]
    if len(asked) != 1 or row["margin"] is None:  # of two bounds of one quantity the row does not say which
        return None
    ((side, bound),) = asked
    return {"value": bound + (row["margin"] if side == "min" else -row["margin"]), "side": side, "bound": bound}


def orders(samples: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The columns that hold a number in any of the samples: ``column``, ``label``, and which end comes ``first``."""
    columns = [c for c in dict.fromkeys([*_ASKED_FOR, *_NUMBERS]) if any(s.get(c) is not None for s in samples)]
    named = {c: _ASKED_FOR.get(c, (c.replace("_", " "), "low")) for c in columns}
    return [{"column": c, "label": label, "first": first} for c, (label, first) in named.items()]


def order_values(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the page's script reads of each sample; ``random`` is an order that every visit sees alike."""
    columns = [order["column"] for order in orders(samples)]
    return [
        {name: s[name] for name in ("status", "gate", "token", "chosen_as")}
        | {"values": {c: s[c] for c in columns} | {"random": _random(s["key"])}}
        for s in samples
    ]


def _random(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)
