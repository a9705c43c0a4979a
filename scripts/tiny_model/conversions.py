"""The conversions of the small model that are measured: every recipe in every layout, judged, a row each."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from wanconv import recipe, verdict
from wanconv.checkpoint import open_checkpoint
from wanconv.checkpoint.output import write_file
from wanconv.errors import UsageError
from wanconv.families import identify
from wanconv.layouts import LAYOUTS
from wanconv.tensors import Model, TensorRef
from wanconv.validation.weights import ModelWeights
from wanconv.verbs import validate
from wanconv.verbs.convert import convert
from wanconv.workshop import shipped
from wanconv.workshop.job import Options

_MEMORY_NBYTES = 1 << 30
_PROFILE = "standard"


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


def opened(folder: Path) -> Model:
    return identify(open_checkpoint(folder))


def every(source: Path, state: Path) -> Iterator[Row]:
    """Yields a row for each recipe and layout that go together; of equal ones, one folder stays: `folder_of`."""
    for name, layout in product(recipe.names(), LAYOUTS):
        if row := _kept(state, f"{name}+{layout}", partial(_made, source, state, name, layout)):
            yield row


def spoilt(source: Path, state: Path, whole: Row, amount: float) -> Row:
    """Returns the row of a conversion of which every scale, or every row without one, is off by so much on average."""
    name = replace(whole, spoilt=amount).name

    def make() -> Row:
        folder = state / "converted" / name
        convert_again(source, folder, name)
        return _judged(source, state, folder, whole.recipe, whole.layout, amount)

    row = _kept(state, name, make)
    assert row is not None
    return row


def convert_again(source: Path, folder: Path, name: str) -> None:
    """Writes the conversion of a row's name."""
    recipe_name, layout, *amount = name.split("+")
    convert(source, Options(recipe_name, layout=layout, out=folder, force=True))
    if amount:
        (folder / "wanconv.json").unlink()
        _spoil(folder, float(amount[0]))


def folder_of(source: Path, state: Path, digest: str) -> Path:
    """Returns the folder of a model with these numbers, which is made again where none is there."""
    names = [row.name for row in _with_digest(state, digest)]
    name = next((name for name in names if (state / "converted" / name).exists()), names[0])
    folder = state / "converted" / name
    if not folder.exists():
        convert_again(source, folder, name)
    return folder


def _with_digest(state: Path, digest: str) -> list[Row]:
    files = sorted((state / "rows").glob("*.json"))
    known = [json.loads(file.read_bytes()) for file in files]
    return [Row(**one) for one in known if one is not None and one["digest"] == digest]


def _kept(state: Path, name: str, make: Callable[[], Row | None]) -> Row | None:
    """Returns a row as it was kept, or as it is made now; None for what a plan refuses."""
    file = state / "rows" / f"{name}.json"
    if not file.exists():
        made = make()
        write_file(file, json.dumps(None if made is None else asdict(made), indent=1).encode() + b"\n")
    known = json.loads(file.read_bytes())
    return None if known is None else Row(**known)


def _made(source: Path, state: Path, name: str, layout: str) -> Row | None:
    out = state / "converted" / f"{name}+{layout}"
    try:
        convert_again(source, out, out.name)
    except UsageError:
        return None
    return _judged(source, state, out, name, layout, 0.0)


def _judged(source: Path, state: Path, folder: Path, name: str, layout: str, amount: float) -> Row:
    """Returns the row of a folder; what equals an earlier one is gone then, and has that one's figures."""
    model = opened(folder)
    digest, nbytes = digest_of(model), sum(tensor.nbytes for tensor in model.tensors.values())
    if alike := _with_digest(state, digest):
        shutil.rmtree(folder)
        return replace(alike[0], recipe=name, layout=layout, nbytes=nbytes, spoilt=amount)
    found = validate.judged(folder, _asked(source, state))
    steps = found.results["steps"]
    assert isinstance(steps, list)
    return Row(
        name,
        layout,
        digest,
        nbytes,
        str(steps[0]["format"]),
        max(_number(one["relative_l2"]) for one in steps),
        max(_number(block["forced_relative_l2"]) for one in steps for block in one["blocks"]),
        found.verdict.outcome,
        "; ".join(f"{one.name}, {one.where}" for one in found.verdict.checks if one.outcome in ("FAIL", "NOT FINITE")),
        amount,
    )


def _asked(source: Path, state: Path) -> validate.Options:
    """Returns what validate is asked for: the standard profile without its free run, which is made here."""
    profile = state / f"{_PROFILE}-without-video.toml"
    text = (Path(verdict.__file__).parent / "profiles" / f"{_PROFILE}.toml").read_text()
    write_file(profile, text.replace("video = true", "video = false").encode())
    return validate.Options(
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
            tensors = model.components[component].tensors
            for prefix in sorted({name.partition("/")[2].partition(".")[0] for name in tensors}):
                for name, value in sorted(weights.tensors(component, prefix).items()):
                    found.update(f"{component}/{name}".encode())
                    found.update(value.float().contiguous().numpy().data)
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
