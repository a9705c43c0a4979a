"""The page of a validation: what it says for every outcome, that it stands alone, and that a browser agrees."""

import copy
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser, chromium, with_scripts
from pages import Page
from skimage.io import imread
from validation_samples import LAYERS, SAMPLES, as_json, clips

from wanconv.evaluation.report import html, plots, wording
from wanconv.evaluation.report.clips import FRAMES_NBYTES
from wanconv.verdict import Check, Verdict, judge, load_profile

OUTCOMES = {
    "passed": "PASS",
    "failed": "FAIL",
    "not_finite": "NOT FINITE",
    "cannot_judge": "CANNOT JUDGE",
    "alone": "PASS",
    "no_video": "PASS",
    "bare": "CANNOT JUDGE",
}


def render(results: dict[str, Any], moving: dict[str, Any] | None) -> str:
    results = as_json(results)
    profile = load_profile(results["settings"].get("profile", "standard"))
    return html.render(results, judge(results, profile), profile, moving)


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return {name: render(*sample()) for name, sample in SAMPLES.items()}


@pytest.fixture(params=SAMPLES)
def page(request: pytest.FixtureRequest, rendered: dict[str, str]) -> Page:
    return Page(rendered[request.param])


@pytest.mark.parametrize(("name", "outcome"), OUTCOMES.items())
def test_a_page_opens_with_its_verdict_and_one_sentence_why(rendered: dict[str, str], name: str, outcome: str) -> None:
    page = Page(rendered[name])
    assert f"<title>{outcome}: " in rendered[name]
    results = SAMPLES[name]()[0]
    profile = load_profile(results["settings"].get("profile", "standard"))
    why = wording.why(results, judge(results, profile), profile)
    assert page.text.index(outcome) < page.text.index(" ".join(why.split())) < page.text.index("Checks")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("failed", "Noise prediction, expert.low at t=100"),
        ("failed", "is 0.158 where ≤ 0.08 is allowed"),
        ("not_finite", "Storage, text_encoder/blocks.2.ffn.wo.weight: the file holds inf at [17, 402]"),
        ("cannot_judge", "Exercised, expert.low: not exercised: missing from a model"),
        ("alone", "Quality is not judged: there was no reference to compare with."),
        ("passed", "used 48% of its limit."),
    ],
)
def test_the_sentence_names_what_decided(rendered: dict[str, str], name: str, sentence: str) -> None:
    assert sentence in Page(rendered[name]).text


def test_a_page_is_well_formed_and_every_link_inside_it_has_its_target(page: Page) -> None:
    ids = [value for _, name, value in page.attributes() if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value for tag, name, value in page.attributes() if (tag, name) == ("a", "href")]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_a_page_points_nowhere_outside_itself(page: Page) -> None:
    for tag, name, value in page.attributes():
        assert "//" not in value or value.startswith("data:") or name == "content", f"{tag} {name}={value[:80]}"
        if name in ("src", "href", "poster", "data", "srcset", "action", "xlink:href"):
            assert value.startswith(("data:", "#")), f"{tag} {name}={value[:80]}"
    assert not re.search(
        r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", page.inline["style"] + page.inline["script"]
    )


