"""The Wan denoiser in plain torch, block by block: Wan 2.1 T2V, I2V and FLF2V, Wan 2.2 T2V-A14B, I2V-A14B and TI2V-5B.

    wan = Wan(WanSizes.of(dims, shape), PRESETS["official"])      # on the meta device: no memory
    fetch = partial(source.tensors, "expert.high")                # weights.Fetch: prefix -> named tensors
    velocity = wan.denoise(fetch, latents, timestep, context)     # all of it, or step by step:

    state = wan.embed(fetch, latents, timestep, context)
    for name in wan.stack:
        state = wan.block(name, fetch, state)                     # loads and drops the block's weights
    velocity = wan.unembed(fetch, state)

A sample is a video's noisy latents, cut into patches of 1 × 2 × 2. Every block adds three things to the residual stream
x (B, N, d): self-attention over all N patches, with rotary positions on three axes; cross-attention to the text, and in
Wan 2.1 I2V and FLF2V to CLIP's tokens of one or two images, with the same queries; and a feed-forward. The timestep
enters through six vectors per block that shift, scale and gate self-attention and feed-forward; a learned table
`modulation` is added to the vectors that all blocks share.

Attributes are the canonical names, so `wan.state_dict()` has the keys of wanconv/models/wan.py. Weights arrive in any
float dtype and are cast at each use, one linear at a time, as `numerics` says. A timestep is never narrowed. The
timesteps of a batch are embedded once per distinct value and looked up per sample, or per run of tokens that share
one: expanding them to (1, N, 6, d), as the official code does, takes 9.3 GB at 720p.

Definition: wan/modules/model.py of Wan-Video/Wan2.1 and Wan2.2; tests compare with huggingface/diffusers'
WanTransformer3DModel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from wanconv.engine.layers import (
    ImageEmbedding,
    LayerNorm,
    Linear,
    Modulate,
    RMSNorm,
    attention,
    gated,
    modulate,
    rotate,
    rotations,
    sinusoid,
)
from wanconv.engine.numerics import FP32, Numerics
from wanconv.engine.recorder import Recorder
from wanconv.engine.weights import Fetch
from wanconv.types.tensors import Shape

TEXT_TOKENS = 512
PATCH = (1, 2, 2)


@dataclass(frozen=True, slots=True)
class WanSizes:
    """d: width; ffn: hidden width; text: width of the context; freq: length of the timestep's sinusoid.

    image: width of CLIP's tokens, 0 if there are none; positions: the number of these tokens with learned positions.
    """

    d: int
    ffn: int
    heads: int
    blocks: int
    text: int
    freq: int
    channels_in: int
    channels_out: int
    image: int = 0
    positions: int = 0

    @classmethod
    def of(cls, dims: Mapping[str, int], shape: Callable[[str], Shape], positions: int = 0) -> "WanSizes":
        """Returns the sizes of a component from its dims (families) and its shapes by canonical name."""
        return cls(
            d=dims["d"],
            ffn=dims["ffn"],
            heads=dims["heads"],
            blocks=dims["n"],
            text=dims["text"],
            freq=dims["freq"],
            channels_in=shape("patch_embedding.weight")[1],
            channels_out=shape("head.proj.weight")[0] // (PATCH[0] * PATCH[1] * PATCH[2]),
            image=dims.get("image", 0),
            positions=positions,
        )


@dataclass(frozen=True, slots=True, eq=False)
class WanCondition:
    """The inputs of a denoiser other than noise, time and text; of one sample, or of as many as there are latents.

    channels (B, C', F, H, W): I2V's mask and image latents, further channels after the noise's.
    tokens (B, 257 or 514, image): CLIP's, of one image or of two.
    first (B, C, 1, H, W): TI2V's first latent frame, in place of the noise's and at timestep 0.
    """

    channels: Tensor | None = None
    tokens: Tensor | None = None
    first: Tensor | None = None

    def of(self, batch: int) -> "WanCondition":
        """Returns the condition of one sample for each of `batch` samples."""
        return WanCondition(*(None if one is None else one.expand(batch, *one.shape[1:]) for one in self._parts()))

    def pinned(self, latents: Tensor) -> Tensor:
        """Returns the latents of the last step with the given parts put back."""
        return latents if self.first is None else torch.cat((self.first.to(latents.dtype), latents[:, :, 1:]), dim=2)

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.channels, self.tokens, self.first


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The state between blocks: `x` changes from block to block, the rest is the same for all.

    x (B, N, d); context (B, 512, d); image (B, 257 or 514, d). `time` (T, d) and `modulation` (T, 6, d) have a row per
    distinct timestep, `which` (B, S) are the rows of S runs of tokens with these `lengths`. `rotation`
    (N, 1, d / heads / 2) complex; `grid`: patches (F, H, W).
    """

    x: Tensor
    context: Tensor
    image: Tensor | None
    time: Tensor
    modulation: Tensor
    which: Tensor
    lengths: tuple[int, ...]
    rotation: Tensor
    grid: tuple[int, int, int]


class SelfAttention(nn.Module):
    def __init__(self, sizes: WanSizes, numerics: Numerics) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (Linear(sizes.d, sizes.d, numerics.linear) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(sizes.d, numerics), RMSNorm(sizes.d, numerics)
        self.heads, self.dtype = sizes.heads, numerics.linear

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))  # (B, N, heads, d / heads)
        y: Tensor = self.o(attention(rotate(q, rotation).to(self.dtype), rotate(k, rotation).to(self.dtype), v))
        return y


