"""The Wan VAEs 2.1 and 2.2: official names (Wan-Video's .pth) and hub names (diffusers' AutoencoderKLWan).

Both have four stages of widths 1, 2, 4, 4 times a base, two residual blocks down and three up. The 2.1 VAE counts
blocks and resamplers of its encoder in one list; its decoder's and the 2.2 VAE's hub names count stages.
"""

from collections.abc import Iterator

from wanconv.models.rows import GAMMA, WB, Row, roles
from wanconv.types.architecture import Architecture

_DOWN_WIDTHS = (1, 2, 4, 4)
_UP_WIDTHS = (4, 4, 2, 1)
_DOWN_IN_TIME = (1, 2)
_UP_IN_TIME = (0, 1)


def _times(factor: int, base: str) -> str:
    return base if factor == 1 else f"{factor}*{base}"


def _resnet(name: str, narrow: str, wide: str, official: str, hub: str) -> Iterator[Row]:
    """A residual block from `narrow` to `wide` channels, its shortcut projected if they differ."""
    yield "norm", GAMMA, f"{name}.norm1", (narrow, 1, 1, 1), f"{official}.residual.0", f"{hub}.norm1"
    yield "conv", WB, f"{name}.conv1", (wide, narrow, 3, 3, 3), f"{official}.residual.2", f"{hub}.conv1"
    yield "norm", GAMMA, f"{name}.norm2", (wide, 1, 1, 1), f"{official}.residual.3", f"{hub}.norm2"
    yield "conv", WB, f"{name}.conv2", (wide, wide, 3, 3, 3), f"{official}.residual.6", f"{hub}.conv2"
    if narrow != wide:
        yield "conv", WB, f"{name}.shortcut", (wide, narrow, 1, 1, 1), f"{official}.shortcut", f"{hub}.conv_shortcut"


def _middle(side: str, base: str) -> Iterator[Row]:
    wide, attn = f"4*{base}", f"{side}.mid.attn"
    official, hub = f"{side}.middle", f"{side}.mid_block"
    yield from _resnet(f"{side}.mid.resnets.0", wide, wide, f"{official}.0", f"{hub}.resnets.0")
    yield "norm", GAMMA, f"{attn}.norm_in", (wide, 1, 1), f"{official}.1.norm", f"{hub}.attentions.0.norm"
    yield "conv", WB, f"{attn}.qkv", (f"12*{base}", wide, 1, 1), f"{official}.1.to_qkv", f"{hub}.attentions.0.to_qkv"
    yield "conv", WB, f"{attn}.o", (wide, wide, 1, 1), f"{official}.1.proj", f"{hub}.attentions.0.proj"
    yield from _resnet(f"{side}.mid.resnets.1", wide, wide, f"{official}.2", f"{hub}.resnets.1")


def _encoder(base: str, pixels: int, latents: int, staged: bool) -> Iterator[Row]:
    """Pixels to the mean and log variance of the latents; `staged` names count stages (2.2), else one list (2.1)."""
    yield "conv", WB, "encoder.conv_in", (base, pixels, 3, 3, 3), "encoder.conv1", "encoder.conv_in"
    channels = base
    for stage, factor in enumerate(_DOWN_WIDTHS):
        wide, name = _times(factor, base), f"encoder.stages.{stage}"
        for block in range(2):
            official, hub = f"encoder.downsamples.{stage * 3 + block}", f"encoder.down_blocks.{stage * 3 + block}"
            if staged:
                official = f"encoder.downsamples.{stage}.downsamples.{block}"
                hub = f"encoder.down_blocks.{stage}.resnets.{block}"
            yield from _resnet(f"{name}.resnets.{block}", channels, wide, official, hub)
            channels = wide
        if stage == 3:
            break
        official, hub = f"encoder.downsamples.{stage * 3 + 2}", f"encoder.down_blocks.{stage * 3 + 2}"
        if staged:
            official, hub = f"encoder.downsamples.{stage}.downsamples.2", f"encoder.down_blocks.{stage}.downsampler"
        yield "conv", WB, f"{name}.downsample", (wide, wide, 3, 3), f"{official}.resample.1", f"{hub}.resample.1"
        if stage in _DOWN_IN_TIME:
            shape = (wide, wide, 3, 1, 1)
            yield "conv", WB, f"{name}.downsample_time", shape, f"{official}.time_conv", f"{hub}.time_conv"
    yield from _middle("encoder", base)
    yield "norm", GAMMA, "encoder.norm_out", (channels, 1, 1, 1), "encoder.head.0", "encoder.norm_out"
    yield "conv", WB, "encoder.conv_out", (2 * latents, channels, 3, 3, 3), "encoder.head.2", "encoder.conv_out"
    yield "conv", WB, "encoder.latent_proj", (2 * latents, 2 * latents, 1, 1, 1), "conv1", "quant_conv"


