"""The small model that ships: what the package holds, and the official folder that is made of it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import digests

from wanconv.containers import open_checkpoint
from wanconv.errors import UsageError
from wanconv.layouts import source_layout
from wanconv.models import identify
from wanconv.samples import shipped

PICKLED = {"vae.safetensors": "Wan2.1_VAE.pth", "text_encoder.safetensors": "models_t5_umt5-xxl-enc-bf16.pth"}


@pytest.fixture(scope="module")
def source(trained: Path) -> Path:
    return trained


def test_it_is_a_whole_checkpoint_in_the_official_layout(source: Path) -> None:
    model = identify(open_checkpoint(source))
    assert (model.family.name, source_layout(model).name) == ("wan2.2-t2v-a14b", "official")
    assert set(model.components) == set(model.family.components)
    assert {tensor.dtype for tensor in model.tensors.values()} == {"fp32"}


def test_it_takes_at_most_12_megabytes_of_the_package() -> None:
    with shipped.packaged() as root:
        assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= 12_000_000


def test_torch_reads_in_the_pth_what_the_package_holds(source: Path) -> None:
    with shipped.packaged() as root:
        for packed, made in PICKLED.items():
            wanted, found = load_file(root / packed), torch.load(source / made, weights_only=True)
            assert list(found) == list(wanted)
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_what_the_package_has_besides_is_copied(source: Path) -> None:
    with shipped.packaged() as root:
        packed = digests(root)
    made = digests(source)
    assert set(made) == (set(packed) - set(PICKLED)) | set(PICKLED.values())
    assert {name: packed[name] for name in packed if name not in PICKLED} == {
        name: made[name] for name in made if name not in PICKLED.values()
    }


def test_the_same_package_gives_the_same_bytes_and_what_is_there_stays(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".wanconv-demo-0a1b2c3d").mkdir()
    (tmp_path / ".wanconv-demo-0a1b2c3d" / "half.safetensors").write_bytes(b"half")  # of a run that was killed
    again = shipped.make(tmp_path / "source")
    assert digests(again) == digests(source)
    (again / "SHA256SUMS").write_text("a user's own")
    assert shipped.make(again) == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert (again / "SHA256SUMS").read_text() == "a user's own"


def test_a_folder_named_partial_beside_the_model_is_somebodys_and_stays(tmp_path: Path) -> None:
    (tmp_path / "source.partial").mkdir()
    (tmp_path / "source.partial" / "precious").write_text("precious")
    shipped.make(tmp_path / "source")
    assert (tmp_path / "source.partial" / "precious").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "source.partial"]


def test_a_folder_that_is_another_model_is_left_alone_and_told(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "source"
    shutil.copytree(source, other)
    (other / "Wan2.1_VAE.pth").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"is not the model that ships with wanconv: Wan2\.1_VAE\.pth differs"):
        shipped.make(other)
    assert (other / "Wan2.1_VAE.pth").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
