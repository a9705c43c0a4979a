"""Writes the trained networks as wanconv/samples/tiny holds them: official names, fp32, configs, tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from tiny_model.networks import DIMS, DIT, TEXT, VAE, WORDS
from torch import Tensor

from wanconv.models import targets
from wanconv.samples.synthetic import SPECIAL, tokenizer_files
from wanconv.types.architecture import Architecture

EXPERTS = {"expert.high": "high_noise_model", "expert.low": "low_noise_model"}
TOKENIZER = "google/umt5-xxl"


def write(folder: Path, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes the networks, by component (`expert.high`, `expert.low`, `text_encoder`, `vae`) and canonical name."""
    for component, name in EXPERTS.items():
        _save(folder / name / "diffusion_pytorch_model.safetensors", DIT, weights[component])
        _json(folder / name / "config.json", _config())
    _save(folder / "vae.safetensors", VAE, weights["vae"])
    _save(folder / "text_encoder.safetensors", TEXT, weights["text_encoder"])
    # whole words; what it does not know becomes <unk>
    words = [(f"\u2581{word}", -1.0) for word in WORDS[len(SPECIAL) :]]
    for file, value in tokenizer_files(words).items():
        _json(folder / TOKENIZER / file, value)


def _save(path: Path, architecture: Architecture, weights: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for target in targets(architecture, "official", DIMS[architecture.name]):
        (source,) = target.sources
        tensors[target.name] = weights[source].detach().cpu().float().reshape(target.shape).contiguous()
    assert len(tensors) == len(weights)
    save_file(tensors, path, metadata={"format": "pt"})


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def _config() -> Mapping[str, object]:
    dims = DIMS[DIT.name]
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.33.0",
        "dim": dims["d"],
        "eps": 1e-06,
        "ffn_dim": dims["ffn"],
        "freq_dim": dims["freq"],
        "in_dim": 16,
        "model_type": "t2v",
        "num_heads": dims["heads"],
        "num_layers": dims["n"],
        "out_dim": 16,
        "text_len": 512,
    }
