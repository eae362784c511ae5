"""Reports in a real browser: all is drawn, nothing is in the console, hover, runs, layers, keys, phone, dark, print.

Pictures of what was seen are left in build/screenshots. Without chromium the tests are left out, which `.ci/run` does
not let pass (HBP_BROWSER=1).
"""

import itertools
import os
from pathlib import Path

import pytest

import hbpcompiler as hbp
from tests.report import made_up
from tests.report.browser import LAPTOP, PHONE, Browser, is_there
from tests.selection import few, slow

PICTURES = Path(__file__).parents[2] / "build" / "screenshots"
MARKS = """
const found = {};
for (const element of document.querySelectorAll(".chart")) {
  if (element.closest("[hidden]")) continue;
  const drawn = [...element.querySelectorAll(".scatterlayer path, .scatterlayer text, .heatmaplayer image")]
    .filter(mark => mark.tagName === "image" ? mark.getAttribute("xlink:href") || mark.getAttribute("href")
      : mark.tagName === "text" || (mark.getAttribute("d") || "").length > 4);
  found[element.dataset.chart || element.id] = drawn.length;
}
return found;
"""
"""How many dots, lines and images each chart shows."""
HOVERED = "return [...document.querySelectorAll('.hoverlayer .hovertext')].map(e => e.textContent).join(' | ')"

if not is_there() and os.environ.get("HBP_BROWSER") != "1":
    pytest.skip("there is no browser: apt-get install chromium chromium-driver", allow_module_level=True)
pytest.importorskip("selenium")
pytestmark = slow("what is in a page is tested without a browser")


@pytest.fixture(scope="module")
def browser():
    assert is_there(), "HBP_BROWSER=1, but there is no browser: apt-get install chromium chromium-driver"
    window = Browser()
    yield window
    window.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    logs = [made_up.healthy(folder / "healthy.jsonl"), made_up.broken(folder / "broken.jsonl"),
            made_up.single(folder / "single.jsonl")]
    large = made_up.large(folder / "large.jsonl")
    return {"three": hbp.report(logs, folder / "three.html"), "single": hbp.report(logs[2], folder / "single.html"),
            "broken": hbp.report(logs[1], folder / "broken.html"), "large": hbp.report(large, folder / "large.html")}


@pytest.fixture(autouse=True)
def quiet(browser):
    """Whatever a test does, the console stays empty, and no name of a run was run."""
    yield
    assert browser.errors() == []
    assert browser.run("return document.querySelectorAll('img, b, i, a[href^=javascript]').length") == 0


def choose(browser, name, value):
    browser.run("const select = document.getElementById(arguments[0]); select.value = arguments[1];"
                "select.dispatchEvent(new Event('change'))", name, value)


def fits(browser):
    """Whether there is nothing to scroll to the side."""
    return browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@few(1, "other runs")
@pytest.mark.parametrize("name", ["three", "broken", "single", "large"])
def test_every_instrument_is_drawn(browser, pages, name):
    browser.window(LAPTOP)
    drawn_after = browser.open(pages[name])
    marks = browser.run(MARKS)
    print(f"{name}: drawn after {drawn_after} ms, {pages[name].stat().st_size / 1e6:.1f} MB")
    assert {key for key, count in marks.items() if count == 0} == set()
    expected = set(browser.run("return Object.keys(hbp.data.charts)")) | {"layer-map", "layer-curve"}
    assert expected <= set(marks)
    assert fits(browser)
    assert pages[name].stat().st_size < 15e6
    assert browser.run("return performance.getEntriesByType('resource').length") == 0, "the page is one file"
    browser.picture(PICTURES / f"{name}-laptop.png", LAPTOP)


