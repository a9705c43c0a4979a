"""The trust battery: which tests prove what, how much each must try, and the table of a run. See scripts/battery."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
HOSTILE = "cli/test_hostile.py"
TYPED = "cli/test_paths.py"
TEXT = "cli/test_terminal_text.py"
DEMO = "commands/test_demo.py"
FLIPS = "containers/test_flips.py"
MUTANTS = "containers/test_mutants.py"
PICKLES = "containers/test_pickles.py"
PTH = "containers/test_pth.py"
HEADERS = "containers/test_safetensors.py"
BYTES = "conversion/test_convert_bytes.py"
CRASH = "conversion/test_convert_crash.py"
OUT = "conversion/test_convert_out.py"
REMOTE = "conversion/test_convert_remote.py"
PLACES = "conversion/test_force_places.py"
MEMORY = "conversion/test_memory.py"
VERSIONS = "conversion/test_torch_versions.py"
DOWNLOAD = "downloads/test_download.py"
NAMES = "storage/test_hubs_names.py"
LIES = "storage/test_lying_hub.py"
LYING = "storage/test_lying_hub_mutants.py"
SHORT = "storage/test_short_reads.py"
SPECIAL = "storage/test_special_files.py"
SUMS = "verification/test_checksums.py"
PARTS = 4  # that a test of thousands of cases is cut into, for several cores


@dataclass(frozen=True, slots=True)
class Scale:
    """How much a run tries. `sample` is what an ordinary run of the tests does."""

    header_mutants: int
    pth_mutants: int
    saved_mutants: int
    """of results, recipes and profiles, each"""
    limits: int
    """of memory"""
    kills: int
    remote_kills: int
    """of a conversion that downloads, and of a download"""
    hub_mutants: int
    """of a download; of the other commands there are fewer"""
    flips: int
    blocks: int
    """of 14B width"""
    torches: int
    """versions beside this one"""
    every_call: bool
    """of those that may fail; else the first, the second, the fourth, the eighth …"""
    every_error: bool
    """of a call, EIO and ENOSPC; else one after the other"""
    every_system_error: bool
    """the same of the calls that strace sees, and SIGKILL"""


SCALES = {
    "sample": Scale(
        header_mutants=2_000,
        pth_mutants=1_000,
        saved_mutants=600,
        limits=4,
        kills=8,
        remote_kills=2,
        hub_mutants=100,
        flips=40,
        blocks=1,
        torches=0,
        every_call=False,
        every_error=False,
        every_system_error=False,
    ),
    "quick": Scale(
        header_mutants=20_000,
        pth_mutants=4_000,
        saved_mutants=4_000,
        limits=16,
        kills=30,
        remote_kills=10,
        hub_mutants=1_000,
        flips=200,
        blocks=2,
        torches=0,
        every_call=True,
        every_error=True,
        every_system_error=False,
    ),
    "nightly": Scale(
        header_mutants=1_000_000,
        pth_mutants=100_000,
        saved_mutants=100_000,
        limits=200,
        kills=300,
        remote_kills=100,
        hub_mutants=30_000,
        flips=2_000,
        blocks=40,
        torches=2,
        every_call=True,
        every_error=True,
        every_system_error=True,
    ),
}


def calls(scale: Scale) -> Iterator[int]:
    """Yields the numbers of the calls that are to fail, without end."""
    return count(1) if scale.every_call else (1 << number for number in count())


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests of one subject: whole files, or FILE::TEST. `least` is the number of cases that may not be missing.

    `needs` is what a machine may lack: only then may tests be skipped.
    """

    title: str
    tests: tuple[str, ...]
    least: Callable[[Scale], int]
    proves: str
    needs: str = ""


