"""The report's audit: outcomes by class where there are classes, and by whatever was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from manifests.rundir import Run
from pipelines import query
from pipelines.audit import SHARES, Audit, Group, as_json, audit, compared
from pipelines.evidence import Evidence

#: Rows of a table on the page; all groups are in ``idm-curate audit``.
MOST_SHOWN: Final = 24


def audits(run: Run, evidence: Evidence, by: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each audit, ``by`` after the classes; none of a run that no restorer has looked at.

    Raises:
        ConfigError: an expression is wrong.
    """
    if not evidence.restored.done:
        return []
    found = [audit(run, expression, evidence.view) for expression in dict.fromkeys([*_classes(run), *by])]
    return [_figures(one) for one in found]


def _figures(found: Audit) -> dict[str, Any]:
    plain = as_json(found)
    return {
        **plain,
        "groups": len(found.groups),
        "shown_groups": [plain["groups"][i] for i in _shown(found)],
        "compared": compared(found),
    }


def _classes(run: Run) -> list[str]:
    """The column that names the classes, if there are two or more."""
    with query.answered(run, "SELECT count(DISTINCT class_name), count(DISTINCT label) FROM source") as answer:
        ((names, labels),) = (tuple(row.values()) for row in answer.rows.read_all().to_pylist())
    return ["class_name"] if names > 1 else ["label"] if labels > 1 else []


def _shown(found: Audit) -> list[int]:
    """Positions of the groups that the page has room for, in order: those that are most unlike all together."""
    furthest = sorted(range(len(found.groups)), key=lambda i: -_unlike(found.groups[i], found.whole))
    return sorted(furthest[:MOST_SHOWN])


def _unlike(group: Group, whole: Group) -> float:
    """Standard errors between a group's share and that of all, the largest of all shares."""
    distances = [0.0]
    for name in SHARES:
        share, of_all = group.shares[name], whole.shares[name].share
        if share.share is not None and of_all is not None and 0 < of_all < 1:
            distances.append(abs(share.share - of_all) / math.sqrt(of_all * (1 - of_all) / share.of))
    return max(distances)
