"""The battery's own table: every suite names tests that exist, and none passes that failed, shrank or was left out."""

import ast
from pathlib import Path

import battery
import pytest
from battery import SCALES, SUITES, Suite, judge, page, read

HERE = Path(__file__).parents[1]
SUITE = Suite("a suite", ("test_a.py", "test_b.py::test_one"), lambda scale: 5, "It proves.", needs="strace")
STRICT = Suite("a suite", SUITE.tests, SUITE.least, SUITE.proves)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.title)
def test_every_suite_names_tests_that_exist(suite: Suite) -> None:
    for test in suite.tests:
        file, _, name = test.partition("::")
        functions = {
            node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert any(function.startswith("test_") for function in functions)
        assert not name or name in functions


def junit(folder: Path, *cases: tuple[str, str, str]) -> list[battery.Case]:
    body = "".join(
        f'<testcase classname="tests.{file}" name="{name}" time="0.5">{content}</testcase>'
        for file, name, content in cases
    )
    (folder / "junit.xml").write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    return list(read(folder / "junit.xml"))


def counted(number: int) -> str:
    return f'<properties><property name="cases" value="{number}" /></properties>'


SKIPPED = '<skipped message="no strace" />'


def verdict(suite: Suite, cases: list[battery.Case]) -> tuple[int, int, str]:
    result = judge(suite, SCALES["quick"], cases)
    return result.cases, result.passed, result.verdict


def test_cases_are_summed_over_the_tests_of_a_suite_alone(tmp_path: Path) -> None:
    cases = junit(
        tmp_path,
        ("test_a", "test_x[1]", counted(3)),
        ("test_a", "test_y", ""),
        ("test_b", "test_one[k]", ""),
        ("test_b", "test_two", counted(100)),
    )
    assert verdict(STRICT, cases) == (5, 5, "passed")


def test_a_failure_a_shortfall_and_a_skip_without_need_are_no_pass(tmp_path: Path) -> None:
    failed = junit(tmp_path, ("test_a", "test_x", counted(4)), ("test_a", "test_y", "<failure />"))
    assert verdict(STRICT, failed) == (5, 4, "FAILED: test_y")
    assert verdict(STRICT, junit(tmp_path, ("test_a", "test_x", counted(4)))) == (4, 4, "TOO SMALL: 5 promised")
    assert verdict(STRICT, junit(tmp_path)) == (0, 0, "TOO SMALL: 5 promised")
    skipped = junit(tmp_path, ("test_a", "test_x", SKIPPED))
    assert verdict(STRICT, skipped) == (0, 0, "TOO SMALL: 5 promised")


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    skipped = junit(tmp_path, ("test_a", "test_x", SKIPPED), ("test_b", "test_one", ""))
    assert verdict(SUITE, skipped) == (1, 1, "skipped: needs strace")


def test_a_suite_of_a_larger_scale_is_no_pass_at_a_smaller_one(tmp_path: Path) -> None:
    later = Suite("a suite", ("test_a.py",), lambda scale: scale.torches, "It proves.")
    assert verdict(later, junit(tmp_path)) == (0, 0, "skipped: not at this scale")
    assert judge(later, SCALES["nightly"], []).verdict == "TOO SMALL: 2 promised"


def test_the_page_has_a_row_and_a_sentence_for_every_suite(tmp_path: Path) -> None:
    cases = junit(tmp_path, ("containers.test_pickles", "test_x", ""))
    text = page([judge(suite, SCALES["quick"], cases) for suite in SUITES], "quick")
    assert "| pickles that would run something | 1 | 1 | 0 | TOO SMALL: 15 promised |\n" in text
    assert "| a full disk | | | | not run |\n" in text
    assert "| the same bytes from every torch | 0 | 0 | 0 | skipped: not at this scale |\n" in text
    for suite in SUITES:
        assert f"| {suite.title} | " in text
        assert f"- **{suite.title}** – {suite.proves}" in text


def test_a_run_at_one_scale_leaves_what_the_page_says_of_the_other() -> None:
    quick, nightly = ([judge(suite, SCALES[scale], [])] for suite, scale in ((STRICT, "quick"), (SUITE, "nightly")))
    first = page(quick, "quick", "# an older page\n\n| a suite | 1 |\n")
    both = page(nightly, "nightly", first)
    parts = both.split("\n## ")
    assert [part.partition("\n")[0] for part in parts[1:]] == ["Quick", "Nightly", "What each proves"]
    assert parts[1] == first.split("\n## ")[1]
    assert page(quick, "quick", both) == both


def test_what_an_earlier_run_showed_of_a_suite_stays_until_it_is_run_again(tmp_path: Path) -> None:
    pickles = next(suite for suite in SUITES if suite.title.startswith("pickles"))
    ran = [judge(pickles, SCALES["quick"], junit(tmp_path, ("containers.test_pickles", "test_x", "")))]
    first = page(ran, "quick")
    assert page([judge(pickles, SCALES["quick"], [])], "quick", first) == first
    assert "| not run |" in page([judge(pickles, SCALES["quick"], [])], "quick")
