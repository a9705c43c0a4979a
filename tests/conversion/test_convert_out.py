"""Where a conversion may go: OUT and OUT.partial that are there already, are links, or touch the source."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from wanconv.commands.convert import EXISTING, WRITTEN, convert, preview
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.conversion.workspace import open_workspace
from wanconv.errors import DigestMismatch, Occupied, OutputError, UsageError
from wanconv.models import identify
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.report import Report
from wanconv.storage.local import publish
from wanconv.types.progress import ProgressStep

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("out") / "dit", "wan2.1-t2v-1.3b", "dit")


@pytest.fixture
def source(dit: Path, tmp_path: Path) -> Path:
    return tiny.copy(dit, tmp_path / "source")


@pytest.fixture
def options(tmp_path: Path) -> ConvertOptions:
    return ConvertOptions("bf16", out=tmp_path / "out")


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def interrupted(source: Path, options: ConvertOptions, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an OUT.partial whose run ended before the last step."""
    assert options.out is not None

    def failing(folder: Path, target: Path) -> None:
        if target == options.out:
            raise OutputError("the disk went away")
        publish(folder, target)

    with monkeypatch.context() as patch:
        patch.setattr("wanconv.conversion.workspace.publish", failing)
        with pytest.raises(OutputError, match="went away"):
            convert(source, options)
    return options.out.with_name(options.out.name + ".partial")


def stopped(source: Path, options: ConvertOptions) -> Path:
    """Returns an OUT.partial whose run was stopped after the first block."""
    assert options.out is not None

    def stop(step: ProgressStep) -> None:
        if step.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, replace(options, block_nbytes=1 << 16), stop)
    return options.out.with_name(options.out.name + ".partial")


def is_whole(out: Path, report: Report) -> bool:
    partial = out.with_name(out.name + ".partial")
    return report.exit_code == 0 and (out / "wanconv.json").is_file() and not partial.exists() and plain(out)


def plain(out: Path) -> bool:
    """True where OUT holds what its manifest lists, and nothing else."""
    listed = {entry["path"] for entry in json.loads((out / "wanconv.json").read_bytes())["files"]}
    return set(tiny.digests(out)) == {*listed, "wanconv.json"}