def _decoder(base: str, pixels: int, latents: int, staged: bool) -> Iterator[Row]:
    """Latents to pixels. The upsamplers of 2.1 halve the channels, those of 2.2 keep them."""
    wide = _times(_UP_WIDTHS[0], base)
    yield "conv", WB, "decoder.latent_proj", (latents, latents, 1, 1, 1), "conv2", "post_quant_conv"
    yield "conv", WB, "decoder.conv_in", (wide, latents, 3, 3, 3), "decoder.conv1", "decoder.conv_in"
    yield from _middle("decoder", base)
    channels = wide
    for stage, factor in enumerate(_UP_WIDTHS):
        wide, name, hub_stage = _times(factor, base), f"decoder.stages.{stage}", f"decoder.up_blocks.{stage}"
        for block in range(3):
            official = f"decoder.upsamples.{stage * 4 + block}"
            if staged:
                official = f"decoder.upsamples.{stage}.upsamples.{block}"
            hub = f"{hub_stage}.resnets.{block}"
            yield from _resnet(f"{name}.resnets.{block}", channels, wide, official, hub)
            channels = wide
        if stage == 3:
            break
        official, hub = f"decoder.upsamples.{stage * 4 + 3}", f"{hub_stage}.upsamplers.0"
        if staged:
            official, hub = f"decoder.upsamples.{stage}.upsamples.3", f"{hub_stage}.upsampler"
        channels = wide if staged else _times(factor // 2, base)
        yield "conv", WB, f"{name}.upsample", (channels, wide, 3, 3), f"{official}.resample.1", f"{hub}.resample.1"
        if stage in _UP_IN_TIME:
            shape = (_times(2 * factor, base), wide, 3, 1, 1)
            yield "conv", WB, f"{name}.upsample_time", shape, f"{official}.time_conv", f"{hub}.time_conv"
    yield "norm", GAMMA, "decoder.norm_out", (channels, 1, 1, 1), "decoder.head.0", "decoder.norm_out"
    yield "conv", WB, "decoder.conv_out", (pixels, channels, 3, 3, 3), "decoder.head.2", "decoder.conv_out"


VAE_2_1 = Architecture(
    name="wan-vae-2.1",
    roles=roles((*_encoder("c", 3, 16, staged=False), *_decoder("c", 3, 16, staged=False))),
    source="Wan-Video/Wan2.2 wan/modules/vae2_1.py; huggingface/diffusers models/autoencoders/autoencoder_kl_wan.py",
    full={"c": 96},
    tiny={"c": 8},
    config={"hub": (("base_dim", "c"), ("z_dim", 16))},
)
# works on 2 x 2 patches of pixels: 12 channels
VAE_2_2 = Architecture(
    name="wan-vae-2.2",
    roles=roles((*_encoder("c", 12, 48, staged=True), *_decoder("g", 12, 48, staged=True))),
    source="Wan-Video/Wan2.2 wan/modules/vae2_2.py; huggingface/diffusers models/autoencoders/autoencoder_kl_wan.py",
    full={"c": 160, "g": 256},
    tiny={"c": 8, "g": 16},
    config={"hub": (("base_dim", "c"), ("decoder_base_dim", "g"), ("z_dim", 48), ("in_channels", 12))},
)
