"""UMT5 and CLIP by function: the official formulas and transformers' classes give the same numbers.

No library maps these names, and gate/up or q/k have equal shapes: only a computation tells a swap.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from header_lists import architecture
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, UMT5Config, UMT5EncoderModel

from wanconv.models import expand, targets
from wanconv.types.architecture import Architecture

UMT5, CLIP = architecture("umt5"), architecture("clip-vit-h")


def random_weights(network: Architecture) -> dict[str, Tensor]:
    """Returns official name -> random tensor, about the size of trained weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = expand(network, "official", network.tiny)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def to_hub(network: Architecture, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under hub names, through the canonical ones."""
    canonical: dict[str, Tensor] = {}
    for target in targets(network, "official", network.tiny):
        tensor = official[target.name]
        fused = len(target.sources) > 1
        pieces = tensor.chunk(len(target.sources)) if fused else (tensor.T if target.transposed else tensor,)
        canonical.update(zip(target.sources, pieces, strict=True))
    return {
        target.name: torch.cat([canonical[source] for source in target.sources]).reshape(target.shape)
        for target in targets(network, "hub", network.tiny)
    }


def heads(x: Tensor, count: int) -> Tensor:  # (tokens, heads * d) -> (heads, tokens, d)
    return x.reshape(len(x), count, -1).transpose(0, 1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def relative_bucket(tokens: int) -> Tensor:
    """32 buckets, bidirectional, distances up to 128 (Wan-Video/Wan2.2 wan/modules/t5.py, T5RelativeEmbedding)."""
    position = torch.arange(tokens)
    distance = position[None, :] - position[:, None]
    far = 8 + (torch.log(distance.abs().clamp(min=1) / 8) / torch.log(torch.tensor(128 / 8)) * 8).long().clamp(max=7)
    return 16 * (distance > 0) + torch.where(distance.abs() < 8, distance.abs(), far)


def official_umt5(w: Mapping[str, Tensor], tokens: Tensor, layers: int, count: int) -> Tensor:
    x = w["token_embedding.weight"][tokens]
    for n in range(layers):
        b = f"blocks.{n}"
        y = rms_norm(x, w[f"{b}.norm1.weight"])
        q, k, v = (heads(y @ w[f"{b}.attn.{name}.weight"].T, count) for name in "qkv")
        bias = w[f"{b}.pos_embedding.embedding.weight"][relative_bucket(len(tokens))].permute(2, 0, 1)
        attended = (q @ k.transpose(1, 2) + bias).softmax(-1) @ v  # not scaled
        x = x + attended.transpose(0, 1).flatten(1) @ w[f"{b}.attn.o.weight"].T
        y = rms_norm(x, w[f"{b}.norm2.weight"])
        gate = F.gelu(y @ w[f"{b}.ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ w[f"{b}.ffn.fc1.weight"].T)) @ w[f"{b}.ffn.fc2.weight"].T
    return rms_norm(x, w["norm.weight"])


def official_clip(w: Mapping[str, Tensor], pixels: Tensor, layers: int, count: int) -> Tensor:
    """Returns the projected class token (Wan-Video/Wan2.1 wan/modules/clip.py, VisionTransformer)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"visual.{name}.weight"], w[f"visual.{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"visual.{name}.weight"], w[f"visual.{name}.bias"])

    patches = F.conv2d(pixels, w["visual.patch_embedding.weight"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.cls_embedding"], patches], dim=1) + w["visual.pos_embedding"]
    x = norm(x[0], "pre_norm")
    for n in range(layers):
        y = linear(norm(x, f"transformer.{n}.norm1"), f"transformer.{n}.attn.to_qkv")
        q, k, v = (heads(part, count) for part in y.chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + linear(attended.transpose(0, 1).flatten(1), f"transformer.{n}.attn.proj")
        y = F.gelu(linear(norm(x, f"transformer.{n}.norm2"), f"transformer.{n}.mlp.0"))
        x = x + linear(y, f"transformer.{n}.mlp.2")
    return norm(x[:1], "post_norm") @ w["visual.head"]


def test_umt5_in_transformers_computes_what_the_official_formula_does(tmp_path: Path) -> None:
    weights, dims = random_weights(UMT5), UMT5.tiny
    save_file(to_hub(UMT5, weights), tmp_path / "model.safetensors", metadata={"format": "pt"})
    UMT5Config(
        vocab_size=dims["vocab"],
        d_model=dims["d"],
        d_kv=dims["attn"] // dims["heads"],
        d_ff=dims["ffn"],
        num_layers=dims["n"],
        num_heads=dims["heads"],
        feed_forward_proj="gated-gelu",
    ).save_pretrained(tmp_path)
    model, report = UMT5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (list(report["missing_keys"]), list(report["unexpected_keys"])) == ([], [])
    tokens = torch.arange(200) * 7 % dims["vocab"]
    with torch.no_grad():
        theirs = model.eval()(tokens[None]).last_hidden_state[0]
    torch.testing.assert_close(theirs, official_umt5(weights, tokens, dims["n"], dims["heads"]), rtol=0, atol=1e-4)


def test_clip_in_transformers_computes_what_the_official_formula_does(tmp_path: Path) -> None:
    weights, dims = random_weights(CLIP), CLIP.tiny
    save_file(to_hub(CLIP, weights), tmp_path / "model.safetensors", metadata={"format": "pt"})
    CLIPVisionConfig(
        hidden_size=dims["d"],
        intermediate_size=dims["ffn"],
        num_hidden_layers=dims["n"],
        num_attention_heads=dims["heads"],
        projection_dim=dims["joint"],
        patch_size=14,
        hidden_act="gelu",
    ).save_pretrained(tmp_path)
    model, report = CLIPVisionModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert (list(report["missing_keys"]), list(report["unexpected_keys"])) == ([], [])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model.eval()(pixels).image_embeds
    torch.testing.assert_close(theirs, official_clip(weights, pixels, dims["n"], dims["heads"]), rtol=0, atol=1e-4)
