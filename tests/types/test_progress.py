"""How far a command is: one bar for a task, lines where there is no terminal, and rates that hold for resumed runs."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from command import run
from hub.server import leading, sha256
from rich.console import Console
from rich.progress import Progress as RichProgress

from wanconv.cli.progress import Bars, Lines, begin, json_line, plain_line
from wanconv.commands import download as downloading
from wanconv.types.progress import ProgressStep, silent, total


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def lines(
    first_s: float = 2.0, every_s: float = 10.0, line: Callable[..., str] = plain_line
) -> tuple[Any, Clock, list[str]]:
    """Returns Lines with a clock that stands, and what is written."""
    clock, written = Clock(), list[str]()
    return Lines(written.append, line, first_s, every_s, clock), clock, written


# Steps


def test_threads_that_race_count_every_unit_and_are_told_in_order() -> None:
    steps: list[ProgressStep] = []
    advance = total(steps.append, "converting", 4000)
    together = threading.Barrier(4)

    def work() -> None:
        together.wait()
        for _ in range(1000):
            advance(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [step.done for step in steps] == list(range(4001))


def test_a_task_of_nothing_is_none() -> None:
    steps: list[ProgressStep] = []
    total(steps.append, "downloading", 0)
    assert steps == []
    silent(ProgressStep("downloading", 1, 2))


@pytest.mark.parametrize("begun", [0, 300_000])
def test_what_an_earlier_run_fetched_is_told_as_kept(
    begun: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(1_000_000)
    steps: list[ProgressStep] = []
    with leading({"vae.safetensors": content}, monkeypatch, tmp_path / "home"):
        root = tmp_path / "here"
        if begun:
            root.mkdir()
            part = root / f".vae.safetensors.{sha256(content)[:16]}.part"
            part.write_bytes(content[:begun])
        downloading.download("hf://owner/name", downloading.DownloadOptions(local_dir=root), steps.append)
    last = [step for step in steps if step.what == "downloading"][-1]
    assert last == ProgressStep("downloading", len(content), len(content), "bytes", begun)


# Lines


def test_without_a_terminal_a_line_comes_every_ten_seconds_with_what_done_total_rate_and_time_left() -> None:
    tell, clock, written = lines()
    for second in range(61):
        clock.now_s = float(second)
        tell(ProgressStep("converting", second * 100_000_000, 6_000_000_000))
        tell.tick()
    assert written == [
        "converting: 200 MB of 6 GB (3 %), 100 MB/s, 0:58 left\n",
        "converting: 1.2 of 6 GB (20 %), 100 MB/s, 0:48 left\n",
        "converting: 2.2 of 6 GB (36 %), 100 MB/s, 0:38 left\n",
        "converting: 3.2 of 6 GB (53 %), 100 MB/s, 0:28 left\n",
        "converting: 4.2 of 6 GB (70 %), 100 MB/s, 0:18 left\n",
        "converting: 5.2 of 6 GB (86 %), 100 MB/s, 0:08 left\n",
        "converting: done, 6 GB in 1:00, 100 MB/s\n",
    ]


def test_a_step_that_takes_minutes_has_its_lines_meanwhile() -> None:
    tell, clock, written = lines()
    tell(ProgressStep("probing", 0, 2, "denoisers"))
    for second in (1, 2, 5, 12, 13, 22):
        clock.now_s = float(second)
        tell.tick()
    clock.now_s = 30.0
    tell(ProgressStep("probing", 1, 2, "denoisers"))
    clock.now_s = 32.0
    tell.tick()
    assert written == [
        "probing: 0 of 2 denoisers (0 %), 0:02 so far\n",
        "probing: 0 of 2 denoisers (0 %), 0:12 so far\n",
        "probing: 0 of 2 denoisers (0 %), 0:22 so far\n",
        "probing: 1 of 2 denoisers (50 %), 32 s each, 0:32 left\n",
    ]


def test_a_short_task_has_no_line() -> None:
    tell, clock, written = lines()
    tell(ProgressStep("checking digests", 0, 10))
    clock.now_s = 1.9
    tell(ProgressStep("checking digests", 5, 10))
    tell(ProgressStep("checking digests", 10, 10))
    clock.now_s = 60.0
    tell.tick()
    assert written == []


def test_a_task_that_begins_anew_is_timed_anew() -> None:
    tell, clock, written = lines()
    tell(ProgressStep("converting", 0, 100))
    clock.now_s = 50.0
    tell(ProgressStep("converting", 0, 100))
    clock.now_s = 53.0
    tell(ProgressStep("converting", 30, 100))
    assert written == ["converting: 30 of 100 bytes (30 %), 10 bytes/s, 0:07 left\n"]


def test_rate_and_time_left_of_a_resumed_run_count_its_own_work_alone() -> None:
    """Nine of ten GB are read back in two seconds; the last one takes ten, at 100 MB/s and never at 4.5 GB/s."""
    tell, clock, written = lines()
    tell(ProgressStep("converting", 0, 10**10))
    clock.now_s = 2.0
    tell(ProgressStep("converting", 9 * 10**9, 10**10, "bytes", 9 * 10**9))
    clock.now_s = 7.0
    tell(ProgressStep("converting", 95 * 10**8, 10**10, "bytes", 9 * 10**9))
    clock.now_s = 12.0
    tell(ProgressStep("converting", 10**10, 10**10, "bytes", 9 * 10**9))
    assert written == [
        "converting: 9 of 10 GB (90 %), 9 GB from before, 0:02 so far\n",
        "converting: done, 10 GB in 0:12, 9 GB from before, 83.3 MB/s\n",
    ]
    one = begin(ProgressStep("converting", 0, 10**10), 0.0)
    one.hear(ProgressStep("converting", 9 * 10**9, 10**10, "bytes", 9 * 10**9), 2.0)
    assert (one.rate(2.0), one.left_s(2.0)) == (None, None)
    one.hear(ProgressStep("converting", 95 * 10**8, 10**10, "bytes", 9 * 10**9), 7.0)
    assert (one.rate(7.0), one.left_s(7.0)) == (10**8, 5.0)


def test_a_rate_of_bytes_is_that_of_the_last_minute_and_falls_while_nothing_comes() -> None:
    one = begin(ProgressStep("downloading", 0, 10**9), 0.0)
    for second in range(1, 201):
        one.hear(ProgressStep("downloading", second * (1000 if second <= 100 else 2000), 10**9), float(second))
    assert one.rate(200.0) == 2000
    assert one.rate(260.0) == 1000


@pytest.mark.parametrize(
    ("step", "seconds", "words"),
    [
        (ProgressStep("generating", 12, 36, "steps"), 4.0, "12 of 36 steps (33 %), 3 steps/s, 0:08 left"),
        (ProgressStep("encoding the prompt", 1, 3, "runs"), 20.0, "1 of 3 runs (33 %), 20 s each, 0:40 left"),
        (ProgressStep("decoding", 0, 1, "runs"), 4.0, "0 of 1 run (0 %), 0:04 so far"),
        (ProgressStep("downloading", 999, 10**6), 1.0, "999 bytes of 1 MB (0 %), 999 bytes/s, 16:40 left"),
        (ProgressStep("downloading", 10**6, 10**11), 1.0, "1 MB of 100 GB (0 %), 1 MB/s, 27:46:39 left"),
    ],
)
def test_every_amount_has_its_unit(step: ProgressStep, seconds: float, words: str) -> None:
    one = begin(ProgressStep(step.what, 0, step.total, step.unit), 0.0)
    one.hear(step, seconds)
    assert one.amounts(seconds) == words


def test_json_is_an_object_a_line_from_the_beginning_to_the_end_of_every_task() -> None:
    tell, clock, written = lines(0, 1, json_line)
    tell(ProgressStep("converting", 0, 10**9))
    for moment in (0.5, 1.0, 1.5, 2.0):
        clock.now_s = moment
        tell(ProgressStep("converting", int(moment * 10**8), 10**9, "bytes", 0))
    tell(ProgressStep("downloading", 0, 5, "files"))
    clock.now_s = 3.0
    tell(ProgressStep("downloading", 5, 5, "files"))
    tell.close()
    assert all(line.endswith("}\n") and line.count("\n") == 1 for line in written)
    told = [json.loads(line) for line in written]
    assert told[1] == {
        "schema": "wanconv.progress/1", "task": "converting", "state": "running", "unit": "bytes",
        "done": 10**8, "total": 10**9, "kept": 0, "elapsed_s": 1.0, "rate": 10**8, "left_s": 9.0,
    }  # fmt: skip
    assert [(one["task"], one["state"], one["done"], one["rate"], one["left_s"]) for one in told] == [
        ("converting", "running", 0, None, None),
        ("converting", "running", 10**8, 10**8, 9.0),
        ("converting", "running", 2 * 10**8, 10**8, 8.0),
        ("downloading", "running", 0, None, None),
        ("downloading", "done", 5, 5.0, 0),
        ("converting", "stopped", 2 * 10**8, pytest.approx(10**8 * 2 / 3), 12.0),
    ]


def test_a_terminals_escapes_in_a_task_are_shown() -> None:
    tell, clock, written = lines()
    clock.now_s = 0.0
    tell(ProgressStep("reading \x1b[31m\nerror[forged]", 0, 2, "files"))
    clock.now_s = 2.0
    tell.tick()
    assert written == [r"reading \x1b[31m\nerror[forged]: 0 of 2 files (0 %), 0:02 so far" + "\n"]


# Commands


def progress_of(cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Returns what becomes of `verify` where a clock goes a second for every look at it."""
    script = (
        "import itertools, sys; import wanconv.cli.progress as shown; "
        "ticks = itertools.count(); "
        "shown.Lines.__init__.__defaults__ = (*shown.Lines.__init__.__defaults__[:2], lambda: float(next(ticks))); "
        "from wanconv.cli import main; main()"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> list[str]:
    """Returns `verify SOURCE --sums LIST`, which reads some MB."""
    source = tiny("wan2.1-t2v-1.3b")
    sums = tmp_path_factory.mktemp("listed") / "list.sha256"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    sums.write_text("".join(f"{sha256(path.read_bytes())}  {path.relative_to(source)}\n" for path in files))
    return ["verify", str(source), "--sums", str(sums)]


def test_plain_is_what_is_shown_where_there_is_no_terminal(listed: list[str], tmp_path: Path) -> None:
    told = [
        line for line in progress_of(tmp_path, *listed).stderr.splitlines() if line.startswith("checking digests: ")
    ]
    assert re.fullmatch(r"checking digests: [\d.]+( \w+)? of [\d.]+ MB \(\d+ %\), .* (left|so far)", told[0])
    assert re.fullmatch(r"checking digests: done, [\d.]+ MB in \d:\d\d, [\d.]+ [kM]B/s", told[-1])


def test_json_progress_is_on_stderr_and_the_report_on_stdout(listed: list[str], tmp_path: Path) -> None:
    done = run(*listed, "--progress", "json", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["ok"]
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [one["state"] for one in told if one["task"] == "checking digests"][-1] == "done"
    assert {one["schema"] for one in told} == {"wanconv.progress/1"}


@pytest.mark.parametrize("silent", [["--progress", "none"], ["-q"], ["-q", "--progress", "json"]])
def test_none_and_quiet_show_no_progress(silent: list[str], listed: list[str], tmp_path: Path) -> None:
    assert "checking digests" not in progress_of(tmp_path, *listed, *silent).stderr


@pytest.mark.parametrize("verb", ["convert", "download", "verify", "validate", "publish", "demo"])
def test_what_takes_long_takes_progress(verb: str, tmp_path: Path) -> None:
    done = run(verb, "--progress", "loud", cwd=tmp_path)
    assert (done.returncode, "'loud' is not one of 'auto', 'plain', 'json', 'none'" in done.stderr) == (2, True)


# Bars


def test_threads_that_race_for_a_task_get_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds it waits until the other had every chance to add it, too."""
    other, add = threading.Event(), RichProgress.add_task
    added: list[str] = []

    def slow(self: RichProgress, description: str, **more: Any) -> Any:
        added.append(description)
        if len(added) > 1:
            other.set()
        other.wait(0.2)
        return add(self, description, **more)

    monkeypatch.setattr(RichProgress, "add_task", slow)
    with closing(Bars(Console(file=io.StringIO(), force_terminal=True, width=100))) as bars:
        threads = [threading.Thread(target=bars, args=(ProgressStep("converting", done, 100),)) for done in (10, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert added == ["converting"]


def test_a_bar_goes_when_its_task_is_done_and_comes_again_with_it() -> None:
    shown = io.StringIO()
    with closing(Bars(Console(file=shown, force_terminal=True, width=100))) as bars:
        for round_ in (1, 2):
            for done in (0, 50, 100):
                bars(ProgressStep("converting", done, 100 * round_, "steps"))
            if round_ == 1:
                assert bars.tasks == ()
        assert bars.tasks == ("converting",)
    assert "0 of 100 steps" in shown.getvalue()


@pytest.mark.parametrize(
    ("width", "words"),
    [(120, "41 of 123 GB (33 %), 683 MB/s, 2:00 left"), (80, "41 of 123 GB (33 %), 683 MB/s, 2:00 left"),
     (60, "41 of 123 GB (33 %), 2:00 left"), (40, "33 %, 2:00 left"), (30, "33 %")],
)  # fmt: skip
def test_words_beside_a_bar_are_never_cut_and_the_bar_gives_way(width: int, words: str) -> None:
    clock, console = Clock(), Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    with closing(Bars(console, clock)) as bars:
        bars(ProgressStep("checking what is there", 0, 123 * 10**9))
        clock.now_s = 60.0
        bars(ProgressStep("checking what is there", 41 * 10**9, 123 * 10**9))
        assert bars._drawn is not None
        drawn = console.render_lines(bars._drawn.get_renderable())
    (line,) = ["".join(segment.text for segment in one).rstrip() for one in drawn]
    assert (line[:23], line[-len(words) - 1 :]) == ("checking what is there ", f" {words}")


def frames(shown: str) -> list[str]:
    """Returns what a terminal showed between two moves of the cursor to the beginning of its bars."""
    plain = re.sub(r"\x1b\[[\d;?]*[hlmK]", "", shown)
    return re.split(r"(?:\x1b\[\d*A|\x1b\[2K|\r)+", plain)


def test_a_terminal_shows_one_converting_bar_at_a_time(tiny: Callable[..., Path], tmp_path: Path) -> None:
    slow = (
        "import time, wanconv.containers.writer as writer; filled = writer._Writer._fill_block; "
        "writer._Writer._fill_block = lambda *all: (time.sleep(0.02), filled(*all))[1]; "
        "from wanconv.cli import main; main()"
    )
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-c",
        slow,
        "convert",
        str(tiny("wan2.1-t2v-1.3b")),
        "-r",
        "fp16",
        "-j",
        "8",
        "-o",
        "out",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}, stdin=subprocess.DEVNULL,
        stdout=follower, stderr=follower,
    ) as running:  # fmt: skip
        os.close(follower)
        shown = bytearray()
        with suppress(OSError):  # Linux: EIO where the other side is closed
            while chunk := os.read(leader, 1 << 16):
                shown += chunk
    os.close(leader)
    assert running.returncode == 0
    drawn = [frame for frame in frames(shown.decode()) if "converting" in frame]
    assert drawn
    assert {frame.count("converting") for frame in drawn} == {1}
    assert all(re.search(r"[\d.]+( \w+)? of [\d.]+ [kM]B \(\d+ %\), ", frame) for frame in drawn)
