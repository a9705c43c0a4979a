"""The tensor lists of the released files: tests/headers/<scheme>/<release or architecture>[+variant].json.gz."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from wanconv.models import ARCHITECTURES, FAMILIES, expand
from wanconv.types.architecture import Architecture, Release, Scheme
from wanconv.types.tensors import Part, Shape, TensorRef

LISTS = sorted((Path(__file__).parent / "headers").glob("*/*.json.gz"))
RELEASES = {release.name: release for family in FAMILIES for release in family.releases}


def list_id(path: Path) -> str:
    return f"{path.parent.name}/{name_of(path)}"


def name_of(path: Path) -> str:
    return path.name.removesuffix(".json.gz")


def scheme_of(path: Path) -> Scheme:
    return "official" if path.parent.name == "official" else "hub"


def read_list(path: Path) -> dict[str, Shape]:
    return {name: tuple(shape) for name, shape in json.loads(gzip.decompress(path.read_bytes())).items()}


def architecture(name: str) -> Architecture:
    return next(architecture for architecture in ARCHITECTURES if architecture.name == name)


def released(name: str) -> tuple[Architecture, Mapping[str, int]]:
    """Returns the network and the sizes that a list's name stands for."""
    for family in FAMILIES:
        for release in family.releases:
            if release.name == name:
                return family.components.get("dit") or family.components["expert.high"], release.dims
    network = architecture(name.split("+")[0])
    return network, network.full


def release_of(path: Path) -> Release | None:
    return RELEASES.get(name_of(path))


def refs(shapes: Mapping[str, Shape], file: str = "model.safetensors") -> dict[str, TensorRef]:
    return {name: TensorRef(name, "fp32", shape, Path("/nowhere", file), 0, 0) for name, shape in shapes.items()}


def part(path: str, shapes: Mapping[str, Shape]) -> Part:
    return Part(path, (path,), refs(shapes, path))


def tiny_part(path: str, network: Architecture, scheme: Scheme | None = None) -> Part:
    return part(path, expand(network, scheme or network.schemes[0], network.tiny))
