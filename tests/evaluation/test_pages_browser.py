"""Both pages in a browser: on a phone's screen, and by the rules of accessibility that axe-core knows."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import answer, browser
from validation_samples import SAMPLES, as_json, clip, clips, sides

from wanconv.evaluation.report import comparison, html
from wanconv.verdict import judge, load_profile

AXE = os.environ.get("AXE_CORE", "")
PHONE, TABLET, DESK = 390, 620, 1280
pytestmark = [pytest.mark.tools, browser]


def validation(name: str) -> str:
    results, moving = SAMPLES[name]()
    results = as_json(results)
    profile = load_profile(results["settings"].get("profile", "standard"))
    return html.render(results, judge(results, profile), profile, moving)


def demo() -> str:
    three = clips(5, 48, 48)
    frames = {"reference": three["reference"], "fp8-scaled": three["candidate"], "broken": clip(5, 48, 48, 0.2, 4)}
    return comparison.render("a small model", sides("passed", "failed"), frames, ("wanconv recipes",))


PAGES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "failed": lambda: validation("failed"),
    "not finite": lambda: validation("not_finite"),
}

MEASURE = """
  const shown = (one) => one.getClientRects().length > 0 && getComputedStyle(one).display !== "none";
  const box = (one) => one.getBoundingClientRect();
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const plots = [...document.querySelectorAll(".plot svg")];
  const texts = plots.map((plot) => [...plot.querySelectorAll(".labels text")].filter(shown));
  const size = (text) => parseFloat(getComputedStyle(text).fontSize) * box(text.ownerSVGElement).width / 560;
  const tables = [...document.querySelectorAll(".scroll")];
  report({
    plots: plots.length,
    least: Math.min(...texts.flat().map(size)),
    overlaps: texts.flatMap((some) => some.flatMap((a, i) => some.slice(i + 1).filter((b) => !apart(box(a), box(b))))).map((one) => one.textContent),
    page: document.documentElement.scrollWidth,
    wider: tables.filter((one) => one.scrollWidth > one.clientWidth).length,
    outside: tables.filter((one) => box(one).right > innerWidth).length,
    unreachable: tables.filter((one) => one.tabIndex !== 0).length,
  });
"""  # noqa: E501

RUN_AXE = """
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  axe.run(document).then((found) => {
    report({
      passes: found.passes.length,
      violations: found.violations.map((one) => [one.impact, one.id, one.nodes.slice(0, 3).map((node) => node.html.slice(0, 120))]),
    });
  });
"""  # noqa: E501


@pytest.mark.parametrize("name", ["demo", "failed"])
@pytest.mark.parametrize("width", [PHONE, TABLET, DESK])
def test_labels_stay_readable_and_tables_scroll_inside_themselves(name: str, width: int, tmp_path: Path) -> None:
    seen = answer(PAGES[name](), tmp_path, MEASURE, width=width)
    assert seen["plots"] > 1
    assert 9.5 <= seen["least"] <= 20  # CSS pixels
    assert seen["overlaps"] == []
    assert seen["page"] <= width
    assert (seen["outside"], seen["unreachable"]) == (0, 0)
    if width == PHONE:
        assert seen["wider"] > 0


@pytest.mark.skipif(not AXE, reason="no AXE_CORE, the path of axe.min.js: unproven that axe finds nothing serious")
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(PHONE, True), (DESK, False)], ids=["phone, dark", "desk, light"])
def test_axe_finds_nothing_serious(name: str, width: int, dark: bool, tmp_path: Path) -> None:
    found = answer(PAGES[name](), tmp_path, Path(AXE).read_text(encoding="utf-8"), RUN_AXE, width=width, dark=dark)
    assert found["passes"] > 20
    assert [one for one in found["violations"] if one[0] in ("serious", "critical")] == []


@pytest.mark.skipif(not AXE, reason="no AXE_CORE, the path of axe.min.js: unproven that axe would find a fault")
def test_axe_would_find_a_table_that_no_keyboard_reaches(tmp_path: Path) -> None:
    page = PAGES["demo"]().replace('tabindex="0"', "").replace('<a href="reports', '<span data-href="reports')
    found = answer(
        page.replace("open</a>", "open</span>"), tmp_path, Path(AXE).read_text(encoding="utf-8"), RUN_AXE, width=TABLET
    )
    assert ("serious", "scrollable-region-focusable") in [(one[0], one[1]) for one in found["violations"]]
