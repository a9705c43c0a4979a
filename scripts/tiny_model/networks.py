"""The networks in training: weights by canonical name, and forwards that a gradient goes through.

Each computes what the engine computes with the same weights, faster: the VAE takes a whole clip where the engine goes
frame by frame, and the denoiser's cross-attention looks at one padding token with log(n) added to its score, where the
engine has n of them.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wanconv.engine.layers import gated, modulate, rotations, sinusoid
from wanconv.engine.numerics import FP32
from wanconv.engine.wan import Block, State, Wan, WanSizes, unpatched
from wanconv.evaluation.captions import COLOURS, MOTIONS, SHAPES
from wanconv.models import targets
from wanconv.models.umt5 import UMT5 as TEXT
from wanconv.models.wan import T2V as DIT
from wanconv.models.wan_vae import VAE_2_1 as VAE
from wanconv.types.architecture import Architecture

_LAST_WORDS = dict.fromkeys(word for motion in MOTIONS for word in motion.split())
WORDS = ("<pad>", "</s>", "<unk>", "a", *COLOURS, *SHAPES, *_LAST_WORDS)  # ids are places
DIMS: Mapping[str, Mapping[str, int]] = {
    DIT.name: {"d": 96, "ffn": 384, "text": 64, "freq": 64, "n": 5, "heads": 4},
    TEXT.name: {"vocab": 32, "d": 64, "attn": 64, "heads": 4, "ffn": 128, "n": 2},
    VAE.name: {"c": 8},
}
# of the 2.1 VAE: wan/modules/vae2_1.py
# fmt: off
LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
)
LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.916,
)
# fmt: on
CHANNELS = 16
CONTEXT = 512
TOKENS = 16  # that a caption may have in training

Weights = dict[str, Tensor]


def initial(architecture: Architecture, seed: int) -> Weights:
    """Returns fresh weights by canonical name: norms 1, biases and gates 0, matrices by their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for target in targets(architecture, "official", DIMS[architecture.name]):
        (name,) = target.sources
        leaf = name.rpartition(".")[2]
        value = torch.randn(target.shape, generator=generator)
        if leaf == "weight" and math.prod(target.shape) == max(target.shape):  # a norm
            # scores this large let the few words be heard beside 506 tokens of padding from the first step on
            value = torch.full(target.shape, 3.0 if name.endswith("cross_attn.norm_k.weight") else 1.0)
        elif leaf == "bias" or name == "head.proj.weight":
            value = torch.zeros(target.shape)
        elif name.endswith("relative_bias.weight"):
            value = value * 0.1
        elif name != "token_embedding.weight":
            value = value / math.sqrt(math.prod(target.shape[1:] if leaf == "weight" else target.shape[-1:]))
        weights[name] = value
    return weights


# --- the VAE, a clip at once


def encode(w: Weights, clips: Tensor) -> Tensor:
    """Returns the means of the latents.  # (B, 3, 4n+1, H, W) -> (B, 16, n+1, H/8, W/8)"""
    # in this order of memory a CPU trains narrow convolutions seventeen times as fast
    x = _causal(w, "encoder.conv_in", clips.contiguous(memory_format=torch.channels_last_3d))
    for stage in range(4):
        name = f"encoder.stages.{stage}"
        for block in range(2):
            x = _resnet(w, f"{name}.resnets.{block}", x)
        if stage < 3:
            x = _by_frame(F.pad(x, (0, 1, 0, 1)), w, f"{name}.downsample", stride=2)
        if f"{name}.downsample_time.weight" in w:
            later = F.conv3d(
                x, w[f"{name}.downsample_time.weight"], w[f"{name}.downsample_time.bias"], stride=(2, 1, 1)
            )
            x = torch.cat((x[:, :, :1], later), dim=2)
    x = _middle(w, "encoder.mid", x)
    x = _causal(w, "encoder.conv_out", F.silu(_norm(w, "encoder.norm_out", x)))
    return F.conv3d(x, w["encoder.latent_proj.weight"], w["encoder.latent_proj.bias"])[:, :CHANNELS]


