"""The S2V denoiser as its definition spells it out: numpy, float64, loops, official names, nothing of wanconv.

Definition: Wan-Video/Wan2.2 wan/modules/model.py and wan/modules/s2v/{model_s2v,audio_utils,auxi_blocks,motioner,
s2v_utils}.py with the settings of wan/configs/wan_s2v_14B.py. One sample at a time, slow and plain on purpose.
"""

import cmath
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
Position = tuple[int, int, int]


def linear(weights: Weights, name: str, x: Array) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def layer_norm(x: Array, epsilon: float) -> Array:
    normed = np.empty_like(x)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place]
        normed[place] = (row - row.mean()) / math.sqrt(((row - row.mean()) ** 2).mean() + epsilon)
    return normed


def rms_norm(weight: Array, x: Array) -> Array:
    return np.stack([row / math.sqrt((row**2).mean() + 1e-6) * weight for row in x])


def attend(q: Array, k: Array, v: Array, heads: int) -> Array:
    """q (N, d), k and v (L, d): softmax over all L, head by head, query by query."""
    width = q.shape[1] // heads
    found = np.empty_like(q)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        for n in range(len(q)):
            scores = np.array([q[n, own] @ key[own] for key in k]) / math.sqrt(width)
            shares = np.exp(scores - scores.max())
            found[n, own] = (shares / shares.sum()) @ v[:, own]
    return found


def causal_conv(weights: Weights, name: str, x: Array, stride: int) -> Array:
    """x (T, channels): three taps, the last of them now; before the beginning, the first frame stands still."""
    kernel, found = weights[f"{name}.conv.weight"], []
    for now in range(0, len(x), stride):
        value = weights[f"{name}.conv.bias"].copy()
        for tap in range(3):
            value = value + kernel[:, :, tap] @ x[max(now + tap - 2, 0)]
        found.append(value)
    return np.stack(found)


def audio_encoder(weights: Weights, features: Array) -> tuple[Array, Array]:
    """features (states, channels, T): local tokens (F, 5, d) and pooled ones (F, d), a frame per four of T."""
    states, channels, times = features.shape
    shares = silu(weights["casual_audio_encoder.weights"][0, :, 0, 0])
    x = np.zeros((times, channels))
    for state in range(states):
        x += features[state].T * shares[state] / shares.sum()
    name = "casual_audio_encoder.encoder"

    def squeezed(y: Array) -> Array:
        y = silu(layer_norm(y, 1e-6))
        y = silu(layer_norm(causal_conv(weights, f"{name}.conv2", y, 2), 1e-6))
        return silu(layer_norm(causal_conv(weights, f"{name}.conv3", y, 2), 1e-6))

    wide = causal_conv(weights, f"{name}.conv1_local", x, 1)
    quarter = wide.shape[1] // 4
    tokens = [squeezed(wide[:, n * quarter : (n + 1) * quarter]) for n in range(4)]
    tokens.append(np.stack([weights[f"{name}.padding_tokens"][0, 0, 0]] * len(tokens[0])))
    pooled = linear(weights, f"{name}.final_linear", squeezed(causal_conv(weights, f"{name}.conv1_global", x, 1)))
    return np.stack(tokens, axis=1), pooled


def patches(weights: Weights, name: str, latents: Array) -> tuple[Array, Position]:
    """latents (channels, F, H, W): one token per whole patch of the kernel's size, and how many each way."""
    kernel = weights[f"{name}.weight"]  # (d, channels, p, q, r)
    p, q, r = kernel.shape[2:]
    grid = latents.shape[1] // p, latents.shape[2] // q, latents.shape[3] // r
    tokens = []
    for t in range(grid[0]):
        for row in range(grid[1]):
            for column in range(grid[2]):
                cube = latents[:, t * p : t * p + p, row * q : row * q + q, column * r : column * r + r]
                tokens.append((kernel * cube).sum(axis=(1, 2, 3, 4)) + weights[f"{name}.bias"])
    return np.stack(tokens), grid


