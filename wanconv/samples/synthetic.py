"""Synthetic checkpoints: the real names and shapes of any release, at full or tiny size, with made-up numbers."""

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from wanconv.containers import open_checkpoint
from wanconv.containers.writer import Image, Journal, write_images
from wanconv.engine.wan_s2v import HOSTS
from wanconv.errors import UsageError
from wanconv.layouts import LAYOUTS, Layout
from wanconv.models import DENOISERS, FAMILIES, Expert, fill, identify, targets
from wanconv.models.names import numbered
from wanconv.planning import Slot, lay_out
from wanconv.quantization import FORMATS
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.storage.local import describe_output_error, write_file
from wanconv.types.architecture import Architecture, Family, Kind, Release
from wanconv.types.dtypes import DTYPES
from wanconv.types.names import suggestion
from wanconv.types.progress import Progress, silent, total

SPECIAL = ("<pad>", "</s>", "<unk>")  # the first tokens of a tokenizer
PUBLISHED = ("official", "diffusers")  # the layouts that checkpoints are released in
_POOL_NUMEL = 1 << 22
_BESIDE = ("wan-vace", "wan-animate")  # some of their blocks have another one, of a list of its own, next to them
# What the released files are stored in: families.md of the model cards, checked against their sizes.
_STORED = {"text_encoder": "bf16", "vae": "fp32", "image_encoder": "fp16", "audio_encoder": "fp32"}


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """What to make. Without `components`: all of a tiny model, the denoisers of a full one. Without `layout`: the first
    of PUBLISHED that the family has."""

    release: str
    scale: Literal["full", "tiny"] = "tiny"
    dtype: str = "fp32"
    blocks: int | None = None
    components: tuple[str, ...] = ()
    layout: str | None = None
    seed: int = 0
    jobs: int = 2


def releases() -> dict[str, tuple[Family, Release]]:
    """Returns every release that can be made, by name."""
    return {release.name: (family, release) for family in FAMILIES for release in family.releases}


def home(family: Family) -> str:
    """Returns the layout that a family is released in; of several, the official one."""
    return next(name for name in PUBLISHED if family.name not in (LAYOUTS[name].refused or {}))


