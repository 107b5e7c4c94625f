"""The report's page: complete in itself, bounded, and safe whatever the run's text says."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines import page, report
from pipelines.report import write_report
from tests.report_fixture import HOSTILE, figures_of, write_run


class Tags(HTMLParser):
    """Every start tag of a page, with its attributes; and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def test_the_page_is_complete_in_itself(tmp_path: Path) -> None:
    tags = Tags(write_report(write_run(tmp_path / "run")).read_text())
    for tag, attributes in tags.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "video", "audio")
        for name in ("src", "srcset", "href", "action", "poster", "background"):
            assert attributes.get(name, "data:").startswith(("data:image/", "#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    images = [a["src"] for tag, a in tags.tags if tag == "img"]
    assert len(images) > 60 and all(src.startswith("data:image/webp;base64,") for src in images if src)
    policy = next(a["content"] for tag, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and page.csp_hash(tags.scripts[1]) in policy


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", count=14, hostile=HOSTILE)
    figures = figures_of(root)
    assert figures["name"] == HOSTILE
    html = (root / "report.html").read_text()
    tags = Tags(html)
    assert [tag for tag, _ in tags.tags].count("script") == 2 == len(tags.scripts)
    assert not [a for tag, a in tags.tags if tag == "img" and not (a["src"] or "").startswith("data:")]
    assert "alert(" in html and "<script>alert" not in html, "it is there, escaped"
    json.loads(tags.scripts[0])


def test_the_page_keeps_to_its_bound_and_says_what_it_left_out(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", count=40, size=256, damaged=1.0, shard_size=40)
    bound = 700_000
    unbounded = write_report(root).stat().st_size
    path = write_report(root, max_bytes=bound)
    assert unbounded > bound >= path.stat().st_size
    shown = json.loads((root / "report.json").read_text())["gallery"]
    assert 0 < len(shown["samples"]) < shown["chosen"]
    assert f"{len(shown['samples'])} of the {shown['chosen']} chosen" in path.read_text()
    assert "data:image/jpeg;base64," in path.read_text(), "large pictures are not sent losslessly"


def test_long_strings_are_cut() -> None:
    cut = report._bounded({"name": "x" * 10_000, "list": [float("nan"), "y"], "error": "z" * 3000})
    assert len(cut["name"]) < 500 and "10,000 characters" in cut["name"]
    assert cut["list"] == [None, "y"] and len(cut["error"]) == 3000
    assert report._bounded(json.loads('"half a pair: \\ud800"')) == "half a pair: ?", "JSON can hold what UTF-8 cannot"


def test_the_command_line_can_load_it_without_torch_or_ray() -> None:
    code = "import sys, pipelines.report; print(sorted({'torch', 'ray', 'webdataset'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (None, None, page.DASH),
        (0, None, "0"),
        (0.0, 2, "0"),
        (1281167, None, "1,281,167"),
        (0.05, None, "0.0500"),
        (123.456, None, "123"),
        (-4.084, 2, "−4.08"),  # noqa: RUF001
        (-1e-9, None, "0"),
        (0.004, 2, "0"),
        (100.0, 0, "100"),
    ],
)
def test_number(value: float | None, decimals: int | None, text: str) -> None:
    assert page.number(value, decimals) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(None, page.DASH), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (8.91e10, "89.1 GB")],
)
def test_size(nbytes: int | None, text: str) -> None:
    assert page.size(nbytes) == text
