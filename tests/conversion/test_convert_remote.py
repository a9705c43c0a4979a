"""convert hf://…: the output of download and convert, with a file or two of the source on disk at a time."""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny as tinies
import torch
from battery import Scale
from command import COMMAND, call, wait_for
from hub.server import Faults, Hub, files_below, leading
from safetensors.torch import load_file, save, save_file

from wanconv.commands.convert import EXISTING, convert, convert_remote, preview, preview_remote
from wanconv.commands.download import DownloadOptions, download
from wanconv.commands.download import preview as preview_download
from wanconv.commands.inspect import inspect_remote
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import read_header
from wanconv.conversion.options import ConvertOptions
from wanconv.conversion.workspace import partial_folder, private_folder
from wanconv.downloads.selection import Wish
from wanconv.errors import DigestMismatch, InputError, NotFinite, OutputError, UsageError
from wanconv.provenance import download_record
from wanconv.report import Report
from wanconv.storage.hubs import Patience, Snapshot
from wanconv.types.progress import Progress, ProgressStep

Tiny = Callable[..., Path]

A14B = "wan2.2-t2v-a14b"
PATIENCE = Patience(attempts=3, delay_s=0.01, longest_delay_s=0.02, longest_wait_s=3, stall_s=5)
BLOCK = 1 << 16


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """Returns a checkpoint of diffusers whose experts have several shards; not to be changed."""
    out = tmp_path_factory.mktemp("sharded") / "model"
    convert(tiny(A14B, "diffusers"), ConvertOptions("keep", out=out, shard_nbytes=1_000_000))
    return out


