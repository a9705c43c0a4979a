"""One bit flipped anywhere in what was converted, or in what it was made from: verify finds it and names the tensor."""

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from battery import PARTS, Scale
from broken import flip

from wanconv.commands.convert import convert
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError
from wanconv.models import identify
from wanconv.report import Finding

pytestmark = pytest.mark.exhaustive


class Place(NamedTuple):
    """Bytes of a file, and the tensor that they hold ("" for headers and sidecars)."""

    file: Path
    first: int
    end: int
    tensor: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> tuple[Path, Path]:
    """Returns a source with a list of digests, and its conversion to the same numbers; every flip in them is undone."""
    source, out = tmp_path_factory.mktemp("flips") / "source", tmp_path_factory.mktemp("flips") / "out"
    convert(tiny("wan2.1-t2v-1.3b"), ConvertOptions("keep", out=source, shard_nbytes=200_000))
    (source / "wanconv.json").unlink()
    convert(source, ConvertOptions("keep", out=out))
    subprocess.run("sha256sum $(find . -type f ! -name SHA256SUMS) > SHA256SUMS", shell=True, cwd=source, check=True)
    return source, out


def places(folder: Path) -> tuple[list[Place], list[Place]]:
    """Returns where tensors lie, and all that is around them."""
    payloads = [
        Place(piece.ref.file, piece.ref.offset, piece.ref.offset + piece.ref.nbytes, tensor.name)
        for tensor in identify(open_checkpoint(folder)).tensors.values()
        for piece in tensor.pieces
    ]
    around = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"):
        end = 0
        for place in sorted(place for place in payloads if place.file == file):
            around.append(Place(file, end, place.first, ""))
            end = place.end
        around.append(Place(file, end, file.stat().st_size, ""))
    return payloads, [place for place in around if place.first < place.end]


def failures(folder: Path, against: Path | None = None) -> list[Finding]:
    """Returns what verify finds; where it cannot even read the folder, what it says of that."""
    try:
        report = verify(folder, VerifyOptions(against=against))
    except InputError as error:
        return [Finding("failure", error.message, error.message, error.hint, error.code)]
    assert (report.exit_code != 0) == any(finding.severity == "failure" for finding in report.findings)
    return [finding for finding in report.findings if finding.severity == "failure"]


@pytest.mark.parametrize("part", range(PARTS))
def test_a_flipped_bit_is_found_and_in_numbers_named_by_its_tensor(
    part: int, scale: Scale, pair: tuple[Path, Path], record_property: Callable[[str, object], None]
) -> None:
    source, out = pair
    choose = random.Random(part)
    where = {folder: places(folder) for folder in pair}
    for number in range(part, scale.flips, PARTS):
        folder = pair[number // PARTS % 2]
        place = choose.choice(where[folder][choose.random() < 0.3])
        offset, mask = choose.randrange(place.first, place.end), 1 << choose.randrange(8)
        flip(place.file, offset, mask)
        found = failures(folder)
        path = place.file.relative_to(folder).as_posix()
        what = (path, offset, mask, found)
        assert any(path in finding.where for finding in found), what
        if place.tensor and folder is out:
            assert {finding.where for finding in found} == {path, place.tensor}, what
        if place.tensor and folder is source:  # a list of files knows no tensors; what was made of it does
            assert [finding.where for finding in failures(out, source)] == [place.tensor], what
        flip(place.file, offset, mask)
    assert failures(source) == failures(out, source) == []
    record_property("cases", len(range(part, scale.flips, PARTS)))