def test_values_are_shown_under_the_pointer_and_by_keys(browser, pages):
    browser.window(LAPTOP)
    browser.open(pages["three"])
    at = browser.box("#grad_norm .chart .plotly .nsewdrag")
    for part in range(10, 95, 5):
        browser.mouse(at["x"] + at["width"] * part / 100, at["y"] + at["height"] / 2)
        if "norm" in browser.run(HOVERED):
            break
    browser.wait(HOVERED)
    assert "healthy" in browser.run(HOVERED)
    browser.mouse(2, 2)
    browser.run("document.querySelector('#loss .chart').focus()")
    browser.key("ArrowRight")
    first = browser.wait(HOVERED)
    browser.key("ArrowRight")
    browser.wait("return [...document.querySelectorAll('#loss .hoverlayer .hovertext')].length")
    assert browser.run("return document.querySelector('#loss .chart').dataset.at") == "1"
    assert first


@slow("4 s of a browser")
def test_runs_go_and_come_back(browser, pages):
    browser.window(LAPTOP)
    browser.open(pages["three"])
    traces = "return document.querySelector('#loss .chart').data.length"
    every = browser.run(traces)
    colours = browser.run("return new Set(document.querySelector('#loss .chart').data.map("
                          "t => (t.line || {}).color).filter(c => c)).size")
    assert colours == 3, "each run has its own"
    browser.run("document.querySelector('button.run[data-run=\"1\"]').click()")
    fewer = browser.run(traces)
    assert 0 < fewer < every
    button = "return document.querySelector('button.run[data-run=\"1\"]')"
    assert browser.run(button + ".getAttribute('aria-pressed')") == "false"
    assert browser.run("return [...document.querySelectorAll('li[data-run=\"1\"]')].every(e => !e.offsetHeight)")
    for other in "02":
        browser.run(f"document.querySelector('button.run[data-run=\"{other}\"]').click()")
    assert browser.run(traces) == 0
    for run in "012":
        browser.run(f"document.querySelector('button.run[data-run=\"{run}\"]').click()")
    assert browser.run(traces) == every
    shown = browser.run("return [...document.querySelectorAll('button.run')].map(e => e.textContent)")
    assert shown == ["healthy", made_up.HOSTILE[2], made_up.HOSTILE[3]]


def test_a_layer_leads_to_its_curve_by_pointer_and_keys(browser, pages):
    browser.window(LAPTOP)
    browser.open(pages["three"])
    title = "return document.getElementById('layer-title').textContent"
    assert browser.run(title).startswith(made_up.HOSTILE[0]), "names are shown as they are"
    at = browser.box("#layer-map .plotly .nsewdrag")
    place = (at["x"] + at["width"] / 2, at["y"] + at["height"] * 4.5 / 12)
    browser.mouse(*place)
    browser.wait("return document.getElementById('layer-readout').textContent.startsWith('<b>bold')")
    browser.click(*place, done="return document.getElementById('layer-title').textContent.startsWith('<b>bold')")
    browser.run("document.getElementById('layer-map').focus()")
    browser.key("ArrowDown")
    assert browser.run(title).startswith(made_up.HOSTILE[5])
    browser.key("ArrowLeft")
    readout = browser.run("return document.getElementById('layer-readout').textContent")
    assert readout.startswith(made_up.HOSTILE[5])
    assert "norm of the gradient" in readout
    assert browser.run("return document.querySelectorAll('#layer-curve .scatterlayer path').length") > 2
    assert browser.run("return document.querySelectorAll('#layer-field .heatmaplayer image').length") == 1
    for quantity in range(browser.run("return hbp.data.layers.length")):
        choose(browser, "layer-quantity", quantity)
        assert browser.run("return document.querySelectorAll('#layer-map .heatmaplayer image').length") >= 1
    choose(browser, "layer-quantity", 0)
    choose(browser, "layer-run", 1)
    assert browser.run("return document.querySelectorAll('#layer-map .heatmaplayer image').length") == 2, "red: nan"
    values = browser.run("const p = hbp.data.layers[0].runs[0]; return Array.from(hbp.numbers(p).median).slice(0, 3)")
    assert all(value > 0 for value in values)


