"""Folders of real size without their payload: headers, and holes where the numbers would be."""

import os
from collections.abc import Sequence
from pathlib import Path

from header_lists import RELEASES

from wanconv.layouts import LAYOUTS
from wanconv.models import DENOISERS, FAMILIES, targets
from wanconv.planning import Slot, lay_out
from wanconv.samples.synthetic import home

# the dtypes as published
STORED = {"text_encoder": "bf16", "vae": "fp32", "image_encoder": "fp16", "audio_encoder": "fp32"}


def make(
    folder: Path, release: str, layout: str | None = None, components: Sequence[str] = (), blocks: int | None = None
) -> Path:
    """Writes a release as its publisher did, denoisers in fp32: every header, no number; or its first blocks."""
    family = next(family for family in FAMILIES if RELEASES[release] in family.releases)
    layout = layout or home(family)
    for name in components or family.components:
        network = family.components[name]
        dims = RELEASES[release].dims if name in DENOISERS else network.full
        dims = dims if blocks is None else {**dims, "n": blocks}
        place = LAYOUTS[layout].place(name, network.name)
        assert place is not None
        slots = [
            Slot(f"{name}/{target.name}", target.name, STORED.get(name, "fp32"), target.shape)
            for target in targets(network, LAYOUTS[layout].scheme, dims)
        ]
        images, index = lay_out(place, slots, LAYOUTS[layout].shard_nbytes)
        for image in images:
            path = folder / image.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                for offset, content in image.literals:
                    os.pwrite(stream.fileno(), content, offset)
                stream.truncate(image.nbytes)
        for path_name, content in index.items():
            (folder / path_name).write_bytes(content)
    return folder