def test_the_policy_forbids_all_but_the_style_and_the_script_that_are_there(page: Page) -> None:
    (policy,) = [one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy"]
    digests = {
        tag: f"'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'" for tag, code in page.inline.items()
    }
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": digests["style"],
        "script-src": digests["script"],
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [name for _, name, _ in page.attributes() if name == "style" or name.startswith("on")]


def test_a_page_of_the_standard_run_stays_below_two_megabytes() -> None:
    results, _ = SAMPLES["not_finite"]()
    assert 1_000_000 < len(render(results, clips(5, 256, 256)).encode()) < 2_000_000


@pytest.mark.parametrize("name", SAMPLES)
def test_all_but_the_frames_is_small_enough_for_every_page_to_stay_so(rendered: dict[str, str], name: str) -> None:
    bare = re.sub('data:image/webp;base64,[^"]*', "", rendered[name]).encode()
    assert len(bare) + FRAMES_NBYTES * 4 / 3 < 2_000_000


def test_the_same_results_give_the_same_page(rendered: dict[str, str]) -> None:
    assert render(*SAMPLES["not_finite"]()) == rendered["not_finite"]


def test_sections_come_in_the_order_in_which_people_ask(rendered: dict[str, str]) -> None:
    found = [one.get("id") for tag, one in Page(rendered["not_finite"]).elements if tag == "section"]
    assert found == [
        "checks", "clips", "error", "headroom", "first-bad", "storage", "models", "provenance", "reading"
    ]  # fmt: skip


def test_what_is_not_there_has_no_section(rendered: dict[str, str]) -> None:
    for name, absent in {"no_video": "stage", "alone": "error", "passed": "first-bad", "bare": "headroom"}.items():
        assert absent not in {one.get("id") for _, one in Page(rendered[name]).elements}
    assert (
        "No video was made in this run: profile quick judges by single steps alone." in Page(rendered["no_video"]).text
    )
    assert "None was given: this run looks for NaN and overflow only." in Page(rendered["alone"]).text


def test_checks_stand_in_the_table_with_value_and_limit_and_the_worst_first(rendered: dict[str, str]) -> None:
    table = rendered["failed"].partition('<table class="checks">')[2].partition("</table>")[0]
    outcomes = re.findall(r'class="pill [^"]*">([^<]*)<', table)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {"FAIL", "PASS"}
    results, _ = SAMPLES["failed"]()
    checks = judge(results, load_profile("standard")).checks
    text = Page(rendered["failed"]).text
    assert all(check.name.capitalize() in text for check in checks)
    assert f"{sum(check.outcome == 'PASS' for check in checks)} of {len(checks)}" in text


def test_figures_of_the_video_come_flat_and_what_was_not_computed_says_why(rendered: dict[str, str]) -> None:
    text = Page(rendered["passed"]).text
    for shown in (
        "PSNR (dB) 38.4 41.9",
        "Flicker ratio 1.004 1.001",
        "LPIPS not computed: no backbone",
        "Black frames none",
    ):
        assert shown in text


def test_figures_may_come_before_or_after_json() -> None:
    measured = {"psnr": {"psnr_db": 30.0, "frames_db": (30.0,)}, "black_frames": (0, 3)}
    for one in (measured, as_json(measured)):
        assert wording.metric_figures({"candidate": one}, "candidate") == {"PSNR (dB)": "30", "Black frames": "1, 4"}


def test_clips_that_are_not_finite_are_named() -> None:
    assert wording.metric_figures({"candidate": {"not_finite": ["candidate"]}}, "candidate") == {
        "Not finite": "candidate"
    }


def test_identical_clips_are_identical_and_not_without_a_figure() -> None:
    results, _ = SAMPLES["passed"]()
    results["video"]["control"]["psnr"] = {"identical": True, "psnr_db": None}
    assert "PSNR (dB) 38.4 identical" in Page(render(results, None)).text


def test_a_warning_is_shown_and_leaves_the_verdict(rendered: dict[str, str]) -> None:
    results, _ = SAMPLES["no_video"]()
    results["storage"][0]["flushed_share"] = 0.02
    page = Page(render(results, None))
    assert "WARNING Storage A 2.0% of its numbers became zero" in page.text
    assert "PASS The converted model passed" in page.text
    assert "passed, 1 warned; the tightest" in page.text


@pytest.mark.parametrize("name", SAMPLES)
def test_every_table_scrolls_inside_itself_with_the_keyboard_too(rendered: dict[str, str], name: str) -> None:
    regions = [one for _, one in Page(rendered[name]).elements if (one.get("class") or "").split()[:1] == ["scroll"]]
    assert len(regions) == rendered[name].count("<table")
    assert {(one["role"], one["tabindex"]) for one in regions} == {("region", "0")}
    labels = [one["aria-label"] for one in regions]
    assert len(labels) == len(set(labels))


def test_storage_is_sorted_by_error_and_what_is_exact_is_folded() -> None:
    results, _ = SAMPLES["no_video"]()
    row = results["storage"][0] | {"flushed_share": 0.0}
    errors = {"a": 0.001, "b": 0.0, "c": 0.02, "d": None, "e": 0.0}
    results["storage"] = [row | {"tensor": name, "relative_l2": error} for name, error in errors.items()]
    results["storage"][3]["first_not_finite"] = "inf at [1, 2]"
    results["storage"][4]["flushed_share"] = 0.5  # nothing but zero is exact, and not what was lost to it
    section = render(results, None).partition('<section id="storage">')[2].partition("</section>")[0]
    shown, _, folded = section.partition("<details>")
    assert re.findall(r'<td class="mono where">(.)</td>', shown) == ["d", "c", "a", "e"]
    assert re.findall(r'<td class="mono where">(.)</td>', folded) == ["b"]
    assert "1 tensor is exact" in folded


def test_prompt_and_negative_prompt_differ_in_colour_and_dash(rendered: dict[str, str]) -> None:
    legend = rendered["passed"].partition('<p class="legend">')[2].partition("</p>")[0]
    lines = dict(re.findall(r'<path class="(line [^"]*)"[^>]*/></svg>([^<]*)<', legend))
    drawn = {label: kind for kind, label in lines.items()}
    assert drawn["t = 999, prompt"] == "line hue0"
    assert drawn["t = 999, negative prompt"] == "line other0 dashed"
    style = Page(rendered["passed"]).inline["style"]
    for scheme in style.split("prefers-color-scheme: dark"):
        colours = re.findall(r"--(?:hue|other)\d: (#\w+);", scheme)
        assert len(colours) == len(set(colours)) == 12


def test_the_first_bad_operation_comes_with_the_twenty_before_it(rendered: dict[str, str]) -> None:
    text = Page(rendered["not_finite"]).text
    assert "aten.add is the first operation under fp16 that gave NaN or infinity, at step 2, timestep 500" in text
    table = rendered["not_finite"].partition('<table class="operations">')[2].partition("</table>")[0]
    assert table.count("<tr") == 21
    assert 'class="lost"' in table
    assert "not finite" in table


def test_operations_may_come_with_their_dtype_and_the_largest_first() -> None:
    results, _ = SAMPLES["not_finite"]()
    for row in results["safety"]:
        top = [one | {"op": "aten.mul", "dtype": "fp16"} for one in row["ranges"] if one["largest"] is not None]
        row["ranges"] = sorted(top, key=lambda one: -one["largest"])[:20]
        for one in row["last_operations"]:
            del one["smallest"]
            one["dtype"] = "fp16"
    text = Page(render(results, None)).text
    assert "operations, largest first" in text
    assert "module operation dtype largest range" in text


def test_pixels_that_are_not_finite_are_told(rendered: dict[str, str]) -> None:
    assert "pixels are not finite: magenta" in Page(rendered["not_finite"]).text
    assert "pixels are not finite" not in Page(rendered["passed"]).text


def test_a_page_explains_the_five_classes_and_what_it_does_not_prove(page: Page) -> None:
    for one in wording.CLASSES:
        assert one.question in page.text
        assert one.meaning in page.text
    assert "What this page does not prove: names." in page.text


def test_a_class_that_was_not_measured_does_not_pass(rendered: dict[str, str]) -> None:
    def states(name: str) -> dict[str, str]:
        text = rendered[name].partition('<ol class="classes">')[2]
        return dict(re.findall(r'id="class-(.)">.*?<span class="pill [^"]*">(.*?)</span>', text))

    assert states("passed") == {"A": "PASS", "B": "PASS", "C": "PASS", "D": "not measured", "E": "PASS"}
    assert states("alone")["E"] == "not measured"
    assert states("failed")["E"] == "FAIL"
    assert states("not_finite") | {"E": ""} == {
        "A": "NOT FINITE",
        "B": "NOT FINITE",
        "C": "PASS",
        "D": "not measured",
        "E": "",
    }


HOSTILE = '</script></style><script>alert("x")</script><img src=x onerror=alert(1)>\'"&{{ 7*7 }}{% raw %}\u202e'


def hostile(thing: Any) -> Any:
    """Returns results with every string a user or a file could have chosen made hostile."""
    keep = {"profile", "block", "format", "component", "branch", "schema"}
    if isinstance(thing, dict):
        return {key: one if key in keep else hostile(one) for key, one in thing.items()} | (
            {HOSTILE: HOSTILE} if "wanconv" in thing or "ssim" in thing else {}
        )
    if isinstance(thing, list):
        return [hostile(one) for one in thing]
    return HOSTILE if isinstance(thing, str) else thing


@pytest.mark.parametrize("name", ["passed", "not_finite", "cannot_judge"])
def test_hostile_strings_stay_text(rendered: dict[str, str], name: str) -> None:
    results, moving = SAMPLES[name]()
    text = render(hostile(copy.deepcopy(results)), moving)
    assert text.count("<script>") == text.count("</script>") == 1
    assert "alert(" not in "".join(Page(text).inline.values())
    before, after = (
        [tag for tag, _ in Page(one).elements if tag in ("script", "style")] for one in (rendered[name], text)
    )
    assert before == after
    assert not [one for tag, one in Page(text).elements if tag == "img" and "onerror" in one]
    assert text.count("{{ 7*7 }}") > 5  # as it was written, never computed
    assert HOSTILE in "".join(Page(text).words)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (True, "yes"), (0, "0"), (65504, "65\u202f504"), (0.0123456, "0.0123"), (1e-5, "0.00001"),
        (2.5e-9, "2.5e-9"), (float("nan"), "not finite"), (float("-inf"), "not finite"),
        (1234567.0, "1\u202f234\u202f567"),
        ("bf16", "bf16"),
    ],
)  # fmt: skip
def test_figures_are_written_for_people(value: object, text: str) -> None:
    assert wording.figure(value) == text


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 bytes"), (57_153_000_000, "57.2 GB"), (None, "–"), (999, "999 bytes")]
)
def test_sizes_have_decimal_units(nbytes: int | None, text: str) -> None:
    assert wording.size(nbytes).replace("\u00a0", " ") == text


