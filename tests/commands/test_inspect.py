"""inspect: what a folder or a lone file is, in figures that are right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import command
import pytest
import sparse
from header_lists import RELEASES

from wanconv.commands.inspect import inspect
from wanconv.containers import open_checkpoint
from wanconv.errors import InputError, Unrecognised, UsageError
from wanconv.layouts import LAYOUTS
from wanconv.models import FAMILIES
from wanconv.report import Cell
from wanconv.samples.synthetic import home
from wanconv.types.architecture import Family

A14B = "wan2.2-t2v-a14b"
EXPERT = "diffusion_pytorch_model.safetensors"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_figures_of_a_folder_are_those_of_its_files(family: Family, tiny: Callable[..., Path]) -> None:
    folder = tiny(family.releases[-1].name)
    report = inspect(folder, tensors=True)
    refs = [ref for part in open_checkpoint(folder).parts for ref in part.tensors.values()]
    assert report.figures["family"] == family.name
    assert report.figures["release"] == Cell(None, "none: not a released size")
    assert report.figures["layout"] == home(family)
    assert report.figures["parameters"] == sum(ref.numel for ref in refs)
    assert report.figures["total_nbytes"] == sum(ref.nbytes for ref in refs)
    components, _, tensors = report.tables
    assert [row[0] for row in components.rows] == list(family.components)
    assert [row[1] for row in components.rows] == [network.name for network in family.components.values()]
    assert sum(row[7] for row in components.rows) == report.figures["total_nbytes"]  # type: ignore[misc]  # numbers
    assert len(tensors.rows) == report.figures["tensors"]
    assert {row[5] for row in tensors.rows} == {ref.name for ref in refs}  # where each stands on disk
    assert report.exit_code == 0


def test_dtypes_are_counted_the_most_frequent_first(tiny: Callable[..., Path]) -> None:
    report = inspect(tiny(A14B))
    assert report.text("dtypes") == "fp32 386, bf16 22"
    rows = report.to_json()["tables"]
    assert isinstance(rows, dict)
    assert [(row["component"], row["dtypes"]) for row in rows["components"]] == [
        ("expert.high", {"fp32": 96}),
        ("expert.low", {"fp32": 96}),
        ("text_encoder", {"bf16": 22}),
        ("vae", {"fp32": 194}),
    ]


def test_a_lone_transformer_that_may_be_an_expert_is_told_with_the_flag_that_names_it(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny(A14B, "diffusers") / "transformer"
    told = command.run("inspect", folder, cwd=tmp_path)
    assert "family             wan2.1-t2v" in told.stdout
    line = (
        "note dit: taken for the denoiser of wan2.1-t2v: nothing here tells it from an expert of wan2.2-t2v-a14b, "
        "whose names and shapes are the same – --expert high or --expert low says that it is one\n"
    )
    assert line in told.stderr
    assert line in command.run("convert", folder, "-r", "keep", "-o", "out", "--dry-run", cwd=tmp_path).stderr
    named = command.run("inspect", folder, "--expert", "low", cwd=tmp_path)
    assert "family             wan2.2-t2v-a14b" in named.stdout
    assert "taken for" not in named.stderr


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_size_is_named_and_has_its_fingerprint(release: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if RELEASES[release] in family.releases)
    denoisers = [name for name in family.components if name == "dit" or name.startswith("expert.")]
    report = inspect(sparse.make(tmp_path / "source", release, components=denoisers))
    assert (report.figures["family"], report.figures["release"]) == (family.name, Cell(release, release))
    assert {row[8] for row in report.tables[0].rows} == {RELEASES[release].fingerprint}
    assert {row[2] for row in report.tables[0].rows} == {LAYOUTS[home(family)].scheme}


def test_the_hubs_names_are_the_same_release(tmp_path: Path) -> None:
    folder = sparse.make(tmp_path / "source", A14B, "diffusers", ("expert.high", "expert.low"))
    report = inspect(folder)
    assert (report.figures["release"], report.figures["layout"]) == (Cell(A14B, A14B), "diffusers")
    assert {row[2] for row in report.tables[0].rows} == {"hub"}


def test_a_lone_denoiser_says_what_is_absent(tiny: Callable[..., Path]) -> None:
    report = inspect(tiny("wan2.2-ti2v-5b") / EXPERT)
    assert report.figures["family"] == "wan2.2-ti2v-5b"
    assert [(finding.where, finding.message) for finding in report.findings] == [
        ("text_encoder", "absent (wan2.2-ti2v-5b has one)"),
        ("vae", "absent (wan2.2-ti2v-5b has one)"),
    ]


def test_a_lone_expert_is_what_its_folder_its_name_or_the_user_says(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("wan2.2-i2v-a14b") / "low_noise_model" / EXPERT
    by_folder = inspect(source)
    assert [row[0] for row in by_folder.tables[0].rows] == ["expert.low"]
    lone = tmp_path / "model.safetensors"
    shutil.copy(source, lone)
    with pytest.raises(
        UsageError, match="is one of two experts, and neither folder nor file name says which"
    ) as raised:
        inspect(lone)
    assert raised.value.hint == 'say `expert="high"` or `expert="low"`'
    told = inspect(lone, expert="high")
    assert [row[0] for row in told.tables[0].rows] == ["expert.high"]
    assert ("expert.high", 'its role comes from `expert="high"`') in [(one.where, one.message) for one in told.findings]
    with pytest.raises(UsageError, match=r'`expert="high"` contradicts the folder name low_noise_model'):
        inspect(source, expert="high")


@pytest.mark.parametrize(
    ("file", "component", "network"),
    [(T5, "text_encoder", "umt5"), ("Wan2.1_VAE.pth", "vae", "wan-vae-2.1")],
)
def test_a_lone_file_that_many_families_share_claims_none(
    file: str, component: str, network: str, tiny: Callable[..., Path]
) -> None:
    report = inspect(tiny(A14B) / file)
    assert report.figures["family"] == f"not known from {component} alone: a denoiser is needed"
    assert [row[:2] for row in report.tables[0].rows] == [(component, network)]
    assert not report.findings


def test_excluded_files_are_not_looked_at(tiny: Callable[..., Path]) -> None:
    report = inspect(tiny(A14B), exclude=("*.pth", "low_noise_model/*"))
    assert [row[0] for row in report.tables[0].rows] == ["expert.high"]


def test_a_half_known_folder_names_what_fits_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny("wan2.1-t2v-1.3b"), source)
    file = source / EXPERT
    file.write_bytes(file.read_bytes().replace(b"blocks.1.ffn.0.weight", b"blocks.1.ffn.0.weighs"))
    with pytest.raises(Unrecognised, match=rf"^{EXPERT} fits no known network; the nearest is wan-t2v") as raised:
        inspect(source)
    assert raised.value.details == ("missing: blocks.1.ffn.0.weight", "unknown: blocks.1.ffn.0.weighs")
    with pytest.raises(Unrecognised):
        inspect(file)
    assert inspect(source, exclude=("diffusion*",)).tables[0].rows[0][0] == "text_encoder"


def test_networks_that_no_family_has_together_are_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny("wan2.1-t2v-1.3b"), source)
    (source / "Wan2.1_VAE.pth").unlink()
    shutil.copy(tiny("wan2.2-ti2v-5b") / "Wan2.2_VAE.pth", source)
    with pytest.raises(InputError, match=r"Wan2\.2_VAE\.pth is wan-vae-2\.2, which wan2\.1-t2v does not use"):
        inspect(source)


def test_the_command_prints_the_same_figures(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny(A14B)
    done = command.run("inspect", folder, "--tensors", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    expected = inspect(folder, tensors=True)
    assert report["figures"] == expected.to_json()["figures"]
    assert report["tables"]["tensors"][0] == {
        "name": "expert.high/patch_embedding.weight",
        "kind": "conv",
        "dtype": "fp32",
        "shape": [128, 16, 1, 2, 2],
        "size_nbytes": 32768,
        "on_disk": "patch_embedding.weight",
    }