def test_a_finished_out_is_verified_and_left_as_it_is(source: Path, options: ConvertOptions, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert is_whole(out, convert(source, options))
    before = times(out)
    report = convert(source, options)
    assert report.figures["outcome"] == EXISTING
    assert is_whole(out, report)
    assert times(out) == before


def test_a_damaged_out_is_said_to_be_damaged_and_force_writes_it_again(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(source, options)
    whole = tiny.contents(out)
    tiny.poke(out / WEIGHTS, "blocks.1.ffn.0.weight", 7, 2.0)
    with pytest.raises(DigestMismatch, match="holds this conversion, but damaged") as caught:
        convert(source, options)
    assert caught.value.hint == "`overwrite=True` writes it again"
    assert any("dit/blocks.1.ffn.up.weight: its bytes" in line for line in caught.value.details)
    report = convert(source, replace(options, force=True))
    assert is_whole(out, report)
    assert tiny.contents(out) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_finished_out_that_lacks_a_file_is_damaged(source: Path, options: ConvertOptions, tmp_path: Path) -> None:
    convert(source, options)
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(DigestMismatch) as caught:
        convert(source, options)
    assert caught.value.details == ("config.json: is missing",)


@pytest.mark.parametrize(
    "change", [{"recipe": "fp16"}, {"layout": "diffusers"}, {"shard_nbytes": 10**6}, {"base_model": "someone/else"}]
)
def test_an_out_of_another_plan_is_refused_unless_forced(
    source: Path, options: ConvertOptions, tmp_path: Path, change: dict[str, str]
) -> None:
    convert(source, options)
    before = tiny.digests(tmp_path)
    other = replace(options, **change)  # type: ignore[arg-type]  # one field of any type
    with pytest.raises(Occupied, match=r"out holds another conversion \(recipe bf16, layout official\)"):
        convert(source, other)
    assert tiny.digests(tmp_path) == before
    assert is_whole(tmp_path / "out", convert(source, replace(other, force=True)))


def test_an_out_from_a_source_with_other_numbers_is_refused(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    """A fine-tune has the same header, and nothing in OUT is damaged: still it is not what was asked for."""
    convert(source, options)
    tiny.poke(source / WEIGHTS, "blocks.1.ffn.0.weight", 0, 2.0)
    with pytest.raises(UsageError, match=r"out was made from other numbers.*dit/blocks\.1\.ffn\.up\.weight"):
        convert(source, options)
    assert is_whole(tmp_path / "out", convert(source, replace(options, force=True)))


def double(folder: Path) -> None:
    """Doubles every number of a tensor; where it has scales in float32 or exponents, these alone."""
    tensor = identify(open_checkpoint(folder)).tensors["dit/blocks.1.ffn.up.weight"]
    ref = tensor.whole or tensor.scales or tensor.pieces[0].ref
    with ref.file.open("r+b") as stream:
        stream.seek(ref.offset)
        if ref.dtype == "uint8":
            stream.write(bytes(exponent + 1 for exponent in ref.read()))
        else:
            values = torch.frombuffer(bytearray(ref.read()), dtype=TORCH_DTYPES[ref.dtype]) * 2
            stream.write(bytes(values.view(torch.uint8).tolist()))


def check_doubled_is_seen(source: Path, options: ConvertOptions) -> None:
    """Asserts that a finished OUT is left as it is, and refused when its source was doubled."""
    first, again = convert(source, options), convert(source, options)
    assert (first.figures["outcome"], again.figures["outcome"]) == (
        WRITTEN,
        EXISTING,
    )
    double(source)
    with pytest.raises(UsageError, match=r"out was made from other numbers.*dit/blocks\.1\.ffn\.up\.weight"):
        convert(source, options)


SCALED = [
    ("fp8-scaled", "comfyui"),
    ("fp8-scaled", "comfyui-legacy"),
    ("fp8-scaled", "lightx2v"),
    ("fp8-scaled", "diffusers-single"),
    ("int8-row", "diffusers"),
    ("mxfp8", "comfyui"),
    ("nvfp4", "comfyui"),
]


@pytest.mark.parametrize(("recipe", "layout"), [*SCALED, ("searched", "comfyui"), ("gguf-q8_0", "gguf")])
def test_an_out_from_a_source_of_twice_the_numbers_is_refused_though_its_scales_alone_differ(
    source: Path, options: ConvertOptions, tmp_path: Path, recipe: str, layout: str
) -> None:
    recipe = tiny.searched(tmp_path) if recipe == "searched" else recipe
    check_doubled_is_seen(source, replace(options, recipe=recipe, layout=layout))


@pytest.mark.parametrize(("recipe", "layout"), SCALED)
def test_an_out_from_a_quantized_source_with_other_scales_is_refused(
    source: Path, options: ConvertOptions, tmp_path: Path, recipe: str, layout: str
) -> None:
    convert(source, ConvertOptions(recipe, layout=layout, out=tmp_path / "quantized"))
    check_doubled_is_seen(tmp_path / "quantized", replace(options, recipe="keep"))


def test_one_scale_that_becomes_one_for_each_row_is_compared_as_well(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    convert(source, ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "quantized"))
    check_doubled_is_seen(tmp_path / "quantized", replace(options, recipe="keep", layout="diffusers"))


def test_an_out_from_a_source_with_another_sidecar_is_refused(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    (source / "vocabulary.txt").write_text("old")
    convert(source, options)
    (source / "vocabulary.txt").write_text("new")
    with pytest.raises(UsageError, match="its source, `base_model` or `loras` has changed"):
        convert(source, options)
    assert is_whole(tmp_path / "out", convert(source, replace(options, force=True)))
    assert (tmp_path / "out" / "vocabulary.txt").read_text() == "new"


def test_an_empty_out_is_filled(source: Path, options: ConvertOptions, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert is_whole(tmp_path / "out", convert(source, options))


def test_an_out_that_appears_during_the_run_is_not_touched(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    def appear(step: ProgressStep) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "precious").write_text("precious")

    with pytest.raises(UsageError, match="appeared"):
        convert(source, options, appear)
    assert tiny.digests(tmp_path / "out").keys() == {"precious"}
    shutil.rmtree(tmp_path / "out")
    assert is_whole(tmp_path / "out", convert(source, options))


def test_an_out_that_another_run_has_just_finished_is_seen_before_anything_is_written(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    made = tiny.copy(source, tmp_path / "out")
    with (
        pytest.raises(UsageError, match="out appeared during the run") as raised,
        open_workspace(made, "key", "done", force=False),
    ):
        pass
    assert raised.value.hint == "run the same command again, which looks at what it is"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("lost", [".", WEIGHTS])
def test_a_partial_that_others_take_away_while_it_is_written_never_becomes_out(
    source: Path, options: ConvertOptions, tmp_path: Path, lost: str
) -> None:
    def take_away(step: ProgressStep) -> None:
        path = tmp_path / "out.partial" / lost
        if step.done == step.total:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    with pytest.raises(OutputError, match=r"out\.partial was changed by others while it was written: diffusion_py"):
        convert(source, options, take_away)
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "out.partial")
    assert is_whole(tmp_path / "out", convert(source, options))


@pytest.mark.parametrize("name", ["out", "out.partial"])
@pytest.mark.parametrize("target", ["elsewhere", "source", "nowhere"])
def test_a_link_in_the_way_is_refused_and_not_followed(
    source: Path, options: ConvertOptions, tmp_path: Path, name: str, target: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(target)
    before = tiny.digests(tmp_path)
    for force in (False, True):
        with pytest.raises(UsageError):
            convert(source, replace(options, force=force))
    assert tiny.digests(tmp_path) == before


def test_a_partial_of_another_plan_is_refused_and_by_force_started_over(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    partial = stopped(source, options)
    before = tiny.digests(partial)
    other = replace(options, recipe="fp16")
    with pytest.raises(Occupied, match=r"out\.partial was left by another conversion"):
        convert(source, other)
    assert tiny.digests(partial) == before
    assert is_whole(tmp_path / "out", convert(source, replace(other, force=True)))


def test_a_partial_of_a_source_that_changed_is_refused(source: Path, options: ConvertOptions) -> None:
    options = replace(options, block_nbytes=1 << 16)
    stopped(source, options)
    os.utime(source / WEIGHTS, ns=(1, 1))
    with pytest.raises(UsageError, match="or its source has changed since"):
        convert(source, options)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_named_partial_that_wanconv_did_not_make_is_never_emptied(
    source: Path, options: ConvertOptions, tmp_path: Path, force: bool
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "precious").write_text("precious")
    with pytest.raises(Occupied, match=r"out\.partial .*wanconv did not"):
        convert(source, replace(options, force=force))
    assert (tmp_path / "out.partial" / "precious").read_text() == "precious"


def test_a_source_that_is_its_own_partial_is_refused(source: Path, options: ConvertOptions, tmp_path: Path) -> None:
    """`--force` would start over there."""
    named = source.rename(tmp_path / "out.partial")
    before = tiny.digests(named)
    with pytest.raises(UsageError, match="the source"):
        convert(named, replace(options, force=True))
    assert tiny.digests(named) == before


def test_a_partial_that_only_lacks_its_rename_is_finished(
    source: Path, options: ConvertOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(source, options, monkeypatch)
    before = tiny.contents(partial)
    assert is_whole(tmp_path / "out", convert(source, options))
    assert tiny.contents(tmp_path / "out") == before


@pytest.mark.parametrize("stage", ["with its state", "without"])
def test_a_partial_that_only_lacks_its_rename_is_not_taken_for_that_of_another_source(
    source: Path, options: ConvertOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The other one has the same header: a fine-tune."""
    partial = interrupted(source, options, monkeypatch)
    assert not (partial / ".wanconv").exists()
    if stage == "with its state":
        (partial / ".wanconv").mkdir()
        (partial / ".wanconv" / "state.json").write_text('{"key": "of the old source", "overflowing": []}')
    tiny.poke(source / WEIGHTS, "blocks.1.ffn.0.weight", 0, 2.0)
    with pytest.raises(UsageError, match="source has changed"):
        convert(source, options)
    assert partial.exists()
    assert is_whole(tmp_path / "out", convert(source, replace(options, force=True)))
    convert(source, replace(options, out=tmp_path / "undisturbed"))
    assert tiny.contents(tmp_path / "out") == tiny.contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("stage", ["made", "with an unborn state"])
def test_a_partial_that_was_hardly_begun_is_begun_again(
    source: Path, options: ConvertOptions, tmp_path: Path, stage: str
) -> None:
    (tmp_path / "out.partial").mkdir()
    if stage != "made":
        (tmp_path / "out.partial" / ".wanconv").mkdir()
        (tmp_path / "out.partial" / ".wanconv" / "state.tmp").write_text('{"key"')
    assert is_whole(tmp_path / "out", convert(source, options))


def test_what_an_earlier_run_left_beside_the_plan_is_not_published(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    options = replace(options, block_nbytes=1 << 16)
    partial = stopped(source, options)
    stale = "diffusion_pytorch_model-00001-of-00003.safetensors"
    state = json.loads((partial / ".wanconv" / "state.json").read_bytes())
    (partial / ".wanconv" / "state.json").write_text(json.dumps({**state, "files": [*state["files"], stale]}))
    (partial / stale).write_text("stale")  # of an attempt before a fallback changed the number of shards
    (partial / "folder").mkdir()
    assert is_whole(tmp_path / "out", convert(source, options))
    assert not (tmp_path / "out" / "folder").exists()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "wanconv.json", ".wanconv/journal", ".wanconv/state.json"])
@pytest.mark.parametrize("kind", ["hard link", "link"])
def test_links_to_the_source_in_a_partial_are_refused_and_not_written_through(
    source: Path, options: ConvertOptions, tmp_path: Path, name: str, kind: str
) -> None:
    options = replace(options, block_nbytes=1 << 16)
    partial = stopped(source, options)
    before = tiny.digests(source)
    (partial / name).unlink(missing_ok=True)
    if kind == "link":
        (partial / name).symlink_to(source / WEIGHTS)
    else:
        (partial / name).hardlink_to(source / WEIGHTS)
    with pytest.raises(UsageError, match=r"link"):
        convert(source, options)
    assert tiny.digests(source) == before


def test_a_folder_of_a_partial_that_links_to_the_source_is_refused(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    options = replace(options, layout="diffusers", block_nbytes=1 << 16)
    partial = stopped(source, options)
    before = tiny.digests(source)
    shutil.rmtree(partial / "transformer")
    (partial / "transformer").symlink_to(source)
    with pytest.raises(UsageError, match="link"):
        convert(source, options)
    assert tiny.digests(source) == before


@pytest.mark.parametrize(
    "out", ["source", "source/inside", "source/deep/inside", ".", "link", "link/inside", "source/../source", "/", ".."]
)
@pytest.mark.parametrize("force", [False, True])
def test_an_out_that_is_holds_or_lies_in_the_source_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, force: bool
) -> None:
    (tmp_path / "link").symlink_to("source")
    monkeypatch.chdir(tmp_path)
    before = tiny.digests(tmp_path)
    for spelling in (source, Path("source"), Path("link"), Path("source/../source")):
        options = ConvertOptions("bf16", out=Path(out), force=force)
        with pytest.raises(UsageError, match="is, holds or lies in the source"):
            convert(spelling, options)
        with pytest.raises(UsageError, match="is, holds or lies in the source"):
            preview(spelling, options)
    assert tiny.digests(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("folder", "out"),
    [("source", f"source/{WEIGHTS}"), ("source", "source"), ("source", "."), ("linked", "linked"), ("linked", ".")],
)
def test_an_out_that_is_or_holds_the_source_file_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, out: str, force: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / WEIGHTS).symlink_to(source / WEIGHTS)
    before = tiny.digests(tmp_path)
    with pytest.raises(UsageError, match="is, holds or lies in the source"):
        convert(Path(folder, WEIGHTS), ConvertOptions("bf16", out=Path(out), force=force))
    assert tiny.digests(tmp_path) == before


def test_a_source_file_in_a_folder_that_wanconv_wrote_survives_force_on_that_folder(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    options = replace(options, layout="diffusers")
    convert(source, options)
    inside = tmp_path / "out" / "transformer" / WEIGHTS
    with pytest.raises(UsageError, match="is, holds or lies in the source"):
        convert(inside, ConvertOptions("fp16", out=tmp_path / "out", force=True))
    assert inside.exists()


def test_a_single_file_may_be_converted_into_its_own_folder(source: Path) -> None:
    report = convert(source / WEIGHTS, ConvertOptions("bf16"))
    assert report.figures["out"] == str(source / "diffusion_pytorch_model-bf16")


def test_the_default_out_stands_beside_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convert(source, ConvertOptions("bf16")).figures["out"] == str(tmp_path / "source-bf16")
    monkeypatch.chdir(source)
    assert convert(Path(), ConvertOptions("fp16")).figures["out"] == str(tmp_path / "source-fp16")


def test_an_out_that_ends_in_dots_is_the_folder_that_it_leads_to(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away" / "deep").mkdir(parents=True)
    (tmp_path / "away" / "precious").write_text("precious")
    monkeypatch.chdir(tmp_path / "away" / "deep")
    for out in (Path(".."), Path("../../away"), Path("../deep/..")):
        with pytest.raises(UsageError, match="away holds the current folder"):
            convert(source, ConvertOptions("bf16", out=out))


def test_a_second_run_is_refused_while_the_first_one_writes(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    """The lock belongs to the opened folder, so a run in this process meets what one in another process would."""
    said: list[str] = []

    def second(step: ProgressStep) -> None:
        for force in (False, True):
            with pytest.raises(UsageError, match=r"another wanconv is writing .*out\.partial"):
                convert(source, replace(options, force=force))
        said.append(step.what)

    assert is_whole(tmp_path / "out", convert(source, options, second))
    assert said


@pytest.mark.parametrize("out", ["/proc/nothing/out", "/dev/null/out", "file/out", "n" * 300])
def test_a_target_that_cannot_be_written_is_an_output_error(source: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write") as caught:
        convert(source, ConvertOptions("bf16", out=tmp_path / out))
    assert caught.value.exit_code == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user without rights: EACCES is unproven")
def test_a_target_without_permission_is_an_output_error(source: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder.is_relative_to("/tmp"):
            folder.chmod(0o755 if folder != Path("/tmp") else 0o1777)
    for out in (closed / "out", closed / "deep" / "out"):
        os.seteuid(65534)
        try:
            with pytest.raises(OutputError, match=r"cannot write .*Permission denied"):
                convert(source, ConvertOptions("bf16", out=out))
        finally:
            os.seteuid(0)


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    source: Path, options: ConvertOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"has 1 kB free, and [\d.]+ [kM]B are needed"):
        convert(source, options)
    assert preview(source, options).exit_code == 7
    assert not (tmp_path / "out").exists()


def test_programs_read_codes_where_people_read_sentences_and_the_dry_run_has_the_plan_key_of_the_manifest(
    source: Path, options: ConvertOptions, tmp_path: Path
) -> None:
    planned, first, again = preview(source, options), convert(source, options), convert(source, options)
    key = json.loads((tmp_path / "out" / "wanconv.json").read_bytes())["plan"]
    documents = [report.to_json() for report in (planned, first, again)]
    assert [document["details"] for document in documents] == [{"plan": key, "source_layout": "official"}] * 3
    figures = [report.to_json()["figures"] for report in (first, again)]
    expected = {"release": None, "recipe": "bf16", "layout": "official"}
    for found, outcome in zip(figures, ("written", "existing"), strict=True):
        assert isinstance(found, dict)
        assert {name: found[name] for name in (*expected, "outcome")} == {**expected, "outcome": outcome}
    assert [report.title for report in (first, again)] == [
        "out: written",
        "out: was there already and is as it should be",
    ]
    changed = preview(source, replace(options, recipe="fp16", out=tmp_path / "new"))
    assert changed.details["plan"] not in (key, None)