class CrossAttention(nn.Module):
    """Attends to all 512 text tokens: the zeros that pad a short prompt are embedded and not masked, as officially.

    Image tokens get a softmax of their own, and both results are added before `o`. `norm_in` is not a norm of k's or
    v's input, but of x, before q.
    """

    def __init__(self, sizes: WanSizes, numerics: Numerics) -> None:
        super().__init__()
        self.norm_in = LayerNorm(sizes.d, numerics.modulation)
        self.q, self.k, self.v, self.o = (Linear(sizes.d, sizes.d, numerics.linear) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(sizes.d, numerics), RMSNorm(sizes.d, numerics)
        if sizes.image:
            self.k_img, self.v_img = (Linear(sizes.d, sizes.d, numerics.linear) for _ in range(2))
            self.norm_k_img = RMSNorm(sizes.d, numerics)
        self.heads, self.dtype, self.sum = sizes.heads, numerics.linear, numerics.qk_norm

    def forward(self, x: Tensor, context: Tensor, image: Tensor | None) -> Tensor:
        q = self.norm_q(self.q(self.norm_in(x)))
        seen = self.attended(q, self.norm_k(self.k(context)), self.v(context))
        if image is not None:
            others = self.attended(q, self.norm_k_img(self.k_img(image)), self.v_img(image))
            seen = seen.to(self.sum) + others.to(self.sum)
        y: Tensor = self.o(seen)
        return y

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.to(self.dtype).view(*part.shape[:-1], self.heads, -1) for part in (q, k, v))
        return attention(q, k, v)


class FeedForward(nn.Module):
    def __init__(self, sizes: WanSizes, numerics: Numerics) -> None:
        super().__init__()
        self.up = Linear(sizes.ffn, sizes.d, numerics.linear)
        self.down = Linear(sizes.d, sizes.ffn, numerics.linear)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return y


class Block(nn.Module):
    """x + gate · self_attn(norm_attn(x)), + cross_attn(x), + gate · ffn(norm_ffn(x)): two modulated norms."""

    def __init__(self, sizes: WanSizes, numerics: Numerics) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 6, sizes.d), requires_grad=False)
        self.self_attn = SelfAttention(sizes, numerics)
        self.cross_attn = CrossAttention(sizes, numerics)
        self.ffn = FeedForward(sizes, numerics)
        self.norm_attn, self.norm_ffn = Modulate(), Modulate()
        self.dtype, self.residual = numerics.modulation, numerics.residual

    def forward(self, state: State) -> Tensor:
        e = self.modulation.to(self.dtype) + state.modulation.to(self.dtype)  # (T, 6, d)
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = e[state.which].unbind(2)  # (B, S, d)
        x, lengths = state.x, state.lengths
        y = self.self_attn(self.norm_attn(x, shift_attn, scale_attn, lengths), state.rotation)
        x = gated(x, y, gate_attn, lengths).to(self.residual)
        x = x + self.cross_attn(x, state.context, state.image).to(x.dtype)
        y = self.ffn(self.norm_ffn(x, shift_ffn, scale_ffn, lengths))
        return gated(x, y, gate_ffn, lengths).to(self.residual)


