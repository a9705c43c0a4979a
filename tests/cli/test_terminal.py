"""What a terminal shows: lines that fit it, text broken at words, colours where they are wanted, figures in words."""

import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from validation_samples import SAMPLES, as_json

from wanconv.cli import console
from wanconv.cli.tables import figure_lines, table_lines, wrap
from wanconv.commands import verify
from wanconv.errors import InputError, WanconvError
from wanconv.evaluation.report import summary
from wanconv.report import Cell, Finding, Report, Table
from wanconv.verdict import Check, judge, load_profile
from wanconv.verification.bounds import _nearness

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
TABLE = Table(
    "clients",
    ("client", "reads_it", "size_nbytes", "why_not"),
    (
        ("comfyui", "yes", 5_957_564, ""),
        ("diffusers-single", "no", 999, "expert.high: diffusers-single looks for safetensors in the folder itself"),
    ),
)


@cache
def validated(name: str = "failed", out: Path | None = None) -> Report:
    results = as_json(SAMPLES[name]()[0])
    profile = load_profile(results["settings"].get("profile", "standard"))
    return summary.report(results, judge(results, profile), profile, out, ("reference", "candidate") if out else ())


def shown(
    report: Report | WanconvError,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int | None = 80,
    **environment: str,
) -> str:
    """Returns stdout and stderr of a report as they come on a terminal so wide; None is a pipe."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    if width is not None:
        environment = {"FORCE_COLOR": "1", "COLUMNS": str(width), "TERM": "xterm"} | environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with suppress(SystemExit):
        console.show(report) if isinstance(report, Report) else console.fail(report)
    both = capsys.readouterr()
    return both.out + both.err


def lines(table: Table, width: int) -> list[str]:
    plain = [re.sub(r"\[/?[a-z ]*\]", "", line) for line in table_lines(table, width, False)]
    assert max(map(len, plain)) <= width
    return plain


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_validation_fits_the_terminal_and_breaks_no_word(
    name: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = validated(name, Path("report"))
    text = ESCAPE.sub("", shown(report, capsys, monkeypatch, width))
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    for sentence in (report.figures["why"], report.text("profile"), *(row[-1] for row in report.tables[0].rows)):
        assert {word for word in str(sentence).split() if "/" not in word} <= words


def test_a_validation_says_where_the_page_is_and_how_far_the_clips_are_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(validated("passed", Path("report")), capsys, monkeypatch, None)
    assert re.search(r"^  page +report/validation.html$", text, re.M)
    assert re.search(r"^  clips +report/reference.mp4, report/candidate.mp4$", text, re.M)
    assert re.search(r"^PSNR \(dB\) +38.4 +41.9$", text, re.M)
    assert "page" not in validated("passed").figures


def test_a_limit_says_on_which_side_of_it_is_good_and_no_figure_has_an_exponent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(validated("failed"), capsys, monkeypatch, None)
    assert re.search(r"FAIL +noise prediction .* 0.158 +≤ 0.08 ", text)
    assert re.search(r"PASS +activations .* > 10,000 × +≥ 1 × ", text)
    assert not re.search(r"\de[+-]?\d", text)


def test_of_the_checks_that_passed_the_one_nearest_to_its_limit_is_shown() -> None:
    checks = (
        *(Check("block", "PASS", value, 0.1, f"dit/blocks.{i}", "") for i, value in enumerate((0.01, 0.09, 0.05))),
        *(Check("activations", "PASS", value, 1.0, f"dit/{value}", "") for value in (9e6, 4.0, 80.0)),
        Check("block", "FAIL", 0.2, 0.1, "dit/blocks.7", ""),
    )
    rows = summary._checks(checks).rows
    assert [(row[0], row[2]) for row in rows] == [
        ("PASS", "dit/blocks.1"),
        ("PASS", "dit/4.0"),
        ("FAIL", "dit/blocks.7"),
    ]


def test_a_program_gets_the_exact_numbers() -> None:
    report = validated("failed")
    rows = json.loads(json.dumps(report.to_json()))["tables"]["checks"]
    checks = judge(report.details["results"], load_profile("standard")).checks  # type: ignore[arg-type]  # a mapping
    worst = next(check for check in checks if check.outcome == "FAIL")
    row = next(row for row in rows if row["outcome"] == "FAIL")
    assert (row["value"], row["limit"]) == (worst.value, worst.limit)
    clips = json.loads(json.dumps(validated("passed").to_json()))["tables"]["clips"]
    assert clips[0] == {"clip": "PSNR (dB)", "candidate": 38.4, "control": 41.9}


@pytest.mark.parametrize(
    ("name", "colour"), [("passed", "32"), ("failed", "31"), ("not_finite", "31"), ("cannot_judge", "33")]
)
def test_a_verdict_is_in_colour_unless_none_is_wanted_or_there_is_no_terminal(
    name: str, colour: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = validated(name)
    verdict = str(report.figures["verdict"])
    text = shown(report, capsys, monkeypatch)
    assert text.startswith(f"\x1b[1;{colour}m{verdict}: ")
    assert f"\x1b[{colour}m{verdict}" in text.partition("outcome")[2]
    for none in (
        shown(report, capsys, monkeypatch, NO_COLOR="1"),
        shown(report, capsys, monkeypatch, None),
    ):
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", none)


def test_the_worst_error_of_a_format_is_said_to_be_normal_exact_or_broken() -> None:
    assert [_nearness(worst) for worst in (0.99987812, 0.0, 1.2, float("inf"))] == [
        Cell(0.999878, "1, normal"),
        Cell(0.0, "0, exact"),
        Cell("broken", "broken: above 1", "failure"),
        Cell("broken", "broken: above 1", "failure"),
    ]


@pytest.mark.parametrize(("number", "said"), [(0, "as it should be"), (1, "1 failure"), (2, "2 failures")])
def test_failures_are_counted_as_people_count(number: int, said: str) -> None:
    findings = [Finding("failure", "a", "is broken", "", "check-failed")] * number
    assert verify._report(Path("out"), {}, (), findings).title == f"out: {said}"


def test_a_table_has_a_line_for_each_row_where_it_fits() -> None:
    assert lines(TABLE, 120)[1:] == [
        "comfyui           yes         5.96 MB",
        "diffusers-single  no        999 bytes  " + str(TABLE.rows[1][3]),
    ]


def test_a_sentence_is_broken_at_words_in_its_column_or_goes_below_its_row() -> None:
    assert lines(TABLE, 66)[2:] == [
        "diffusers-single  no        999 bytes  expert.high:",
        "                                       diffusers-single looks for",
        "                                       safetensors in the folder",
        "                                       itself",
    ]
    assert lines(TABLE, 41)[2:] == [
        "diffusers-single  no        999 bytes",
        "    expert.high: diffusers-single looks",
        "    for safetensors in the folder itself",
    ]


def test_a_row_is_a_list_where_the_terminal_is_narrow() -> None:
    assert lines(TABLE, 30) == [
        "client comfyui",
        "  reads it  yes",
        "  size  5.96 MB",
        "client diffusers-single",
        "  reads it  no",
        "  size  999 bytes",
        "  why not",
        "    expert.high:",
        "    diffusers-single looks for",
        "    safetensors in the folder",
        "    itself",
    ]


def test_a_table_without_rows_is_its_head() -> None:
    assert lines(Table("files", ("path", "size_nbytes"), ()), 20) == ["path  size"]


def test_names_are_broken_at_their_joints_and_what_has_none_at_the_end_of_the_line() -> None:
    assert wrap("the path models/wan2.2/diffusion_pytorch_model.safetensors", 20) == [
        "the path",
        "models/wan2.2/",
        "diffusion_pytorch_",
        "model.safetensors",
    ]
    assert wrap("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert wrap("漢字漢字", 4) == ["漢字", "漢字"]  # each as wide as two letters


def test_numbers_are_grouped_and_byte_counts_have_units() -> None:
    assert list(figure_lines("parameters", 2_706_827, 80)) == ["  parameters         2,706,827"]
    assert list(figure_lines("total_nbytes", 10_827_308, 80)) == ["  total              10.8 MB"]


def test_findings_are_broken_at_words_on_a_terminal_and_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding("warning", "out", "no digest is known: headers and cover are all that is checked", "give a list")
    report = Report("verify", "out", {}, (), [finding])
    wrapped = ESCAPE.sub("", shown(report, capsys, monkeypatch, 40))
    assert wrapped.splitlines()[1:] == [
        "warning out: no digest is known:",
        "  headers and cover are all that is",
        "  checked – give a list",
    ]
    whole = shown(report, capsys, monkeypatch, None)
    assert whole.splitlines()[1:] == [f"warning out: {finding.message} – give a list"]


def test_a_command_to_copy_has_no_newline_in_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "convert it first: wanconv convert source --recipe fp8-scaled --layout comfyui --out baked"
    text = ESCAPE.sub("", shown(InputError("not converted", hint), capsys, monkeypatch, 40))
    assert text == f"error[unreadable]: not converted\nhint: {hint}\n"
