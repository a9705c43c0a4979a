"""A model that is not here: inspected and planned from its headers, a few hundred kilobytes of it."""

import json
import os
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from command import COMMAND, call, run, wait_for
from covering import covering
from hub.server import Hub, files_below, leading

from wanconv.commands.convert import convert, preview, preview_remote
from wanconv.commands.inspect import inspect, inspect_remote
from wanconv.conversion.options import ConvertOptions
from wanconv.downloads.headers import mirrored
from wanconv.downloads.selection import Wish
from wanconv.errors import InputError
from wanconv.samples import synthetic
from wanconv.storage.tempdir import scratch

A14B = "wan2.2-t2v-a14b"


@pytest.fixture
def hub(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with leading(files_below(tiny(A14B)), monkeypatch, tmp_path / "modelscope") as server:
        yield server


@covering(("layout", "name"), ["official", "diffusers"], ["hf", "ms"], strength=1)
def test_a_remote_model_is_what_it_is_on_disk(tiny: Callable[..., Path], hub: Hub, layout: str, name: str) -> None:
    hub.commit(files_below(tiny(A14B, layout)))
    here, there = inspect(tiny(A14B, layout), tensors=True), inspect_remote(f"{name}://owner/name", tensors=True)
    assert (there.tables, there.findings) == (here.tables, here.findings)
    assert there.figures.items() >= here.figures.items()
    assert there.title == f"{name}://owner/name@{hub.head if name == 'hf' else 'master'}"


def test_what_a_file_says_of_its_scales_behind_its_header_is_read_too(
    tiny: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    convert(tiny(A14B), ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "scaled"))
    hub.commit(files_below(tmp_path / "scaled"))
    here, there = inspect(tmp_path / "scaled", tensors=True), inspect_remote("hf://owner/name", tensors=True)
    assert (there.tables, there.findings) == (here.tables, here.findings)


def test_what_lies_together_behind_the_header_is_asked_for_together(hub: Hub) -> None:
    """ComfyUI's files say of every weight how it is scaled: four hundred times in an expert of A14B."""
    told = b'{"format":"float8_e4m3fn"}'.ljust(60)
    places = [500_000 + 60 * number for number in range(400)] + [900_000, 950_000]
    entries, body, at = {}, bytearray(), 0
    for number, place in enumerate(places):
        for name, content in ((f"w{number}.weight", bytes(place - at)), (f"w{number}.comfy_quant", told)):
            if content:
                entries[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [at, at + len(content)]}
                body, at = body + content, at + len(content)
    entries["last.weight"] = {"dtype": "U8", "shape": [500_000], "data_offsets": [at, at + 500_000]}
    text = json.dumps(entries).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(body) + bytes(500_000)
    hub.commit({"model.safetensors": content})
    with mirrored("hf://owner/name", Wish()) as mirror:
        assert len(hub.payload_requests()) == 3  # the header, the four hundred, and two that are near each other
        mirrored_bytes = (mirror.root / "model.safetensors").read_bytes()
        for place in (8 + len(text) + place for place in places):
            assert mirrored_bytes[place : place + 60] == told


def test_a_remote_plan_is_the_plan(tiny: Callable[..., Path], hub: Hub, tmp_path: Path) -> None:
    options = ConvertOptions("experts-bf16-rest-fp16", layout="diffusers", out=tmp_path / "out")
    here, there = preview(tiny(A14B), options), preview_remote("hf://owner/name", options)
    assert (there.tables, there.findings) == (here.tables, here.findings)
    names = [
        "high_noise_model/diffusion_pytorch_model.safetensors",
        "low_noise_model/diffusion_pytorch_model.safetensors",
    ]
    names += ["models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"]
    pairs = [len(hub.files[one]) + len(hub.files[other]) for one, other in pairwise(names)]
    assert there.details["plan"] is None  # sidecars are part of the key, and have not been downloaded
    needed = [report.figures["disk_needed_nbytes"] for report in (here, there)]
    assert needed[1] == needed[0] + max(pairs)  # type: ignore[operator]  # figures are objects
    assert list(tmp_path.iterdir()) == []


def test_a_shard_costs_a_hundred_kilobytes(hub: Hub, tmp_path: Path) -> None:
    options = synthetic.SampleOptions("wan2.1-t2v-1.3b", "full", "fp8_e4m3fn", 1, ("dit",))
    hub.commit(files_below(synthetic.make(tmp_path / "full", options)))
    hub.log.clear()
    report = inspect_remote("hf://owner/name")
    assert sum(map(len, hub.files.values())) > 20_000_000
    assert [request.range for request in hub.payload_requests()] == ["bytes=0-99999"]
    assert hub.sent_nbytes() == 100_000
    others = sum(len(content) for path, content in hub.files.items() if not path.endswith(".safetensors"))
    assert report.figures["read_nbytes"] == 100_000 + others


def test_the_mirror_is_gone_afterwards(hub: Hub) -> None:
    with mirrored("hf://owner/name", Wish()) as mirror:
        root = mirror.root
        sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*") if path.is_file()}
        assert sizes == {path: len(content) for path, content in hub.files.items()}
    assert not root.parent.exists()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of temporary files of the commands that a test starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_what_a_killed_process_left_is_gone_after_the_next(
    hub: Hub, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "wanconv-headers-mine").mkdir()  # not named as such folders are
    (temporary / "wanconv-headers-00000000").symlink_to(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with scratch():
        kept = set(temporary.iterdir())  # with one of a process that lives
        hub.faults.chunk_delay_s = 60
        process = subprocess.Popen([*COMMAND, "inspect", "hf://owner/name"], env={**os.environ, **hub.environment()})
        wait_for(lambda: set(temporary.glob("wanconv-headers-*")) > kept, process)  # Python tries the place by a file
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert set(temporary.iterdir()) > kept
        hub.faults.chunk_delay_s = 0
        done = run("inspect", "hf://owner/name", "-q", cwd=tmp_path, **hub.environment())
        assert (done.returncode, set(temporary.iterdir())) == (0, kept)


def test_a_place_for_temporary_files_that_is_full_is_told(hub: Hub, tmp_path: Path, temporary: Path) -> None:
    command = ["bash", "-c", 'ulimit -f 100 && exec "$@"', "-", *COMMAND, "inspect", "hf://owner/name"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **hub.environment()}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.startswith("error[output]: cannot write hf://owner/name@")) == (7, True)
    assert list(temporary.iterdir()) == []


def test_a_header_that_is_damaged_is_named_by_its_address(hub: Hub) -> None:
    path = next(path for path in hub.files if path.endswith(".safetensors"))
    hub.commit(hub.files | {path: b"\xff" * 20_000})
    with pytest.raises(InputError, match=f"^hf://owner/name@{hub.head}/{path} is not a valid safetensors file"):
        inspect_remote("hf://owner/name")


@pytest.mark.exhaustive
def test_an_index_that_is_too_large_is_refused_before_it_is_fetched(hub: Hub) -> None:
    """Indices are fetched whole, and a preview has no room for what a repository may call one."""
    name = "x.safetensors.index.json"
    hub.commit(hub.files | {name: bytes(64_000_001)})
    with pytest.raises(InputError) as raised:
        inspect_remote("hf://owner/name")
    message = f"hf://owner/name@{hub.head}/{name} has 64 MB (64,000,001 bytes); an index has at most 64 MB"
    assert (raised.value.message, raised.value.hint) == (message, "leave it out with `exclude`, or try the other hub")
    assert not [request for request in hub.payload_requests() if name in request.path]
    assert inspect_remote("hf://owner/name", exclude=(name,)).figures["family"] == A14B


@pytest.mark.exhaustive
def test_small_files_that_are_a_flood_are_refused_before_one_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanconv.downloads.headers._ALL_WHOLE_NBYTES", 2_000_000)
    hub.commit(hub.files | {f"notes/{number}.json": bytes(900_000) for number in range(3)})
    with pytest.raises(InputError, match=r"MB \(.* bytes\) in small files; of a model that is not here, at most 2 MB"):
        inspect_remote("hf://owner/name")
    assert hub.payload_requests() == []
    assert inspect_remote("hf://owner/name", exclude=("notes/*",)).figures["family"] == A14B


def test_a_server_without_ranges_is_told(hub: Hub) -> None:
    hub.faults.ignore_ranges = True
    with pytest.raises(InputError, match="gives whole files only"):
        inspect_remote("hf://owner/name")


@pytest.mark.exhaustive
def test_the_commands_take_addresses(hub: Hub, tmp_path: Path) -> None:
    done = call("inspect", "hf://owner/name", cwd=tmp_path)
    assert (done.returncode, done.stdout.startswith("hf://owner/name@")) == (0, True)
    done = call("convert", "hf://owner/name", "-r", "fp16", "--dry-run", cwd=tmp_path)
    assert done.stdout.startswith(f"plan: hf://owner/name@{hub.head} → {tmp_path / 'name-fp16'}")
    assert not (tmp_path / "name-fp16").exists()
    done = call("convert", "hf://owner/name", "-r", "fp16", cwd=tmp_path)
    assert (done.returncode, done.stdout.startswith("name-fp16: written")) == (0, True)
    done = call("inspect", "owner/name", cwd=tmp_path)
    assert (done.returncode, "write hf://owner/name where it is a repository" in done.stderr) == (3, True)
