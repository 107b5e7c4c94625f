"""Figures as people read them: an aligned table for the terminal, and the tables of a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

BEGIN: Final = "<!-- figures -->\n"
END: Final = "<!-- end of figures -->\n"

#: Columns of the printed table: heading, figure, format.
_COLUMNS: Final = (
    ("same bytes", "same", ".1%"),
    ("PSNR before", "psnr_before", ".2f"),
    ("PSNR", "psnr", ".2f"),
    ("gain (95 %)", "psnr_gain", "+.2f"),
    ("SSIM", "ssim", ".3f"),
    ("LPIPS before", "lpips_before", ".3f"),
    ("LPIPS", "lpips", ".3f"),
    ("of input (95 %)", "lpips_ratio", ".2f"),
    ("FD-EffNet", "fd_effnet", ".1f"),
    ("identity", "identity", ".3f"),
    ("worse", "worse", ".1%"),
    ("PSNR p01 of changed", "psnr_p01", ".1f"),
    ("identity of changed", "identity_changed", ".3f"),
    ("evaluations", "evaluations", ".1f"),
    ("CPU ms", "milliseconds", ".1f"),
)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line a method; columns that no method has are left out."""
    columns = [c for c in _COLUMNS if any(c[1] in row for row in rows.values())]
    lines = [["", *(heading for heading, _, _ in columns)]]
    lines += [[name, *(_cell(row.get(figure), form) for _, figure, form in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def _cell(value: Any, form: str) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, tuple | list):
        mean, low, high = value
        return f"{mean:{form}} ({low:{form}} {high:{form}})"
    return format(value, form)


def write_card(card: Path, report: dict[str, Any]) -> None:
    """Replace what lies between the markers in a model card by the figures of a report.

    Raises:
        ValueError: the card has no markers.
    """
    text = card.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{card} lacks {BEGIN.strip()} or {END.strip()}")
    card.write_text(before + BEGIN + card_figures(report) + END + after, encoding="utf-8")


def card_figures(report: dict[str, Any]) -> str:
    """Markdown: which model, damage by damage, detection, and the targets with what was reached."""
    model, default = report["restorer"], report["default"]
    trained = model["trained"]
    lines = [
        f"SHA-256 `{model['sha256']}`; {trained.get('nimg', 0):,} images seen in {trained.get('seconds', 0) / 60:.0f} "
        f"minutes; threshold {model['threshold']}, steps {model['steps']}, passes {model['passes']}. "
        f"Split: {report['split']}.",
        "",
        "| set, damage | images | PSNR of input, unsharp mask, restored | LPIPS of input, restored "
        "| FD-EffNet of input, restored | identity of input, restored | made worse | left alone "
        "| second application: mean, 5th percentile |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for set_name, figures in report["sets"].items():
        for recipe, rows in figures["recipes"].items():
            if recipe != "clean":
                lines.append(f"| {set_name}, {recipe} | {figures['images']} {_damage(rows, default)} |")
    lines += [
        "",
        "| set | clean images left as they are | recall of damage under 34 dB | the same at 1 % false alarms "
        "| rank correlation with the true severity | mean error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for set_name, figures in report["sets"].items():
        found = figures["detection"]
        lines.append(
            f"| {set_name} | {1 - found['false_alarms']:.1%} | {found['recall']:.1%} "
            f"| {found['recall_at_1_percent']:.1%} | {found['rank_correlation']:.3f} | {found['severity_error']:.3f} |"
        )
    sets = list(report["sets"])
    lines += ["", f"| target | {' | '.join(sets)} |", "| --- |" + " --- |" * len(sets)]
    by_condition: dict[str, dict[str, str]] = {}
    for target in report["targets"]:
        if target["passed"] is not None:
            reached = f"{target['value']:.3g}" + ("" if target["passed"] else ", **missed**")
            by_condition.setdefault(target["condition"], {})[target["set"]] = reached
    lines += [
        f"| {name} | " + " | ".join(cells.get(s, "-") for s in sets) + " |" for name, cells in by_condition.items()
    ]
    return "\n".join([*lines, ""])


def _damage(rows: dict[str, dict[str, Any]], default: str) -> str:
    row, source = rows[default], rows["input"]

    def pair(figure: str, form: str) -> str:
        return f"{source[figure]:{form}}, {row[figure]:{form}}" if figure in row else "-"

    settled = f"{row['idempotence_mean']:.1f}, {row['idempotence_p05']:.1f}" if "idempotence_mean" in row else "-"
    return (
        f"| {source['psnr']:.2f}, {rows['unsharp mask']['psnr']:.2f}, **{row['psnr']:.2f}** | {pair('lpips', '.3f')} "
        f"| {pair('fd_effnet', '.1f')} | {pair('identity', '.3f')} | {row['worse']:.1%} | {row['same']:.1%} | {settled}"
    )
