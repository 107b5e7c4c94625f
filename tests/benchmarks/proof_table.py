"""What a proof found, as a table: a row an arm and trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

HEAD: Final = (
    "trainer", "arm", "its data", "trained on it", "pairs", "gain, %", "seeds alone, %", "verdict", "recovery",
    "over `filter`, %",
)  # fmt: skip


def table_of(found: Mapping[str, Any]) -> str:
    """A proof as Markdown, from its results file: means, and 95 % intervals in brackets."""
    own = {row["arm"]: row["distance"] for row in found["data"]}
    over_filter = {(g["trainer"], g["arm"]): g["gain"] for g in found["over_filter"]["gains"]}
    rows = [HEAD, ("---",) * len(HEAD)]
    for trainer in found["trainers"]:
        measured = [g for g in found["gains"] if g["trainer"] == trainer and g["pairs"]]
        if measured:
            most = max(measured, key=lambda g: int(g["pairs"]))
            base = _number(most["base"])
            rows.append((trainer, "original", _number(own.get("original")), base, str(most["pairs"]), *("",) * 5))
        for gain in measured:
            rows.append((
                trainer, gain["arm"], _number(own.get(gain["arm"])), _number(gain["value"]), str(gain["pairs"]),
                _percent(gain["gain"]), _number(gain["chance"], 1, 100), gain["verdict"],
                _recovery(gain["recovery"]), _percent(over_filter.get((trainer, gain["arm"]))),
            ))  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None, digits: int = 0, times: float = 1) -> str:
    return "" if value is None else f"{times * value:.{digits}f}"


def _estimate(estimate: Mapping[str, Any] | None, digits: int = 0, times: float = 1) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    value, low, high = (_number(estimate[end], digits, times) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})" if low else value


def _recovery(recovery: Mapping[str, Any] | None) -> str:
    ruled_out = recovery and recovery.get("ruled_out")
    return _estimate(recovery, 2) + (f" (not {ruled_out[0]:.2f} to {ruled_out[1]:.2f})" if ruled_out else "")


def _percent(share: Mapping[str, Any] | None) -> str:
    return _estimate(share, 1, 100)
