"""The report as a reader meets it: opened from disk in headless Chromium, without a network."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.report import write_report
from tests.report_fixture import HOSTILE, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(
        write_run(tmp_path_factory.mktemp("browser") / "run", classes=True), audit_by=["floor(3 * severity)"]
    )


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page and, at the end, asserts that it asked for nothing and complained of nothing."""
    asked: list[str] = []
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1360, "height": 900}, offline=True)

    def open_page(path: Path) -> Any:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield open_page
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert asked, "the page itself is a request: otherwise nothing was listened to"
    assert said == []


def pixels(element: Any) -> np.ndarray[Any, Any]:
    """What is on the screen there. Layout falls between pixels, so the outermost rows may be a neighbour's."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)[2:-2]


def changed_columns(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where two screenshots differ, as shares of the width."""
    return np.flatnonzero(np.abs(a - b).max(axis=(0, 2)) > 8) / a.shape[1]


def card(page: Any, text: str = "restored") -> Any:
    """The first card with a candidate and a truth, of this status, as shown."""
    found = page.locator(f".card:visible:has(.chip.{text}):has(.stack .restored):has(.stack .truth)").first
    found.scroll_into_view_if_needed()
    return found


def clip_left(image: Any) -> float:
    """How much of an image's left is clipped away, percent."""
    clip = image.evaluate("e => getComputedStyle(e).clipPath")
    return float(clip.removeprefix("inset(").split("%")[0].split()[-1])


def test_slider_moves_by_mouse_and_shows_more_of_the_original(opened: Any, report: Path) -> None:
    page = opened(report)
    stack = card(page).locator(".stack")
    slider, restored = stack.locator("input[type=range]"), stack.locator(".restored")
    box = stack.bounding_box()
    before = pixels(stack)
    assert clip_left(restored) == 50

    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=4)
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()

    assert int(slider.input_value()) == pytest.approx(90, abs=1)
    assert clip_left(restored) == pytest.approx(90, abs=1)
    where = changed_columns(before, pixels(stack))
    inside = where[(where > 0.52) & (where < 0.88)]
    assert len(inside) > 0.2 * before.shape[1], "between the old line and the new one there is another picture now"
    outside = where[(where < 0.48) | (where > 0.93)]
    assert len(outside) == 0, "on either side of both lines nothing has changed"


def test_slider_moves_by_keyboard(opened: Any, report: Path) -> None:
    page = opened(report)
    stack = card(page).locator(".stack")
    slider, restored = stack.locator("input[type=range]"), stack.locator(".restored")
    before = pixels(stack)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert clip_left(restored) == 49
    page.keyboard.press("Home")
    assert clip_left(restored) == 0
    assert slider.get_attribute("aria-valuetext") == "0 % original, from the left"
    whole = pixels(stack)
    assert (changed_columns(before, whole) < 0.45).any(), "the left half, original before, is the restored image now"
    page.keyboard.press("End")
    assert clip_left(restored) == 100
    assert len(changed_columns(whole, pixels(stack))) > 0.5 * whole.shape[1]