@pytest.fixture
def hub(sharded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with leading(files_below(sharded), monkeypatch, tmp_path / "modelscope") as server:
        yield server


@pytest.fixture
def options(tmp_path: Path) -> ConvertOptions:
    return ConvertOptions("experts-bf16-rest-fp16", out=tmp_path / "streamed" / "out", jobs=2, block_nbytes=BLOCK)


def stream(options: ConvertOptions, name: str = "hf", **more: Any) -> Report:
    return convert_remote(f"{name}://owner/name", options, patience=PATIENCE, **more)


def expected(options: ConvertOptions, folder: Path, name: str = "hf") -> dict[str, str]:
    """Returns what download and convert make of the repository."""
    download(
        "owner/name", DownloadOptions(name.replace("ms", "modelscope"), local_dir=folder / "model", patience=PATIENCE)
    )
    convert(folder / "model", replace(options, out=folder / "converted"))
    return tinies.contents(folder / "converted")


def whole_fetches(hub: Hub) -> Counter[str]:
    """Returns how often each weight file was asked for from its first byte to its last."""
    asked = (request.path.partition("?")[0] for request in hub.payload_requests() if not request.range)
    return Counter(path for one in asked if (path := one.split("/", 2)[2]) in weights(hub))


def weights(hub: Hub) -> dict[str, int]:
    return {path: len(content) for path, content in hub.files.items() if path.endswith((".safetensors", ".pth"))}


def is_header(span: str) -> bool:
    return span.startswith("bytes=0-")


def there(options: ConvertOptions) -> list[str]:
    assert options.out is not None
    return sorted(path.name for path in options.out.parent.iterdir())


# The same bytes


@pytest.mark.parametrize(
    ("name", "stored", "recipe", "layout"),
    [
        ("ms", "diffusers", "fp8-scaled", "comfyui"),
        ("hf", "official", "int8-row", "lightx2v"),
        pytest.param("hf", "diffusers", "experts-bf16-rest-fp16", "diffusers", marks=pytest.mark.exhaustive),
        pytest.param("hf", "diffusers", "nvfp4", "comfyui", marks=pytest.mark.exhaustive),
    ],
)
def test_the_output_is_that_of_download_and_convert(
    hub: Hub, tiny: Tiny, options: ConvertOptions, tmp_path: Path, name: str, stored: str, recipe: str, layout: str
) -> None:
    if stored == "official":
        hub.commit(files_below(tiny(A14B)))  # with .pth files
    options = replace(options, recipe=recipe, layout=layout)
    wanted = expected(options, tmp_path, name)
    hub.log.clear()
    stream(options, name)
    assert options.out is not None
    assert tinies.contents(options.out) == wanted
    assert there(options) == ["out"]
    assert whole_fetches(hub) == dict.fromkeys(weights(hub), 1)


def test_a_lora_that_is_here_is_merged_into_a_source_that_is_not(
    hub: Hub, options: ConvertOptions, tmp_path: Path
) -> None:
    stem = "diffusion_model.blocks.1.ffn.2"
    pair = {f"{stem}.lora_A.weight": torch.ones(2, 256), f"{stem}.lora_B.weight": torch.full((128, 2), 0.25)}
    save_file(pair, tmp_path / "lora.safetensors")
    wanted = replace(options, loras=(f"low={tmp_path / 'lora.safetensors'}:0.5",))
    assert [table.title for table in stream(wanted).tables] == ["components", "rules", "loras"]
    assert options.out is not None
    assert tinies.contents(options.out) == expected(wanted, tmp_path)
    assert tinies.contents(options.out) != expected(options, tmp_path / "plain")


@pytest.fixture
def overflowing(hub: Hub, sharded: Path, tmp_path: Path) -> None:
    """The last shard of the VAE has a number that fp16 does not hold."""
    folder = tinies.copy(sharded, tmp_path / "poked")
    shard = sorted((folder / "vae").glob("*.safetensors"))[-1]
    ref = next(ref for ref in read_header(shard).tensors.values() if ref.numel > 1)
    with shard.open("r+b") as opened:
        opened.seek(ref.offset)
        opened.write(torch.tensor([1e5]).numpy().tobytes())
    hub.commit(files_below(folder))


@pytest.mark.usefixtures("overflowing")
def test_a_fallback_that_the_values_call_for_costs_a_second_download_of_its_component_alone(
    hub: Hub, options: ConvertOptions, tmp_path: Path
) -> None:
    wanted = expected(options, tmp_path)
    hub.log.clear()
    report = stream(options)
    assert any("a value exceeds 65504" in finding.message for finding in report.findings)
    assert options.out is not None
    assert tinies.contents(options.out) == wanted
    assert whole_fetches(hub) == {path: 2 if path.startswith("vae/") else 1 for path in weights(hub)}


def test_at_most_two_files_of_the_source_are_here_and_the_plan_knows_their_size(
    hub: Hub, options: ConvertOptions
) -> None:
    assert options.out is not None
    home, most = private_folder(partial_folder(options.out)) / "source", [0, 0]

    def look(step: ProgressStep) -> None:
        if step.what != "downloading":  # only that thread makes files
            return
        sizes = []
        for path in home.rglob("*"):
            with suppress(FileNotFoundError):
                sizes += [path.stat().st_size] if path.is_file() else []
        most[:] = [max(before, now) for before, now in zip(most, (len(sizes), sum(sizes)), strict=True)]

    plan = preview_remote("hf://owner/name", replace(options, recipe="bf16"))
    stream(replace(options, recipe="bf16"), progress=look)
    assert most[0] <= 2
    shards = sorted(weights(hub).values())
    needed = plan.figures["disk_needed_nbytes"]
    written = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    assert isinstance(needed, int)
    assert (
        most[1] <= needed - written + 500_000 <= sum(shards[-2:]) + 500_000
    )  # the manifest and the card are not planned


# What is in the way


def fault_later(hub: Hub, **faults: object) -> Progress:
    """Returns a progress that sets faults when the first weights have come: the headers are right."""

    def tell(step: ProgressStep) -> None:
        if step.what == "downloading" and step.done and faults:
            for name, value in faults.items():
                setattr(hub.faults, name, value)
            faults.clear()

    return tell


@pytest.mark.parametrize(
    ("faults", "error", "message"),
    [
        ({"wrong_bytes": 1}, DigestMismatch, "sha256 is .* and the hub lists"),
        ({"cut_after": [100_000] + [0] * 9}, InputError, r"the connection ended [\d.]+ \w+ early"),
        pytest.param({"missing_payload": True}, InputError, "does not exist", marks=pytest.mark.exhaustive),
        pytest.param({"gated": True}, InputError, "not allowed", marks=pytest.mark.exhaustive),
    ],
)
def test_a_download_that_fails_leaves_no_output_and_the_same_command_goes_on(
    hub: Hub, options: ConvertOptions, tmp_path: Path, faults: dict[str, Any], error: type[Exception], message: str
) -> None:
    wanted = expected(options, tmp_path)
    hub.log.clear()
    with pytest.raises(error, match=message) as caught:
        stream(options, progress=fault_later(hub, **faults))
    assert caught.value.hint  # type: ignore[attr-defined]
    assert there(options) == ["out.partial"]
    hub.faults = Faults()
    stream(options)
    assert options.out is not None
    assert tinies.contents(options.out) == wanted
    headers = 2 * 100_000 * len(weights(hub))
    assert hub.sent_nbytes() < 1.05 * sum(weights(hub).values()) + max(weights(hub).values()) + headers


def test_nan_in_a_source_leaves_nothing(hub: Hub, sharded: Path, options: ConvertOptions, tmp_path: Path) -> None:
    folder = tinies.copy(sharded, tmp_path / "poked")
    shard = sorted((folder / "transformer_2").glob("*.safetensors"))[1]
    ref = next(ref for ref in read_header(shard).tensors.values() if ref.numel > 1)
    content = bytearray(shard.read_bytes())
    content[ref.offset : ref.offset + 4] = torch.tensor([math.nan]).numpy().tobytes()
    shard.write_bytes(content)
    hub.commit(files_below(folder))
    with pytest.raises(NotFinite, match="is nan"):
        stream(options)
    assert there(options) == []


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_of_scales_that_is_none_is_refused_where_it_is_decoded(
    hub: Hub, tiny: Tiny, options: ConvertOptions, tmp_path: Path, scale: float
) -> None:
    convert(tiny("wan2.1-t2v-1.3b"), ConvertOptions("nvfp4", layout="comfyui", out=tmp_path / "model"))
    file = tmp_path / "model" / "diffusion_models" / "wan2.1-t2v.safetensors"
    tinies.poke(file, "blocks.1.ffn.0.weight_scale_2", 0, scale)
    hub.commit(files_below(tmp_path / "model"))
    with pytest.raises(InputError, match=rf"ffn\.up\.weight has a scale of {scale:.9g}, and a scale is a positive"):
        stream(replace(options, recipe="bf16"))
    assert "out" not in there(options)


def test_tied_copies_that_differ_are_refused(hub: Hub, options: ConvertOptions, tmp_path: Path) -> None:
    folder = tinies.make(tmp_path / "tied", "wan2.1-t2v-1.3b", "dit", "text_encoder", layout="diffusers")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    shared = tensors["shared.weight"]
    tensors["encoder.embed_tokens.weight"] = shared.clone()
    save_file(tensors, file, {"format": "pt"})
    hub.commit(files_below(folder))
    wanted = expected(options, tmp_path)
    stream(options)
    assert options.out is not None
    assert tinies.contents(options.out) == wanted
    save_file({**tensors, "encoder.embed_tokens.weight": shared + 1}, file, {"format": "pt"})
    hub.commit(files_below(folder))
    with pytest.raises(InputError, match="differs from"):
        stream(replace(options, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_file_that_torch_reads_otherwise_is_refused(
    hub: Hub, options: ConvertOptions, tiny: Tiny, tmp_path: Path
) -> None:
    folder = tinies.copy(tiny(A14B), tmp_path / "model")
    vae = folder / "Wan2.1_VAE.pth"
    content = vae.read_bytes()
    vae.write_bytes(content.replace(b"torch._utils", b"torch._utilz"))
    hub.commit(files_below(folder))
    with pytest.raises(InputError):
        stream(options)
    assert not (tmp_path / "streamed" / "out").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("recipe", "layout", "file", "one", "other"),
    [
        ("keep", "official", "diffusion_pytorch_model.safetensors", b"blocks.0.self_attn.q.", b"blocks.0.self_attn.k."),
        ("fp8-scaled", "comfyui", "diffusion_models/wan2.1-t2v.safetensors", b'_mult":true}', b'_mult":null}'),
    ],
)
def test_a_file_that_is_not_the_one_whose_header_was_read_is_refused(
    recipe: str,
    layout: str,
    file: str,
    one: bytes,
    other: bytes,
    hub: Hub,
    tiny: Tiny,
    options: ConvertOptions,
    tmp_path: Path,
) -> None:
    """Ranges have no digest: a cache may answer them from another version, here one with two names in each other's
    place, or with another constant behind the header."""
    convert(tiny("wan2.1-t2v-1.3b"), ConvertOptions(recipe, layout=layout, out=tmp_path / "source"))
    hub.commit(files_below(tmp_path / "source"))
    wanted = expected(options, tmp_path)
    swapped = hub.files[file].replace(one, one.upper()).replace(other, one).replace(one.upper(), other)
    hub.faults.ranges_of = {file: swapped}
    with pytest.raises(InputError) as raised:
        stream(options)
    assert raised.value.message == f"hf://owner/name@{hub.head}/{file} is not the file whose header was read"
    assert raised.value.hint == "`overwrite=True` starts over; or try the other hub"
    assert there(options) == ["out.partial"]
    hub.faults = Faults()
    stream(replace(options, force=True))
    assert options.out is not None
    assert tinies.contents(options.out) == wanted


def test_a_revision_that_moves_in_between_is_another_source(
    hub: Hub, sharded: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    commit, wanted = hub.head, expected(options, tmp_path)
    with pytest.raises(InputError):
        stream(options, progress=fault_later(hub, missing_payload=True))
    hub.faults = Faults()
    moved = dict(hub.files)
    path = next(path for path in moved if path.startswith("vae") and path.endswith(".safetensors"))
    hub.commit(moved | {path: moved[path][:-4] + b"\0\0\0\0"})
    with pytest.raises(UsageError, match="left by another conversion, or its source has changed"):
        stream(options)
    convert_remote(f"hf://owner/name@{commit}", options, patience=PATIENCE)
    assert options.out is not None
    assert tinies.contents(options.out) == wanted


def test_a_finished_output_is_held_against_the_digests_of_the_hub(hub: Hub, options: ConvertOptions) -> None:
    stream(options)
    hub.log.clear()
    report = stream(options)
    assert report.figures["outcome"] == EXISTING
    assert any("the hub's digests were compared" in finding.message for finding in report.findings)
    assert not whole_fetches(hub)
    files = dict(hub.files)
    path = next(path for path in files if path.startswith("vae") and path.endswith(".safetensors"))
    hub.commit(files | {path: files[path][:-4] + b"\0\0\0\0"})
    with pytest.raises(UsageError, match=f"made from other numbers, for instance in {path}"):
        stream(options)


def test_an_output_of_a_folder_without_digests_is_not_taken_for_the_hubs(
    hub: Hub, sharded: Path, options: ConvertOptions
) -> None:
    convert(sharded, options)
    with pytest.raises(UsageError, match="does not say which digest"):
        stream(options)


def test_a_disk_without_room_is_seen_before_a_weight_is_fetched(
    hub: Hub, options: ConvertOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = preview_remote("hf://owner/name", options)
    needed = report.figures["disk_needed_nbytes"]
    assert isinstance(needed, int)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 100_000))
    assert preview_remote("hf://owner/name", options).exit_code == 7
    with pytest.raises(OutputError, match=" free, and "):
        stream(options)
    assert not whole_fetches(hub)


def test_a_token_goes_to_the_hub_alone(hub: Hub, options: ConvertOptions) -> None:
    hub.faults.token = "hf_secret"
    with pytest.raises(InputError, match="not for this token"):
        stream(options)
    hub.log.clear()
    stream(options, token="hf_secret")
    assert any("hf_secret" in value for request in hub.log for value in request.headers.values())
    assert not any("hf_secret" in value for request in hub.payload_requests() for value in request.headers.values())


# What stays


def test_a_kept_source_is_a_download(hub: Hub, options: ConvertOptions, tmp_path: Path) -> None:
    wanted = expected(options, tmp_path)
    plan = preview_remote("hf://owner/name", options, keep=True)
    stream(options, keep=True)
    assert options.out is not None
    kept = options.out.with_name("out.source")
    assert there(options) == ["out", "out.source"]
    assert tinies.contents(options.out) == wanted
    assert files_below(kept) == files_below(tmp_path / "model")
    assert verify(kept, VerifyOptions(hub="recorded")).exit_code == 0
    assert verify(options.out, VerifyOptions(against=kept)).exit_code == 0
    nbytes = sum(map(len, hub.files.values()))
    assert plan.figures["disk_needed_nbytes"] == preview(kept, options).figures["disk_needed_nbytes"] + nbytes  # type: ignore[operator]
    hub.log.clear()
    stream(replace(options, recipe="bf16", force=True), keep=True)
    assert not whole_fetches(hub)


def test_a_folder_that_is_no_download_of_it_is_not_written_to(hub: Hub, options: ConvertOptions) -> None:
    assert options.out is not None
    kept = options.out.with_name("out.source")
    (kept / "vae").mkdir(parents=True)
    (kept / "vae" / "config.json").write_text("mine")
    with pytest.raises(UsageError, match="has 1 file that no download put there"):
        stream(options, keep=True)
    assert (kept / "vae" / "config.json").read_text() == "mine"
    (kept / "vae" / "config.json").unlink()
    download_record.write(kept, Snapshot("hf", "other/name", "main", None, ()))
    with pytest.raises(UsageError, match="holds a download of hf://other/name"):
        stream(options, keep=True)


# Stopped

STREAM = """
import sys
from pathlib import Path
from wanconv.commands.convert import convert_remote
from wanconv.conversion.options import ConvertOptions
from wanconv.downloads.selection import Wish
options = ConvertOptions("experts-bf16-rest-fp16", out=Path(sys.argv[1]), jobs=2, block_nbytes=1 << 16)
convert_remote("hf://owner/name", options)
"""


def start(options: ConvertOptions) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen([sys.executable, "-c", STREAM, str(options.out)], env=environment)


def begun_nbytes(folder: Path) -> int:
    """Returns the size of the largest file under way."""
    most = 0
    for path in folder.rglob("*.part"):
        with suppress(FileNotFoundError):
            most = max(most, path.stat().st_size)
    return most


@pytest.mark.exhaustive
def test_killed_while_it_downloads_and_while_it_converts_it_goes_on(
    hub: Hub, options: ConvertOptions, tmp_path: Path
) -> None:
    wanted = expected(options, tmp_path)
    hub.log.clear()
    assert options.out is not None
    options.out.parent.mkdir()
    private = private_folder(partial_folder(options.out))
    journal = private / "journal"

    moments = [lambda: begun_nbytes(private) > 300_000, lambda: journal.exists() and journal.stat().st_size > 4_000]
    hub.faults.chunk_delay_s = 0.02
    for moment in moments:
        process = start(options)
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert there(options) == ["out.partial"]
    hub.faults.chunk_delay_s = 0
    stream(options)
    assert tinies.contents(options.out) == wanted
    assert there(options) == ["out"]
    assert sum(whole_fetches(hub).values()) <= len(weights(hub)) + 1  # one that was killed at its first byte
    assert [request.range for request in hub.payload_requests() if request.range and not is_header(request.range)]


def test_a_block_that_has_changed_since_is_made_again_from_files_that_were_gone(
    hub: Hub, options: ConvertOptions, tmp_path: Path
) -> None:
    wanted = expected(options, tmp_path)

    def stop(step: ProgressStep) -> None:
        if step.what == "converting" and step.done > 0.7 * step.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(options, progress=stop)
    assert options.out is not None
    for written in sorted((partial_folder(options.out) / "transformer").glob("*.safetensors")):
        with written.open("r+b") as opened:
            opened.seek(written.stat().st_size // 2)
            opened.write(b"changed")
    stream(options)
    assert tinies.contents(options.out) == wanted


@pytest.mark.exhaustive
@pytest.mark.usefixtures("overflowing")
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    hub: Hub, options: ConvertOptions, scale: Scale, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A moment is a number of bytes that the hub has sent; of a run that ends before it, another begins."""
    wanted, choose, kills = expected(options, tmp_path), random.Random(0), 0
    for number in range(scale.remote_kills):
        if kills >= scale.remote_kills:
            break
        run = replace(options, out=tmp_path / str(number) / "out")
        assert run.out is not None
        run.out.parent.mkdir()
        hub.faults.chunk_delay_s = 0.01
        killed = 0
        while not run.out.exists() and kills + killed < scale.remote_kills:
            served = hub.sent_nbytes() + choose.uniform(1.4e6, 2e6)  # the headers are 1.3 MB
            process = start(run)
            with suppress(AssertionError):
                wait_for(lambda least=served: hub.sent_nbytes() > least, process)  # type: ignore[misc]
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        assert killed
        kills += killed
        hub.faults.chunk_delay_s = 0
        stream(run)
        assert tinies.contents(run.out) == wanted
        assert there(run) == ["out"]
    assert kills >= scale.remote_kills
    record_property("cases", kills)


def test_ctrl_c_says_how_to_go_on(hub: Hub, options: ConvertOptions, tmp_path: Path) -> None:
    hub.faults.chunk_delay_s = 0.05
    arguments = ["convert", "hf://owner/name", "-r", "bf16", "-o", str(tmp_path / "out")]
    environment = {**os.environ, **hub.environment()}
    process = subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, start_new_session=True)
    source = private_folder(partial_folder(tmp_path / "out")) / "source"
    wait_for(lambda: begun_nbytes(source) > 0, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, b"run the same command to go on: wanconv convert hf://owner/name" in errors) == (
        130,
        True,
    )
    hub.faults.chunk_delay_s = 0
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_here_has_nothing_to_keep(tiny: Tiny, tmp_path: Path) -> None:
    done = call("convert", tiny(A14B), "-r", "bf16", "--keep-source", cwd=tmp_path)
    assert (done.returncode, "--keep-source is for hf://" in done.stderr) == (2, True)


def test_files_of_others_in_a_repository_are_not_fetched_and_globs_that_match_nothing_are_told(
    hub: Hub, options: ConvertOptions
) -> None:
    tensors = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(300, 300)}
    hub.commit(hub.files | {"loras/style.safetensors": save(tensors), "README.txt": b"."})
    asked = replace(options, exclude=("*.onnx", "README.txt"))
    report = stream(asked)
    told = {(one.severity, one.where, one.message) for one in report.findings}
    assert ("note", "loras/style.safetensors", "left out: a LoRA, which `loras` merges") in told
    idle = ("warning", "*.onnx", "excludes nothing: no path or name matches")
    assert [one for one in told if "excludes nothing" in one[2]] == [idle]
    assert "loras/style.safetensors" not in whole_fetches(hub)
    wanted = DownloadOptions(wish=Wish(exclude=asked.exclude), patience=PATIENCE)
    for other in (inspect_remote("hf://owner/name", exclude=asked.exclude), preview_download("owner/name", wanted)):
        assert idle in [(one.severity, one.where, one.message) for one in other.findings]
