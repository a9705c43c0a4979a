"""Synthetic checkpoints: they are what they say, the same every time, and what they cannot be is a sentence."""

import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny as tools
from typer.testing import CliRunner

from wanconv.containers import open_checkpoint
from wanconv.errors import UsageError
from wanconv.layouts import LAYOUTS, source_layout
from wanconv.models import DENOISERS, FAMILIES, identify
from wanconv.samples.synthetic import PUBLISHED, SampleOptions, make, releases

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_checkpoint"
MADE = [
    (release, layout)
    for release, (family, _) in releases().items()
    for layout in PUBLISHED
    if family.name not in (LAYOUTS[layout].refused or {})
]


@pytest.mark.parametrize(("release", "layout"), MADE)
def test_a_tiny_checkpoint_is_identified_as_what_it_is(release: str, layout: str, tiny: Callable[..., Path]) -> None:
    family, _ = releases()[release]
    model = identify(open_checkpoint(tiny(release, layout)))
    assert (model.family, model.absent, source_layout(model)) == (family, (), LAYOUTS[layout])
    for name, component in model.components.items():
        sizes = family.components[name].tiny
        assert {size: number for size, number in component.dims.items() if size in sizes} == {
            size: number for size, number in sizes.items() if size in component.dims
        }
    assert {component.dims.get("heads", 2) for name, component in model.components.items() if name in DENOISERS} == {2}


def test_every_family_can_be_made() -> None:
    assert {releases()[release][0].name for release, _ in MADE} == {family.name for family in FAMILIES}


def test_the_same_options_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        make(tmp_path / name, SampleOptions("wan2.2-t2v-a14b", seed=seed, jobs=jobs))
        for name, seed, jobs in (("first", 0, 2), ("again", 0, 1), ("other", 1, 2))
    )
    assert tools.digests(first) == tools.digests(again)
    differing = {path for path, digest in tools.digests(first).items() if tools.digests(other)[path] != digest}
    assert differing == {str(path.relative_to(first)) for path in tools.weight_files(first)}


def test_dtype_blocks_and_components_are_as_asked(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "made", SampleOptions("wan2.2-i2v-a14b", dtype="fp16", blocks=5, components=("expert.low", "vae"))
    )
    model = identify(open_checkpoint(folder))
    assert list(model.components) == ["expert.low", "vae"]
    assert model.components["expert.low"].dims["n"] == 5
    assert {tensor.dtype for tensor in model.components["expert.low"].tensors.values()} == {"fp16"}
    assert {tensor.dtype for tensor in model.components["vae"].tensors.values()} == {"fp32"}


@pytest.mark.parametrize("release", ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b"])
@pytest.mark.parametrize("expert", ["expert.high", "expert.low"])
def test_a_lone_expert_keeps_its_role_in_every_layout(release: str, expert: str, tmp_path: Path) -> None:
    for layout in PUBLISHED:
        folder = make(tmp_path / layout, SampleOptions(release, components=(expert,), layout=layout))
        model = identify(open_checkpoint(folder))
        assert (model.family.name, list(model.components)) == (release, [expert])


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (SampleOptions("wan2.2-t2v-a41b"), "there is no release 'wan2.2-t2v-a41b'", "did you mean wan2.2-t2v-a14b?"),
        (SampleOptions("zzz"), "there is no release 'zzz'", "known: wan2.1-t2v-1.3b, "),
        (
            SampleOptions("wan2.1-t2v-14b", layout="difusers"),
            "there is no layout 'difusers'",
            "did you mean diffusers?",
        ),
        (SampleOptions("wan2.1-t2v-14b", dtype="float16"), "there is no dtype 'float16'", "did you mean fp16?"),
        (SampleOptions("wan2.1-t2v-14b", dtype="int8"), "there is no dtype 'int8'", "known: fp32, bf16, "),
        (
            SampleOptions("wan2.1-t2v-14b", components=("dit", "expert.high")),
            "there is no component of wan2.1-t2v 'expert.high'",
            "known: dit, text_encoder, vae",
        ),
        (
            SampleOptions("wan2.2-s2v-14b", layout="diffusers"),
            "wan2.2-s2v-14b has no diffusers layout: diffusers has no model ",
            "name another one",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_written(
    options: SampleOptions, message: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        make(tmp_path / "made", options)
    assert raised.value.message.startswith(message)
    assert raised.value.hint.startswith(hint)
    assert not (tmp_path / "made").exists()


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="is there already"):
            make(path, SampleOptions("wan2.1-t2v-14b"))
    assert (tmp_path / "file").read_text() == "mine"


def test_the_script_makes_a_checkpoint_and_prints_where(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "wan2.1-t2v-1.3b", "--only", "dit", "--blocks", "2", "--dtype", "bf16"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "wan2.1-t2v-1.3b-tiny")
    config = json.loads((tmp_path / "wan2.1-t2v-1.3b-tiny" / "config.json").read_bytes())
    assert (config["num_layers"], config["model_type"]) == (2, "t2v")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "Write a synthetic checkpoint, streamed"),
        (["wan9"], 2, "there is no release 'wan9'"),
        (["wan2.1-t2v-14b", "--dtype", "bf61"], 2, "there is no dtype 'bf61'"),
        (["wan2.1-t2v-14b", "--only", "dti"], 2, "there is no component of wan2.1-t2v 'dti'"),
        (["wan2.1-t2v-14b", "--scale", "huge"], 2, "huge"),
    ],
)
def test_the_script_says_what_it_is_and_what_is_wrong(
    arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(runpy.run_path(str(SCRIPT))["app"], arguments)
    assert done.exit_code == code
    assert said in done.output
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN  # a server in this process may lose clients
