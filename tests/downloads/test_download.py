"""download: whatever goes wrong on the way, it ends with the right bytes or a refusal, and never with others."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
from battery import Scale, calls
from command import COMMAND, run
from convert_server import Server
from hub.server import Hub, leading, running, sha256

from wanconv.commands.download import DownloadOptions, download, preview
from wanconv.downloads.selection import Wish
from wanconv.errors import DigestMismatch, HubUnreachable, InputError, OutputError, UsageError, WanconvError
from wanconv.report import Report
from wanconv.storage.hubs import Patience
from wanconv.types import figures

NBYTES = 3_000_000
WEIGHTS = random.Random(0).randbytes(NBYTES)
FILES = {
    "README.md": b"# A model\n",
    "config.json": b'{"a": 1}\n',
    "empty.txt": b"",
    "vae/weights.safetensors": WEIGHTS,
    "vae/other.safetensors": WEIGHTS[::-1][:50_000],
}
BIG = "vae/weights.safetensors"
PATIENCE = Patience(attempts=4, delay_s=0.01, longest_delay_s=0.02, longest_wait_s=3, stall_s=0.4)
SOURCES = ("hf", "modelscope")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Returns a running hub; the clients in this process are led to it."""
    with leading(FILES, monkeypatch, tmp_path / "modelscope") as server:
        yield server


@pytest.fixture
def options(tmp_path: Path) -> DownloadOptions:
    return DownloadOptions(source="hf", local_dir=tmp_path / "model", jobs=1, patience=PATIENCE)


def get(options: DownloadOptions) -> Report:
    return download("owner/name", options)


def there(options: DownloadOptions) -> dict[str, bytes]:
    """Returns all that lies in the folder, except the record."""
    assert options.local_dir is not None
    files = (path for path in options.local_dir.rglob("*") if path.is_file() or path.is_symlink())
    found = {path.relative_to(options.local_dir).as_posix(): path.read_bytes() for path in files}
    found.pop(".wanconv-download.json", None)
    return found


def ranges(hub: Hub) -> list[str]:
    return [request.range for request in hub.payload_requests() if BIG in request.path]


# It ends well


@pytest.mark.parametrize("source", SOURCES)
def test_every_file_arrives_and_nothing_else(hub: Hub, options: DownloadOptions, source: str) -> None:
    report = get(replace(options, source=source, jobs=4))
    assert there(options) == FILES
    assert report.exit_code == 0
    assert report.text("files") == "5 of 5"


def test_a_second_run_asks_for_the_list_alone(hub: Hub, options: DownloadOptions) -> None:
    get(options)
    hub.log.clear()
    get(options)
    assert [request.path.split("?")[0].split("/")[2] for request in hub.log] == ["models", "models"]
    assert there(options) == FILES


@pytest.mark.parametrize("source", SOURCES)
def test_a_cut_connection_goes_on_where_it_was(hub: Hub, options: DownloadOptions, source: str) -> None:
    hub.faults.cut_after = [0, 1_000_000, 500_000, 1_200_000]
    get(replace(options, source=source, wish=Wish(include=(BIG,))))
    assert there(options) == {BIG: WEIGHTS}
    assert ranges(hub)[:3] == ["", "", f"bytes=1000000-{NBYTES - 1}"]
    assert hub.sent_nbytes() == NBYTES


def test_a_connection_that_brings_no_progress_ends_after_the_attempts(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.cut_after = [0] * 20
    with pytest.raises(HubUnreachable, match=r"ended [\d.]+ \w+ early: \w+ \(4 attempts\)") as caught:
        get(options)
    assert caught.value.hint == "run the same command to go on"
    assert len(hub.payload_requests()) == 4


def test_a_connection_that_is_refused_is_tried_again(hub: Hub, options: DownloadOptions) -> None:
    hub.after_listing = lambda: setattr(hub.faults, "reset", 2)
    get(options)
    assert there(options) == FILES


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: Hub, options: DownloadOptions, status: int) -> None:
    hub.faults.busy, hub.faults.busy_status = 2, status
    get(options)
    assert there(options) == FILES


