"""The Wan denoiser: its names are the tables', its numbers are diffusers', its weights come and go block by block."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from wanconv.engine.layers import rotations
from wanconv.engine.wan import Wan, WanCondition, WanSizes, first_frame_clean
from wanconv.models import FAMILIES, fill, targets
from wanconv.models.names import numbered, shape_of
from wanconv.models.wan import FLF2V, I2V, I2V_CLIP, T2V, TI2V
from wanconv.types.architecture import Architecture
from wanconv.types.tensors import Shape

# one architecture each, but T2V: Wan 2.1 and the experts of 2.2 differ in their weights alone
VARIANTS = {
    "t2v-2.1": T2V,
    "t2v-a14b": T2V,
    "i2v-a14b": I2V,
    "ti2v-5b": TI2V,
    "i2v-2.1": I2V_CLIP,
    "flf2v": FLF2V,
}
SIZES = {
    "t2v-2.1": {**T2V.tiny, "heads": 1},  # a head of 128: rotary dims 44, 42, 42
    "t2v-a14b": T2V.tiny,
    "i2v-a14b": {**I2V.tiny, "d": 96, "ffn": 160, "heads": 3},
    "ti2v-5b": TI2V.tiny,
    "i2v-2.1": {**I2V_CLIP.tiny, "image": 80},
    "flf2v": FLF2V.tiny,
}


def canonical_shapes(network: Architecture, dims: Mapping[str, int]) -> dict[str, Shape]:
    return {fill(role.name, index): shape_of(role.shape, dims) for role, index in numbered(network, dims)}


class Weights:
    """Random tensors below a prefix, and which prefixes were asked for."""

    def __init__(self, network: Architecture, dims: Mapping[str, int], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.values = {
            name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            if len(shape) > 1
            else 0.1 * torch.randn(shape, generator=generator) + float("norm" in name and name.endswith("weight"))
            for name, shape in canonical_shapes(network, dims).items()
        }
        self.fetched: list[str] = []

    def __call__(self, prefix: str) -> dict[str, Tensor]:
        self.fetched.append(prefix)
        return {name: tensor for name, tensor in self.values.items() if name.startswith(f"{prefix}.")}


def build(network: Architecture, dims: Mapping[str, int]) -> Wan:
    positions = 514 if network is FLF2V else 0
    return Wan(WanSizes.of(dims, canonical_shapes(network, dims).__getitem__, positions))


@cache
def in_diffusers(variant: str) -> Any:
    from diffusers import WanTransformer3DModel  # six seconds, for the tests that need it

    network, dims = VARIANTS[variant], SIZES[variant]
    shapes = canonical_shapes(network, dims)
    model = WanTransformer3DModel(
        num_attention_heads=dims["heads"],
        attention_head_dim=dims["d"] // dims["heads"],
        in_channels=shapes["patch_embedding.weight"][1],
        out_channels=shapes["head.proj.weight"][0] // 4,
        text_dim=dims["text"],
        freq_dim=dims["freq"],
        ffn_dim=dims["ffn"],
        num_layers=dims["n"],
        image_dim=dims.get("image"),
        added_kv_proj_dim=dims["d"] if "image" in dims else None,
        pos_embed_seq_len=514 if network is FLF2V else None,
    )
    values = Weights(network, dims).values
    model.load_state_dict({target.name: values[target.sources[0]] for target in targets(network, "hub", dims)})
    return model.eval()


def inputs(variant: str, grid: tuple[int, int, int], batch: int = 2) -> tuple[Tensor, Tensor]:
    """Returns latents and context, of two lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    shape = canonical_shapes(VARIANTS[variant], SIZES[variant])["patch_embedding.weight"]
    frames, height, width = grid
    latents = torch.randn(batch, shape[1], frames, 2 * height, 2 * width, generator=generator)
    context = torch.randn(batch, 20, SIZES[variant]["text"], generator=generator)
    context[-1, 7:] = 0
    return latents, context


def seen(variant: str, batch: int) -> Tensor | None:
    """Returns image tokens for the variants that look at them."""
    if "image" not in SIZES[variant]:
        return None
    images = 2 if variant == "flf2v" else 1
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 257 * images, SIZES[variant]["image"], generator=generator)