# fmt: off
SUITES = (
    Suite("hostile and broken inputs",
          (f"{HOSTILE}::test_broken_input_is_refused_in_a_sentence",
           f"{HOSTILE}::test_a_refusal_costs_less_than_a_second_and_200_mb"),
          lambda scale: 120,
          "Each through `inspect` and `convert`: a line with file and reason, a hint, exit code 3, no traceback; less "
          "than a second of processor time and 200 MB beyond a start of the command line."),
    Suite("mutants of safetensors headers",
          (f"{HEADERS}::test_a_mutant_is_refused_or_read_as_the_library_reads_it",),
          lambda scale: scale.header_mutants,
          "Nothing but a refusal escapes, and nothing is accepted that safetensors refuses or reads otherwise."),
    Suite("mutants of .pth files",
          (f"{PTH}::test_a_mutant_is_refused_or_read_as_torch_reads_it",), lambda scale: scale.pth_mutants,
          "Nothing but a refusal escapes, and what is accepted is what torch reads from the file."),
    Suite("mutants of results, recipes and profiles",
          (MUTANTS,), lambda scale: 3 * scale.saved_mutants,
          "Nothing but a refusal escapes `--recheck` and whatever reads a recipe or a profile, and what is accepted is "
          "judged and applied."),
    Suite("SIGKILL of convert",
          (f"{CRASH}::test_runs_killed_at_random_moments_go_on_to_the_same_bytes",), lambda scale: scale.kills,
          "Killed while it writes, the same command goes on to the bytes of an undisturbed run; nothing half made is "
          "ever OUT, and what is written again is a block of each worker at most."),
    Suite("SIGKILL of convert that downloads",
          (f"{REMOTE}::test_killed_again_and_again_it_ends_with_the_same_bytes",
           f"{REMOTE}::test_killed_while_it_downloads_and_while_it_converts_it_goes_on"),
          lambda scale: scale.remote_kills,
          "The same of `convert hf://…`, killed once or more in every run."),
    Suite("SIGKILL of download",
          (f"{DOWNLOAD}::test_killed_at_random_moments_it_fetches_nothing_twice_that_was_written",
           f"{DOWNLOAD}::test_killed_in_the_middle_of_a_file_it_goes_on_there"), lambda scale: scale.remote_kills,
          "Every file ends whole, and of what was written no byte is fetched again."),
    Suite("any call fails once",
          (f"{CRASH}::test_any_call_may_fail_once_and_the_same_command_goes_on",
           f"{CRASH}::test_any_call_may_fail_once_while_it_downloads_and_converts",
           f"{CRASH}::test_any_call_may_fail_while_a_finished_out_is_replaced",
           f"{DOWNLOAD}::test_any_call_may_fail_once_and_the_same_command_goes_on"),
          lambda scale: 450 if scale.every_error else 300,
          "Each mkdir, open, write, fsync and rename of `convert`, `convert hf://…` and `download`, and each unlink "
          "and rmdir of the first two fails with EIO or ENOSPC, or is its last: a refusal or a right output, and the "
          "rerun is identical."),
    Suite("any system call fails once",
          (f"{CRASH}::test_any_system_call_on_the_target_may_fail_once",),
          lambda scale: 150 if scale.every_system_error else 40,
          "The same of `convert` from outside, by strace, with the calls that are made in C.", needs="strace"),
    Suite("a full disk",
          (f"{CRASH}::test_a_disk_that_fills_up_during_the_run_ends_it_and_the_same_command_goes_on",), lambda scale: 8,
          "A real file system fills up during `convert`, at 8 sizes: exit code 7, the source untouched, and the "
          "rerun is identical.",
          needs="root, to mount a small file system"),
    Suite("pickles that would run something",
          (PICKLES,), lambda scale: 15,
          "Each of them runs when torch is told to trust it; here each is refused in a sentence, and none has run."),
    Suite("attacks by names and links",
          (*(f"{NAMES}::test_{test}" for test in (
              "an_unsafe_name_is_refused_before_anything_is_written",
              "names_that_are_one_file_elsewhere_are_refused",
              "modelscopes_list_is_trusted_no_more",
              "an_unsafe_name_that_is_not_wanted_does_no_harm",
              "a_link_in_place_of_a_folder_is_not_followed",
              "a_link_in_place_of_a_file_is_not_followed",
              "a_link_in_place_of_a_beginning_is_not_written_through",
              "a_fifo_in_place_of_a_file_or_a_beginning_hangs_nobody",
              "a_hard_linked_file_elsewhere_keeps_its_bytes",
              "the_record_is_not_written_through_a_link")),
           *(f"{OUT}::test_{test}" for test in (
              "a_link_in_the_way_is_refused_and_not_followed",
              "links_to_the_source_in_a_partial_are_refused_and_not_written_through",
              "a_folder_of_a_partial_that_links_to_the_source_is_refused",
              "an_out_that_is_holds_or_lies_in_the_source_is_refused",
              "an_out_that_is_or_holds_the_source_file_is_refused"))),
          lambda scale: 40,
          "Paths, links, devices and look-alikes in a hub's list, in the target of a download or in place of OUT: "
          "nothing outside is touched."),
    Suite("lying hub",
          (LIES, LYING), lambda scale: 140 + 17 * scale.hub_mutants // 10,
          "Rows, forms, headers, status lines and bodies of a hub's answers, one by one and drawn at random, through "
          "`download`, `inspect`, `convert`, `verify --hub` and `publish`: the right bytes or a sentence, in time and "
          "memory, and the token at no other host."),
    Suite("special files",
          (SPECIAL,), lambda scale: 200,
          "A device, a FIFO, a folder, a socket, a hole of a terabyte, a file of /proc or one that grows in the place "
          "of every recipe, profile, report, list, record, config, image, sound and weight file: a sentence, at once."),
    Suite("flipped bits of digest lists",
          (SUMS,), lambda scale: 3_000,
          "Each bit of lists in every style is flipped: a failure, or a list that says the same of every file."),
    Suite("places for --force",
          (PLACES, TYPED,
           *(f"{OUT}::test_{test}" for test in (
              "a_folder_named_partial_that_wanconv_did_not_make_is_never_emptied",
              "an_out_that_appears_during_the_run_is_not_touched",
              "an_out_that_ends_in_dots_is_the_folder_that_it_leads_to")),
           "commands/test_demo.py::test_what_no_demo_made_is_not_written_over",
           "commands/test_demo.py::test_a_link_in_what_a_demo_made_is_not_written_through",
           "samples/test_shipped.py::test_a_folder_named_partial_beside_the_model_is_somebodys_and_stays",
           "downloads/test_download.py::test_a_repository_is_not_downloaded_into_a_home_folder"),
          lambda scale: 200,
          "Home, mount points, the current folder and what Python and wanconv stand on are never replaced; nor is what "
          "others wrote, before, during or after the look, in OUT, OUT.partial, a report or a demo. Every path is read "
          "as it was typed.", needs="root, unshare"),
    Suite("terminal text",
          (f"{TEXT}::test_no_command_prints_what_a_terminal_obeys",
           f"{TEXT}::test_json_of_every_command_is_one_document_without_a_control_character"), lambda scale: 60,
          "Colours, titles, line breaks, bidirectional and invisible characters in names of files, tensors, classes "
          "and keys, in manifests, lists, recipes, profiles, results, arguments and answers of hubs are shown as "
          "escapes; no line is forged, and JSON is exact."),
    Suite("flipped bits",
          (FLIPS,), lambda scale: scale.flips,
          "One bit anywhere in a source or an output – numbers, headers, sidecars, the manifest – is found by "
          "`verify`, and where it is in a number, the tensor is named."),
    Suite("memory",
          (MEMORY,), lambda scale: 2 + min(scale.blocks, 10) + scale.limits,
          "Under a limit of 1.5 GiB that is set from outside, a 14B checkpoint of 57 GB is planned, and blocks of its "
          "width are converted: at most 40, and as many as a quarter of the free disk takes. Under smaller limits, "
          "from what Python starts with, each command is done or says in a sentence that memory is short."),
    Suite("short reads",
          (SHORT,), lambda scale: 10,
          "Where each read gives half of what is asked for, every container is read, converted and verified alike, and "
          "a file that ends early is named as such."),
    Suite("no network",
          (f"{DEMO}::test_the_demo_asks_no_network_and_says_where_to_look_and_may_be_run_again",
           f"{DEMO}::test_an_attempt_to_reach_anybody_is_noted",
           f"{DEMO}::test_what_is_not_pythons_has_no_network_either"),
          lambda scale: 6,
          "`convert`, `verify` and `validate` do all they do in a namespace without a network, and never try "
          "to reach one.", needs="unshare --net"),
    Suite("the same bytes",
          (BYTES,), lambda scale: 16,
          "Threads, blocks, places and stops do not show in the output."),
    Suite("the same bytes from every torch",
          (VERSIONS,), lambda scale: scale.torches,
          "torch 2.11 and 2.12 write what this torch writes.", needs="torch 2.11 and 2.12"),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Case:
    """A test as it ended."""

    file: str
    test: str
    seconds: float
    count: int
    fault: str
    skipped: str


@dataclass(frozen=True, slots=True)
class Result:
    suite: Suite
    cases: int
    passed: int
    seconds: float
    fault: str
    skipped: str

    @property
    def verdict(self) -> str:
        return self.fault or (f"skipped: {self.skipped}" if self.skipped else "passed")


def read(junit: Path) -> Iterator[Case]:
    """Yields the tests of pytest's junit XML, whose property `cases` says how many a test stands for."""
    for element in ElementTree.parse(junit).iter("testcase"):
        counts = [int(one.attrib["value"]) for one in element.iter("property") if one.attrib["name"] == "cases"]
        faults = [one for one in element if one.tag in ("failure", "error")]
        skips = [one.attrib.get("message", "") for one in element if one.tag == "skipped"]
        yield Case(
            element.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py",
            element.attrib["name"].partition("[")[0],
            float(element.attrib["time"]),
            sum(counts) if counts else int(not skips),
            element.attrib["name"] if faults else "",
            skips[0] if skips else "",
        )


def judge(suite: Suite, scale: Scale, cases: Sequence[Case]) -> Result:
    """Returns what became of a suite: it fails with any of its tests, and where it tried less than it promises."""
    mine = [one for one in cases if one.file in suite.tests or f"{one.file}::{one.test}" in suite.tests]
    count = sum(one.count for one in mine)
    passed = sum(one.count for one in mine if not one.fault)
    faults = [one.fault for one in mine if one.fault]
    skipped = [one.skipped for one in mine if one.skipped]
    fault = ""
    if faults:
        fault = f"FAILED: {faults[0]}" + (f" and {len(faults) - 1} more" if len(faults) > 1 else "")
    elif count < suite.least(scale) and not (skipped and suite.needs):
        fault = f"TOO SMALL: {suite.least(scale)} promised"
    excuse = f"needs {suite.needs}" if skipped and suite.needs else "; ".join(skipped[:1])
    if not count and not suite.least(scale):
        excuse = "not at this scale"
    return Result(suite, count, passed, sum(one.seconds for one in mine), fault, excuse)


def run(scale: str, junit: Path) -> None:
    """Runs the tests of every suite at once, on every core."""
    tests = [f"tests/{test}" for suite in SUITES for test in suite.tests]
    marks = "not gpu" if scale == "nightly" else "not gpu and not slow"
    options = ["-m", marks, "-n", "auto", "--dist", "worksteal", "--battery", scale, f"--junit-xml={junit}", "-q"]
    subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT, check=False)