@slow("3 s of a browser")
def test_curves_against_the_time(browser, pages):
    """Steps of the made up runs take a tenth of a second."""
    browser.window(LAPTOP)
    browser.open(pages["three"])
    last = ("const line = document.querySelector('#loss .chart')._fullData.filter(each => each.x.length > 1)[0];"
            "return line.x[line.x.length - 1]")
    title = "return document.querySelector('#loss .chart').layout.xaxis.title.text"
    assert (browser.run(title), browser.run(last)) == ("step", 159)
    choose(browser, "clock", "time")
    assert (browser.run(title), browser.run(last)) == ("seconds", 15.9)
    assert browser.run("return document.querySelector('#layer-curve').layout.xaxis.title.text") == "seconds"
    assert {key for key, count in browser.run(MARKS).items() if count == 0} == set()
    choose(browser, "clock", "step")
    assert browser.run(last) == 159


@slow("3 s of a browser")
def test_names_of_lines_do_not_cover_each_other(browser, pages):
    """Norm and orthogonal test are often about the same."""
    for size in (LAPTOP, PHONE):
        browser.window(size)
        browser.open(pages["three"])
        boxes = browser.run("return [...document.querySelectorAll('#noise .annotation')]"
                            ".map(e => e.getBoundingClientRect()).map(b => [b.left, b.right, b.top, b.bottom])")
        assert len(boxes) == 3
        for one, other in itertools.combinations(boxes, 2):
            assert one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]


@slow("3 s of a browser")
def test_dark_and_light_by_system_and_button(browser, pages):
    paper = "return getComputedStyle(document.body).backgroundColor"
    browser.window(LAPTOP, dark=True)
    browser.open(pages["three"])
    dark = browser.run(paper)
    browser.picture(PICTURES / "three-dark.png", LAPTOP, dark=True)
    browser.run("document.getElementById('theme').click()")
    light = browser.run(paper)
    assert dark != light
    assert browser.run("return document.documentElement.dataset.theme") == "light"
    assert browser.run("return document.querySelector('#loss .chart').layout.font.color") == browser.run(
        "return hbp.colour('ink')"), "charts follow"


CONTRAST = """
const light = colour => {
  const parts = colour.match(/[0-9a-f]{2}/gi).map(part => parseInt(part, 16) / 255)
    .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const contrast = (a, b) => {
  const [low, high] = [light(hbp.colour(a)), light(hbp.colour(b))].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
return arguments[0].map(([a, b]) => contrast(a, b));
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(browser, pages, dark):
    """WCAG 2.1: 4.5 of text, 3 of lines."""
    browser.window(LAPTOP, dark)
    browser.open(pages["single"])
    text = [[ink, paper] for ink in ("ink", "quiet", "accent", "notable") for paper in ("paper", "card")]
    text += [["notable", "notable-paper"], ["accent", "notable-paper"]]
    assert min(browser.run(CONTRAST, text)) >= 4.5
    assert min(browser.run(CONTRAST, [[f"run{run}", "card"] for run in range(8)] + [["broken", "card"]])) >= 3


@slow("2 s of a browser")
def test_a_phone(browser, pages):
    browser.window(PHONE)
    browser.open(pages["three"])
    assert fits(browser)
    browser.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert fits(browser)
    assert {key for key, count in browser.run(MARKS).items() if count == 0} == set()
    widest = browser.run("return Math.max(...[...document.querySelectorAll('.chart svg')].map("
                         "e => e.getBoundingClientRect().right))")
    assert widest <= PHONE[0]
    browser.run("document.querySelectorAll('details').forEach(e => e.open = false)")
    browser.picture(PICTURES / "three-phone.png", PHONE)


def test_everything_is_reached_by_the_tab_key(browser, pages):
    browser.window(LAPTOP)
    browser.open(pages["three"])
    reached = browser.run("return [...document.querySelectorAll('button, select, summary, a, [tabindex]')].filter("
                          "e => e.tabIndex >= 0 && !e.closest('[hidden]')).map(e => e.id || e.className || e.tagName)")
    assert "theme" in reached
    assert "layer-map" in reached
    assert reached.count("run") == 3
    assert sum(name.startswith("chart") for name in reached) == browser.run("return hbp.charts().length")


def test_print_is_light(browser, pages):
    browser.window(LAPTOP, dark=True)
    browser.open(pages["single"])
    data = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert len(data) > 10_000
    assert browser.run("return document.documentElement.dataset.theme") == "dark", "as before"
