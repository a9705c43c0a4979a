"""Every cell of family, format and client: what the documentation's table promises loads, what it denies is refused."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from itertools import product
from pathlib import Path

import comfyui
import diffusers
import gguf
import numpy as np
import pytest
import torch
from covering import cover
from torch import Tensor

from wanconv.commands.convert import convert
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import Refused
from wanconv.layouts import LAYOUTS
from wanconv.models import DENOISERS, FAMILIES, identify, targets
from wanconv.quantization import FORMATS
from wanconv.types.model import Component, Model
from wanconv.verification.clients import check_client
from wanconv.weights.model import ModelWeights

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "clients" / "index.md").read_text()
_LOADER = SourceFileLoader("client_table", str(ROOT / "scripts" / "client_table"))
_SPEC = importlib.util.spec_from_loader("client_table", _LOADER)
assert _SPEC is not None
table = importlib.util.module_from_spec(_SPEC)
_LOADER.exec_module(table)
Cells = Mapping[tuple[str, str, tuple[str, str]], str]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {family.name: table.tiny(folder / family.name, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def cells(sources: Mapping[str, Path]) -> Cells:
    found: Cells = table.cells({name: identify(open_checkpoint(path)) for name, path in sources.items()})
    return found


@pytest.mark.exhaustive
def test_the_documentation_has_the_table_as_the_script_prints_it(cells: Cells) -> None:
    assert table.markdown(cells) in PAGE, "scripts/client_table prints what the page should say"


def test_every_format_with_every_scale_is_in_the_table() -> None:
    assert {name for name, _ in table.STORED} == set(FORMATS) - {"keep"}
    assert len(table.STORED) == sum(len(set(each.scales) - {"auto"}) for each in FORMATS.values() if each.storage)


def weights(model: Model, component: Component) -> dict[str, Tensor]:
    """Returns what wanconv reads of a component's blocks, by the names of its file."""
    with ModelWeights(model, 0, torch.device("cpu")) as opened:
        return {
            tensor.pieces[0].ref.name: opened.tensors(component.name, path)[path]
            for name, tensor in component.tensors.items()
            if tensor.block is not None
            for path in [name.partition("/")[2]]
        }


def load_in_diffusers(out: Path, model: Model, source: Model) -> None:
    for component in model.components.values():
        network = getattr(diffusers, str((component.config or {})["_class_name"]))
        folder = out / component.part.folder
        loaded, info = network.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
        assert not any(info.values())
        parameters = dict(loaded.named_parameters())
        for name, ours in weights(model, component).items():
            data = parameters[name].data
            values = data.dequantize(torch.float32) if hasattr(data, "qdata") else data
            assert torch.equal(values.float(), ours.float()), name


def load_a_file_in_diffusers(out: Path, model: Model, source: Model) -> None:
    for name, component in model.components.items():
        scaled = any(tensor.packing for tensor in component.tensors.values())
        config = out / ("transformer_2" if name == "expert.low" else "transformer")
        network = getattr(diffusers, json.loads((config / "config.json").read_bytes())["_class_name"])
        loaded = network.from_single_file(
            str(out / component.part.path),
            config=str(config),
            torch_dtype=torch.float32,
            quantization_config=diffusers.BFLQuantizationConfig(compute_dtype=torch.float32) if scaled else None,
        )
        ours = weights(model, component)
        for target in targets(component.architecture, "hub", component.dims):
            on_disk = component.tensors[f"{name}/{target.sources[0]}"].pieces[0].ref.name
            if on_disk not in ours:
                continue
            path, _, leaf = target.name.rpartition(".")
            module = loaded.get_submodule(path)
            values = getattr(module, leaf).float()
            if leaf == "weight" and hasattr(module, "weight_scale"):
                values = values * module.weight_scale[:, None]
            assert torch.equal(values, ours[on_disk].float()), target.name


def load_in_comfyui(out: Path, model: Model, source: Model) -> None:
    for component in model.components.values():
        ours = weights(model, component)
        scaled = {tensor.pieces[0].ref.name for tensor in component.tensors.values() if tensor.packing}
        theirs = {name: values for name, values, _ in comfyui.read(comfyui.contents(out / component.part.path))}
        assert theirs.keys() == scaled
        assert all(torch.equal(theirs[name], ours[name]) for name in scaled)


def load_in_gguf(out: Path, model: Model, source: Model) -> None:
    for component in model.components.values():
        ours = weights(model, component)
        theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(out / component.part.path).tensors}
        for name, values in ours.items():
            decoded = gguf.dequantize(theirs[name].data, theirs[name].tensor_type)
            assert np.array_equal(decoded.reshape(values.shape), values.float().numpy()), name


def load_in_diffsynth(out: Path, model: Model, source: Model) -> None:
    """It knows a model by names and shapes alone."""
    for name, component in model.components.items():
        assert component.fingerprint == source.components[name].fingerprint


LOADERS: Mapping[str, Callable[[Path, Model, Model], None]] = {
    "diffusers": load_in_diffusers,
    "diffusers-single": load_a_file_in_diffusers,
    "comfyui": load_in_comfyui,
    "comfyui-legacy": load_in_comfyui,
    "diffsynth": load_in_diffsynth,
    "gguf": load_in_gguf,
}


FAMILY_NAMES = [family.name for family in FAMILIES]
ROWS = list(product(FAMILY_NAMES, LAYOUTS, table.STORED))
CHOSEN = [ROWS[number] for number in cover([(family, client, " ".join(stored)) for family, client, stored in ROWS])]


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_the_table_promises_loads_and_what_it_denies_is_refused(
    family: str, sources: Mapping[str, Path], cells: Cells, tmp_path: Path
) -> None:
    """Every two of family, client and format meet."""
    check_cells([row for row in CHOSEN if row[0] == family], sources, cells, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("client", LAYOUTS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_cell_of_the_table_is_so(
    family: str, client: str, sources: Mapping[str, Path], cells: Cells, tmp_path: Path
) -> None:
    rows = [row for row in ROWS if row[:2] == (family, client) and row not in CHOSEN]
    check_cells(rows, sources, cells, tmp_path)


def check_cells(
    rows: Sequence[tuple[str, str, tuple[str, str]]], sources: Mapping[str, Path], cells: Cells, tmp_path: Path
) -> None:
    for number, (family, client, stored) in enumerate(rows):
        recipe, out = tmp_path / f"{number}.toml", tmp_path / str(number)
        recipe.write_text(table.recipe_of(stored))
        options = ConvertOptions(str(recipe), layout=client, out=out, allow_unsafe_fp16=True, jobs=1)
        refusal = cells[family, client, stored]
        if refusal:
            with pytest.raises(Refused) as raised:
                convert(sources[family], options)
            assert (raised.value.exit_code, raised.value.message) == (2, refusal)
            assert f": {table.sentence(refusal)}\n" in PAGE
            assert not out.exists()
            continue
        convert(sources[family], options)
        model = identify(open_checkpoint(out))
        formats = {tensor.stored_as for name, tensor in model.tensors.items() if name.partition("/")[0] in DENOISERS}
        assert " ".join(stored).removesuffix(" none") in formats
        assert check_client(model, LAYOUTS[client]) == []
        if load := LOADERS.get(client):
            load(out, model, identify(open_checkpoint(sources[family])))
