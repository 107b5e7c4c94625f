"""Which detectors measure a proof: a missing FID is said before any training, and the headline stays what it was."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from manifests.errors import ConfigError
from pipelines.proof import detectors, plan
from pipelines.proof.plan import Proof
from tests import proof_fixture


def test_without_inception_it_is_said_that_there_is_no_fid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("IDM_WEIGHTS", str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="idm_curate"):
        detectors.say_detectors(Proof())
    (said,) = caplog.messages
    assert "no FID" in said and "inception-2015-12-05.pt is missing" in said and "FD-EffNet" in said
    caplog.clear()
    (effnet,) = detectors.detectors_of(Proof())
    assert effnet("cpu").frechet == "FD-EffNet" and caplog.messages == []
    smaller = Proof(detectors=("effnet-64", "auto", "effnet"))
    assert [d("cpu").name for d in detectors.detectors_of(smaller)] == [
        "efficientnet-lite0-64",
        "efficientnet-lite0-224",
    ]
    run = proof_fixture.write_run(tmp_path / "run")
    pinned = detectors.with_detectors(run, Proof())
    assert pinned.detectors == ("effnet",)
    plan.declare(run, pinned)
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"it has come later")
    assert detectors.with_detectors(run, Proof()) == pinned, "the headline stays what it was declared to be"
    (tmp_path / "inception-2015-12-05.pt").unlink()
    for wrong, told in (("inception", "is missing"), ("effnet-50", "multiple of 32"), ("clip", "unknown")):
        with pytest.raises(ConfigError, match=told):
            detectors.detectors_of(Proof(detectors=(wrong,)))
