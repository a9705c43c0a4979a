"""verify --for CLIENT: what was written for a client passes, what another one needs or what was changed does not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from covering import covering, takes

from wanconv.commands.convert import convert
from wanconv.commands.inspect import inspect
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Refused, UsageError
from wanconv.layouts import LAYOUTS
from wanconv.report import Cell

A14B = "wan2.2-t2v-a14b"
RECIPES = ("bf16", "fp8-scaled", "int8-row")


@pytest.fixture(scope="module")
def made(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path | None]:
    """Returns made(recipe, layout): a converted folder, None where the layout refuses the recipe."""
    found: dict[tuple[str, str], Path | None] = {}

    def get(recipe: str, layout: str) -> Path | None:
        if (recipe, layout) not in found:
            out = tmp_path_factory.mktemp("client") / "out"
            try:
                convert(tiny(A14B), ConvertOptions(recipe, layout=layout, out=out))
            except Refused:
                found[recipe, layout] = None
            else:
                found[recipe, layout] = out
        return found[recipe, layout]

    return get


def failures(folder: Path, client: str) -> dict[str, str]:
    report = verify(folder, VerifyOptions(client=client))
    found = {finding.where: finding.message for finding in report.findings if finding.severity == "failure"}
    assert report.exit_code == (1 if found else 0)
    return found


@covering(("recipe", "layout"), RECIPES, list(LAYOUTS), strength=1, given=lambda recipe, layout: takes(layout, recipe))
def test_what_was_written_for_a_client_is_what_it_reads(
    recipe: str, layout: str, made: Callable[[str, str], Path | None]
) -> None:
    folder = made(recipe, layout)
    assert folder is not None
    assert failures(folder, layout) == {}


@covering(
    ("recipe", "written", "client"),
    ["fp8-scaled", "int8-row"],
    ["comfyui", "lightx2v", "diffusers"],
    list(LAYOUTS),
    given=lambda recipe, written, client: written != client,
)
def test_what_was_written_with_scales_for_one_client_is_for_no_other(
    recipe: str, written: str, client: str, made: Callable[[str, str], Path | None]
) -> None:
    folder = made(recipe, written)
    assert folder is not None
    assert failures(folder, client)


def test_the_same_files_without_scales_are_for_official_code_lightx2v_and_diffsynth(
    made: Callable[[str, str], Path | None],
) -> None:
    folder = made("bf16", "official")
    assert folder is not None
    assert [client for client in LAYOUTS if not failures(folder, client)] == ["official", "lightx2v", "diffsynth"]


def test_a_header_or_config_that_does_not_say_it_is_found(made: Callable[[str, str], Path | None]) -> None:
    folder = made("int8-row", "diffusers")
    assert folder is not None
    path = folder / "transformer" / "config.json"
    config = path.read_bytes()
    without = {key: value for key, value in json.loads(config).items() if key != "quantization_config"}
    path.write_text(json.dumps(without))
    assert failures_of_client(folder)["transformer/config.json"].startswith(
        "does not say what diffusers reads as quant"
    )
    path.write_bytes(config)


def failures_of_client(folder: Path) -> dict[str, str]:
    report = verify(folder, VerifyOptions(client="diffusers"))
    return {finding.where: finding.message for finding in report.findings if finding.code == "check-failed"}


def test_an_unknown_client_is_named(made: Callable[[str, str], Path | None]) -> None:
    folder = made("bf16", "official")
    assert folder is not None
    with pytest.raises(UsageError, match="there is no layout 'comfy'"):
        verify(folder, VerifyOptions(client="comfy"))


# what inspect says of it


def clients(path: Path, *exclude: str) -> dict[str, tuple[str, str]]:
    """Returns client -> (first version known, reason why not) by inspect."""
    (table,) = [table for table in inspect(path, exclude=exclude).tables if table.title == "clients"]
    assert table.columns == ("client", "reads_it", "since", "why_not")
    assert all(isinstance(row[1], Cell) and row[1].value is (row[3] == "") for row in table.rows)
    return {str(row[0]): (str(row[2]), str(row[3])) for row in table.rows}


@covering(
    ("recipe", "written"), RECIPES, list(LAYOUTS), strength=1, given=lambda recipe, written: takes(written, recipe)
)
def test_inspect_says_of_every_client_what_verify_does(
    recipe: str, written: str, made: Callable[[str, str], Path | None]
) -> None:
    folder = made(recipe, written)
    assert folder is not None
    said = clients(folder)
    assert said.keys() == LAYOUTS.keys()
    assert {client: reason == "" for client, (_, reason) in said.items()} == {
        client: failures(folder, client) == {} for client in LAYOUTS
    }
    assert inspect(folder).text("clients") == ", ".join(client for client, (_, reason) in said.items() if not reason)


def test_the_first_version_that_reads_it_is_named(made: Callable[[str, str], Path | None]) -> None:
    expected = {
        ("bf16", "diffusers"): "diffusers 0.35",
        ("fp8-scaled", "diffusers"): "diffusers 0.42.1, torchao 0.16",
        ("fp8-scaled", "comfyui"): "ComfyUI of December 2025",
        ("fp8-scaled", "comfyui-legacy"): "ComfyUI of March 2025",
        ("int8-row", "comfyui"): "ComfyUI 0.27",
        ("int8-row", "lightx2v"): "",
    }
    for (recipe, layout), version in expected.items():
        folder = made(recipe, layout)
        assert folder is not None
        assert clients(folder)[layout] == (version, "")
        assert verify(folder, VerifyOptions(client=layout)).figures.get("since", "") == version


def test_a_client_that_cannot_has_a_short_reason(made: Callable[[str, str], Path | None]) -> None:
    folder = made("fp8-scaled", "comfyui")
    assert folder is not None
    reasons = {client: reason for client, (_, reason) in clients(folder).items()}
    assert reasons["comfyui-legacy"] == "its scales are stored for comfyui"
    assert reasons["lightx2v"] == (
        "its scales are stored for comfyui: its kernels take one scale for each row of fp8_e4m3fn and int8, "
        "and wanconv writes no blocks for them"
    )
    plain = made("bf16", "official")
    assert plain is not None
    assert clients(plain)["diffusers"] == ("", "expert.high: diffusers looks for safetensors in transformer")


def test_a_lone_file_is_judged_by_what_it_holds(made: Callable[[str, str], Path | None]) -> None:
    folder = made("bf16", "official")
    assert folder is not None
    lone = clients(folder / "high_noise_model" / "diffusion_pytorch_model.safetensors")
    assert [client for client, (_, reason) in lone.items() if not reason] == [
        "official", "diffusers-single", "comfyui", "comfyui-legacy", "lightx2v", "diffsynth",
    ]  # fmt: skip
    assert lone["diffusers"][1].startswith(
        "blocks.0.attn1.norm_k.weight: diffusers needs it, and it is not there (and "
    )


def test_a_family_without_a_home_is_not_planned(tiny: Callable[..., Path]) -> None:
    _, reason = clients(tiny("wan2.2-s2v-14b"), "*.pth")["diffusers"]
    assert reason == "diffusers has no model or pipeline for the audio-driven Wan 2.2 S2V"
