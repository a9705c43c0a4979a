"""The Wan 2.2 S2V denoiser in plain torch: Wan's blocks, and what makes a person in a picture speak.

A clip has three kinds of tokens, in this order: those of the noisy video; those of the reference image; and those of
the frames before the clip ("motion"), packed the more densely the longer ago they are. Noisy tokens are at the sample's
timestep, the others at timestep 0, and only noisy ones leave the head. Where a token is in time, its rotation says: the
clip begins at 0, the reference is at 30, motion at negative times.

Sound comes as wav2vec2's hidden states at the video's frame rate (engine/audio.py). A causal encoder makes of them five
tokens and a pooled one per latent frame. After some of the blocks, an injector lets each frame of noisy tokens look at
its own five; the pooled one shifts and scales what it looks with. Injectors are parts of the stack in their own right,
and their weights come and go like a block's.

    wan = WanS2V(S2VSizes.of(dims, shape), PRESETS["official"])
    velocity = wan.denoise(fetch, latents, timestep, context, Speech(reference, motion, pose, audio))

Definition: Wan-Video/Wan2.2 wan/modules/s2v/{model_s2v,audio_utils,auxi_blocks,motioner,s2v_utils}.py with the settings
of wan/configs/wan_s2v_14B.py. No library has this network: tests/literal_s2v.py spells the definition out once more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanconv.engine.layers import Linear, RMSNorm, attention, rotations
from wanconv.engine.numerics import FP32, Numerics
from wanconv.engine.recorder import Recorder
from wanconv.engine.wan import (
    PATCH,
    Block,
    Embedding,
    Head,
    PatchEmbedding,
    State,
    WanSizes,
    embedded_text,
    embedded_times,
    gelu,
    run,
    unpatched,
)
from wanconv.engine.weights import Fetch
from wanconv.errors import InputError
from wanconv.types.tensors import Shape

HOSTS = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)  # blocks that an injector follows
MOTION_FRAMES = 73  # frames before a clip that it is given; silence of as many goes before its sound
# Latent frames of motion, the nearest first, and the pixels' frames, rows and columns of latents that make one token.
PACKED = ((1, (1, 2, 2)), (2, (2, 4, 4)), (16, (4, 8, 8)))
MOTION_LATENTS = sum(frames for frames, _ in PACKED)
AUDIO_TOKENS = 4  # per latent frame, and one for padding
_REFERENCE_TIME = 30
_EPSILON, _INJECTOR_EPSILON = 1e-6, 1e-5


@dataclass(frozen=True, slots=True)
class S2VSizes:
    """wan: the sizes that all Wan denoisers have; audio: width of a hidden state; states: how many there are."""

    wan: WanSizes
    audio: int
    states: int
    hosts: tuple[int, ...]

    @classmethod
    def of(cls, dims: Mapping[str, int], shape: Callable[[str], Shape]) -> "S2VSizes":
        """Returns the sizes of a component from its dims (families) and its shapes by canonical name.

        Raises InputError if blocks and injectors do not fit each other.
        """
        hosts = tuple(host for host in HOSTS if host < dims["n"])
        if dims["m"] != len(hosts):
            raise InputError(
                f"{dims['n']} blocks of S2V have {len(hosts)} audio injectors, and this checkpoint has {dims['m']}",
                "injectors follow blocks " + ", ".join(map(str, HOSTS)),
            )
        return cls(WanSizes.of(dims, shape), dims["audio"], dims["states"], hosts)


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """What a clip is given, of one sample or of as many as there are latents.

    reference (B, C, 1, H, W): the image. motion (B, C, F', H, W): the latents before the clip, of which the last 19
    count; None for the first clip. pose (B, C, F, H, W): latents of a pose video, zero for none. audio (B, states,
    width, 4 F): hidden states at the video's frame rate.
    """

    reference: Tensor
    motion: Tensor | None
    pose: Tensor
    audio: Tensor

    def of(self, batch: int) -> "Speech":
        """Returns the samples over and over until there are `batch` of them."""
        return Speech(
            reference=_repeated(self.reference, batch),
            motion=None if self.motion is None else _repeated(self.motion, batch),
            pose=_repeated(self.pose, batch),
            audio=_repeated(self.audio, batch),
        )

    def pinned(self, latents: Tensor) -> Tensor:
        """Returns the latents: nothing of a clip is given."""
        return latents


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SpeechState(State):
    """A Wan denoiser's state, and what the injectors look at: `audio` (B, F, 5, d), `pooled` (B, F, d)."""

    audio: Tensor
    pooled: Tensor


class SourceEmbedding(nn.Module):
    """Adds a vector per kind of token: noisy, reference, motion; and lays the tokens end to end."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, d), requires_grad=False)

    def forward(self, kinds: Sequence[Tensor]) -> Tensor:
        return torch.cat([x + row.to(x.dtype) for x, row in zip(kinds, self.weight, strict=False)], dim=1)


class MotionEmbedding(nn.Module):
    """The frame packer: latents (B, C, F', H, W) -> tokens (B, N, d) of the last 1, the 2 before, the 16 before those.

    Where there are fewer latent frames, the earliest are zero.
    """

    def __init__(self, sizes: WanSizes, dtype: torch.dtype) -> None:
        super().__init__()
        for scale, (_, patch) in zip(("x1", "x2", "x4"), PACKED, strict=True):
            self.add_module(scale, PatchEmbedding(sizes.d, sizes.channels_out, dtype, patch))

    def forward(self, motion: Tensor) -> Tensor:
        recent = motion[:, :, -MOTION_LATENTS:]
        held = F.pad(recent, (0, 0, 0, 0, MOTION_LATENTS - recent.shape[2], 0))
        parts = torch.split(held, [frames for frames, _ in reversed(PACKED)], dim=2)
        nearest_first = zip(self.children(), reversed(parts), strict=True)
        return torch.cat([_tokens(embedding(part)) for embedding, part in nearest_first], dim=1)


class CausalConv(nn.Module):
    """Three taps over time (B, T, columns), the last of them now; the first frame stands still before the beginning."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, 3), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False)
        self.dtype, self.stride = dtype, stride

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((x[:, :1], x[:, :1], x), dim=1).transpose(1, 2).to(self.dtype)
        return F.conv1d(x, self.weight.to(self.dtype), self.bias.to(self.dtype), self.stride).transpose(1, 2)


class CausalAudioEncoder(nn.Module):
    """Hidden states (B, states, width, T) -> (B, T / 4, 6, d): four tokens per frame, one of padding, one pooled."""

    def __init__(self, sizes: S2VSizes, dtype: torch.dtype) -> None:
        super().__init__()
        d, audio = sizes.wan.d, sizes.audio
        self.state_weights = nn.Parameter(torch.empty(1, sizes.states, 1, 1), requires_grad=False)
        self.padding_token = nn.Parameter(torch.empty(1, 1, 1, d), requires_grad=False)
        self.conv_local = CausalConv(d // 4 * AUDIO_TOKENS, audio, dtype)
        self.conv_global = CausalConv(d // 4, audio, dtype)
        self.conv_mid = CausalConv(d // 2, d // 4, dtype, stride=2)
        self.conv_out = CausalConv(d, d // 2, dtype, stride=2)
        self.proj = Linear(d, d, dtype)
        self.dtype = dtype

    def forward(self, states: Tensor) -> Tensor:
        weights = F.silu(self.state_weights.to(self.dtype))
        mean = ((states.to(self.dtype) * weights) / weights.sum(dim=1, keepdim=True)).sum(dim=1).transpose(1, 2)
        local = self.halved(torch.cat(self.conv_local(mean).chunk(AUDIO_TOKENS, dim=2)))  # (4 · B, T, d / 4)
        local = torch.stack(local.chunk(AUDIO_TOKENS), dim=2)
        pooled = self.proj(self.halved(self.conv_global(mean))).unsqueeze(2)
        padding = self.padding_token.to(self.dtype).expand_as(pooled)
        return torch.cat((local, padding, pooled), dim=2)

    def halved(self, x: Tensor) -> Tensor:
        """Halves the frame rate twice, on the way from a quarter of the width to all of it."""
        return _activated(self.conv_out(_activated(self.conv_mid(_activated(x)))))


class AudioAttention(nn.Module):
    def __init__(self, sizes: WanSizes, numerics: Numerics) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (Linear(sizes.d, sizes.d, numerics.linear) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(sizes.d, numerics), RMSNorm(sizes.d, numerics)
        self.heads, self.dtype = sizes.heads, numerics.linear

    def forward(self, x: Tensor, audio: Tensor) -> Tensor:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(audio)), self.v(audio)
        q, k, v = (part.to(self.dtype).unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        y: Tensor = self.o(attention(q, k, v))
        return y


class AudioInjector(nn.Module):
    """Adds to each frame of noisy tokens what it hears."""

    def __init__(self, sizes: WanSizes, numerics: Numerics) -> None:
        super().__init__()
        self.modulation_projection = Linear(2 * sizes.d, sizes.d, numerics.linear)
        self.cross_attn = AudioAttention(sizes, numerics)
        self.dtype = numerics.modulation

    def forward(self, state: SpeechState) -> Tensor:
        noisy, given = torch.split(state.x, [prod(state.grid), state.x.shape[1] - prod(state.grid)], dim=1)
        x = noisy.reshape(-1, state.grid[1] * state.grid[2], noisy.shape[2])  # (B · F, H · W, d)
        rows = self.modulation_projection(F.silu(state.pooled)).flatten(0, 1).unsqueeze(1)  # (B · F, 1, 2 d)
        shift, scale = rows.chunk(2, dim=2)
        normed = F.layer_norm(x.to(self.dtype), x.shape[-1:], eps=_INJECTOR_EPSILON)
        heard = self.cross_attn(
            torch.addcmul(shift.to(self.dtype), normed, (1 + scale).to(self.dtype)), state.audio.flatten(0, 1)
        )
        return torch.cat((noisy + heard.view_as(noisy).to(noisy.dtype), given), dim=1)


class WanS2V(nn.Module):
    """The denoiser on the meta device. Methods take `fetch`, which hands over the weights below a canonical prefix."""

    def __init__(self, sizes: S2VSizes, numerics: Numerics = FP32) -> None:
        super().__init__()
        self.sizes, self.numerics, self.hosts = sizes.wan, numerics, sizes.hosts
        d, channels = sizes.wan.d, sizes.wan.channels_in
        with torch.device("meta"):
            self.patch_embedding = PatchEmbedding(d, channels, numerics.patch)
            self.pose_embedding = PatchEmbedding(d, channels, numerics.patch)
            self.motion_embedding = MotionEmbedding(sizes.wan, numerics.patch)
            self.source_embedding = SourceEmbedding(d)
            self.text_embedding = Embedding(d, sizes.wan.text, numerics.linear, gelu)
            self.time_embedding = Embedding(d, sizes.wan.freq, numerics.time, F.silu)
            self.time_projection = Linear(6 * d, d, numerics.condition)
            self.causal_audio_encoder = CausalAudioEncoder(sizes, numerics.condition)
            self.blocks = nn.ModuleList(Block(sizes.wan, numerics) for _ in range(sizes.wan.blocks))
            self.audio_injector = nn.ModuleList(AudioInjector(sizes.wan, numerics) for _ in sizes.hosts)
            self.head = Head(sizes.wan, numerics)

    def watch(self, recorder: Recorder) -> None:
        """Gives its modules their canonical names."""
        recorder.watch(self)

    @property
    def stack(self) -> tuple[str, ...]:
        """What `block` takes, in turn: blocks, and the injectors after their hosts."""
        injectors = {host: (f"audio_injector.{m}",) for m, host in enumerate(self.hosts)}
        return tuple(chain.from_iterable((f"blocks.{n}", *injectors.get(n, ())) for n in range(self.sizes.blocks)))

    @torch.inference_mode()
    def denoise(
        self, fetch: Fetch, latents: Tensor, timestep: Tensor, context: Tensor, condition: Speech | None = None
    ) -> Tensor:
        """Returns the predicted velocity ε - x₀ (B, C_out, F, H, W), float32; arguments as for `embed`."""
        state = self.embed(fetch, latents, timestep, context, condition)
        for name in self.stack:
            state = self.block(name, fetch, state)
        return self.unembed(fetch, state)

    @torch.inference_mode()
    def embed(
        self, fetch: Fetch, latents: Tensor, timestep: Tensor, context: Tensor, condition: Speech | None = None
    ) -> SpeechState:
        """Returns the state before the first block.

        latents (B, C, F, H, W), H and W multiples of 8 if there is motion; timestep (B,), int64 or float32 or wider;
        context (B, L ≤ 512, text): encoded text, cut to its true length or zero from there on.
        """
        assert condition is not None, "a clip of S2V needs a reference and sound"
        assert timestep.dtype in (torch.int64, torch.float32, torch.float64), "bf16 has 8 bits: 999 would become 1000"
        still, motion = condition.reference.to(latents.dtype), condition.motion
        patches = run(self, "patch_embedding", fetch, torch.cat((latents, still), dim=2))  # frame by frame
        grid = (latents.shape[2], *patches.shape[3:])
        noisy = patches[:, :, : grid[0]] + run(self, "pose_embedding", fetch, condition.pose)
        kinds = [_tokens(noisy), _tokens(patches[:, :, grid[0] :])]
        if motion is not None:
            kinds.append(run(self, "motion_embedding", fetch, motion))
        x = run(self, "source_embedding", fetch, kinds)
        values, which = torch.unique(torch.stack((timestep, torch.zeros_like(timestep)), dim=1), return_inverse=True)
        time, modulation = embedded_times(self, fetch, values)
        before = condition.audio[..., :1].expand(-1, -1, -1, MOTION_FRAMES)
        heard = run(self, "causal_audio_encoder", fetch, torch.cat((before, condition.audio), dim=3))
        heard = heard[:, MOTION_LATENTS:]
        return SpeechState(
            x=x.to(self.numerics.residual),
            context=embedded_text(self, fetch, context),
            image=None,
            time=time,
            modulation=modulation,
            which=which,
            lengths=(kinds[0].shape[1], x.shape[1] - kinds[0].shape[1]),
            rotation=self._rotation(grid, motion is not None, x.device),
            grid=grid,
            audio=heard[:, :, :-1],
            pooled=heard[:, :, -1],
        )

    @torch.inference_mode()
    def block(self, name: str, fetch: Fetch, state: SpeechState) -> SpeechState:
        """Returns the state after a part of the stack; its weights are fetched here and let go."""
        return replace(state, x=run(self, name, fetch, state))

    @torch.inference_mode()
    def unembed(self, fetch: Fetch, state: SpeechState) -> Tensor:
        """Returns the velocity (B, C_out, F, H, W) of the state after the last block, float32."""
        noisy = replace(state, x=state.x[:, : state.lengths[0]], which=state.which[:, :1], lengths=state.lengths[:1])
        return unpatched(run(self, "head", fetch, noisy).float(), state.grid)

    def _rotation(self, grid: tuple[int, int, int], motion: bool, device: torch.device) -> Tensor:
        parts = [*places(grid), *(packed_places(grid) if motion else ())]
        width, dtype = self.sizes.d // self.sizes.heads, self.numerics.angles
        return torch.cat([rotations([axis.to(device) for axis in part], width, dtype) for part in parts])


def places(grid: tuple[int, int, int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns the times, rows and columns of the noisy tokens, and those of the reference's."""
    frames, rows, columns = (torch.arange(size) for size in grid)
    return [(frames, rows, columns), (torch.tensor([_REFERENCE_TIME]), rows, columns)]


def packed_places(grid: tuple[int, int, int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns the times, rows and columns of motion's tokens, the nearest first.

    A token that stands for several latents has one place among theirs: a part's places go in even steps from the first
    to the last that it covers, and are cut to whole numbers.
    """
    _, rows, columns = grid
    found, ago = [], 0
    for frames, (p, q, r) in PACKED:
        times = -_spread(ago + frames, ago + 1, frames // p)
        down, across = (_spread(0, size - 1, size * PATCH[1] // patch) for size, patch in ((rows, q), (columns, r)))
        found.append((times, down, across))
        ago += frames
    return found


def _spread(first: int, last: int, count: int) -> Tensor:
    return torch.from_numpy(np.linspace(first, last, count).astype(np.int64))


def _tokens(patches: Tensor) -> Tensor:
    """# (B, d, F, H, W) -> (B, F · H · W, d)"""
    return patches.flatten(2).transpose(1, 2)


def _activated(x: Tensor) -> Tensor:
    return F.silu(F.layer_norm(x, x.shape[-1:], eps=_EPSILON))


def _repeated(one: Tensor, batch: int) -> Tensor:
    return one.repeat(batch // len(one), *(1 for _ in one.shape[1:]))
