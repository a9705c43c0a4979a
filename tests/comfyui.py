"""What ComfyUI reads of a file: its rules for the names of scales, and comfy-kitchen's own decoding."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import comfy_kitchen.tensor as kitchen
import torch
from safetensors import safe_open
from torch import Tensor

_LAYOUTS = {
    "float8_e4m3fn": kitchen.TensorCoreFP8Layout,
    "float8_e5m2": kitchen.TensorCoreFP8Layout,
    "int8_tensorwise": kitchen.TensorWiseINT8Layout,
    "mxfp8": kitchen.TensorCoreMXFP8Layout,
    "nvfp4": kitchen.TensorCoreNVFP4Layout,
}


def contents(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict


def read(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Mapping[str, object]]]:
    """Yields the weights with a scale, decoded by comfy-kitchen, and how each is multiplied: comfy/utils.py takes every
    `scale_weight` of a file marked `scaled_fp8` for the scale of an e4m3 weight, in full precision if that has two
    elements; other files say it in each layer's `comfy_quant`."""
    marker = tensors.get("scaled_fp8")
    leaf = "weight_scale" if marker is None else "scale_weight"
    legacy: dict[str, object] = {"format": "float8_e4m3fn"}
    if marker is not None and marker.nelement() == 2:
        legacy["full_precision_matrix_mult"] = True
    for name in [name for name in tensors if name.endswith(f".{leaf}")]:
        layer = name.removesuffix(f".{leaf}")
        says = legacy if marker is not None else json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))
        payload, layout = tensors[f"{layer}.weight"], _LAYOUTS[str(says["format"])]
        scales = {"scale": tensors[name]}
        if says["format"] == "mxfp8":  # comfy/ops.py views the bytes so
            scales = {"scale": tensors[name].view(torch.float8_e8m0fnu)}
        if says["format"] == "nvfp4":
            scales = {"scale": tensors[f"{layer}.weight_scale_2"], "block_scale": tensors[name]}
        rows, columns = payload.shape
        shape = (rows, 2 * columns if says["format"] == "nvfp4" else columns)
        params = layout.Params(**scales, orig_dtype=torch.float32, orig_shape=shape)
        yield f"{layer}.weight", layout.dequantize(payload, params), says
