"""Tiny checkpoints that a test may spoil, and what a folder holds, to be compared."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wanconv.containers import open_checkpoint
from wanconv.quantization.plain import TORCH_DTYPES
from wanconv.samples import synthetic


def make(folder: Path, release: str = "wan2.1-t2v-1.3b", *components: str, layout: str | None = None) -> Path:
    return synthetic.make(folder, synthetic.SampleOptions(release, components=components, layout=layout))


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def strengthened(source: Path, folder: Path) -> Path:
    """Returns a copy whose denoisers say something: made-up weights have a deviation of 0.02, these one of 0.1."""
    copy(source, folder)
    for file in folder.glob("transformer*/*.safetensors"):
        tensors = load_file(file)
        save_file({name: one * 5 if one.dim() > 1 else one for name, one in tensors.items()}, file, {"format": "pt"})
    return folder


def poke(file: Path, name: str, index: int, value: float) -> None:
    """Overwrites one element of a tensor on disk; `index` may be negative."""
    (part,) = open_checkpoint(file).parts
    ref = part.tensors[name]
    element = torch.tensor([value], dtype=torch.float32).to(TORCH_DTYPES[ref.dtype]).view(torch.uint8)
    with file.open("r+b") as stream:
        stream.seek(ref.offset + index % ref.numel * element.numel())
        stream.write(bytes(element.tolist()))


def dtype_of(file: Path, name: str) -> torch.dtype:
    with safe_open(file, "pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor.dtype


def digests(folder: Path) -> dict[str, str]:
    """Returns path -> sha256 of every file below a folder, whatever it is."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents(out: Path) -> dict[str, str]:
    """Returns digests() of a converted folder, where the manifest counts without `tool` and its own digest."""
    manifest = json.loads((out / "wanconv.json").read_bytes())
    del manifest["tool"], manifest["self_sha256"]
    return digests(out) | {"wanconv.json": json.dumps(manifest)}


def weight_files(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.suffix in (".safetensors", ".pth"))


def searched(folder: Path) -> str:
    """Writes a recipe of what ComfyUI reads, with every scale found by its squared error; returns its path."""
    rules = (
        ("ffn.*.weight", "int8", "tensor"),
        ("self_attn.*.weight", "int8", "row"),
        ("cross_attn.{q,k}.weight", "fp8_e5m2", "tensor"),
        ("cross_attn.*.weight", "fp8_e4m3fn", "auto"),
    )
    text = 'schema = 1\nsummary = "a test"\n'
    for glob, name, scale in rules:
        text += f'[[rule]]\nmatch = "{{dit,expert.*}}/blocks.*.{glob}"\nkind = "linear"\nformat = "{name}"\n'
        text += f'scale = "{scale}"\nrounding = "mse"\n'
    (folder / "searched.toml").write_text(text + '[[rule]]\nmatch = "**"\nformat = "bf16"\n')
    return str(folder / "searched.toml")
