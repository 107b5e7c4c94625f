"""The numbers that the restorer is to reach, beside those that it has reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import ge, gt, le, lt
from typing import Any, Final

#: One method's figures under one recipe.
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """One condition on one set; ``passed`` is None where it was not measured."""

    set: str
    condition: str
    value: float | None
    passed: bool | None


#: Figures in which two methods are compared, and whether more is better.
COMPARED: Final = {"psnr": True, "ssim": True, "lpips": False, "fd_effnet": False, "identity": True}


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every condition on every set that was measured, from a report's figures.

    Args:
        report: what the benchmark writes as JSON; needs ``default`` (its row's name), ``direct`` and ``edm`` (names of
            the baselines' rows, or None) and ``sets``.
    """
    found: list[Target] = []
    for name, figures in report["sets"].items():
        found += _of_set(name, figures, report["default"], report["direct"], report["edm"])
    return [asdict(target) for target in found]


def _of_set(set_name: str, figures: dict[str, Any], default: str, direct: str | None, edm: str | None) -> list[Target]:
    found: list[Target] = []

    def check(condition: str, value: float | None, holds: Callable[[float, float], bool], bound: float) -> None:
        known = value is not None and value == value
        found.append(Target(set_name, condition, value if known else None, holds(value, bound) if known else None))

    clean, mild, heavy = (figures["recipes"].get(recipe, {}) for recipe in ("clean", "mild", "heavy"))
    row: Row = clean.get(default, {})
    check("clean: share returned as the same bytes >= 0.99", row.get("same"), ge, 0.99)
    changed = row.get("same", 1.0) < 1
    check("clean: 1st percentile PSNR of the rest >= 38 dB", row.get("psnr_p01") if changed else None, ge, 38)
    if "identity_changed" in row:
        check("clean: identity of the rest >= 0.99", row["identity_changed"] if changed else None, ge, 0.99)
    check("clean: CPU ms an image < 2", row.get("milliseconds"), lt, 2)

    detection = figures.get("detection", {})
    check(
        "detection: recall of mild damage under 34 dB at 1 % false alarms >= 0.95",
        detection.get("recall_mild_at_1_percent"), ge, 0.95,
    )  # fmt: skip
    check("detection: rank correlation with the true error >= 0.9", detection.get("rank_correlation"), ge, 0.9)

    for recipe, rows, share in (("mild", mild, 0.5), ("heavy", heavy, 0.45)):
        row, source = rows.get(default, {}), rows.get("input", {})
        check(f"{recipe}: PSNR over the input >= 1.8 dB", _difference(row, source, "psnr"), ge, 1.8)
        check(f"{recipe}: LPIPS <= {share} of the input's", _ratio(row, source, "lpips"), le, share)
        if recipe == "mild":
            over = _difference(row, rows.get("unsharp mask", {}), "psnr")
            check("mild: PSNR over the best-tuned unsharp mask >= 0.8 dB", over, ge, 0.8)
            check("mild: FD-EffNet < half of the input's", _ratio(row, source, "fd_effnet"), lt, 0.5)
            other = rows.get(direct or "", {})
            check("mild: LPIPS under the one-step L1 network's", _difference(row, other, "lpips"), lt, 0)
            check("mild: FD-EffNet under the one-step L1 network's", _difference(row, other, "fd_effnet"), lt, 0)
            check("mild: PSNR over the one-step L1 network's >= -0.2 dB", _difference(row, other, "psnr"), ge, -0.2)
        elif "identity" in row:
            check("heavy: identity over the input's", _difference(row, source, "identity"), gt, 0)
        check(f"{recipe}: evaluations an image <= 4", row.get("evaluations"), le, 4)
        check(f"{recipe}: CPU ms an image <= 40", row.get("milliseconds"), le, 40)
        for figure, more_is_better in COMPARED.items():
            if figure in row:
                over = _difference(row, rows.get(edm or "", {}), figure)
                condition = f"{recipe}: better than the EDM chain at 50 evaluations in {figure}"
                check(condition, over, gt if more_is_better else lt, 0)

    row = mild.get(default, {})
    check("mild, second application: mean PSNR >= 38 dB", row.get("idempotence_mean"), ge, 38)
    check("mild, second application: 5th percentile >= 36 dB", row.get("idempotence_p05"), ge, 36)
    again = row.get("contraction")
    check("mild, five applications: largest ratio of successive changes <= 0.5",
          max(again["ratio"]) if again else None, le, 0.5)  # fmt: skip
    if again is None or "identity" in again:
        # A thousandth is under what recompressing a file costs.
        check("mild, five applications: identity of the last over the first >= -0.001",
              again["identity"][-1] - again["identity"][0] if again else None, ge, -0.001)  # fmt: skip
    return found


def _difference(row: Row, other: Row, figure: str) -> float | None:
    """How much more of a figure the first has; None where either lacks it."""
    return row[figure] - other[figure] if figure in row and figure in other else None


def _ratio(row: Row, other: Row, figure: str) -> float | None:
    return row[figure] / other[figure] if figure in row and other.get(figure) else None
