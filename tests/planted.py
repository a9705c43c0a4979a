"""Plants defects into a converted folder: tensors are changed in its files, and everything else stays as it was."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wanconv.containers import open_checkpoint
from wanconv.models import identify
from wanconv.types.model import ModelTensor

Change = Callable[[Tensor], Tensor]
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Defect:
    """What is planted, where, and the names that a report has to give: each begins a `where` of a failed check."""

    kind: str
    place: str
    plant: Callable[[Path], None]
    named: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} in {self.place}"


def tensor_of(folder: Path, name: str) -> ModelTensor:
    return identify(open_checkpoint(folder)).tensors[name]


def edit(folder: Path, changes: dict[str, Change]) -> None:
    """Replaces tensors, by canonical name, in the .safetensors files that hold them."""
    for name, change in changes.items():
        (piece,) = tensor_of(folder, name).pieces
        tensors = load_file(piece.ref.file)
        tensors[piece.ref.name] = change(tensors[piece.ref.name]).contiguous()
        save_file(tensors, piece.ref.file)


def swap(folder: Path, first: str, second: str) -> None:
    one, other = (read(folder, name) for name in (first, second))
    edit(folder, {first: lambda _: other, second: lambda _: one})


def read(folder: Path, name: str) -> Tensor:
    (piece,) = tensor_of(folder, name).pieces
    return load_file(piece.ref.file)[piece.ref.name]


def spiked(value: float) -> Change:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 3] = value
        return tensor

    return change


def rolled(tensor: Tensor) -> Tensor:
    return tensor.roll(1, 0)


def mislabelled(tensor: Tensor) -> Tensor:
    """Returns the same bytes under another dtype of their size."""
    return tensor.view(torch.float16 if tensor.dtype == torch.bfloat16 else torch.bfloat16)


def through_fp8(tensor: Tensor) -> Tensor:
    """Returns the tensor as a conversion to fp8 would store it."""
    return tensor.clamp(-448, 448).to(FP8)


# kind -> what becomes of one tensor
LOCAL: dict[str, Change] = {
    "NaN": spiked(float("nan")),
    "+Inf": spiked(float("inf")),
    "-Inf": spiked(float("-inf")),
    "|w| = 6e4": spiked(6e4),
    "zeroed": torch.zeros_like,
    "sign flip": torch.neg,
    "weight x2": lambda tensor: tensor * 2,
    "weight /2": lambda tensor: tensor / 2,
    "rows permuted": rolled,
    "wrong dtype tag": mislabelled,
}
PLACES = (
    "expert.high/patch_embedding.weight",
    "expert.high/text_embedding.in.weight",
    "expert.high/blocks.0.self_attn.q.weight",
    "expert.low/blocks.1.cross_attn.v.weight",
    "expert.low/blocks.2.ffn.down.weight",
    "expert.high/blocks.2.self_attn.norm_k.weight",
    "expert.low/head.proj.weight",
    "text_encoder/blocks.0.attn.k.weight",
    "text_encoder/blocks.1.ffn.down.weight",
    "vae/decoder.mid.resnets.0.conv1.weight",
    "vae/encoder.conv_in.weight",
)
NARROW = (  # what no client wants in fp8
    "expert.high/blocks.1.self_attn.norm_q.weight",
    "expert.low/blocks.0.modulation",
    "expert.high/head.modulation",
    "expert.low/patch_embedding.weight",
    "expert.low/blocks.1.ffn.up.bias",
    "text_encoder/token_embedding.weight",
    "text_encoder/blocks.1.norm_ffn.weight",
    "vae/decoder.conv_out.weight",
)
PAIRS = (
    ("q and k swapped", "expert.high/blocks.1.self_attn", "q", "k"),
    ("k and v swapped", "expert.low/blocks.2.self_attn", "k", "v"),
    ("k and v swapped", "expert.low/blocks.0.cross_attn", "k", "v"),
    ("q and k swapped", "text_encoder/blocks.0.attn", "q", "k"),
    ("v and o swapped", "text_encoder/blocks.1.attn", "v", "o"),
)
SQUARE = ("expert.high/blocks.0.self_attn.v.weight", "expert.low/blocks.1.cross_attn.o.weight")
# of a Wan 2.1 FLF2V: CLIP, and what looks at its tokens
IMAGE_PLACES = (
    "dit/image_embedding.in.weight",
    "dit/blocks.0.cross_attn.k_img.weight",
    "dit/blocks.2.cross_attn.v_img.weight",
    "dit/blocks.1.cross_attn.norm_k_img.weight",
    "image_encoder/visual.patch_embedding.weight",
    "image_encoder/visual.blocks.0.attn.q.weight",
    "image_encoder/visual.blocks.1.ffn.down.weight",
    "image_encoder/visual.blocks.2.attn.v.weight",  # of the block that Wan never runs
)
IMAGE_NARROW = (
    "dit/image_embedding.norm_out.weight",
    "dit/image_embedding.position_embedding",
    "image_encoder/visual.class_embedding",
)
IMAGE_PAIRS = (
    ("k_img and v_img swapped", "dit/blocks.1.cross_attn", "k_img", "v_img"),
    ("k and k_img swapped", "dit/blocks.0.cross_attn", "k", "k_img"),
    ("q and k swapped", "image_encoder/visual.blocks.0.attn", "q", "k"),
)
BIASES = (
    "expert.high/blocks.0.ffn.up.bias",
    "expert.low/blocks.2.self_attn.o.bias",
    "expert.high/time_projection.bias",
)


def defects() -> list[Defect]:
    """Returns every defect, of a Wan 2.2 T2V-A14B in the diffusers layout with linears in bf16 and the rest in fp16."""
    found = _local(PLACES)
    found += [one("stored in fp8", place, through_fp8) for place in NARROW]
    found += [one("transposed", place, lambda tensor: tensor.t()) for place in SQUARE]
    found += [one("bias dropped", place, torch.zeros_like) for place in BIASES]
    found += [_swapped(*pair) for pair in PAIRS]
    found += [
        one("|w| = 7e4", "expert.high/blocks.1.ffn.up.weight", spiked(7e4)),
        one("head x1.05", "expert.high/head.proj.weight", lambda tensor: tensor * 1.05),
        one("scaled x1.1", "expert.low/patch_embedding.weight", lambda tensor: tensor * 1.1),
        one("embeddings shifted", "text_encoder/token_embedding.weight", rolled),
        one("first axis reversed", "vae/decoder.conv_in.weight", lambda tensor: tensor.flip(0)),
        one("one row zeroed", "expert.low/blocks.1.self_attn.o.weight", _without_a_row),
        one("tiny numbers in fp8", "expert.high/blocks.1.ffn.up.weight", lambda tensor: through_fp8(tensor / 20)),
        Defect("experts swapped", "both", _swap_experts, ("expert.high/", "expert.low/")),
        Defect("one expert twice", "expert.low", _one_expert_twice, ("expert.low/",)),
        Defect(
            "blocks swapped", "expert.low", _swap_blocks, ("expert.low/blocks.0.", "expert.low/blocks.2.")
        ),
    ]  # fmt: skip
    return found


def image_defects() -> list[Defect]:
    """Returns every defect in what looks at images, of a Wan 2.1 FLF2V converted likewise."""
    found = _local(IMAGE_PLACES)
    found += [one("stored in fp8", place, through_fp8) for place in IMAGE_NARROW]
    found += [_swapped(*pair) for pair in IMAGE_PAIRS]
    found += [
        one("images swapped", "dit/image_embedding.position_embedding", lambda tensor: tensor.roll(257, 1)),
        one("bias dropped", "dit/image_embedding.out.bias", torch.zeros_like),
        one("embeddings shifted", "image_encoder/visual.position_embedding.weight", rolled),
    ]
    return found


def _local(places: Sequence[str]) -> list[Defect]:
    """Returns every kind of change to one tensor in each place."""
    return [
        one(kind, place, change)
        for place in places
        for kind, change in LOCAL.items()
        if "norm" not in place or kind != "rows permuted"  # numbers near one
    ]


def one(kind: str, place: str, change: Change) -> Defect:
    return Defect(kind, place, lambda folder: edit(folder, {place: change}), (place,))


def _swapped(kind: str, place: str, first: str, second: str) -> Defect:
    names = tuple(f"{place}.{part}.weight" for part in (first, second))
    return Defect(kind, place, lambda folder: swap(folder, *names), names)


def _without_a_row(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor[5] = 0
    return tensor


def _swap_experts(folder: Path) -> None:
    names = ("transformer", "aside"), ("transformer_2", "transformer"), ("aside", "transformer_2")
    for old, new in names:
        (folder / old).rename(folder / new)


def _one_expert_twice(folder: Path) -> None:
    for path in (folder / "transformer").glob("*.safetensors"):
        shutil.copyfile(path, folder / "transformer_2" / path.name)


def _swap_blocks(folder: Path) -> None:
    names = [name for name in identify(open_checkpoint(folder)).tensors if name.startswith("expert.low/blocks.0.")]
    for name in names:
        swap(folder, name, name.replace("blocks.0.", "blocks.2."))


def speech_defects() -> list[Defect]:
    """Returns defects in what S2V alone has, of a model in the official layout with every linear in bf16."""
    encoder, injector = "dit/causal_audio_encoder", "dit/audio_injector.1"
    return [
        one("NaN", f"{encoder}.conv_global.weight", spiked(float("nan"))),
        one("rows permuted", f"{encoder}.conv_mid.weight", rolled),
        one("sign flip", f"{encoder}.state_weights", lambda tensor: tensor * torch.tensor([1, -1, 1]).view(1, 3, 1, 1)),
        one("zeroed", f"{injector}.cross_attn.o.weight", torch.zeros_like),
        one("shift and scale swapped", f"{injector}.modulation_projection.weight", _halves_swapped),
        one("first axis reversed", "dit/motion_embedding.x2.weight", lambda tensor: tensor.flip(0)),
        one("latents in reverse", "dit/motion_embedding.x4.weight", lambda tensor: tensor.flip(2)),
        one("rows permuted", "dit/source_embedding.weight", rolled),
        one("weight x2", "dit/pose_embedding.bias", lambda tensor: tensor * 2),
        one("+Inf", "audio_encoder/blocks.1.ffn.up.weight", spiked(float("inf"))),
        _swapped("k and v swapped", f"{injector}.cross_attn", "k", "v"),
        _injectors_swapped(),
    ]


def _halves_swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _injectors_swapped() -> Defect:
    names = [f"dit/audio_injector.{m}.cross_attn.q.weight" for m in range(2)]
    return Defect("queries swapped", "both injectors", lambda folder: swap(folder, *names), tuple(names))


# of a CogVideoX in the diffusers layout, in bf16
COGVIDEOX_DEFECTS = (
    one("rows permuted", "dit/blocks.0.self_attn.q.weight", rolled),
    one("zeroed", "dit/blocks.2.self_attn.norm_k.weight", torch.zeros_like),
    one("rows permuted", "dit/blocks.1.ffn.modulation_projection.weight", rolled),
    one("sign flip", "dit/blocks.1.ffn.up.weight", torch.neg),
    one("first axis reversed", "dit/patch_embedding.weight", lambda tensor: tensor.flip(0)),
    one("NaN", "dit/time_embedding.in.weight", spiked(float("nan"))),
    one("rows permuted", "text_encoder/relative_bias.weight", rolled),
    one("weight x2", "text_encoder/blocks.1.ffn.down.weight", lambda tensor: tensor * 2),
    one("weight x2", "vae/decoder.mid.resnets.0.norm1.scale.weight", lambda tensor: tensor * 2),
)