def test_the_error_plot_puts_ten_times_more_the_same_distance_higher() -> None:
    series = plots.Series("t = 1", 0, False, [1e-4, 1e-3, 1e-2, None, float("nan"), 0.0])
    drawn = plots.error_plot("", [str(i) for i in range(6)], [series], {"limit": 1e-2})
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", drawn.lines[0].path)
    heights = [float(y) for _, y in points]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert drawn.gates[0].at == heights[2]
    assert len(drawn.lines[0].lost) == 1
    assert heights[3] == drawn.y_ticks[0].at
    assert drawn.y_ticks[0].label == "0"


def test_the_headroom_plot_marks_what_is_over_near_and_lost() -> None:
    ranges = [("a", 3.0), ("b", 70_000.0), ("c", 20_000.0), ("d", float("nan"))]
    drawn = plots.headroom_plot("", ranges, {"end": 65504.0, "near": 16376.0, "far": 3e38}, 65504.0, 16376.0)
    assert {dot.text.partition(":")[0]: dot.kind for dot in drawn.dots} == {
        "a": "plain",
        "b": "lost",
        "c": "near",
        "d": "lost",
    }
    assert [gate.label for gate in drawn.gates] == ["end", "near"]
    assert drawn.note == "Far above this plot: far."


def test_a_plot_of_very_many_operations_stays_small() -> None:
    ranges = [(f"blocks.{i // 500}.op{i}", float(1 + i % 97)) for i in range(20_000)]
    drawn = plots.headroom_plot("", ranges, {"end": 65504.0}, 65504.0, 16376.0)
    assert len(drawn.cloud) < 30_000
    assert [tick.label for tick in drawn.x_ticks][:2] == ["0", "4"]


