"""Installed distributions add layouts, models and hubs by entry points: found when needed, named in what they made."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub.server import running
from tiny import make

from wanconv import testing
from wanconv.commands.convert import convert
from wanconv.commands.inspect import inspect, inspect_remote
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import PluginError, UsageError
from wanconv.layouts import LAYOUTS, Layout
from wanconv.models import ARCHITECTURE_TABLE, FAMILIES, FAMILY_TABLE, family_named, match
from wanconv.storage.hubs import open_hub
from wanconv.storage.places import HUBS, unsupported
from wanconv.types import registry

MODULE = """
import os
from dataclasses import replace
from wanconv.layouts import LAYOUTS
from wanconv.models import FAMILIES, family_named
from wanconv.storage.hubs import Address, RemoteFile, Snapshot
from wanconv.types.architecture import Release, Role, Spelling

OFFICIAL = LAYOUTS["official"]
MINE = replace(OFFICIAL, name="mine", summary="Mine: as the official code", loader="example/mine loader.py")
BASE = family_named("wan2.1-t2v")
GATE = Role("gate.weight", "linear", ("d", "d"), {"official": Spelling("gate.weight"), "hub": Spelling("gate.weight")})
NETWORK = replace(BASE.components["dit"], name="wan-gated", roles=(*BASE.components["dit"].roles, GATE))
GATED = replace(
    BASE, name="wan-gated", components={**BASE.components, "dit": NETWORK},
    releases=(Release("wan-gated-14b", NETWORK.full, "0" * 32, "example/wan-gated"),),
)

class Shelf:
    name, title, token_name = "shelf", "Shelf", "SHELF_TOKEN"

    def snapshot(self, repository, revision):
        rows = [line.split() for line in os.environ["SHELF_FILES"].splitlines()]
        files = tuple(RemoteFile(path, int(nbytes), "sha256", digest) for path, nbytes, digest in rows)
        return Snapshot("shelf", repository, revision or "main", None, files)

    def address(self, snapshot, path):
        return Address(f"{os.environ['SHELF']}/{snapshot.repository}/resolve/main/{path}")

def shelf(token, patience):
    return Shelf()
