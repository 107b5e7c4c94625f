"""The page of a report: the template beside this module, filled in, and how numbers are written there."""

from __future__ import annotations

import base64
import hashlib
import math
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

DASH = "\N{EN DASH}"  # stands for what is not known


def render(**context: Any) -> str:
    """The page of these figures; everything is escaped unless the template itself wrote it."""
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"number": number, "size": size, "csp_hash": csp_hash}
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return env.from_string(template).render(**context)


def number(value: float | None, decimals: int | None = None) -> str:
    """A number for reading: thousands separated, three significant digits unless told; a dash for null."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    if decimals is None:
        decimals = min(4, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 0
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}") if text.strip("-0.") else "0"


def size(nbytes: int | None) -> str:
    """Bytes in decimal units; a dash for null."""
    if nbytes is None:
        return DASH
    amount, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.{0 if unit == 'B' or amount >= 99.5 else 1}f} {unit}"


def csp_hash(script: str) -> str:
    """The source expression that lets exactly this inline script run, and no other (Content Security Policy 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
