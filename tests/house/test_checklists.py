"""CONTRIBUTING's checklists are whole: a test follows each with a dummy, in the files that it names and no others."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST = {"a format": 4, "a layout": 2, "a derivative": 2, "a numerics preset": 3}
NEW = ""  # in place of what stands before an addition: the file is new

# To add a dummy: file -> (what stands there, what comes before it).
DUMMIES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "a format": {
        "types/dtypes.py": (
            "    # Their scales are in other tensors",
            '    DType("dummy8", "", 34, largest=127 * 65504.0, block=32, gguf=(99, 98)),\n',
        ),
        "quantization/__init__.py": (
            '    Format("keep",',
            '    Format("dummy8", "dummy8", ("none",), _Q8_0, significand_bits=6),\n',
        ),
        "quantization/dummy.py": (
            NEW,
            '"""A dummy: stored as Q8_0 is."""\n\nfrom wanconv.quantization.blocks import Q8\n\n\nclass Dummy(Q8):\n'
            '    """The codec."""\n',
        ),
        "quantization/codecs.py": ('    ("mxfp8", "block")', '    ("dummy8", "none"): Dummy,\n'),
    },
    "a layout": {
        "layouts/dummy.py": (
            NEW,
            '"""A dummy client."""\n\nfrom dataclasses import replace\n\n'
            "from wanconv.layouts.official import OFFICIAL\n\n"
            'DUMMY = replace(OFFICIAL, name="dummy", summary="a dummy", loader="nobody/nothing load.py")\n',
        ),
        "layouts/__init__.py": ("OFFICIAL, DIFFUSERS, DIFFUSERS_SINGLE", "DUMMY, "),
    },
    "a derivative": {
        "models/dummy.py": (
            NEW,
            '"""A dummy: T2V with one more weight."""\n\nfrom dataclasses import replace\n\n'
            "from wanconv.models.umt5 import UMT5\nfrom wanconv.models.wan import T2V\n"
            "from wanconv.models.wan_vae import VAE_2_1\n"
            "from wanconv.types.architecture import Family, Release, Role, Spelling\n\n"
            '_GATE = Spelling("gate.weight")\n'
            '_ROLE = Role("gate.weight", "linear", ("d", "d"), {"official": _GATE, "hub": _GATE})\n'
            'GATED = replace(T2V, name="dummy-gated", roles=(*T2V.roles, _ROLE))\n'
            'DUMMY = Family(\n    "dummy", {"dit": GATED, "text_encoder": UMT5, "vae": VAE_2_1}, "t2v", 5.0,\n'
            '    (Release("dummy-14b", GATED.full, "0" * 32, "nobody/dummy"),),\n)\n',
        ),
        "models/releases.py": ('    Family(\n        name="wan2.1-i2v"', "    DUMMY,\n"),
    },
    "a numerics preset": {
        "engine/numerics.py": ("# fmt: on\n\n\ndef _in_fp16", '_OFFICIAL += (replace(_OFFICIAL[0], name="dummy"),)\n'),
        "cli/validate.py": ("fp32, official-fp16", "dummy, "),
    },
}
# What an addition to a table needs beside its row: an import, or what the dummy is made of.
IMPORTS = {
    "quantization/codecs.py": "from wanconv.quantization.dummy import Dummy\n",
    "layouts/__init__.py": "from wanconv.layouts.dummy import DUMMY\n",
    "models/releases.py": "from wanconv.models.dummy import DUMMY\n",
}
SCRIPT = """
import sys
from pathlib import Path
from wanconv import testing
from wanconv.commands.convert import convert
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.conversion.options import ConvertOptions
from wanconv.engine.numerics import PRESETS
from wanconv.layouts import LAYOUTS
from wanconv.models import family_named
from wanconv.samples.synthetic import SampleOptions, make

folder = Path(sys.argv[1])
source = make(folder / "source", SampleOptions("dummy-14b"))
recipe = Path(sys.argv[2], "recipes", "gguf-q8_0.toml").read_text().replace('format = "q8_0"', 'format = "dummy8"')
(folder / "dummy.toml").write_text(recipe)
convert(source, ConvertOptions(str(folder / "dummy.toml"), layout="gguf", out=folder / "baked"))
report = verify(folder / "baked", VerifyOptions(against=source, client="gguf"))
assert report.exit_code == 0, report.findings
assert any("dummy8" in str(row) for table in report.tables for row in table.rows), report.tables
testing.check_layout(LAYOUTS["dummy"], folder / "layout", [family_named("wan2.1-t2v")])
testing.check_family(family_named("dummy"), folder / "family")
assert PRESETS["dummy"].head == PRESETS["official"].head
"""


def checklist(what: str) -> set[str]:
    """Returns the files that CONTRIBUTING names for an addition, and the folders of those that are new."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (row,) = re.findall(rf"^\| {what} \|(.*)\|$", text, re.MULTILINE)
    return {path.removeprefix("wanconv/") for path in re.findall(r"`(wanconv/[^`]*)`", row)}


@pytest.mark.parametrize("what", DUMMIES)
def test_a_checklist_names_the_files_that_its_dummy_touches_and_they_are_few(what: str) -> None:
    touched = {path if before else f"{Path(path).parent}/" for path, (before, _) in DUMMIES[what].items()}
    assert checklist(what) == touched
    assert len(touched) <= MOST[what]


def test_dummies_made_by_the_checklists_work(tmp_path: Path) -> None:
    package = tmp_path / "site" / "wanconv"
    shutil.copytree(ROOT / "wanconv", package, ignore=shutil.ignore_patterns("__pycache__", "tiny"))
    for dummy in DUMMIES.values():
        for name, (before, added) in dummy.items():
            path = package / name
            if not before:
                path.write_text(added)
                continue
            text = path.read_text()
            assert text.count(before) == 1, f"{name} no longer has {before!r} once"
            text = text.replace(before, added + before)
            if name in IMPORTS:
                text = text.replace("\nfrom wanconv.", f"\n{IMPORTS[name]}from wanconv.", 1)
            path.write_text(text)
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(package.parent)!r})\n{SCRIPT}",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
