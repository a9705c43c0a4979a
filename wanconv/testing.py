"""A conformance kit: the promises of wanconv's own tables, as functions for the tests of a plugin's tables.

    from wanconv import testing

    def test_my_layout(tmp_path):
        testing.check_layout(MY_LAYOUT, tmp_path)

Each function returns nothing, and raises AssertionError with a sentence if a promise is broken. They write only below
the given folder; only check_hub needs a network.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from wanconv.layouts import LAYOUTS, Layout
from wanconv.models import FAMILIES, expand, homeless, identify, targets
from wanconv.models.match import fits
from wanconv.models.names import fill, letter_of, numbered
from wanconv.quantization.packings import PACKINGS
from wanconv.storage.hubs import Hub, Patience
from wanconv.types.architecture import Architecture, Family, Scheme
from wanconv.types.figures import count
from wanconv.types.tensors import TensorRef

__all__ = ["check_architecture", "check_family", "check_hub", "check_layout"]


def check_architecture(architecture: Architecture) -> None:
    """Check a network's table.

    In every scheme, at full and tiny size, each canonical tensor is written once or not stored, a fused tensor has all
    of its parts, and the names and shapes of a file of the tiny size are found to be this network, with these sizes.

    Args:
        architecture: the table; no plugin needs to be installed.

    Raises:
        AssertionError: if the table breaks a promise; it names the scheme and the tensors.
    """
    for scheme in architecture.schemes:
        where = f"{architecture.name} in {scheme} names"
        for dims in (architecture.full, architecture.tiny):
            written = [source for target in targets(architecture, scheme, dims) for source in target.sources]
            twice = [name for name, times in Counter(written).items() if times > 1]
            assert not twice, f"{where}: written more than once: {', '.join(twice)}"
            every = {fill(role.name, index) for role, index in numbered(architecture, dims)}
            lost = sorted(every ^ {*written, *homeless(architecture, scheme, dims)})
            assert not lost, f"{where}: neither written nor without a home: {', '.join(lost)}"
        _check_fused(architecture, scheme, where)
        shapes = expand(architecture, scheme, architecture.tiny)
        refs = {name: TensorRef(name, "fp32", shape, Path("file"), 0, 0) for name, shape in shapes.items()}
        found = fits(refs)
        assert found, f"{where}: none of its names is found; is it in a table, or its plugin installed?"
        assert found[0].differences == 0, f"{where}: of a tiny file, {count(found[0].differences, 'tensor')} do not fit"
        assert found[0].architecture == architecture, f"{where}: a tiny file is taken for {found[0].architecture.name}"
        sizes = {size: number for size, number in found[0].dims.items() if architecture.tiny.get(size) != number}
        assert not sizes, f"{where}: a tiny file is found to have other sizes: {sizes}"


def _check_fused(architecture: Architecture, scheme: Scheme, where: str) -> None:
    parts: dict[str, list[int]] = {}
    whole: dict[str, int] = {}
    for role in architecture.roles:
        spelling = role.spellings.get(scheme)
        if spelling is None:
            continue
        assert letter_of(spelling.name) == letter_of(role.name), f"{where}: {spelling.name} counts other blocks"
        parts.setdefault(spelling.name, []).extend(spelling.parts)
        whole[spelling.name] = spelling.of
    for name, total in whole.items():
        assert sorted(parts[name]) == list(range(total)), f"{where}: {name} has the parts {sorted(parts[name])}"


def check_family(family: Family, folder: Path) -> None:
    """Check a family that is installed: a checkpoint of it is identified, and converting it by `keep` loses nothing.

    Args:
        family: the family; it is in `wanconv.models`, or its plugin is installed.
        folder: an empty folder to write some megabytes to.

    Raises:
        AssertionError: if a promise is broken.
    """
    from wanconv.samples.synthetic import SampleOptions, home, make

    assert family in FAMILIES, f"{family.name} is in no table: is its plugin installed?"
    assert family.releases, f"{family.name} has no release, whose sizes a checkpoint could be made of"
    for architecture in family.components.values():
        check_architecture(architecture)
    source = make(folder / "source", SampleOptions(family.releases[-1].name))
    _check_kept(source, LAYOUTS[home(family)], family, folder / "kept")


def check_layout(layout: Layout, folder: Path, families: Iterable[Family] | None = None) -> None:
    """Check a layout that is installed: every family that it does not refuse is written, read back and proven.

    Args:
        layout: the layout; it is in `wanconv.layouts`, or its plugin is installed.
        folder: an empty folder to write some megabytes to for each family.
        families: the families to try; by default all that wanconv knows.

    Raises:
        AssertionError: if a promise is broken.
    """
    from wanconv.samples.synthetic import SampleOptions, make

    assert layout.name in LAYOUTS, f"{layout.name} is in no table: is its plugin installed?"
    assert layout.loader, f"{layout.name} does not say which code reads it"
    unknown = [packing for packing in layout.packings if packing not in PACKINGS]
    assert not unknown, f"{layout.name} writes scales that nothing reads back: {unknown}"
    for family in FAMILIES if families is None else families:
        if family.name not in (layout.refused or {}):
            source = make(folder / family.name / "source", SampleOptions(family.releases[-1].name))
            _check_kept(source, layout, family, folder / family.name / "kept")


def _check_kept(source: Path, layout: Layout, family: Family, out: Path) -> None:
    from wanconv.commands.convert import convert
    from wanconv.commands.verify import VerifyOptions, verify
    from wanconv.containers import open_checkpoint
    from wanconv.conversion.options import ConvertOptions

    where = f"{family.name} in the {layout.name} layout"
    convert(source, ConvertOptions("keep", layout=layout.name, out=out))
    for path in out.rglob("*.json"):
        json.loads(path.read_bytes())
    before, after = (identify(open_checkpoint(folder)) for folder in (source, out))
    assert after.family == family, f"{where} is identified as {after.family.name}"
    assert set(after.components) <= set(before.components), f"{where} has components that the source lacks"
    report = verify(out, VerifyOptions(against=source, client=layout.name))
    failures = [f"{one.where}: {one.message}" for one in report.findings if one.severity == "failure"]
    assert not failures, f"{where} does not verify: {'; '.join(failures)}"


def check_hub(hub: Hub, repository: str, folder: Path) -> None:
    """Check a hub: what it lists can be read, in whole and in ranges, and has the digests that it lists.

    Args:
        hub: an open hub.
        repository: `owner/name` of a small repository there; every file of it is downloaded.
        folder: an empty folder for the files.

    Raises:
        AssertionError: if a promise is broken.
    """
    from threading import Event

    from wanconv.downloads.fetch import fetch
    from wanconv.storage.hubs.ranges import RangeReader
    from wanconv.types.progress import unheard

    first, second = (hub.snapshot(repository, None) for _ in range(2))
    assert first == second, f"{repository} is listed as two different things, one after the other"
    assert first.files, f"{repository} lists no files"
    reader = RangeReader(Patience(), Event())
    for file in first.files:
        address = hub.address(first, file.path)
        fetch(reader, address, file, folder, unheard)  # raises where size or digest are not those of the list
        whole = (folder / file.path).read_bytes()
        middle = len(whole) // 2
        parts = reader.stream(address, file.path, file.nbytes, middle)
        rest = b"".join(bytes(part) for _, part in parts)
        assert rest == whole[middle:], f"{file.path} from byte {middle} on is not what the whole file has there"