@torch.no_grad()
def theirs(variant: str, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(context, (0, 0, 0, 512 - context.shape[1]))
    tokens = seen(variant, len(latents))
    if variant == "flf2v" and tokens is not None:  # a batch of pictures, two of a sample
        tokens = tokens.view(2 * len(latents), 257, -1)
    sample: Tensor = in_diffusers(variant)(latents, timestep, padded, tokens, return_dict=False)[0]
    return sample


def ours(variant: str, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    network, dims = VARIANTS[variant], SIZES[variant]
    condition = WanCondition(tokens=seen(variant, len(latents)))
    return build(network, dims).denoise(Weights(network, dims), latents, timestep, context, condition)


@pytest.mark.parametrize(("timestep", "grid"), [(999, (1, 4, 4)), (875, (3, 2, 5)), (0, (3, 2, 5))])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_denoiser_computes_what_diffusers_does(variant: str, grid: tuple[int, int, int], timestep: int) -> None:
    latents, context = inputs(variant, grid)
    times = torch.full((2,), timestep)
    expected = theirs(variant, latents, times, context)
    difference = (ours(variant, latents, times, context) - expected).abs().max()
    assert expected.std() > 0.1
    assert difference <= 2e-5


def test_timesteps_per_token_give_what_diffusers_gives() -> None:
    latents, context = inputs("ti2v-5b", (3, 2, 5))
    times = first_frame_clean(torch.tensor([999, 421]), (3, 2, 5))
    assert times.tolist()[1] == [0] * 10 + [421] * 20
    expected = theirs("ti2v-5b", latents, times, context)
    assert (ours("ti2v-5b", latents, times, context) - expected).abs().max() <= 2e-5
    assert (ours("ti2v-5b", latents, times[:, -1], context) - expected).abs().max() > 1e-2


def test_a_timestep_for_all_tokens_is_the_samples_timestep() -> None:
    latents, context = inputs("ti2v-5b", (2, 2, 2))
    per_sample = ours("ti2v-5b", latents, torch.tensor([500, 20]), context)
    per_token = ours("ti2v-5b", latents, torch.tensor([500, 20])[:, None].expand(2, 8), context)
    torch.testing.assert_close(per_token, per_sample, rtol=0, atol=1e-6)


def test_a_condition_is_further_channels_of_the_latents() -> None:
    latents, context = inputs("i2v-a14b", (2, 2, 2))
    network, dims, times = I2V, SIZES["i2v-a14b"], torch.tensor([999, 1])
    wan, fetch = build(network, dims), Weights(network, dims)
    split = wan.denoise(fetch, latents[:, :16], times, context, WanCondition(latents[:, 16:]))
    assert torch.equal(split, wan.denoise(fetch, latents, times, context))
    assert split.shape == (2, 16, 2, 4, 4)


@pytest.mark.parametrize("variant", ["i2v-2.1", "flf2v"])
def test_image_tokens_are_looked_at_and_embedded_once(variant: str) -> None:
    latents, context = inputs(variant, (1, 2, 2))
    network, dims, times = VARIANTS[variant], SIZES[variant], torch.tensor([999, 1])
    wan, fetch, tokens = build(network, dims), Weights(network, dims), seen(variant, 2)
    assert tokens is not None
    forth, back = (
        wan.denoise(fetch, latents, times, context, WanCondition(tokens=one)) for one in (tokens, tokens.flip(1))
    )
    assert fetch.fetched.count("image_embedding") == 2
    difference = float((forth - back).abs().max())  # attention has no order but what positions give
    assert difference > 1e-2 if variant == "flf2v" else difference < 1e-5


def test_a_batch_is_its_samples_one_by_one() -> None:
    latents, context = inputs("t2v-a14b", (2, 3, 2))
    times = torch.tensor([999, 63])
    together = ours("t2v-a14b", latents, times, context)
    for n in range(2):
        alone = ours("t2v-a14b", latents[n : n + 1], times[n : n + 1], context[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=0, atol=1e-5)


NATIVE = {
    network.name: network
    for family in FAMILIES
    for network in family.components.values()
    if network in VARIANTS.values()
}


@pytest.mark.parametrize("size", ["tiny", "full"])
@pytest.mark.parametrize("network", NATIVE.values(), ids=NATIVE)
def test_the_state_dict_has_the_canonical_names_and_shapes(network: Architecture, size: str) -> None:
    dims = network.tiny if size == "tiny" else network.full
    wan = build(network, dims)
    assert {name: tuple(value.shape) for name, value in wan.state_dict().items()} == canonical_shapes(network, dims)
    assert {value.device.type for value in wan.state_dict().values()} == {"meta"}


def test_weights_are_asked_for_once_in_the_order_of_the_computation_and_let_go() -> None:
    latents, context = inputs("t2v-a14b", (1, 2, 2))
    wan, fetch = build(T2V, T2V.tiny), Weights(T2V, T2V.tiny)
    wan.denoise(fetch, latents, torch.tensor([999, 999]), context)
    embeddings = ["patch_embedding", "time_embedding", "time_projection", "text_embedding"]
    assert fetch.fetched == [*embeddings, "blocks.0", "blocks.1", "blocks.2", "head"]
    assert {value.device.type for value in wan.parameters()} == {"meta"}


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_block_takes_exactly_its_weights(change: str) -> None:
    latents, context = inputs("t2v-a14b", (1, 2, 2))
    wan, weights = build(T2V, T2V.tiny), Weights(T2V, T2V.tiny)
    state = wan.embed(weights, latents, torch.tensor([999, 999]), context)
    weights.values["blocks.1.ffn.gate.weight"] = weights.values.pop("blocks.1.ffn.up.weight")
    if change == "unexpected":
        weights.values["blocks.1.ffn.up.weight"] = weights.values["blocks.1.ffn.gate.weight"]
    with pytest.raises(RuntimeError, match=r"ffn\.gate\.weight"):
        wan.block("blocks.1", weights, state)


def test_a_timestep_in_bf16_is_refused() -> None:
    latents, context = inputs("t2v-a14b", (1, 2, 2))
    with pytest.raises(AssertionError, match="999 would become 1000"):
        ours("t2v-a14b", latents, torch.tensor([999, 999], dtype=torch.bfloat16), context)


def test_the_axes_of_a_head_of_128_take_44_42_and_42_channels() -> None:
    turned = rotations([torch.arange(2)] * 3, 128, torch.float64)[:, 0] != 1
    assert [row.nonzero()[[0, -1], 0].tolist() for row in (turned[4], turned[2], turned[1])] == [
        [0, 21],
        [22, 42],
        [43, 63],
    ]
