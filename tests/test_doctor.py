"""What the doctor says about weights: each file once, where it goes, its checksum, and whether it is the right one."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest

from manifests.errors import ConfigError
from pipelines import weights
from pipelines.doctor import examine
from pipelines.weights import WEIGHTS, Weights, line, required, state

ABC = Weights("abc.bin", "tests", "https://example.org/abc.bin", hashlib.sha256(b"abc").hexdigest())
UNKNOWN = Weights("other.bin", "tests", "https://example.org/other.bin")


def test_present_missing_and_wrong_are_told_apart(tmp_path: Path) -> None:
    assert state(ABC, tmp_path) == state(UNKNOWN, tmp_path) == "missing"
    for file in ("abc.bin", "other.bin"):
        (tmp_path / file).write_bytes(b"abc")
    assert state(ABC, tmp_path) == state(UNKNOWN, tmp_path) == "present"
    (tmp_path / "abc.bin").write_bytes(b"abd")
    assert state(ABC, tmp_path) == "wrong"


def test_a_line_says_what_goes_where_and_how_to_know_it(tmp_path: Path) -> None:
    for content in (None, b"abd"):
        if content is not None:
            (tmp_path / "abc.bin").write_bytes(content)
        said = line(ABC, tmp_path)
        assert said.startswith("wrong" if content else "missing")
        for word in (str(tmp_path / "abc.bin"), ABC.use, ABC.origin, str(ABC.sha256)):
            assert word in said
    assert "checksum not known" in line(UNKNOWN, tmp_path)


def test_what_is_required_and_missing_is_an_error_with_the_same_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"abc\.bin is missing, for tests; from \S+; SHA-256"):
        required(ABC, tmp_path)
    (tmp_path / "abc.bin").write_bytes(b"abc")
    assert required(ABC, tmp_path) == tmp_path / "abc.bin"


def test_the_doctor_names_every_file_and_fetches_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the doctor went to the network")

    monkeypatch.setenv("IDM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", no_network)
    lines = list(examine())
    for file in WEIGHTS:
        (named,) = [text for text in lines if f"/{file.file}" in text and text.startswith("missing")]
        assert file.use in named and (file.sha256 or "checksum not known") in named
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_each_file_once_and_its_checksums_are_sha256() -> None:
    assert len({w.file for w in WEIGHTS}) == len(WEIGHTS)
    for known in (w.sha256 for w in WEIGHTS if w.sha256 is not None):
        assert len(known) == 64 and set(known) <= set("0123456789abcdef")
    listed = {v for v in vars(weights).values() if isinstance(v, Weights)}
    assert listed == set(WEIGHTS), "a file that is defined is also in the table"


def test_the_files_of_the_tests_are_those_of_the_table(request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("weights")
    states = {w.file: state(w, folder) for w in WEIGHTS}
    assert "wrong" not in states.values() and "present" in states.values(), states