def make(folder: Path, options: SampleOptions, progress: Progress = silent) -> Path:
    """Writes a checkpoint, streamed: the same options give the same bytes. Raises UsageError for unknown names."""
    _check_known("release", options.release, releases())
    family, release = releases()[options.release]
    name = options.layout or home(family)
    _check_known("layout", name, PUBLISHED)
    casts = [each.name for each in FORMATS.values() if each.storage and DTYPES[each.storage].is_float]
    _check_known("dtype", options.dtype, casts)
    for component in options.components:
        _check_known(f"component of {family.name}", component, family.components)
    layout = LAYOUTS[name]
    if layout.refused and family.name in layout.refused:
        raise UsageError(
            f"{family.name} has no {layout.name} layout: {layout.refused[family.name]}", "name another one"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", "name a folder that does not exist yet, or is empty")
    default = tuple(family.components) if options.scale == "tiny" else DENOISERS
    wanted = [name for name in family.components if name in (options.components or default)]
    dims = {name: _dims(name, family.components[name], release, options) for name in wanted}
    images, slots, kinds, documents = _files(family, layout, dims, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise describe_output_error(error, folder) from error
    tell = total(progress, "making", sum(image.nbytes for image in images))
    values = _Values(slots, kinds, options.seed)
    journal = folder / ".journal"
    with closing(Journal(journal)) as opened:
        write_images(folder, images, values.fill, opened, tell, options.jobs)
    journal.unlink()
    for path, content in (documents | _tokenizer(layout, wanted, dims)).items():
        write_file(folder / path, content)
    model = identify(open_checkpoint(folder), _lone_expert(wanted))
    known_heads = {
        name: replace(component, dims={**component.dims, **dims[name]}) for name, component in model.components.items()
    }
    for path, value in layout.documents(replace(model, family=family, components=known_heads)).items():
        write_file(folder / path, json.dumps(value, indent=2).encode() + b"\n")
    return folder


def _check_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UsageError(f"there is no {what} {name!r}", suggestion(name, known))


def _lone_expert(components: Sequence[str]) -> Expert | None:
    """Returns the role of the only expert, which a lone `transformer` folder does not show."""
    experts: dict[str, Expert] = {"expert.high": "high", "expert.low": "low"}
    found = [experts[name] for name in components if name in experts]
    return found[0] if len(found) == 1 else None


def _dims(name: str, architecture: Architecture, release: Release, options: SampleOptions) -> dict[str, int]:
    full = release.dims if name in DENOISERS else architecture.full
    dims = dict(architecture.tiny if options.scale == "tiny" else full)
    if name in DENOISERS and options.blocks is not None:
        if architecture.name in _BESIDE:
            dims["m"] = max(1, options.blocks * dims["m"] // dims["n"])
        dims["n"] = options.blocks
        if "m" in dims:  # S2V's injectors follow some of its blocks
            dims["m"] = sum(host < options.blocks for host in HOSTS)
    return dims


def _files(
    family: Family, layout: Layout, dims: Mapping[str, Mapping[str, int]], options: SampleOptions
) -> tuple[list[Image], dict[str, Slot], dict[str, Kind], dict[str, bytes]]:
    """Returns the weight files, their tensors and kinds by key, and the indexes."""
    images: list[Image] = []
    slots: dict[str, Slot] = {}
    kinds: dict[str, Kind] = {}
    documents: dict[str, bytes] = {}
    for name, sizes in dims.items():
        architecture = family.components[name]
        place = layout.place(name, architecture.name)
        if place is None:
            raise UsageError(f"the {layout.name} layout has no place for {name}", "choose another layout")
        dtype = options.dtype if name in DENOISERS else _STORED[name]
        kind_of = {fill(role.name, index): role.kind for role, index in numbered(architecture, sizes)}
        made = []
        for target in targets(architecture, layout.scheme_of(name, architecture.name), sizes):
            made.append(Slot(f"{name}/{target.name}", target.name, dtype, target.shape))
            kinds[made[-1].key] = kind_of[target.sources[0]]
        slots |= {slot.key: slot for slot in made}
        component_images, index = lay_out(place, made, layout.shard_nbytes)
        images += component_images
        documents |= index
    return images, slots, kinds, documents


class _Values:
    """Made-up numbers: N(0, 0.02), norms near one; equal for equal keys and seeds, from any start."""

    def __init__(self, slots: Mapping[str, Slot], kinds: Mapping[str, Kind], seed: int) -> None:
        self._slots, self._kinds, self._seed = slots, kinds, seed
        self._pool = torch.randn(_POOL_NUMEL, generator=torch.Generator().manual_seed(seed))

    def fill(self, key: str, start: int, view: memoryview) -> None:
        slot = self._slots[key]
        out = torch.frombuffer(view, dtype=TORCH_DTYPES[slot.dtype])
        shift = zlib.crc32(f"{self._seed}/{key}".encode()) + start // DTYPES[slot.dtype].itemsize
        at = 0
        while at < out.numel():
            first = (shift + at) % _POOL_NUMEL
            count = min(out.numel() - at, _POOL_NUMEL - first)
            values = self._pool[first : first + count] * 0.02
            out[at : at + count].copy_(values.add_(1.0) if self._kinds[key] == "norm" else values)
            at += count


def _tokenizer(layout: Layout, wanted: Sequence[str], dims: Mapping[str, Mapping[str, int]]) -> dict[str, bytes]:
    """Returns a tokenizer of letters, with the path and kind of UMT5's."""
    if "text_encoder" not in wanted:
        return {}
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"-()"]
    files = tokenizer_files([(letter, -float(rank)) for rank, letter in enumerate(letters, 1)])
    assert len(SPECIAL) + len(letters) <= dims["text_encoder"]["vocab"]
    folder = layout.folders["tokenizer"]
    return {f"{folder}/{name}": json.dumps(value, indent=1).encode() + b"\n" for name, value in files.items()}


def tokenizer_files(pieces: Sequence[tuple[str, float]]) -> dict[str, object]:
    """Returns the files of a T5TokenizerFast (Unigram): its pieces with their scores, behind SPECIAL."""
    prefix = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(SPECIAL)],
        "pre_tokenizer": prefix,
        "decoder": prefix,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, second],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [*([token, 0.0] for token in SPECIAL), *map(list, pieces)],
            "byte_fallback": False,
        },
    }
    config = {
        "tokenizer_class": "T5TokenizerFast",
        "model_max_length": 512,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
