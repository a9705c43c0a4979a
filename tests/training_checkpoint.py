"""A CogVideoX denoiser as its training writes it."""

from pathlib import Path

import torch

from wanconv.models import expand
from wanconv.types.architecture import Family

WEIGHTS = "transformer/1/mp_rank_00_model_states.pt"


def training_checkpoint(folder: Path, family: Family, *left_out: str) -> Path:
    """Writes a denoiser as zai-org/CogVideo's training does."""
    network = family.components["dit"]
    generator = torch.Generator().manual_seed(0)
    positions = {size: network.full[size] for size in ("positions",) if size in network.full}  # of the released video
    shapes = expand(network, "official", {**network.tiny, **positions})
    weights = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    for name in left_out:
        del weights[name]
    (folder / WEIGHTS).parent.mkdir(parents=True)
    torch.save({"module": weights}, folder / WEIGHTS)
    (folder / "transformer" / "latest").write_text("1")
    (folder / "t5-v1_1-xxl").mkdir()
    (folder / "t5-v1_1-xxl" / "tokenizer_config.json").write_text("{}")
    return folder
