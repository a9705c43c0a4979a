"""Fewer bytes come than were asked for: what is read is the same, and only a file that ends is called cut off."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny as tinies

from wanconv.commands.convert import convert
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint, writer
from wanconv.conversion import fp16_gate
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, UsageError
from wanconv.models import identify
from wanconv.storage.reading import opened, read_at, read_small
from wanconv.types.progress import ProgressStep
from wanconv.types.tensors import CONTAINERS

T2V = "wan2.1-t2v-1.3b"
LAYOUTS = ("official", "diffusers", "comfyui", "gguf")  # .pth and safetensors, with an index, and GGUF


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> dict[str, Path]:
    """Returns a small model in each container."""
    root = tmp_path_factory.mktemp("containers")
    made = {"official": tiny(T2V)}
    for layout in LAYOUTS[1:]:
        made[layout] = root / layout
        convert(tiny(T2V), ConvertOptions("bf16", layout=layout, out=made[layout]))
    return made


@contextmanager
def halving() -> Iterator[list[int]]:
    """Every read gives half of what is asked for; yields a list that holds how often."""
    pread, preadv, read, readv, cut = os.pread, os.preadv, os.read, os.readv, [0]

    def half(nbytes: int) -> int:
        cut[0] += nbytes > 1
        return (nbytes + 1) // 2

    def of_views(views: Sequence[memoryview]) -> list[memoryview]:
        (view,) = views
        return [memoryview(view)[: half(len(view))]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", lambda file, nbytes, offset: pread(file, half(nbytes), offset))
        patch.setattr(os, "preadv", lambda file, views, offset: preadv(file, of_views(views), offset))
        patch.setattr(os, "read", lambda file, nbytes: read(file, half(nbytes)))
        patch.setattr(os, "readv", lambda file, views: readv(file, of_views(views)))
        yield cut


@pytest.fixture
def halved() -> Iterator[list[int]]:
    with halving() as cut:
        yield cut


@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_reads_change_nothing(layout: str, sources: dict[str, Path], tmp_path: Path) -> None:
    source = sources[layout]
    model = identify(open_checkpoint(source))
    a, b = (ConvertOptions("fp16", layout=layout, out=tmp_path / name, block_nbytes=1 << 16) for name in "ab")
    with halving() as cut:
        sample = fp16_gate.sample(model)
        convert(source, a)
        report = verify(tmp_path / "a", VerifyOptions(against=source))
    assert (report.exit_code, cut[0] > 100, sample) == (0, True, fp16_gate.sample(model))
    convert(source, b)
    assert tinies.digests(tmp_path / "a") == tinies.digests(tmp_path / "b")


def test_blocks_of_an_earlier_run_are_read_back_whole(
    sources: dict[str, Path], tmp_path: Path, halved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that came in two halves was written again."""

    class Stop(Exception):
        pass

    def stop(step: ProgressStep) -> None:
        if step.done > step.total // 2:
            raise Stop

    options = ConvertOptions("bf16", out=tmp_path / "out", jobs=1, block_nbytes=1 << 16)
    with pytest.raises(Stop):
        convert(sources["official"], options, stop)
    written: list[int] = []
    write = writer._File.write

    def noted(file: writer._File, start: int, view: memoryview) -> None:
        written.append(len(view))
        write(file, start, view)

    monkeypatch.setattr(writer._File, "write", noted)
    convert(sources["official"], options)
    total = sum(path.stat().st_size for path in tinies.weight_files(tmp_path / "out"))
    assert sum(written) < 0.7 * total


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_ends_early_is_still_named_as_such(
    layout: str, sources: dict[str, Path], tmp_path: Path, halved: list[int]
) -> None:
    folder = shutil.copytree(sources[layout], tmp_path / "model")
    (folder / "wanconv.json").unlink(missing_ok=True)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in CONTAINERS]
    assert files
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(InputError) as caught:
            open_checkpoint(file)
        assert str(file) in caught.value.message
        file.write_bytes(content)


def test_a_file_that_is_cut_off_while_it_is_converted_says_where(
    tiny: Callable[..., Path], tmp_path: Path, halved: list[int]
) -> None:
    source = tinies.copy(tiny(T2V), tmp_path / "source")
    file = source / "diffusion_pytorch_model.safetensors"

    def cut(step: ProgressStep) -> None:
        if file.stat().st_size > 100_000:
            os.truncate(file, 100_000)

    with pytest.raises((InputError, UsageError), match=r"ends inside|changed"):
        convert(source, ConvertOptions("fp16", out=tmp_path / "out", jobs=1, block_nbytes=1 << 16), cut)


def test_results_and_recipes_come_whole(tmp_path: Path, halved: list[int]) -> None:
    (tmp_path / "file").write_text(json.dumps(list(range(1000))))
    content = (tmp_path / "file").read_bytes()
    assert read_small(tmp_path / "file", 10_000) == content
    with opened(tmp_path / "file") as descriptor:
        assert read_at(descriptor, len(content), 0) == content
        assert read_at(descriptor, len(content) + 9, 3) == content[3:]
        assert read_at(descriptor, 9, len(content)) == b""