class Head(nn.Module):
    """A modulated layer norm and the projection to patches of velocity."""

    def __init__(self, sizes: WanSizes, numerics: Numerics) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 2, sizes.d), requires_grad=False)
        self.proj = Linear(PATCH[0] * PATCH[1] * PATCH[2] * sizes.channels_out, sizes.d, numerics.head)
        self.dtype = numerics.modulation

    def forward(self, state: State) -> Tensor:
        e = self.modulation.to(self.dtype) + state.time.to(self.dtype).unsqueeze(1)  # (T, 2, d)
        shift, scale = e[state.which].unbind(2)  # (B, S, d)
        y: Tensor = self.proj(modulate(state.x, shift, scale, state.lengths))
        return y


class PatchEmbedding(nn.Module):
    """Latents (B, C, F, H, W) -> (B, d, F / p, H / q, W / r) for patches p × q × r; a rest that fills no patch is left
    out."""

    def __init__(self, d: int, channels: int, dtype: torch.dtype, patch: tuple[int, int, int] = PATCH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d, channels, *patch), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(d), requires_grad=False)
        self.dtype, self.patch = dtype, patch

    def forward(self, latents: Tensor) -> Tensor:
        weight, bias = self.weight.to(self.dtype), self.bias.to(self.dtype)
        return F.conv3d(latents.to(self.dtype), weight, bias, stride=self.patch)