"""
ENTRIES = {
    "wanconv.layouts": "mine = wanconv_mine:MINE",
    "wanconv.models": "gated = wanconv_mine:GATED",
    "wanconv.storage": "shelf = wanconv_mine:shelf",
}
Install = Callable[..., None]


def forget() -> None:
    """Has every table ask again what is installed."""
    registry.plugins.cache_clear()
    for table in (LAYOUTS, FAMILY_TABLE, ARCHITECTURE_TABLE, HUBS):
        table._all = None
        table._origins.clear()
    match._tables.cache_clear()
    match._known_keys.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs distributions, each a module and its entry points, for a test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules = set(sys.modules)

    def installed(name: str = "wanconv-mine", text: str = MODULE, entries: dict[str, str] = ENTRIES) -> None:
        module = name.replace("-", "_")
        (site / f"{module}.py").write_text(text)
        info = site / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        groups = (f"[{group}]\n{line}\n" for group, line in entries.items())
        (info / "entry_points.txt").write_text("\n".join(groups))
        forget()

    yield installed
    for module in set(sys.modules) - modules:
        if module.startswith("wanconv_"):
            del sys.modules[module]
    monkeypatch.undo()
    forget()


def test_a_layout_and_a_model_of_a_plugin_are_used_as_our_own_and_named_in_the_manifest(
    install: Install, tmp_path: Path
) -> None:
    install()
    assert LAYOUTS.origin("mine") == FAMILY_TABLE.origin("wan-gated") == registry.Distribution("wanconv-mine", "1.2")
    source = make(tmp_path / "source", "wan-gated-14b", layout="official")
    assert inspect(source).figures["family"] == "wan-gated"
    out = tmp_path / "out"
    convert(source, ConvertOptions("bf16", layout="mine", out=out))
    manifest = json.loads((out / "wanconv.json").read_bytes())
    assert (manifest["family"], manifest["layout"]) == ("wan-gated", "mine")
    assert manifest["plugins"] == [{"name": "wanconv-mine", "version": "1.2"}]
    assert verify(out, VerifyOptions(against=source, client="mine")).exit_code == 0
    for value in (LAYOUTS["mine"], family_named("wan-gated"), family_named("wan-gated").components["dit"]):
        assert len(pickle.dumps(value)) < 150
        assert pickle.loads(pickle.dumps(value)) is value


def test_what_no_plugin_has_a_part_in_stays_the_same_to_the_byte(install: Install, tmp_path: Path) -> None:
    source = make(tmp_path / "source", "wan2.1-t2v-1.3b")
    convert(source, ConvertOptions("bf16", out=tmp_path / "without"))
    install()
    convert(source, ConvertOptions("bf16", out=tmp_path / "with"))
    for path in sorted(file for file in (tmp_path / "without").rglob("*") if file.is_file()):
        assert (tmp_path / "with" / path.relative_to(tmp_path / "without")).read_bytes() == path.read_bytes()


def test_another_version_of_a_plugin_makes_another_conversion(install: Install, tmp_path: Path) -> None:
    install()
    source, out = make(tmp_path / "source", "wan-gated-14b", layout="official"), tmp_path / "out"
    convert(source, ConvertOptions("bf16", layout="mine", out=out))
    metadata = tmp_path / "site" / "wanconv_mine-1.2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    forget()
    with pytest.raises(UsageError, match="holds another conversion"):
        convert(source, ConvertOptions("bf16", layout="mine", out=out))


def test_a_hub_of_a_plugin_is_read_by_its_scheme(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unsupported("shelf://owner/name", hubs=True) is not None
    install()
    source = make(tmp_path / "source", "wan2.1-t2v-1.3b")
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with running(files) as hub:
        monkeypatch.setenv("SHELF", hub.endpoint)
        rows = [f"{path} {len(content)} {hub.sha256(content)}" for path, content in files.items()]
        monkeypatch.setenv("SHELF_FILES", "\n".join(rows))
        assert inspect_remote("shelf://owner/name").figures["family"] == "wan2.1-t2v"
        testing.check_hub(open_hub("shelf"), "owner/name", tmp_path / "shelf")
        assert (tmp_path / "shelf" / "config.json").read_bytes() == files["config.json"]


def test_the_kit_passes_what_keeps_its_promises_and_says_what_does_not(install: Install, tmp_path: Path) -> None:
    install()
    family = next(family for family in FAMILIES if family.name == "wan-gated")
    testing.check_family(family, tmp_path / "family")
    testing.check_layout(LAYOUTS["mine"], tmp_path / "layout", [family])
    network = family.components["dit"]
    with pytest.raises(AssertionError, match=r"wan-gated in official names: gate\.weight has the parts \[0, 0\]"):
        testing.check_architecture(replace(network, roles=(*network.roles, network.roles[-1])))
    with pytest.raises(AssertionError, match="elsewhere is in no table: is its plugin installed"):
        testing.check_layout(replace(LAYOUTS["mine"], name="elsewhere"), tmp_path)
    with pytest.raises(AssertionError, match="elsewhere is in no table: is its plugin installed"):
        testing.check_family(replace(family, name="elsewhere"), tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_our_own_layouts_keep_what_a_plugins_must(layout: Layout, tmp_path: Path) -> None:
    name = "cogvideox-2b" if layout.name == "diffusers" else "wan2.1-t2v"
    testing.check_layout(layout, tmp_path, [family for family in FAMILIES if family.name == name])


def test_a_name_that_is_taken_is_refused_with_both_distributions(install: Install) -> None:
    install()
    install(
        "wanconv-other",
        MODULE.replace("as the official code", "another one"),
        {"wanconv.layouts": "x = wanconv_other:MINE"},
    )
    with pytest.raises(PluginError, match=r"the layout 'mine' is in wanconv-mine 1\.2 and in the plugin wanconv-other"):
        len(LAYOUTS)


def test_a_name_of_our_own_is_not_replaced(install: Install) -> None:
    install(
        "wanconv-thief", MODULE.replace('name="mine"', 'name="comfyui"'), {"wanconv.layouts": "x = wanconv_thief:MINE"}
    )
    with pytest.raises(PluginError, match="the layout 'comfyui' is in wanconv itself and in the plugin wanconv-thief"):
        list(LAYOUTS)
    install("wanconv-scheme", MODULE, {"wanconv.storage": "hf = wanconv_scheme:shelf"})
    with pytest.raises(PluginError, match="the hub 'hf' is in wanconv itself and in the plugin wanconv-scheme"):
        unsupported("s3://bucket/name")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise RuntimeError('no\\nluck')", "cannot be loaded (wanconv.layouts, x): RuntimeError: no"),
        ("import no_such_module", "cannot be loaded (wanconv.layouts, x): ModuleNotFoundError: No module named"),
        ("MINE = 7", "(x) holds a int, and wanconv.layouts takes a Layout"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_a_sentence_with_a_way_out(install: Install, text: str, said: str) -> None:
    install("wanconv-broken", text, {"wanconv.layouts": "x = wanconv_broken:MINE"})
    with pytest.raises(PluginError) as caught:
        list(LAYOUTS)
    assert said in caught.value.message
    assert caught.value.message.startswith("the plugin wanconv-broken 1.2 ")
    assert "WANCONV_PLUGINS=0" in caught.value.hint
    assert LAYOUTS["comfyui"].name == "comfyui"  # what needs no plugin asks for none


def test_plugins_are_disabled_by_a_variable(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANCONV_PLUGINS", "0")
    install()
    assert "mine" not in LAYOUTS
    with pytest.raises(LookupError, match="knows no layout 'mine'; is the plugin that adds it installed"):
        LAYOUTS.named("mine")


def test_the_functions_of_the_kit_are_those_of_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "plugins.md").read_text()
    assert sorted(re.findall(r"^\| `(check_\w+)\(", page, re.MULTILINE)) == sorted(testing.__all__)
    assert sorted(re.findall(r"^\| `(wanconv\.\w+)` \|", page, re.MULTILINE)) == sorted(ENTRIES)


def test_help_and_the_list_of_recipes_load_no_plugin(install: Install, tmp_path: Path) -> None:
    source = make(tmp_path / "source", "wan2.1-t2v-1.3b", "vae")
    install("wanconv-broken", "raise SystemExit('loaded')", dict.fromkeys(ENTRIES, "x = wanconv_broken:MINE"))
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from wanconv.cli import main; main()"
    for arguments in (["--help"], ["convert", "--help"], ["recipes"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, "loaded" in done.stderr) == (0, False)
    done = subprocess.run(
        [sys.executable, "-c", script, "inspect", str(source)], capture_output=True, text=True, check=False
    )
    assert "error[plugin]: the plugin wanconv-broken 1.2 cannot be loaded" in done.stderr
