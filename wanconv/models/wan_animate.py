"""What Wan 2.2 Animate adds to the I2V denoiser: pose, motion and face, by official and hub names.

The motion encoder reads a face of 512 x 512 pixels through seven residual blocks. The blurs between their convolutions
are tensors in the official file; diffusers computes them. Each bias of its convolutions belongs to the activation that
follows. In official files, the face adapter's keys and values are one tensor.
"""

from collections.abc import Iterator
from itertools import pairwise

from wanconv.models.rows import WB, WHOLE, Row, W, inside
from wanconv.types.architecture import Spelling

_WIDTHS = ("c", "2*c", "4*c", "8*c", "16*c", "16*c", "16*c", "16*c")
_CONVS = "motion_encoder.enc.net_app.convs"


def _convolution(name: str, shape: tuple[str | int, ...], official: tuple[str, str], hub: str) -> Iterator[Row]:
    """A convolution and the bias of the activation after it; `official` are the names of both."""
    weight, bias = official
    yield "conv", WHOLE, f"{name}.weight", shape, f"{weight}.weight", f"{hub}.weight"
    official_bias = Spelling(f"{bias}.bias", shape=(1, shape[0], 1, 1))
    yield "bias", WHOLE, f"{name}.bias", (shape[0],), official_bias, f"{hub}.act_fn.bias"


def _motion_encoder() -> Iterator[Row]:
    first = (f"{_CONVS}.0.0", f"{_CONVS}.0.1")
    yield from _convolution("motion_encoder.conv_in", ("c", 3, 1, 1), first, "motion_encoder.conv_in")
    for block, (narrow, wide) in enumerate(pairwise(_WIDTHS)):
        name, hub = f"motion_encoder.resnets.{block}", f"motion_encoder.res_blocks.{block}"
        on_disk = f"{_CONVS}.{block + 1}"
        names = (f"{on_disk}.conv1.0", f"{on_disk}.conv1.1")
        yield from _convolution(f"{name}.conv1", (narrow, narrow, 3, 3), names, f"{hub}.conv1")
        yield "constant", WHOLE, f"{name}.blur", (4, 4), f"{on_disk}.conv2.0.kernel", None
        names = (f"{on_disk}.conv2.1", f"{on_disk}.conv2.2")
        yield from _convolution(f"{name}.conv2", (wide, narrow, 3, 3), names, f"{hub}.conv2")
        yield "constant", WHOLE, f"{name}.shortcut_blur", (4, 4), f"{on_disk}.skip.0.kernel", None
        yield "conv", W, f"{name}.shortcut", (wide, narrow, 1, 1), f"{on_disk}.skip.1", f"{hub}.conv_skip"
    last = _WIDTHS[-1]
    yield "conv", W, "motion_encoder.conv_out", ("style", last, 4, 4), f"{_CONVS}.8", "motion_encoder.conv_out"
    for layer in range(5):
        out = "style" if layer < 4 else "motion"
        official, hub = f"motion_encoder.enc.fc.{layer}", f"motion_encoder.motion_network.{layer}"
        yield "linear", WB, f"motion_encoder.mlp.{layer}", (out, "style"), official, hub
    directions = ("motion_encoder.dec.direction.weight", "motion_encoder.motion_synthesis_weight")
    yield "embed", WHOLE, "motion_encoder.directions", ("style", "motion"), *directions


def _kv(part: int) -> Spelling:
    return Spelling("linear1_kv", parts=(part,), of=2)


# fmt: off
_POSE: tuple[Row, ...] = (
    # kind         leaves  canonical             shape                 official        hub
    ("conv",       WB,     "pose_embedding", ("d", 16, 1, 2, 2), "pose_patch_embedding", "pose_patch_embedding"),
)

# conv_mid and conv_out halve the frame rate
_FACE_ENCODER = inside("face_encoder", ("face_encoder", "face_encoder"), (
    ("embed",      WHOLE,  "padding_token",      (1, 1, 1, "d"),         "padding_tokens",    "padding_tokens"),
    ("conv",       WB,     "conv_local",         ("4*face", "style", 3), "conv1_local.conv",  "conv1_local"),
    ("conv",       WB,     "conv_mid",           ("face", "face", 3),    "conv2.conv",        "conv2"),
    ("conv",       WB,     "conv_out",           ("face", "face", 3),    "conv3.conv",        "conv3"),
    ("linear",     WB,     "proj",               ("d", "face"),          "out_proj",          "out_proj"),
))

# one adapter after some of the blocks, with numbers of its own
_FACE_ADAPTER = inside("face_adapter.{m}.cross_attn", ("face_adapter.fuser_blocks.{m}", "face_adapter.{m}"), (
    ("linear",     WB,     "q",                  ("d", "d"),             "linear1_q",         "to_q"),
    ("linear",     WB,     "k",                  ("d", "d"),             _kv(0),              "to_k"),
    ("linear",     WB,     "v",                  ("d", "d"),             _kv(1),              "to_v"),
    ("linear",     WB,     "o",                  ("d", "d"),             "linear2",           "to_out"),
    ("norm",       W,      "norm_q",             ("head",),              "q_norm",            "norm_q"),
    ("norm",       W,      "norm_k",             ("head",),              "k_norm",            "norm_k"),
))
# fmt: on

ANIMATE: tuple[Row, ...] = (*_POSE, *_motion_encoder(), *_FACE_ENCODER, *_FACE_ADAPTER)
