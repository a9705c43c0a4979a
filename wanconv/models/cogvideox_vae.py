"""The VAE of CogVideoX: hub names (diffusers' AutoencoderKLCogVideoX).

Four stages of widths 1, 2, 2, 4 times a base, three residual blocks down and four up. The decoder's norms are scaled
and shifted by the latents themselves, through convolutions of their own.
"""

from collections.abc import Iterator

from wanconv.models.rows import WB, Row, roles
from wanconv.types.architecture import Architecture

_DOWN_WIDTHS = ("c", "2*c", "2*c", "4*c")
_LATENTS = 16


def _norm(name: str, width: str, hub: str, conditioned: bool) -> Iterator[Row]:
    if not conditioned:
        yield "norm", WB, name, (width,), hub
        return
    yield "norm", WB, name, (width,), f"{hub}.norm_layer"
    yield "conv", WB, f"{name}.scale", (width, _LATENTS, 1, 1, 1), f"{hub}.conv_y.conv"
    yield "conv", WB, f"{name}.shift", (width, _LATENTS, 1, 1, 1), f"{hub}.conv_b.conv"


def _resnet(name: str, narrow: str, wide: str, hub: str, conditioned: bool) -> Iterator[Row]:
    """A residual block from `narrow` to `wide` channels, its shortcut projected if they differ."""
    yield from _norm(f"{name}.norm1", narrow, f"{hub}.norm1", conditioned)
    yield "conv", WB, f"{name}.conv1", (wide, narrow, 3, 3, 3), f"{hub}.conv1.conv"
    yield from _norm(f"{name}.norm2", wide, f"{hub}.norm2", conditioned)
    yield "conv", WB, f"{name}.conv2", (wide, wide, 3, 3, 3), f"{hub}.conv2.conv"
    if narrow != wide:
        yield "conv", WB, f"{name}.shortcut", (wide, narrow, 1, 1, 1), f"{hub}.conv_shortcut"


def _middle(side: str, conditioned: bool) -> Iterator[Row]:
    for block in range(2):
        hub = f"{side}.mid_block.resnets.{block}"
        yield from _resnet(f"{side}.mid.resnets.{block}", "4*c", "4*c", hub, conditioned)


def _encoder() -> Iterator[Row]:
    """Pixels to the mean and log variance of the latents."""
    yield "conv", WB, "encoder.conv_in", ("c", 3, 3, 3, 3), "encoder.conv_in.conv"
    channels = "c"
    for stage, wide in enumerate(_DOWN_WIDTHS):
        name, hub = f"encoder.stages.{stage}", f"encoder.down_blocks.{stage}"
        for block in range(3):
            yield from _resnet(f"{name}.resnets.{block}", channels, wide, f"{hub}.resnets.{block}", False)
            channels = wide
        if stage < 3:
            yield "conv", WB, f"{name}.downsample", (wide, wide, 3, 3), f"{hub}.downsamplers.0.conv"
    yield from _middle("encoder", False)
    yield "norm", WB, "encoder.norm_out", (channels,), "encoder.norm_out"
    yield "conv", WB, "encoder.conv_out", (2 * _LATENTS, channels, 3, 3, 3), "encoder.conv_out.conv"


def _decoder() -> Iterator[Row]:
    """Latents to pixels."""
    channels = _DOWN_WIDTHS[-1]
    yield "conv", WB, "decoder.conv_in", (channels, _LATENTS, 3, 3, 3), "decoder.conv_in.conv"
    yield from _middle("decoder", True)
    for stage, wide in enumerate(reversed(_DOWN_WIDTHS)):
        name, hub = f"decoder.stages.{stage}", f"decoder.up_blocks.{stage}"
        for block in range(4):
            yield from _resnet(f"{name}.resnets.{block}", channels, wide, f"{hub}.resnets.{block}", True)
            channels = wide
        if stage < 3:
            yield "conv", WB, f"{name}.upsample", (wide, wide, 3, 3), f"{hub}.upsamplers.0.conv"
    yield from _norm("decoder.norm_out", channels, "decoder.norm_out", True)
    yield "conv", WB, "decoder.conv_out", (3, channels, 3, 3, 3), "decoder.conv_out.conv"


VAE = Architecture(
    name="cogvideox-vae",
    roles=roles((*_encoder(), *_decoder()), ("hub",)),
    source="huggingface/diffusers models/autoencoders/autoencoder_kl_cogvideox.py",
    full={"c": 128, "groups": 32},
    tiny={"c": 8, "groups": 4},
    config={"hub": (("latent_channels", _LATENTS), ("norm_num_groups", "groups"))},
    schemes=("hub",),
)
