"""What a driver says while it works, where nobody looks at a terminal and where somebody does."""

from __future__ import annotations

import re
import sys

import pytest

from pipelines import progress


def test_plain_lines_count_shards_and_say_little_between_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.bar("restore", total=4, done=1) as bar:
        bar.within(0.5)
        assert capsys.readouterr().err == "", "a line a second would drown a log"
        monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
        bar.within(0.5)
        assert capsys.readouterr().err.startswith("restore: 1.50/4 shards, ")
        bar.within(0)
        assert capsys.readouterr().err == ""
        for shard in range(3):
            bar.advance(f"s-{shard}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" shards")[0] for line in lines] == ["restore: 2/4", "restore: 3/4", "restore: 4/4"]
    assert lines[-1].endswith(" 0 s left")


def test_the_bar_moves_within_a_shard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.bar("pack", total=2, done=0) as bar:
        bar.within(0.5)
        bar.advance("s-0")
        bar.within(0.5)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "75%" in shown and "1/2, " in shown


def test_a_tick_reaches_whoever_asked_for_it_and_nobody_else() -> None:
    told: list[str] = []
    progress.tick()
    with progress.ticking(lambda: told.append("outer")):
        with progress.ticking(lambda: told.append("inner")):
            progress.tick()
        progress.tick()
    progress.tick()
    assert told == ["inner", "outer"]
