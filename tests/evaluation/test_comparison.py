"""The page that compares several conversions: what it shows, that it stands alone, and that a browser agrees."""

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256

import pytest
from pages import Page
from validation_samples import clip, clips, sides

from wanconv.evaluation.report import comparison
from wanconv.evaluation.report.clips import Frames

COMMANDS = ("wanconv inspect source", "wanconv recipes")


def frames(count: int = 5, side: int = 48) -> dict[str, Frames]:
    three = clips(count, side, side)
    return {
        "reference": three["reference"],
        "fp8-scaled": three["candidate"],
        "broken": clip(count, side, side, 0.2, 4),
    }


@pytest.fixture(scope="module")
def rendered() -> str:
    return comparison.render("a small model", sides("passed", "failed"), frames(), COMMANDS)


def test_it_opens_with_what_came_out(rendered: str) -> None:
    page = Page(rendered)
    assert "AS EXPECTED 1 of 1 conversions passed, and the broken one was caught" in page.text
    assert "<title>1 of 1 conversions passed, and the broken one was caught</title>" in rendered
    missed = Page(comparison.render("a small model", sides("passed", "passed"), frames(), COMMANDS))
    assert "NOT AS EXPECTED 1 of 1 conversions passed, and the broken one was not caught" in missed.text


def test_the_source_and_every_conversion_play_beside_each_other(rendered: str) -> None:
    page = Page(rendered)
    shown = [one["data-name"] for tag, one in page.elements if tag == "figure" and "data-name" in one]
    assert shown == ["reference", "fp8-scaled", "broken"]
    images = [one for tag, one in page.elements if tag == "img"]
    assert len(images) == 3 * 5
    assert all((one["src"] or "").startswith("data:image/webp;base64,") for one in images)
    assert {one["id"] for tag, one in page.elements if tag in ("button", "input") and "id" in one} >= {"play", "frame"}


def test_the_table_has_sizes_verdicts_errors_and_the_way_to_each_report(rendered: str) -> None:
    table = rendered.partition('<table class="sides">')[2].partition("</table>")[0]
    assert re.findall(r'class="pill [^"]*">([^<]*)<', table) == ["PASS", "PASS", "FAIL", "FAIL"]
    assert re.findall(r'href="([^"]+)"', table) == [
        "reports/fp8-scaled/validation.html",
        "reports/broken/validation.html",
    ]
    assert "of its limit" in table
    assert "38.4 dB" in table


def test_the_broken_one_says_what_was_done_and_who_found_it(rendered: str) -> None:
    section = rendered.partition('<section id="broken">')[2].partition("</section>")[0]
    for said in ("one scale is doubled", "expert.high/blocks.0 is too far off", "found by"):
        assert said in section


def test_every_conversion_has_a_line_in_the_plot_of_each_denoiser(rendered: str) -> None:
    section = rendered.partition('<section id="error">')[2].partition("</section>")[0]
    assert section.count('<svg viewBox="0 0 560 264"') == 2
    assert section.count('class="line hue0"') == section.count('class="line hue5 dashed"') == 4  # and their legends


def test_it_stands_alone_and_its_policy_says_so(rendered: str) -> None:
    page = Page(rendered)
    for tag, name, value in page.attributes():
        if name in ("src", "href", "action", "poster", "srcset"):
            assert value.startswith(("data:", "#", "reports/")), f"{tag} {name}={value[:80]}"
    (policy,) = [one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy"]
    for tag in ("style", "script"):
        digest = b64encode(sha256(page.inline[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in (policy or "")
    assert (policy or "").startswith("default-src 'none'; ")
    assert not [name for _, name, _ in page.attributes() if name == "style" or name.startswith("on")]


def test_hostile_strings_stay_text() -> None:
    hostile = '</script><img src=x onerror=alert(1)>"{{ 7*7 }}'
    both = [
        replace(side, damage=side.damage and hostile, summary=hostile, proof=hostile)
        for side in sides("passed", "failed")
    ]
    text = comparison.render(hostile, both, frames(), (hostile,))
    assert text.count("<script>") == text.count("</script>") == 1
    assert not [one for tag, one in Page(text).elements if tag == "img" and "onerror" in one]
    assert hostile in "".join(Page(text).words)


def test_the_same_results_give_the_same_page(rendered: str) -> None:
    assert comparison.render("a small model", sides("passed", "failed"), frames(), COMMANDS) == rendered