def sampled(first: float, last: float, count: int) -> list[int]:
    """`count` places from first to last in even steps, cut to whole numbers."""
    return [int(value) for value in np.linspace(first, last, count)]


def frame_packer(weights: Weights, motion: Array) -> tuple[Array, list[Position]]:
    """motion (16, frames, H, W): tokens of the last 1, the 2 before it and the 16 before those, and their positions."""
    height, width = motion.shape[2:]
    held = np.zeros((16, 19, height, width))
    for back in range(1, min(19, motion.shape[1]) + 1):
        held[:, -back] = motion[:, -back]
    tokens: list[Array] = []
    positions: list[Position] = []
    # name, frames from, frames to, the time of its first token, the time of its last (negative, but not its sign)
    for name, start, stop, earliest, latest in (
        ("frame_packer.proj", 18, 19, 1, 1),
        ("frame_packer.proj_2x", 16, 18, 3, 2),
        ("frame_packer.proj_4x", 0, 16, 19, 4),
    ):
        found, (times, rows, columns) = patches(weights, name, held[:, start:stop])
        tokens.extend(found)
        for time in sampled(earliest, latest, times):
            for row in sampled(0, height // 2 - 1, rows):
                positions += [(-time, row, column) for column in sampled(0, width // 2 - 1, columns)]
    return np.stack(tokens), positions


def turned(x: Array, positions: list[Position], heads: int) -> Array:
    """Rotary positions: neighbouring channels of each head are one complex number, turned by its axis' angle."""
    found, width = x.copy(), x.shape[1] // heads
    side = 2 * (width // 6)
    channels = (width - 2 * side, side, side)
    for n, position in enumerate(positions):
        for head in range(heads):
            at = head * width
            for axis in range(3):
                for pair in range(channels[axis] // 2):
                    angle = position[axis] / 10000 ** (2 * pair / channels[axis])
                    value = complex(x[n, at], x[n, at + 1]) * cmath.exp(1j * angle)
                    found[n, at], found[n, at + 1] = value.real, value.imag
                    at += 2
    return found


def cross_attention(weights: Weights, name: str, x: Array, context: Array, heads: int) -> Array:
    q = rms_norm(weights[f"{name}.norm_q.weight"], linear(weights, f"{name}.q", x))
    k = rms_norm(weights[f"{name}.norm_k.weight"], linear(weights, f"{name}.k", context))
    return linear(weights, f"{name}.o", attend(q, k, linear(weights, f"{name}.v", context), heads))


def block(
    weights: Weights, number: int, x: Array, rows: tuple[Array, Array], noisy: int, positions: list[Position],
    context: Array, heads: int,
) -> Array:  # fmt: skip
    """rows: six vectors (6, d) of the timestep, and six of timestep 0; the first `noisy` tokens take the former."""
    name = f"blocks.{number}"
    learned = weights[f"{name}.modulation"][0]

    def row(which: int) -> Array:
        return np.stack([learned[which] + rows[0 if n < noisy else 1][which] for n in range(len(x))])

    y = layer_norm(x, 1e-6) * (1 + row(1)) + row(0)
    q = rms_norm(weights[f"{name}.self_attn.norm_q.weight"], linear(weights, f"{name}.self_attn.q", y))
    k = rms_norm(weights[f"{name}.self_attn.norm_k.weight"], linear(weights, f"{name}.self_attn.k", y))
    v = linear(weights, f"{name}.self_attn.v", y)
    y = attend(turned(q, positions, heads), turned(k, positions, heads), v, heads)
    x = x + linear(weights, f"{name}.self_attn.o", y) * row(2)
    normed = layer_norm(x, 1e-6) * weights[f"{name}.norm3.weight"] + weights[f"{name}.norm3.bias"]
    x = x + cross_attention(weights, f"{name}.cross_attn", normed, context, heads)
    y = layer_norm(x, 1e-6) * (1 + row(4)) + row(3)
    return x + linear(weights, f"{name}.ffn.2", gelu(linear(weights, f"{name}.ffn.0", y))) * row(5)


def injector(weights: Weights, number: int, x: Array, local: Array, pooled: Array, noisy: int, heads: int) -> Array:
    """Each noisy frame looks at its own five audio tokens; what is not noisy stays."""
    x = x.copy()
    count = noisy // len(local)
    for frame in range(len(local)):
        own = slice(frame * count, (frame + 1) * count)
        both = linear(weights, f"audio_injector.injector_adain_layers.{number}.linear", silu(pooled[frame]))
        shift, scale = both[: x.shape[1]], both[x.shape[1] :]
        y = layer_norm(x[own], 1e-5) * (1 + scale) + shift
        x[own] = x[own] + cross_attention(weights, f"audio_injector.injector.{number}", y, local[frame], heads)
    return x


def modulation(weights: Weights, timestep: float, freq: int) -> tuple[Array, Array]:
    """The timestep's vector (d,) and the six that blocks share (6, d)."""
    angles = [timestep * 10000 ** (-i / (freq // 2)) for i in range(freq // 2)]
    x = np.array([math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles])
    time = linear(weights, "time_embedding.2", silu(linear(weights, "time_embedding.0", x)))
    return time, linear(weights, "time_projection.1", silu(time)).reshape(6, -1)


def forward(
    weights: Weights, latents: Array, timestep: float, text: Array, reference: Array, motion: Array | None,
    pose: Array, audio: Array, heads: int, hosts: Mapping[int, int],
) -> Array:  # fmt: skip
    """The velocity (16, F, H, W) of one sample; `hosts`: block -> the injector after it. text (512, channels)."""
    x, grid = patches(weights, "patch_embedding", latents)
    x = x + patches(weights, "cond_encoder", pose)[0]
    positions = [(t, row, column) for t in range(grid[0]) for row in range(grid[1]) for column in range(grid[2])]
    noisy, sources = len(x), [0] * len(x)
    still = patches(weights, "patch_embedding", reference)[0]
    x = np.concatenate((x, still))
    sources += [1] * len(still)
    positions += [(30, row, column) for row in range(grid[1]) for column in range(grid[2])]
    if motion is not None:
        packed, places = frame_packer(weights, motion)
        x = np.concatenate((x, packed))
        sources += [2] * len(packed)
        positions += places
    x = x + np.stack([weights["trainable_cond_mask.weight"][source] for source in sources])

    padded = np.concatenate([audio[:, :, :1]] * 73 + [audio], axis=2)
    local, pooled = audio_encoder(weights, padded)
    local, pooled = local[19:], pooled[19:]
    freq = weights["time_embedding.0.weight"].shape[1]
    time, rows = modulation(weights, timestep, freq)
    _, still_rows = modulation(weights, 0.0, freq)
    context = linear(weights, "text_embedding.2", gelu(linear(weights, "text_embedding.0", text)))
    number = 0
    while f"blocks.{number}.modulation" in weights:
        x = block(weights, number, x, (rows, still_rows), noisy, positions, context, heads)
        if number in hosts:
            x = injector(weights, hosts[number], x, local, pooled, noisy, heads)
        number += 1

    shift, scale = weights["head.modulation"][0] + time
    y = linear(weights, "head.head", layer_norm(x[:noisy], 1e-6) * (1 + scale) + shift)
    velocity = np.empty((16, grid[0], 2 * grid[1], 2 * grid[2]))
    for n, (t, row, column) in enumerate(positions[:noisy]):
        for down in range(2):
            for across in range(2):
                for channel in range(16):
                    velocity[channel, t, 2 * row + down, 2 * column + across] = y[n, (down * 2 + across) * 16 + channel]
    return velocity
