"""How a LoRA's keys name the tensors they change: prefixes and tails around the names of a network's table.

A key is a stem and a tail: `diffusion_model.blocks.0.self_attn.q` and `.lora_down.weight`. All stems
are spelled out from the table, for each prefix and naming scheme, and looked up whole.

Sources: ModelTC/LightX2V lightx2v/utils/lora_loader.py; Comfy-Org/ComfyUI comfy/lora.py and comfy/weight_adapter;
huggingface/diffusers loaders/lora_conversion_utils.py (Wan, musubi-tuner).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from wanconv.models.names import fill, numbered
from wanconv.quantization.packings import leaf_of
from wanconv.types.architecture import Architecture

LoraPart = Literal["up", "down", "alpha", "difference", "refused"]

# (prefix, separator between the words of a module)
# fmt: off
STYLES: tuple[tuple[str, str], ...] = (
    ("",                       "."),  # DiffSynth
    ("diffusion_model.",       "."),  # ComfyUI, Kijai, LightX2V, diffusion-pipe
    ("model.diffusion_model.", "."),
    ("model.",                 "."),
    ("unet.",                  "."),
    ("transformer.",           "."),  # diffusers
    ("lora_unet_",             "_"),  # kohya's: musubi-tuner
)


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a key, about the tensor `leaf` of its module; a `refused` one is of the kind `word`."""

    text: str
    part: LoraPart
    leaf: str = "weight"
    word: str = ""


_PAIRS = (
    (".lora_up.weight",              ".lora_down.weight"),
    (".lora_B.weight",               ".lora_A.weight"),
    (".lora_B.default.weight",       ".lora_A.default.weight"),
    (".lora_B",                      ".lora_A"),
    (".lora.up.weight",              ".lora.down.weight"),
    ("_lora.up.weight",              "_lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)

# they change what the pair next to them means, or are not a pair: merging without them gives another model
_REFUSED = (
    ("DoRA",                  (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight",
                               ".lora_magnitude_vector.default.weight")),
    ("a LoRA with a middle matrix", (".lora_mid.weight",)),
    ("LoHa",                  (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2")),
    ("LoKr",                  (".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b",
                               ".lokr_t1", ".lokr_t2")),
    ("OFT",                   (".oft_blocks", ".oft_diag")),
    ("a weight in full",      (".set_weight",)),
    ("a change of shape",     (".reshape_weight",)),
)
# fmt: on

TAILS: tuple[Tail, ...] = (
    *(Tail(up, "up") for up, _ in _PAIRS),
    *(Tail(down, "down") for _, down in _PAIRS),
    Tail(".alpha", "alpha"),
    Tail(".diff", "difference"),
    Tail(".diff_b", "difference", "bias"),
    Tail(".diff_m", "difference", "modulation"),
    *(Tail(text, "refused", word=word) for word, texts in _REFUSED for text in texts),
)

Stems = Mapping[str, Mapping[str, str]]


def stems(architecture: Architecture, dims: Mapping[str, int]) -> Stems:
    """Returns stem -> leaf -> canonical name (no component), for every tensor that has one of its own in a scheme.

    A tensor that is neither weight nor bias of a module (`blocks.0.modulation`) is also a weight with its own stem.
    """
    found: dict[str, dict[str, str]] = {}
    for role, index in numbered(architecture, dims):
        canonical = fill(role.name, index)
        for scheme in architecture.schemes:
            spelling = role.spellings.get(scheme)
            if spelling is None or spelling.of > 1 or spelling.transposed:
                continue
            name = fill(spelling.name, index)
            module, leaf = leaf_of(name)
            for prefix, between in STYLES:
                found.setdefault(prefix + module.replace(".", between), {})[leaf] = canonical
                if leaf not in ("weight", "bias"):
                    found.setdefault(prefix + name.replace(".", between), {})["weight"] = canonical
    return found


def read_key(known: Stems, key: str) -> tuple[Tail, str] | None:
    """Returns what a key says and of which tensor; None if no table has its stem, or the stem has no tensor like it."""
    for tail in TAILS:
        leaves = known.get(key.removesuffix(tail.text)) if key.endswith(tail.text) else None
        if leaves and tail.leaf in leaves:
            return tail, leaves[tail.leaf]
    return None
