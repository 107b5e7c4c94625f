"""The same run with two restorers: what is restored well is let pass, what is made worse is not."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.two_restorers import RESTORERS, outcome, write_faces


def test_the_bad_ones_candidates_are_refused_and_idms_are_not(data: Path, tmp_path: Path) -> None:
    assert write_faces(tmp_path, 24) == 24
    idm, bad = (outcome(tmp_path, tmp_path / f"run{i}", name, "default") for i, name in enumerate(RESTORERS))
    for found in (idm, bad):
        assert found["faces"] == 24 and found["failed"] == 0 and found["candidates"] >= 10
        assert sum(found["by gate"].values()) == round(found["refused"]["share"] * found["candidates"])
    # of about 20 candidates; the benchmark counts more of them
    assert bad["refused"]["share"] >= 0.9 and idm["accepted"]["share"] > 0.6
    assert idm["accepted and nearer"]["share"] > 0.8