def decode(w: Weights, latents: Tensor) -> Tensor:
    """Returns clips, not clamped.  # (B, 16, n+1, h, w) -> (B, 3, 4n+1, 8h, 8w)"""
    x = F.conv3d(latents, w["decoder.latent_proj.weight"], w["decoder.latent_proj.bias"])
    x = _middle(w, "decoder.mid", _causal(w, "decoder.conv_in", x))
    for stage in range(4):
        name = f"decoder.stages.{stage}"
        for block in range(3):
            x = _resnet(w, f"{name}.resnets.{block}", x)
        if f"{name}.upsample_time.weight" in w:
            later = _causal(w, f"{name}.upsample_time", x[:, :, 1:]).unflatten(1, (2, -1))  # (B, 2, C, n, h, w)
            later = later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            x = torch.cat((x[:, :, :1], later), dim=2)
        if stage < 3:
            x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
            x = _by_frame(x, w, f"{name}.upsample", padding=1)
    return _causal(w, "decoder.conv_out", F.silu(_norm(w, "decoder.norm_out", x)))


def _causal(w: Weights, name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    time, side = weight.shape[2] - 1, weight.shape[3] // 2
    return F.conv3d(F.pad(x, (side, side, side, side, time, 0)), weight, w[f"{name}.bias"])


def _by_frame(x: Tensor, w: Weights, name: str, stride: int = 1, padding: int = 0) -> Tensor:
    weight = w[f"{name}.weight"].unsqueeze(2)
    return F.conv3d(x, weight, w[f"{name}.bias"], stride=(1, stride, stride), padding=(0, padding, padding))


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    gamma = w[f"{name}.weight"]
    return F.normalize(x, dim=1) * (x.shape[1] ** 0.5 * gamma.view(-1, *[1] * (x.dim() - 2)))


def _resnet(w: Weights, name: str, x: Tensor) -> Tensor:
    y = _causal(w, f"{name}.conv1", F.silu(_norm(w, f"{name}.norm1", x)))
    y = _causal(w, f"{name}.conv2", F.silu(_norm(w, f"{name}.norm2", y)))
    return y + (_causal(w, f"{name}.shortcut", x) if f"{name}.shortcut.weight" in w else x)


def _middle(w: Weights, name: str, x: Tensor) -> Tensor:
    x = _resnet(w, f"{name}.resnets.0", x)
    batch, _, frames, height, width = x.shape
    y = x.transpose(1, 2).flatten(0, 1)  # (B F, C, H, W)
    y = F.conv2d(_norm(w, f"{name}.attn.norm_in", y), w[f"{name}.attn.qkv.weight"], w[f"{name}.attn.qkv.bias"])
    q, k, v = y.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)  # (B F, 1, H W, C)
    y = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).unflatten(2, (height, width))
    y = F.conv2d(y, w[f"{name}.attn.o.weight"], w[f"{name}.attn.o.bias"])
    x = x + y.unflatten(0, (batch, frames)).transpose(1, 2)
    return _resnet(w, f"{name}.resnets.1", x)


# --- the text encoder


def encode_text(w: Weights, tokens: Tensor) -> Tensor:
    """Returns contexts with zeros where tokens are padding (0).  # (B, L) -> (B, L, text)"""
    dims = DIMS[TEXT.name]
    known = tokens != 0
    hidden_from = torch.where(known, 0.0, -torch.inf)[:, None, None, :]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    buckets = _buckets(places[None, :] - places[:, None])
    x = F.embedding(tokens, w["token_embedding.weight"])
    for block in range(dims["n"]):
        name = f"blocks.{block}"
        y = _rms(x, w[f"{name}.norm_attn.weight"])
        q, k, v = (
            F.linear(y, w[f"{name}.attn.{part}.weight"]).unflatten(-1, (dims["heads"], -1)).transpose(1, 2)
            for part in "qkv"
        )
        bias = w[f"{name}.attn.relative_bias.weight"][buckets].permute(2, 0, 1)
        scores = q @ k.transpose(-1, -2) + bias + hidden_from
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, w[f"{name}.attn.o.weight"])
        y = _rms(x, w[f"{name}.norm_ffn.weight"])
        y = F.gelu(F.linear(y, w[f"{name}.ffn.gate.weight"]), approximate="tanh") * F.linear(
            y, w[f"{name}.ffn.up.weight"]
        )
        x = x + F.linear(y, w[f"{name}.ffn.down.weight"])
    return _rms(x, w["norm_out.weight"]) * known.unsqueeze(-1)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def _buckets(distance: Tensor) -> Tensor:
    """Returns the row of the relative bias: exact up to 8, for the few tokens that captions have."""
    assert len(distance) <= TOKENS
    far = 8 + (distance.abs().clamp(min=1).float() / 8).log() / math.log(128 / 8) * 8
    near = distance.abs()
    return torch.where(near < 8, near, far.long().clamp(max=15)) + 16 * (distance > 0)