def test_pointer_and_picture_agree_at_the_edges(opened: Any, report: Path) -> None:
    page = opened(report)
    stack = card(page).locator(".stack")
    box = stack.bounding_box()
    for share in (0.02, 0.25, 0.98):
        page.mouse.click(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
        assert clip_left(stack.locator(".restored")) == pytest.approx(100 * share, abs=1.5)


def test_truth_takes_the_place_of_the_restored_image(opened: Any, report: Path) -> None:
    page = opened(report)
    one = card(page, "rejected")
    stack = one.locator(".stack")
    before = pixels(stack)
    one.get_by_text("truth", exact=True).click()
    where = changed_columns(before, pixels(stack))
    assert (where > 0.52).any() and not (where < 0.48).any(), "right of the line only"
    assert clip_left(stack.locator(".truth")) == 50
    page.get_by_role("radiogroup").get_by_text("restored", exact=True).click()  # for all cards at once
    assert (pixels(stack) == before).all()
    one.get_by_text("truth", exact=True).click()
    page.get_by_role("button", name="Reset").click()
    card(page, "rejected")
    assert (pixels(stack) == before).all()


def test_filters_and_order(opened: Any, report: Path) -> None:
    page = opened(report)
    cards = page.locator(".card:visible")
    total = cards.count()
    statuses = page.locator("select[name=status] option").evaluate_all("options => options.map(o => o.value)")
    assert {"restored", "kept_original", "rejected"} <= set(statuses)
    counted = 0
    for status in filter(None, statuses):
        page.select_option("select[name=status]", status)
        counted += cards.count()
        assert 0 < cards.count() < total
        assert page.locator(f".card:visible .title .chip.{status}").count() == cards.count()
        assert page.inner_text("#visible") == str(cards.count())
    assert counted == total

    page.select_option("select[name=status]", "restored")
    page.select_option("select[name=gate]", "severity_after")
    assert cards.count() == 0 and page.locator("#none").is_visible()
    page.select_option("select[name=status]", "rejected")
    assert 0 < cards.count() == page.locator(".card:visible .values dt:text-is('severity after')").count()
    page.get_by_role("button", name="Reset").click()
    assert cards.count() == total and not page.locator("#none").is_visible()

    def values(name: str) -> list[float]:
        rows = page.locator(f".card:visible .values dt:text-is('{name}') + dd").all_inner_texts()
        return [float(text.split("\u2009")[0].split("→")[0]) for text in rows]

    assert values("severity") == sorted(values("severity"), reverse=True)
    page.select_option("select[name=sort]", "psnr_source")
    assert values("to source, dB") == sorted(values("to source, dB"))
    assert len(values("to source, dB")) > 5


def shown_by(page: Any) -> list[tuple[str, float]]:
    """What the order is by, of each card shown."""
    texts = page.locator(".card:visible .by").all_inner_texts()
    return [(text.rpartition(" ")[0], float(text.rpartition(" ")[2])) for text in texts]


def test_the_ten_with_the_lowest_identity(opened: Any, report: Path) -> None:
    page = opened(report)
    page.select_option("select[name=sort]", "identity_cosine")
    assert page.input_value("select[name=direction]") == "low"
    page.select_option("select[name=most]", "10")
    found = shown_by(page)
    samples = json.loads((report.parent / "report.json").read_text())["gallery"]["samples"]
    known = sorted(s["identity_cosine"] for s in samples if s["identity_cosine"] is not None)
    assert page.inner_text("#visible") == "10" and {label for label, _ in found} == {"identity cosine"}
    assert [value for _, value in found] == pytest.approx(known[:10], rel=1e-3)
    page.select_option("select[name=direction]", "high")
    assert [value for _, value in shown_by(page)] == pytest.approx(known[::-1][:10], rel=1e-3)
    page.get_by_role("button", name="Reset").click()
    assert page.input_value("select[name=direction]") == "high", "severity, as at first"


def test_every_order_is_an_order(opened: Any, report: Path) -> None:
    shown = """() => {
      const controls = document.getElementById("controls"), shown = {};
      for (const option of controls.elements.sort.options) {
        for (const [name, value] of [["sort", option.value], ["direction", "low"]]) {
          controls.elements[name].value = value;
          controls.elements[name].dispatchEvent(new Event("input", {bubbles: true}));
        }
        const by = [...document.querySelectorAll(".card:not([hidden]) .by:not([hidden])")];
        shown[option.value] = by.map(e => Number(e.textContent.split(" ").pop()));
      }
      return shown;
    }"""
    orders = opened(report).evaluate(shown)
    assert len(orders) > 20 and orders.pop("random") == []
    for column, values in orders.items():
        assert values and values == sorted(values), column


def test_why_a_sample_was_refused(opened: Any, report: Path) -> None:
    page = opened(report)
    one = card(page, "rejected")
    told = one.locator(".values").inner_text()
    assert "asked ≤ 0.6" in told or "asked ≥ 24" in told
    assert "gate_" in told and "margin" in told


def test_from_the_outcome_to_its_samples(opened: Any, report: Path) -> None:
    page = opened(report)
    page.select_option("select[name=sort]", "identity_cosine")
    page.locator("#outcome tr:has(.chip.rejected) a.see").first.click()
    assert page.input_value("select[name=status]") == "rejected"
    why = page.input_value("select[name=why]")
    assert why.startswith("gate_")
    cards = page.locator(".card:visible")
    assert cards.count() == page.locator(f".card:visible dd:text-is('{why}')").count() > 0


def test_the_audit_is_on_the_page(opened: Any, report: Path) -> None:
    page = opened(report)
    tables = page.locator("#audit table")
    assert tables.count() == 2 and page.locator("#audit tr.whole").count() == 2
    assert tables.first.locator("tbody tr").all_inner_texts()[0].startswith("class 0")
    whisker = tables.first.locator("td.interval .whisker").first
    dot = whisker.evaluate("e => getComputedStyle(e, '::after').left")
    assert 0 < float(dot.removesuffix("px")) < whisker.bounding_box()["width"]


def test_histograms_switch_between_restored_samples_and_the_dataset(opened: Any, report: Path) -> None:
    page = opened(report)
    restored, dataset = page.locator("#measures .chart.restored"), page.locator("#measures .chart.dataset")
    assert restored.first.is_visible() and not dataset.first.is_visible()
    page.get_by_text("whole dataset", exact=True).first.click()
    assert dataset.first.is_visible() and not restored.first.is_visible()


def test_every_control_has_a_name_and_every_image_an_alternative(opened: Any, report: Path) -> None:
    page = opened(report)
    nameless = page.locator("input, select, button").evaluate_all(
        "all => all.filter(e => !e.getAttribute('aria-label') && !e.labels?.length && !e.textContent.trim()).length"
    )
    assert nameless == 0
    assert page.locator("img:not([alt]), img[alt=''], svg:not([aria-label])").count() == 0


@pytest.mark.parametrize("width", [360, 820])
def test_no_sideways_scrolling(opened: Any, report: Path, width: int) -> None:
    page = opened(report)
    page.set_viewport_size({"width": width, "height": 800})
    page.locator("details").evaluate_all("all => all.forEach(e => { e.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_names_are_text(opened: Any, tmp_path: Path) -> None:
    page = opened(write_report(write_run(tmp_path / "run", count=14, hostile=HOSTILE, classes=True)))
    assert page.inner_text("h1") == HOSTILE
    assert page.locator(".card .name").first.inner_text() == HOSTILE
    assert page.locator("img[src='x'], img[onerror]").count() == 0


@pytest.mark.parametrize("damage", [0.0, 1.0])
@pytest.mark.parametrize("until", ["source", "cleaned"])
def test_other_runs_open_without_complaint(opened: Any, tmp_path: Path, until: str, damage: float) -> None:
    page = opened(write_report(write_run(tmp_path / "run", count=1, until=until, damaged=damage, truth=False)))
    assert page.locator(".card:visible").count() == 1
    assert page.locator(".stack input").count() == (1 if until == "cleaned" and damage else 0)


def test_a_script_that_is_not_ours_does_not_run(browser: Any, report: Path, tmp_path: Path) -> None:
    """Escaping is the first defence; the page's content security policy is the second."""
    smuggled = "<script>document.title = 'smuggled'</script><img src='data:,' onerror=\"document.title = 'smuggled'\">"
    (tmp_path / "changed.html").write_text(report.read_text().replace("</main>", smuggled + "</main>"))
    context = browser.new_context(offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((tmp_path / "changed.html").as_uri())
    page.wait_for_function("document.readyState === 'complete'")
    assert page.title() == "sample-run – idm-curate report"  # noqa: RUF001
    assert len(complaints) >= 2, complaints
    assert page.locator("input[aria-valuetext]").count() > 0, "our own script does run"
    context.close()
