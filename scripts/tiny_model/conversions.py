"""The conversions of the small model that are measured: every recipe in every layout, judged, a row each.

What validate measured of each is kept, by the recipe's text; its verdict is found again whenever rows are read, so that
it stands on the limits that hold then.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from tiny_model.paired import opened, tensors

from wanconv import recipe, verdict
from wanconv.commands import validate
from wanconv.commands.convert import convert
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Refused
from wanconv.layouts import LAYOUTS
from wanconv.samples import shipped
from wanconv.storage.local import publish, write_file
from wanconv.types.model import Model
from wanconv.types.tensors import TensorRef
from wanconv.verdict import judge, load_profile
from wanconv.weights.model import ModelWeights

_MEMORY_NBYTES = 1 << 30
PROFILE = "standard"


@dataclass(frozen=True, slots=True)
class Row:
    """A conversion and what validate says of it. `digest` is of its numbers as a client reads them.

    `error` is the largest of the teacher-forced predictions, `block` of what a block adds; both relative L2.
    `spoilt` is how far every scale of its block weights was moved, 0 in a conversion as it was made.
    """

    recipe: str
    layout: str
    digest: str
    nbytes: int
    format: str
    error: float
    block: float
    verdict: str
    failed: str
    spoilt: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.recipe}+{self.layout}" + (f"+{self.spoilt:g}" if self.spoilt else "")


def every(source: Path, state: Path) -> Iterator[Row]:
    """Yields a row for each recipe and layout that go together; of equal numbers, one folder stays: `folder_of`."""
    for name, layout in product(recipe.names(), LAYOUTS):
        if row := _kept(state, f"{name}+{layout}", partial(_made, source, state, f"{name}+{layout}")):
            yield row


def spoilt(source: Path, state: Path, whole: Row, amount: float) -> Row:
    """Returns the row of a conversion of which every scale, or every row without one, is off by so much on average."""
    name = replace(whole, spoilt=amount).name
    row = _kept(state, name, partial(_made, source, state, name))
    assert row is not None
    return row


def convert_again(source: Path, folder: Path, name: str) -> None:
    """Writes the conversion of a row's name, in the place of an earlier one, spoilt or half."""
    if folder.exists():
        shutil.rmtree(folder)
    recipe_name, layout, *amount = name.split("+")
    convert(source, ConvertOptions(recipe_name, layout=layout, out=folder, force=True))
    if amount:
        (folder / "wanconv.json").unlink()
        _spoil(folder, float(amount[0]))


def folder_of(source: Path, state: Path, digest: str) -> Path:
    """Returns the folder of a model with these numbers, which is made again where none is there, or a half one."""
    names = _with_digest(state, digest)
    name = next((name for name in names if (state / "converted" / name).exists()), names[0])
    folder = state / "converted" / name
    if not folder.exists() or digest_of(opened(folder)) != digest:
        convert_again(source, folder, name)
    return folder


def keep(content: bytes, file: Path) -> None:
    """Writes a file, whole or not at all."""
    beside = file.with_name(f"{file.name}.new")
    write_file(beside, content)
    publish(beside, file)


def _with_digest(state: Path, digest: str) -> list[str]:
    """Returns the names of the conversions with these numbers."""
    known = {file.stem: json.loads(file.read_bytes()) for file in sorted((state / "rows").glob("*.json"))}
    return [name for name, one in known.items() if one["measured"] and one["measured"]["digest"] == digest]


def _kept(state: Path, name: str, make: Callable[[], Mapping[str, object] | None]) -> Row | None:
    """Returns the row of what was measured before, or is now; None for what a plan refuses."""
    file = state / "rows" / f"{name}.json"
    text = recipe.load(name.partition("+")[0]).text
    known = json.loads(file.read_bytes()) if file.exists() else {}
    if known.get("recipe") != text:
        keep(json.dumps({"recipe": text, "measured": make()}).encode() + b"\n", file)
        known = json.loads(file.read_bytes())
    return _row(name, **known["measured"]) if known["measured"] else None


def _made(source: Path, state: Path, name: str) -> Mapping[str, object] | None:
    """Returns what is measured of a conversion, None where it is refused; a folder with known numbers is gone then."""
    folder = state / "converted" / name
    try:
        convert_again(source, folder, name)
    except Refused:
        return None
    model = opened(folder)
    digest, nbytes = digest_of(model), sum(tensor.nbytes for tensor in model.tensors.values())
    results = validate.judged(folder, _asked(source, state)).results
    if _with_digest(state, digest):
        shutil.rmtree(folder)
    return {"digest": digest, "nbytes": nbytes, "results": results}


def _row(name: str, digest: str, nbytes: int, results: verdict.Results) -> Row:
    recipe_name, layout, *amount = name.split("+")
    steps = results["steps"]
    assert isinstance(steps, list)
    found = judge(results, load_profile(PROFILE))
    return Row(
        recipe_name,
        layout,
        digest,
        nbytes,
        str(steps[0]["format"]),
        max(_number(one["relative_l2"]) for one in steps),
        max(_number(block["forced_relative_l2"]) for one in steps for block in one["blocks"]),
        found.outcome,
        "; ".join(f"{one.name}, {one.where}" for one in found.checks if one.outcome in ("FAIL", "NOT FINITE")),
        float(amount[0]) if amount else 0.0,
    )


def _asked(source: Path, state: Path) -> validate.ValidateOptions:
    """Returns what validate is asked for: the standard profile without its free run, which is made here."""
    profile = state / f"{PROFILE}-without-video.toml"
    text = (Path(verdict.__file__).parent / "profiles" / f"{PROFILE}.toml").read_text()
    keep(text.replace("video = true", "video = false").encode(), profile)
    return validate.ValidateOptions(
        against=source, profile=str(profile), size=shipped.SIZE, frames=shipped.FRAMES, prompt=shipped.PROMPT
    )


def _number(value: object) -> float:
    """Returns a figure, infinity where it is not finite."""
    return float(value) if isinstance(value, int | float) else float("inf")


def digest_of(model: Model) -> str:
    """Returns a digest of every number, in float32 by canonical name: models with the same one generate the same."""
    found = hashlib.sha256()
    with ModelWeights(model, _MEMORY_NBYTES, torch.device("cpu")) as weights:
        for component in sorted(model.components):
            for name, value in sorted(tensors(weights, component).items()):
                found.update(f"{component}/{name}".encode())
                found.update(value.contiguous().numpy().data)
    return found.hexdigest()[:16]


def _spoil(folder: Path, amount: float) -> None:
    random = torch.Generator().manual_seed(0)
    for name, tensor in sorted(opened(folder).tensors.items()):
        if tensor.role.kind == "linear" and tensor.block is not None and name.startswith("expert."):
            if tensor.scales is not None:
                _rewrite(tensor.scales, 1, amount, random)
            else:
                _rewrite(tensor.pieces[0].ref, tensor.shape[1], amount, random)


def _rewrite(ref: TensorRef, columns: int, amount: float, random: torch.Generator) -> None:
    """Multiplies each row of a tensor in its file by 1 + amount · a normal number."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[ref.dtype]
    values = torch.frombuffer(bytearray(ref.read()), dtype=dtype).view(-1, columns)
    moved = values.float() * (1 + amount * torch.randn(len(values), 1, generator=random))
    with ref.file.open("r+b") as stream:
        stream.seek(ref.offset)
        stream.write(moved.to(dtype).view(torch.uint8).numpy().tobytes())