def test_retry_after_is_honoured(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.busy, hub.faults.retry_after = 1, "1"
    started = time.monotonic()
    get(replace(options, wish=Wish(include=(BIG,))))
    assert time.monotonic() - started > 1


def test_a_server_that_asks_for_too_long_a_wait_is_told_no(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.busy, hub.faults.retry_after = 1, "3600"
    with pytest.raises(InputError, match="it asks to wait 3600 seconds"):
        get(options)


@pytest.mark.parametrize("source", SOURCES)
def test_a_busy_list_is_asked_for_again(hub: Hub, options: DownloadOptions, source: str) -> None:
    hub.faults.busy_listing = 1
    get(replace(options, source=source))
    assert there(options) == FILES


def test_a_server_without_ranges_is_read_from_the_start(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.ignore_ranges, hub.faults.cut_after = True, [2_000_000]
    get(replace(options, wish=Wish(include=(BIG,))))
    assert there(options) == {BIG: WEIGHTS}


def test_a_file_that_changes_on_the_way_is_begun_again(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.etags, hub.faults.cut_after = ["one", "two"], [2_000_000]
    get(replace(options, wish=Wish(include=(BIG,))))
    assert there(options) == {BIG: WEIGHTS}
    assert hub.payload_requests()[1].headers["if-range"] == '"one"'
    assert hub.sent_nbytes() == 2_000_000 + NBYTES


def test_an_expired_address_is_asked_for_anew(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.expired = 1
    get(options)
    assert there(options) == FILES


def test_an_answer_without_a_length_is_enough(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.no_content_length = True
    get(options)
    assert there(options) == FILES


def test_a_few_redirects_are_followed(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.redirects = 3
    get(options)
    assert there(options) == FILES


def test_a_long_list_comes_in_pages(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.page_size = 2
    get(options)
    assert there(options) == FILES


def test_a_revision_that_moves_after_the_list_does_not_matter(hub: Hub, options: DownloadOptions) -> None:
    commit = hub.head
    hub.after_listing = lambda: hub.commit({BIG: WEIGHTS[::-1]})
    report = get(options)
    assert there(options) == FILES
    assert report.text("revision") == f"main ({commit})"


def test_silence_is_a_cut_connection(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.drip = 100
    with pytest.raises(HubUnreachable, match=r"only \d+ bytes? came within 0 seconds \(2 attempts\)"):
        get(replace(options, patience=replace(PATIENCE, attempts=2)))
    hub.faults.drip = 0
    get(options)
    assert there(options) == FILES


@pytest.mark.exhaustive
def test_a_slow_line_is_not_silence(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.chunk_delay_s = 0.05
    get(replace(options, wish=Wish(include=(BIG,)), patience=replace(PATIENCE, attempts=1)))
    assert there(options) == {BIG: WEIGHTS}


def test_wrong_bytes_in_what_was_there_are_fetched_again_once(hub: Hub, options: DownloadOptions) -> None:
    part = begun(options, WEIGHTS[:1000] + b"wrong" + WEIGHTS[1005:2_000_000])
    get(replace(options, wish=Wish(include=(BIG,))))
    assert there(options) == {BIG: WEIGHTS}
    assert not part.exists()


def begun(options: DownloadOptions, content: bytes) -> Path:
    """Leaves the beginning of a file as a run that ended leaves it."""
    assert options.local_dir is not None
    part = options.local_dir / "vae" / f".weights.safetensors.{sha256(WEIGHTS)[:16]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


@pytest.mark.parametrize("nbytes", [1, 2_999_999, 3_000_000])
def test_a_beginning_is_gone_on_with(hub: Hub, options: DownloadOptions, nbytes: int) -> None:
    begun(options, WEIGHTS[:nbytes])
    get(replace(options, wish=Wish(include=(BIG,))))
    assert there(options) == {BIG: WEIGHTS}
    assert hub.sent_nbytes() == NBYTES - nbytes


def test_what_is_longer_than_the_file_is_no_beginning_of_it(hub: Hub, options: DownloadOptions) -> None:
    begun(options, WEIGHTS + b"more")
    get(replace(options, wish=Wish(include=(BIG,))))
    assert there(options) == {BIG: WEIGHTS}


# It is refused


def refused(options: DownloadOptions, error: type[WanconvError], match: str) -> WanconvError:
    with pytest.raises(error, match=match) as caught:
        get(options)
    assert BIG not in there(options)
    return caught.value


@pytest.mark.parametrize("source", SOURCES)
def test_wrong_bytes_of_the_right_size_are_refused_and_not_kept(
    hub: Hub, options: DownloadOptions, source: str
) -> None:
    hub.faults.wrong_bytes = 9
    error = refused(replace(options, source=source), DigestMismatch, r"sha256 is \w+, and the hub lists")
    assert error.exit_code == 4
    assert not [path for path in there(options) if path.endswith(".part")]


def test_a_short_file_is_refused(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.short_by = 5
    refused(options, InputError, f"has {NBYTES - 5} bytes there, and the hub lists {NBYTES}")


def test_a_short_file_of_no_stated_length_is_refused(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.short_by, hub.faults.no_content_length = 5, True
    refused(options, InputError, "ends before the byte that was asked for")


@pytest.mark.parametrize(
    "lie", ["bytes 0-{last}/{all}", "bytes {start}-{last}/9", "bytes {start}-{all}/{all}", "lies", "bytes */{all}"]
)
def test_a_range_that_lies_is_refused(hub: Hub, options: DownloadOptions, lie: str) -> None:
    begun(options, WEIGHTS[:1000])
    hub.faults.content_range = lie.format(start=1000, last=NBYTES - 1, all=NBYTES)
    refused(replace(options, wish=Wish(include=(BIG,))), InputError, "were asked for, the answer is")


def test_a_range_with_other_bytes_is_found_by_the_digest_and_the_file_begun_again(
    hub: Hub, options: DownloadOptions
) -> None:
    begun(options, WEIGHTS[:1000])
    hub.faults.wrong_range_body = True
    get(replace(options, wish=Wish(include=(BIG,))))
    assert there(options) == {BIG: WEIGHTS}


@pytest.mark.parametrize("length_is_told", [True, False])
def test_a_web_page_is_refused(hub: Hub, options: DownloadOptions, length_is_told: bool) -> None:
    hub.faults.html, hub.faults.no_content_length = True, not length_is_told
    error = refused(options, InputError, "answered with a web page instead of the file")
    assert error.hint.startswith("log in to the network")


def test_a_web_page_of_the_right_size_is_refused(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.html_same_size = True
    refused(options, DigestMismatch, "and the hub lists")


def test_an_encoding_that_was_not_asked_for_is_refused(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.gzip = True
    refused(options, InputError, "comes encoded as gzip")
    assert hub.payload_requests()[0].headers["accept-encoding"] == "identity"


def test_a_gated_model_says_where_to_ask(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.gated = True
    error = refused(options, InputError, "answers 403: not allowed")
    assert "token" in error.arguments


def test_a_file_that_is_gone_is_told(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.missing_payload = True
    refused(options, InputError, "does not exist")


def test_endless_redirects_end(hub: Hub, options: DownloadOptions) -> None:
    hub.faults.redirects = 1000
    refused(options, InputError, "redirects more than 5 times")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_out_of_http_is_refused(hub: Hub, options: DownloadOptions, target: str) -> None:
    hub.faults.redirect_to = target
    refused(options, InputError, "which is not safe")


@pytest.mark.parametrize(("source", "other"), [("hf", "ms://owner/else"), ("modelscope", "hf://owner/else")])
def test_an_unknown_model_offers_the_other_hub_and_does_not_take_it(
    hub: Hub, options: DownloadOptions, source: str, other: str
) -> None:
    with pytest.raises(InputError, match="has no model owner/else") as caught:
        download("owner/else", replace(options, source=source))
    assert other in caught.value.hint
    assert {request.path.startswith("/api/v1/") for request in hub.log} == {source == "modelscope"}


def test_an_unknown_revision_is_told(hub: Hub, options: DownloadOptions) -> None:
    refused(replace(options, revision="v9"), InputError, "has no revision v9")


def test_a_hub_that_is_not_there_is_told_by_a_code_of_its_own(
    options: DownloadOptions, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert refused(options, HubUnreachable, "Hugging Face cannot be reached").code == "unreachable"


def test_a_download_imports_no_torch() -> None:
    """The hubs' clients are there for lists, and ModelScope's whole package would bring it."""
    rooms = (
        "wanconv.cli.app, wanconv.commands.download, wanconv.storage.hubs.huggingface, wanconv.storage.hubs.modelscope"
    )
    done = subprocess.run([sys.executable, "-c", f"import sys, {rooms}; sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


def test_offline_mode_is_respected(hub: Hub, options: DownloadOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refused(options, InputError, "HF_HUB_OFFLINE is set").hint == "unset HF_HUB_OFFLINE"
    assert hub.log == []


def test_a_modelscope_branch_that_moves_on_the_way_is_a_digest_that_does_not_fit(
    hub: Hub, options: DownloadOptions
) -> None:
    hub.after_listing = lambda: hub.commit(FILES | {BIG: WEIGHTS[::-1]})
    refused(replace(options, source="modelscope"), DigestMismatch, "and the hub lists")
    hub.after_listing = lambda: None
    get(replace(options, source="modelscope"))
    assert there(options) == FILES | {BIG: WEIGHTS[::-1]}


def test_a_disk_too_small_is_seen_before_a_byte(
    hub: Hub, options: DownloadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=NBYTES))
    error = refused(options, OutputError, f"has {figures.size(NBYTES)}")
    assert (error.exit_code, there(options), hub.payload_requests()) == (7, {}, [])
    assert preview("owner/name", options).exit_code == 7


def test_a_dry_run_writes_nothing(hub: Hub, options: DownloadOptions) -> None:
    report = preview("owner/name", options)
    assert report.figures["total_nbytes"] == sum(map(len, FILES.values()))
    assert report.figures["to_download_nbytes"] == sum(map(len, FILES.values()))
    assert options.local_dir is not None
    assert not options.local_dir.exists()


# What is there already


def test_a_file_with_other_bytes_is_not_replaced_unless_it_was_downloaded(hub: Hub, options: DownloadOptions) -> None:
    assert options.local_dir is not None
    options.local_dir.mkdir()
    (options.local_dir / "config.json").write_text("mine")
    with pytest.raises(UsageError, match="has 1 file with other bytes") as caught:
        get(options)
    assert caught.value.details == ("config.json",)
    assert there(options) == {"config.json": b"mine"}
    get(replace(options, force=True))
    assert there(options) == FILES


def test_a_spoilt_download_is_repaired(hub: Hub, options: DownloadOptions) -> None:
    get(options)
    assert options.local_dir is not None
    (options.local_dir / BIG).write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    get(options)
    assert there(options) == FILES


def test_a_new_revision_replaces_what_changed_alone(hub: Hub, options: DownloadOptions) -> None:
    get(options)
    hub.commit(FILES | {"config.json": b"{}"})
    hub.log.clear()
    get(options)
    assert there(options) == hub.files
    assert hub.payload_requests() == []


def test_another_models_folder_is_refused(hub: Hub, options: DownloadOptions) -> None:
    get(options)
    assert options.local_dir is not None
    record = options.local_dir / ".wanconv-download.json"
    record.write_text(record.read_text().replace("owner/name", "owner/else"))
    with pytest.raises(UsageError, match="holds a download of hf://owner/else"):
        get(options)


def test_the_beginning_of_another_revision_is_removed(hub: Hub, options: DownloadOptions) -> None:
    old = begun(options, b"old").with_name(f".weights.safetensors.{'0' * 16}.part")
    old.write_bytes(b"older")
    get(options)
    assert there(options) == FILES


# Tokens


@pytest.mark.parametrize("source", SOURCES)
def test_a_token_goes_to_the_hub_and_nowhere_else(hub: Hub, options: DownloadOptions, source: str) -> None:
    hub.faults.token = "hf_secret"
    get(replace(options, source=source, token="hf_secret"))
    assert there(options) == FILES
    at_home = [request for request in hub.log if request.origin == "hub"]
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in at_home)
    for request in hub.payload_requests():
        assert not {"authorization", "cookie"} & request.headers.keys()
        assert "hf_secret" not in str(request)


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_token_a_private_model_is_refused(hub: Hub, options: DownloadOptions, source: str) -> None:
    hub.faults.token = "hf_secret"
    error = refused(replace(options, source=source, token="hf_wrong"), InputError, "token")
    assert "hf_wrong" not in error.message + error.hint


def test_netrc_does_not_speak_for_the_user(
    hub: Hub, options: DownloadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    get(options)
    assert all("authorization" not in request.headers for request in hub.payload_requests())


# Kills, as a process


def start(hub: Hub, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "download", "owner/name", "--local-dir", str(folder), *arguments],
        env={**os.environ, **hub.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_part(hub: Hub, folder: Path, nbytes: int) -> Path:
    """Returns the part of the big file when it has grown to `nbytes`, or become the file."""
    part = folder / "vae" / f".weights.safetensors.{sha256(WEIGHTS)[:16]}.part"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if (folder / BIG).exists() or part.stat().st_size >= nbytes:
                return part
        time.sleep(0.005)
    raise AssertionError("no part grew")


def test_killed_in_the_middle_of_a_file_it_goes_on_there(hub: Hub, tmp_path: Path) -> None:
    hub.faults.chunk_delay_s = 0.2
    process = start(hub, tmp_path / "model")
    part = wait_for_part(hub, tmp_path / "model", 500_000)
    process.kill()
    process.communicate()
    left = part.stat().st_size
    assert left < NBYTES
    hub.faults.chunk_delay_s = 0
    hub.log.clear()
    done = start(hub, tmp_path / "model")
    _, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors
    assert ranges(hub) == [f"bytes={left}-{NBYTES - 1}"]
    assert hub.sent_nbytes() <= 1.05 * (NBYTES - left + 50_000)
    assert there(DownloadOptions(local_dir=tmp_path / "model")) == FILES


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Hub, Server]]:
    """Returns a hub, and what downloads from it in processes of their own."""
    with running(FILES) as hub, Server(hub.environment()) as server:
        yield hub, server


def killed_at(served: tuple[Hub, Server], folder: Path, nbytes: int) -> int:
    """Returns how a download ended that was killed when the hub had sent so much of a file."""
    hub, server = served
    started, pid = threading.Event(), 0

    def kill(sent: int) -> None:
        if sent >= nbytes:
            hub.after_chunk = lambda sent: None
            started.wait()
            os.kill(pid, signal.SIGKILL)

    hub.after_chunk = kill
    pid = server.start_download("owner/name", folder, jobs=4)
    started.set()
    return server.end().code


@pytest.mark.exhaustive
def test_killed_at_random_moments_it_fetches_nothing_twice_that_was_written(
    served: tuple[Hub, Server], scale: Scale, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    (hub, server), choose = served, random.Random(0)
    for number in range(scale.remote_kills):
        folder = tmp_path / str(number)
        assert killed_at(served, folder, choose.randrange(60_000, NBYTES)) == -signal.SIGKILL
        (part,) = folder.glob(f"vae/.weights.safetensors.{sha256(WEIGHTS)[:16]}.part")
        left = part.stat().st_size
        hub.log.clear()
        assert server.download("owner/name", folder).code == 0
        assert ranges(hub) == ([f"bytes={left}-{NBYTES - 1}"] if 0 < left < NBYTES else [""] if not left else [])
        assert there(DownloadOptions(local_dir=folder)) == FILES
    record_property("cases", scale.remote_kills)


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["EIO", "ENOSPC", "SIGKILL"])
@pytest.mark.parametrize("call", ["mkdir", "open", "write", "pwrite", "fsync", "rename"])
def test_any_call_may_fail_once_and_the_same_command_goes_on(
    served: tuple[Hub, Server],
    tmp_path: Path,
    call: str,
    what: str,
    scale: Scale,
    record_property: Callable[[str, object], None],
) -> None:
    _, server = served
    include = ["README.md", "config.json", "vae/other.safetensors"]
    expected = {path: FILES[path] for path in include}
    cases = 0
    for number in calls(scale):
        folder = tmp_path / str(number) / "model"
        end = server.download("owner/name", folder, include, [call, number, what])
        complete = {
            path: content
            for path, content in there(DownloadOptions(local_dir=folder)).items()
            if not path.endswith((".part", ".tmp"))
        }
        assert complete.items() <= expected.items()
        if not end.fired:
            break
        if end.code or complete != expected:  # 0: a folder that is there already
            assert end.code == (-signal.SIGKILL if what == "SIGKILL" else 7), end
        assert server.download("owner/name", folder, include).code == 0, (number, end)
        assert there(DownloadOptions(local_dir=folder)) == expected
        cases += 1
    assert cases
    assert (end.code, complete) == (0, expected)
    record_property("cases", cases)


def test_ctrl_c_says_how_to_go_on_and_shows_no_token(hub: Hub, tmp_path: Path) -> None:
    hub.faults.chunk_delay_s = 0.2
    process = start(hub, tmp_path / "model", "--token", "hf_secret")
    part = wait_for_part(hub, tmp_path / "model", 300_000)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "hint: run the same command to go on: wanconv download owner/name --local-dir" in errors
    assert "hf_secret" not in output + errors
    assert part.stat().st_size >= 300_000


def test_a_disk_that_fills_up_leaves_what_it_took(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    full = ["bash", "-c", 'ulimit -f 1000 && exec "$@"', "-", *COMMAND, "download", "owner/name", "-o", str(folder)]
    environment = {**os.environ, **hub.environment(), "WANCONV_JOBS": "1"}
    done = subprocess.run(full, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "error[output]: cannot write" in done.stderr) == (7, True)
    hub.log.clear()
    again = start(hub, folder)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert ranges(hub) == [f"bytes={1000 * 1024}-{NBYTES - 1}"]
    assert there(DownloadOptions(local_dir=folder)) == FILES


@pytest.mark.parametrize("force", [False, True])
def test_a_repository_is_not_downloaded_into_a_home_folder(
    hub: Hub, options: DownloadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """A file that others name, such as `.profile`, would be run there."""
    home = tmp_path / "people" / "home"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "link").symlink_to(home)
    for folder, said in ((home, "is"), (home.parent, "holds"), (tmp_path / "link", "is")):
        with pytest.raises(UsageError, match=f"{said} the home folder") as refused:
            get(replace(options, local_dir=folder, force=force))
        assert refused.value.hint == "name a new folder for the output"
    assert (list(home.iterdir()), hub.log) == ([], [])
    get(replace(options, local_dir=home / "model", force=force))


@pytest.mark.parametrize("kind", ["a link", "a folder", "a FIFO"])
def test_force_replaces_files_alone(hub: Hub, options: DownloadOptions, tmp_path: Path, kind: str) -> None:
    assert options.local_dir is not None
    target = options.local_dir / "config.json"
    options.local_dir.mkdir()
    (tmp_path / "precious").write_text("precious")
    if kind == "a link":
        target.symlink_to(tmp_path / "precious")
    elif kind == "a FIFO":
        os.mkfifo(target)
    else:
        target.mkdir()
        (target / "precious").write_text("precious")
    before = target.lstat()
    with pytest.raises(UsageError, match=r"config\.json is (a link|in the way)"):
        get(replace(options, force=True))
    assert os.path.samestat(target.lstat(), before)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_the_name_of_a_weight_file_is_refused_for_a_folder(hub: Hub, options: DownloadOptions, suffix: str) -> None:
    with pytest.raises(UsageError, match=f"x.{suffix} is the name of a file, and a folder is written there"):
        get(replace(options, local_dir=Path(f"x.{suffix}")))
    assert hub.log == []


def test_two_downloads_into_one_folder_do_not_mix(hub: Hub, tmp_path: Path) -> None:
    hub.faults.chunk_delay_s = 0.2
    first = start(hub, tmp_path / "model")
    wait_for_part(hub, tmp_path / "model", 1)
    second = start(hub, tmp_path / "model")
    _, errors = second.communicate(timeout=300)
    assert (second.returncode, "another download writes to" in errors) == (2, True)
    hub.faults.chunk_delay_s = 0
    first.communicate(timeout=300)
    assert first.returncode == 0
    assert there(DownloadOptions(local_dir=tmp_path / "model")) == FILES


# Independent judges


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("source", "judge"),
    [("hf", ("hf", "cache", "verify", "--fail-on-missing-files")), ("modelscope", ("ms-hub", "cache", "verify"))],
    ids=SOURCES,
)
def test_the_hubs_own_client_agrees(hub: Hub, tmp_path: Path, source: str, judge: tuple[str, ...]) -> None:
    folder = tmp_path / "model"
    start(hub, folder, "--source", source).communicate(timeout=300)
    client, *words = judge
    command = [str(Path(sys.executable).with_name(client)), *words, "owner/name", "--local-dir", str(folder)]
    homes = {name: str(tmp_path / name) for name in ("HF_HOME", "MODELSCOPE_HOME", "MODELSCOPE_CACHE")}
    environment = {**os.environ, **hub.environment(), **homes}

    def verdict() -> int:
        return subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False).returncode

    assert verdict() == 0
    (folder / "config.json").write_bytes(b'{"a": 2}\n')
    assert verdict() != 0


def test_sha256sum_agrees(hub: Hub, options: DownloadOptions, tmp_path: Path) -> None:
    get(options)
    lines = "".join(f"{sha256(content)}  {path}\n" for path, content in FILES.items())
    done = subprocess.run(
        ["sha256sum", "-c", "--strict"],
        cwd=tmp_path / "model",
        input=lines,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_json_has_the_plan_in_bytes(hub: Hub, tmp_path: Path) -> None:
    done = run("download", "owner/name", "--dry-run", "--json", cwd=tmp_path, **hub.environment())
    rows = json.loads(done.stdout)["tables"]["files"]
    assert {row["path"]: row["size_nbytes"] for row in rows} == {path: len(content) for path, content in FILES.items()}
    assert not (tmp_path / "name").exists()