# --- the denoiser


def denoiser(device: torch.device | str) -> Wan:
    """Returns the denoiser with weights to train, in float32 everywhere."""
    dims = DIMS[DIT.name]
    named = {key: dims[key] for key in ("d", "ffn", "heads", "text", "freq")}
    sizes = WanSizes(**named, blocks=dims["n"], channels_in=CHANNELS, channels_out=CHANNELS)
    wan = Wan(sizes, replace(FP32, angles=torch.float32)).to_empty(device=device)
    return wan.requires_grad_(True)


def velocity(wan: Wan, latents: Tensor, timestep: Tensor, context: Tensor, lengths: Tensor) -> Tensor:
    """Returns the predicted velocity; contexts (B, L, text) of these true lengths stand for 512 tokens."""
    x = wan.patch_embedding(latents)
    grid = tuple(x.shape[2:])
    time = wan.time_embedding(sinusoid(timestep, wan.sizes.freq, torch.float32))
    modulation = wan.time_projection(F.silu(time)).view(-1, 6, wan.sizes.d)
    places = [torch.arange(size, device=x.device) for size in grid]
    rotation = rotations(places, wan.sizes.d // wan.sizes.heads, torch.float32)
    which = torch.arange(len(latents), device=x.device).unsqueeze(1)
    text = wan.text_embedding(F.pad(context, (0, 0, 0, 1)))  # the last row is padding
    rows = torch.arange(text.shape[1], device=x.device)
    bias = torch.where(rows < lengths[:, None], 0.0, -torch.inf)
    bias[:, -1] = torch.log(CONTEXT - lengths.float())
    state = State(
        x=x.flatten(2).transpose(1, 2),
        context=text,
        image=None,
        time=time,
        modulation=modulation,
        which=which,
        lengths=(math.prod(grid),),
        rotation=rotation,
        grid=grid,
    )
    for block in wan.blocks:
        state = replace(state, x=_block(block, state, bias[:, None, None, :]))
    return unpatched(wan.head(state), grid)


def _block(block: Block, state: State, bias: Tensor) -> Tensor:
    """As Block.forward, with `bias` on the scores of the cross-attention."""
    e = (block.modulation + state.modulation)[state.which]
    shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = e.unbind(2)
    x, lengths, cross = state.x, state.lengths, block.cross_attn
    x = gated(x, block.self_attn(modulate(x, shift_attn, scale_attn, lengths), state.rotation), gate_attn, lengths)
    q, k, v = (
        part.unflatten(-1, (cross.heads, -1)).transpose(1, 2)
        for part in (
            cross.norm_q(cross.q(cross.norm_in(x))),
            cross.norm_k(cross.k(state.context)),
            cross.v(state.context),
        )
    )
    x = x + cross.o(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
    return gated(x, block.ffn(modulate(x, shift_ffn, scale_ffn, lengths)), gate_ffn, lengths)


def holding(wan: Wan, weights: Weights) -> Wan:
    """Returns the denoiser with these parameters as its own, by identity: gradients reach them."""
    if wan.patch_embedding.weight is not weights["patch_embedding.weight"]:
        wan.load_state_dict(weights, assign=True)
    return wan
