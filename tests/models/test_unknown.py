"""A file that fits no network: what is said of it, and what is advised."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from header_lists import architecture, part

from wanconv.errors import Unrecognised
from wanconv.models import expand, identify
from wanconv.types.tensors import Checkpoint, Shape

T2V, VAE, UMT5 = (architecture(name) for name in ("wan-t2v", "wan-vae-2.1", "umt5"))
TINY = expand(T2V, "official", T2V.tiny)
ENCODER = expand(UMT5, "official", UMT5.tiny)


def refusal(shapes: Mapping[str, Shape]) -> Unrecognised:
    with pytest.raises(Unrecognised) as raised:
        identify(Checkpoint(Path("/models"), (part("a.safetensors", dict(shapes)),)))
    assert "again" not in raised.value.hint  # the header is whole, and so is the file
    return raised.value


def below(prefix: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "model.", "module._orig_mod.", "my.own."])
def test_a_network_below_a_prefix_is_named_with_it(prefix: str) -> None:
    error = refusal(below(prefix, TINY))
    assert error.message == f"a.safetensors: all {len(TINY)} tensors are wan-t2v below the prefix {prefix!r}"
    assert prefix in error.hint


def test_what_is_nearly_a_network_below_a_prefix_is_named_so() -> None:
    error = refusal(below("model.", dict(list(TINY.items())[4:]) | {"x.y": (1,)}))
    assert error.message.endswith("tensors are nearly wan-t2v below the prefix 'model.'")


def test_several_networks_in_one_file_are_named_each() -> None:
    parts = below("model.diffusion_model.", TINY) | below("text_encoders.umt5xxl.transformer.", ENCODER)
    error = refusal(parts | {"vae.x": (1,), "y": (2,)})
    assert error.message == "a.safetensors holds several networks in one file, which wanconv does not read"
    assert error.details == (
        f"{len(TINY)} tensors are wan-t2v below the prefix 'model.diffusion_model.'",
        f"{len(ENCODER)} tensors are umt5 below the prefix 'text_encoders.umt5xxl.transformer.'",
        "1 tensor is not a network that wanconv knows below the prefix 'vae.'",
        "1 tensor is not a network that wanconv knows without a prefix",
    )


def test_a_network_of_another_family_is_not_called_near_to_one_of_ours() -> None:
    other = {f"transformer_blocks.{n}.attn.to_{p}.weight": (8, 8) for n in range(20) for p in ("x", "y", "z")}
    shared = {"proj_out.weight": (8, 8), "proj_out.bias": (8,), "patch_embed.proj.weight": (8, 8)}  # as CogVideoX's
    error = refusal(other | shared)
    assert "nearest" not in error.message
    assert error.message.startswith(
        "a.safetensors is not a network that wanconv knows: no known network has more than "
    )
    assert error.hint.startswith("wanconv knows wan-t2v")


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"missing": True}, "it holds a part of wan-t2v"),
        ({"extra": True}, "it is wan-t2v and more: a variant that wanconv does not know"),
        ({"missing": True, "extra": True}, "it may be a variant of wan-t2v that wanconv does not know"),
        ({"shape": True}, "it may be a variant of wan-t2v that wanconv does not know"),
    ],
)
def test_what_is_nearly_a_network_is_told_why_it_may_not_be_one(change: Mapping[str, bool], hint: str) -> None:
    shapes = dict(TINY)
    if change.get("missing"):
        del shapes["head.head.bias"]
    if change.get("extra"):
        shapes["ref_conv.weight"] = (4, 4)
    if change.get("shape"):
        shapes["head.head.bias"] = (3,)
    error = refusal(shapes)
    assert error.message.startswith("a.safetensors fits no known network; the nearest is wan-t2v (official names)")
    assert error.hint.startswith(hint)


@pytest.mark.parametrize(
    ("tail", "what"),
    [("._data", "optimum-quanto"), (".quant_state.bitsandbytes__nf4", "nf4 by bitsandbytes")],
)
def test_what_another_tool_quantized_is_named_so(tail: str, what: str) -> None:
    quantized = {f"{name}{tail}": shape for name, shape in TINY.items() if name.endswith("ffn.0.weight")}
    error = refusal(TINY | quantized)
    assert what in error.message
    assert error.hint == "take the file it was made from"


def test_a_lora_is_called_one() -> None:
    error = refusal({f"blocks.0.self_attn.q.{tail}": (4, 4) for tail in ("lora_A.weight", "lora_B.weight", "alpha")})
    assert error.message == "a.safetensors is a LoRA, not a model"
    assert "loras=" in error.hint