def test_exact_blocks_are_drawn_at_zero(rendered: dict[str, str]) -> None:
    results, _ = SAMPLES["no_video"]()
    for row in results["steps"]:
        row |= {"relative_l2": 0.0, "format": "exact"}
        row["blocks"] = [
            {"block": f"blocks.{i}", "forced_relative_l2": 0.0, "running_relative_l2": 0.0} for i in range(LAYERS)
        ]
    assert "limit for exact" in render(results, None)


def test_checks_without_an_outcome_of_their_own_still_make_a_page() -> None:
    results, _ = SAMPLES["bare"]()
    nothing = Verdict("CANNOT JUDGE", ())
    assert "Nothing was checked." in html.render(results, nothing, load_profile("quick"), None)
    check = Check("op-internal", "NOT FINITE", 7e4, 65504.0, "blocks.0.norm", "x² overflows in fp16")
    page = html.render(results, Verdict("NOT FINITE", (check,)), load_profile("quick"), None)
    assert "is 70\u202f000 where ≤ 65\u202f504 is allowed" in page


@pytest.mark.tools
@browser
@pytest.mark.parametrize("name", SAMPLES)
def test_a_browser_runs_the_page_without_an_error(rendered: dict[str, str], name: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(rendered[name], encoding="utf-8")
    done = chromium(path, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert f'<p class="outcome">{OUTCOMES[name]}</p>' in done.stdout
    assert '<html lang="en" class="js">' in done.stdout
    _, moving = SAMPLES[name]()
    if moving:
        assert f"{len(moving)} clips, {5 * len(moving)} frames loaded." in done.stdout
        assert "frame 1 of 5" in done.stdout


@pytest.mark.tools
@browser
def test_a_browser_would_tell_a_break_of_the_policy(rendered: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(
        rendered["bare"].replace("</body>", "<script>document.title = 'in'</script></body>"), encoding="utf-8"
    )
    done = chromium(path, tmp_path / "profile", "--dump-dom")
    assert "Content Security Policy" in done.stderr
    assert "<title>in</title>" not in done.stdout


@pytest.mark.tools
@browser
def test_a_browser_moves_all_clips_with_one_scrubber_and_subtracts_them(
    rendered: dict[str, str], tmp_path: Path
) -> None:
    """A script of the test's own, allowed by its digest, works the controls as a hand would."""
    hand = """
      const slider = document.getElementById("frame"), difference = document.getElementById("difference");
      slider.value = 3; slider.dispatchEvent(new Event("input"));
      const seen = [...document.querySelectorAll(".clip img:not([hidden])")].map((one) => one.alt).join("; ");
      addEventListener("load", () => {
        difference.click();
        const drawn = document.querySelector('[data-name="candidate"] canvas');
        const data = drawn.getContext("2d").getImageData(0, 0, drawn.width, drawn.height).data;
        document.title = `${seen} | ${drawn.hidden} | ${data[0]} ${data[1]} ${data[2]}`;
      });"""
    path = tmp_path / "report.html"
    path.write_text(with_scripts(rendered["passed"], hand), encoding="utf-8")
    done = chromium(path, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    both = [np.rint(clip[3, 0, 0] * 255).astype(int) for clip in (clips()["reference"], clips()["candidate"])]
    wanted = " ".join(str(min(255, one * 8)) for one in abs(both[0] - both[1]))
    frames = "; ".join(f"{name}, frame 4 of 5" for name in ("reference", "candidate", "control"))
    assert f"<title>{frames} | false | {wanted}</title>" in done.stdout


@pytest.mark.tools
@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_shows_the_page_in_light_and_dark(rendered: dict[str, str], scheme: str, tmp_path: Path) -> None:
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    path.write_text(rendered["passed"], encoding="utf-8")
    chromium(
        path,
        tmp_path / "profile",
        f"--screenshot={shot}",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
    )
    data = shot.read_bytes()
    assert data.startswith(b"\x89PNG")
    corner = imread(shot)[5, 5, :3].mean()
    assert corner > 200 if scheme == "light" else corner < 60