class Embedding(nn.Module):
    """Two linears `in` and `out` with an activation between them."""

    def __init__(self, d: int, width: int, dtype: torch.dtype, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.add_module("in", Linear(d, width, dtype))  # a keyword
        self.out = Linear(d, d, dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.activation(self.get_submodule("in")(x)))
        return y


class Wan(nn.Module):
    """The denoiser on the meta device. Methods take `fetch`, which hands over the weights below a canonical prefix."""

    def __init__(self, sizes: WanSizes, numerics: Numerics = FP32) -> None:
        super().__init__()
        self.sizes, self.numerics = sizes, numerics
        with torch.device("meta"):
            self.patch_embedding = PatchEmbedding(sizes.d, sizes.channels_in, numerics.patch)
            self.text_embedding = Embedding(sizes.d, sizes.text, numerics.linear, gelu)
            if sizes.image:
                self.image_embedding = ImageEmbedding(sizes.d, sizes.image, sizes.positions, numerics)
            self.time_embedding = Embedding(sizes.d, sizes.freq, numerics.time, F.silu)
            self.time_projection = Linear(6 * sizes.d, sizes.d, numerics.condition)
            self.blocks = nn.ModuleList(Block(sizes, numerics) for _ in range(sizes.blocks))
            self.head = Head(sizes, numerics)

    def watch(self, recorder: Recorder) -> None:
        """Gives its modules their canonical names."""
        recorder.watch(self)

    @property
    def stack(self) -> tuple[str, ...]:
        """What `block` takes, in turn: the names of everything between the embeddings and the head."""
        return tuple(f"blocks.{n}" for n in range(self.sizes.blocks))

    @torch.inference_mode()
    def denoise(
        self,
        fetch: Fetch,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        condition: WanCondition | None = None,
    ) -> Tensor:
        """Returns the predicted velocity ε - x₀ (B, C_out, F, H, W), float32; arguments as for `embed`."""
        state = self.embed(fetch, latents, timestep, context, condition)
        for name in self.stack:
            state = self.block(name, fetch, state)
        return self.unembed(fetch, state)

    @torch.inference_mode()
    def embed(
        self,
        fetch: Fetch,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        condition: WanCondition | None = None,
    ) -> State:
        """Returns the state before the first block.

        latents (B, C, F, H, W), H and W even; timestep in 0 … 1000, int64 or float32 or wider: (B,), or (B, N) where
        tokens differ (`first_frame_clean`); context (B, L ≤ 512, text): encoded text, cut to its true length or zero
        from there on.
        """
        assert timestep.dtype in (torch.int64, torch.float32, torch.float64), "bf16 has 8 bits: 999 would become 1000"
        frames, height, width = (size // patch for size, patch in zip(latents.shape[2:], PATCH, strict=True))
        if condition is not None and condition.first is not None:
            latents = condition.pinned(latents)
            timestep = first_frame_clean(timestep, (frames, height, width))
        if condition is not None and condition.channels is not None:
            latents = torch.cat((latents, condition.channels.to(latents.dtype)), dim=1)
        x = run(self, "patch_embedding", fetch, latents)
        values, which = torch.unique(timestep, return_inverse=True)
        which, lengths = _in_runs(which, frames * height * width)
        time, modulation = embedded_times(self, fetch, values)
        tokens = None if condition is None else condition.tokens
        places = [torch.arange(size, device=x.device) for size in (frames, height, width)]
        return State(
            x=x.flatten(2).transpose(1, 2).contiguous().to(self.numerics.residual),
            context=embedded_text(self, fetch, context),
            image=None if tokens is None else run(self, "image_embedding", fetch, tokens),
            time=time,
            modulation=modulation,
            which=which,
            lengths=lengths,
            rotation=rotations(places, self.sizes.d // self.sizes.heads, self.numerics.angles),
            grid=(frames, height, width),
        )

    @torch.inference_mode()
    def block(self, name: str, fetch: Fetch, state: State) -> State:
        """Returns the state after a part of the stack; its weights are fetched here and let go."""
        return replace(state, x=run(self, name, fetch, state))

    @torch.inference_mode()
    def unembed(self, fetch: Fetch, state: State) -> Tensor:
        """Returns the velocity (B, C_out, F, H, W) of the state after the last block, float32."""
        return unpatched(run(self, "head", fetch, state).float(), state.grid)


class Network(Protocol):
    """A denoiser of this family: its parts are named as their weights are."""

    sizes: WanSizes
    numerics: Numerics

    def get_submodule(self, target: str) -> nn.Module: ...


def run(network: Network, name: str, fetch: Fetch, argument: object) -> Tensor:
    """Returns what a part makes of its argument with the tensors below its name, no more and no fewer."""
    weights = {key.removeprefix(f"{name}."): tensor for key, tensor in fetch(name).items()}
    result: Tensor = functional_call(network.get_submodule(name), weights, (argument,), strict=True)
    return result


def embedded_times(network: Network, fetch: Fetch, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `time` (T, d) and `modulation` (T, 6, d) of distinct timesteps (T,)."""
    angles = sinusoid(values, network.sizes.freq, network.numerics.angles)
    time = run(network, "time_embedding", fetch, angles).to(network.numerics.condition)
    return time, run(network, "time_projection", fetch, F.silu(time)).view(-1, 6, network.sizes.d)


def embedded_text(network: Network, fetch: Fetch, context: Tensor) -> Tensor:
    """Returns the context (B, 512, d) that the blocks look at."""
    return run(network, "text_embedding", fetch, F.pad(context, (0, 0, 0, TEXT_TOKENS - context.shape[1])))


def unpatched(patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Returns the video that patches make up.  # (B, F·H·W, p·q·r·C) -> (B, C, F·p, H·q, W·r)"""
    frames, height, width = grid
    p, q, r = PATCH
    parts = patches.view(-1, frames, height, width, p, q, r, patches.shape[-1] // (p * q * r))
    return parts.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, parts.shape[-1], frames * p, height * q, width * r)


def _in_runs(which: Tensor, tokens: int) -> tuple[Tensor, tuple[int, ...]]:
    """Returns the rows of runs of equal tokens, and their lengths.  # (B,) or (B, N) -> (B, S)"""
    if which.dim() == 1:
        return which.unsqueeze(1), (tokens,)
    rows, lengths = torch.unique_consecutive(which, dim=1, return_counts=True)
    return rows, tuple(lengths.tolist())


def first_frame_clean(timestep: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Returns (B, N) timesteps of tokens: 0 in the first latent frame, which is given, elsewhere the sample's (B,).

    TI2V-5B with an image (Wan-Video/Wan2.2 wan/textimage2video.py, i2v). `grid`: patches (F, H, W), N = F · H · W.
    """
    frames, height, width = grid
    tokens = timestep[:, None].expand(-1, frames * height * width).clone()
    tokens[:, : height * width] = 0
    return tokens


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