def show(results: Sequence[Result], console: Console) -> None:
    table = Table("suite", "cases", "passed", "seconds", "verdict", title="The trust battery")
    for column in table.columns[1:4]:
        column.justify = "right"
    for one in results:
        colour = "red" if one.fault else "yellow" if one.skipped else "green"
        row = one.suite.title, f"{one.cases:,}", f"{one.passed:,}", f"{one.seconds:.0f}"
        table.add_row(*row, f"[{colour}]{one.verdict}[/]")
    console.print(table)


HEAD = """# Reliability

What `scripts/battery` showed of wanconv. `--quick` takes minutes, and CI runs the same as part of all tests;
`--nightly` tries more of what is random or long. Seconds are summed over a suite's tests, which run on every core. A
suite fails with any of its tests, and where it tries less than
[tests/battery.py](https://github.com/wanconv/wanconv/blob/main/tests/battery.py) promises; what a machine lacks for one
is named. A run of some suites leaves the others' rows as they are.
"""

SECTION = """## {scale}

wanconv {version} on {machine}.

| suite | cases | passed | seconds | verdict |
|---|---:|---:|---:|---|
"""


def page(results: Sequence[Result], scale: str, before: str = "") -> str:
    """Returns docs/reliability.md; what the page said `before` of the other scale, and of suites not run, stays."""
    sections = {one.partition("\n")[0]: one for one in before.split("\n## ")[1:]}
    python, torch = platform.python_version(), version("torch")
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {python}, torch {torch}"
    known = {line.split(" | ")[0]: line for line in sections.get(scale.capitalize(), "").splitlines()}
    rows = [
        f"| {one.suite.title} | {one.cases:,} | {one.passed:,} | {one.seconds:.0f} | {one.verdict} |"
        if one.cases or one.skipped
        else known.get(f"| {one.suite.title}", f"| {one.suite.title} | | | | not run |")
        for one in results
    ]
    head = SECTION.format(scale=scale.capitalize(), version=version("wanconv"), machine=machine)
    sections[scale.capitalize()] = head.removeprefix("## ") + "\n".join(rows) + "\n"
    proofs = [f"- **{one.suite.title}** – {one.suite.proves}" for one in results]
    sections["What each proves"] = "What each proves\n\n" + "\n".join(proofs) + "\n"
    order = ("Quick", "Nightly", "What each proves")
    return "\n## ".join([HEAD, *(sections[name] for name in order if name in sections)])


def main() -> int:
    """Runs the battery, prints its table and writes the page; `--of` judges runs of pytest that have been."""
    parser = argparse.ArgumentParser(prog="scripts/battery", description="Runs the trust battery.")
    size = parser.add_mutually_exclusive_group()
    for name in ("quick", "nightly"):
        size.add_argument(f"--{name}", dest="scale", action="store_const", const=name, default="quick")
    parser.add_argument("--of", type=Path, nargs="+", metavar="JUNIT", help="judge these runs of pytest instead")
    parser.add_argument("--no-page", action="store_true", help="leave docs/reliability.md as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        junits = options.of or [Path(folder) / "junit.xml"]
        if options.of is None:
            run(options.scale, junits[0])
        cases = [case for junit in junits for case in read(junit)]
    results = [judge(suite, SCALES[options.scale], cases) for suite in SUITES]
    show(results, Console())
    if not options.no_page:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(results, options.scale, PAGE.read_text() if PAGE.exists() else ""))
    return int(any(one.fault for one in results))


if __name__ == "__main__":
    sys.exit(main())
