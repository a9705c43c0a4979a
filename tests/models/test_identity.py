"""A model whose tensors are another's is what its files say: shown, carried where its client reads it, else refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from header_lists import RELEASES, architecture, part
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import copy

from wanconv.commands.convert import convert, preview
from wanconv.commands.inspect import inspect
from wanconv.commands.validate import ValidateOptions, validate
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, Refused
from wanconv.layouts import LAYOUTS
from wanconv.models import expand, identify
from wanconv.planning import plan
from wanconv.recipe import load
from wanconv.report import Cell
from wanconv.samples import synthetic
from wanconv.samples.synthetic import home
from wanconv.types.model import Mark
from wanconv.types.tensors import Checkpoint

I2V, T2V = "wan2.1-i2v-14b", "wan2.1-t2v-1.3b"
ANIMATE2 = '{"transformer": {"model_type": "animate2"}}'
# fmt: off
MARKS = [  # release of the tensors, the header's config, the model's own name, what its tensors are
    (I2V, ANIMATE2,                                                "animate2",      "wan2.1-i2v"),
    (T2V, '{"transformer":{"causal_ar":true}}',                    "causal_ar",     "wan2.1-t2v"),
    (T2V, '{"transformer":{"model_type":"flow_rvs"}}',             "flow_rvs",      "wan2.1-t2v"),
    (T2V, '{"model_type":"flow_rvs"}',                             "flow_rvs",      "wan2.1-t2v"),
    (T2V, '{"transformer":{"model_type":"nobody heard/of it"}}',   "nobody-heard-of-it", "wan2.1-t2v"),
    (T2V, '{"transformer":{"num_layers":7}}',                      "num_layers-7",  "wan2.1-t2v"),
]
AGREEING = [
    "{}",
    '{"transformer":{}}',
    '{"transformer":{"model_type":"t2v","image_model":"wan2.1","num_layers":3,"dim":128,"ffn_dim":256,"eps":1e-06}}',
    '{"transformer":{"causal_ar":false,"model_type":null}}',
    '{"transformer":{"_class_name":"WanTransformer3DModel","_diffusers_version":"0.35.0","patch_size":[1,2,2]}}',
    '{"model_type":"wan","learning_rate":0.0001,"steps":4000}',
]
# fmt: on


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns bare(release): a folder of its denoisers, in the names that ComfyUI reads, too."""
    made: dict[str, Path] = {}

    def get(release: str) -> Path:
        if release not in made:
            folder = tmp_path_factory.mktemp("bare") / "folder"
            names = [name for name in synthetic.releases()[release][0].components if name.startswith(("dit", "expert"))]
            synthetic.make(folder, synthetic.SampleOptions(release, components=tuple(names), layout="official"))
            made[release] = folder
        return made[release]

    return get


@pytest.fixture
def marked(bare: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Returns marked(release, config, **notes): a lone file whose header says so."""

    def get(release: str, config: str | None = None, name: str = "model.safetensors", **notes: str) -> Path:
        (source,) = bare(release).glob("*.safetensors")
        notes |= {} if config is None else {"config": config}
        save_file(load_file(source), tmp_path / name, {"format": "pt", **notes})
        return tmp_path / name

    return get


def metadata(file: Path) -> Mapping[str, str]:
    if file.suffix != ".gguf":
        with safe_open(file, "pt") as opened:
            found: dict[str, str] = opened.metadata()
            return found
    fields = gguf.GGUFReader(file).fields  # as ComfyUI-GGUF reads them
    texts = {name: field for name, field in fields.items() if field.types == [gguf.GGUFValueType.STRING]}
    return {name: str(field.contents()) for name, field in texts.items()}


def mark(path: Path) -> Mark | None:
    return identify(open_checkpoint(path)).mark


def weights(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.suffix in (".safetensors", ".gguf"))


def clients(path: Path) -> dict[str, str]:
    (table,) = [table for table in inspect(path).tables if table.title == "clients"]
    return {str(row[0]): str(row[3]) for row in table.rows}


@pytest.mark.parametrize(("release", "config", "name", "base"), MARKS)
def test_a_file_is_called_what_its_header_says(
    release: str, config: str, name: str, base: str, marked: Callable[..., Path]
) -> None:
    report = inspect(marked(release, config))
    assert report.figures["family"] == f"{name}, built on the tensors of {base}"
    assert report.figures["layout"] == "comfyui"
    assert report.figures["release"] == Cell(None, f"none: it says of itself that it is {name}")
    (told,) = [one.message for one in report.findings if "says of itself" in one.message]
    ((key, value),) = json.loads(config).get("transformer", json.loads(config)).items()
    assert f"{json.dumps(key)}: {json.dumps(value)}" in told
    said = clients(marked(release, config))
    assert [client for client, why in said.items() if not why] == ["comfyui", "comfyui-legacy"]
    assert said["official"] == f"its client would compute {base}: it does not read that the model is {name}"
    (notes,) = [table for table in report.tables if table.title == "notes"]
    assert notes.rows == (("dit", "config", config),)


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [
        *(("keep", "comfyui"), ("bf16", "comfyui"), ("fp8-scaled", "comfyui"), ("int8-row", "comfyui")),
        *(("fp8-scaled", "comfyui-legacy"), ("gguf-q8_0", "gguf"), ("bf16", "gguf")),
    ],
)
def test_every_layout_whose_client_reads_it_keeps_it(
    recipe: str, layout: str, marked: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = marked(I2V, ANIMATE2, training="4000 steps"), tmp_path / "out"
    report = convert(source, ConvertOptions(recipe, layout=layout, out=out))
    assert report.figures["family"] == "animate2, built on the tensors of wan2.1-i2v"
    assert (
        "ComfyUI of August 2026 reads that it is animate2; one that does not know it computes wan2.1-i2v, or stops"
        in [one.message for one in report.findings]
    )
    (file,) = weights(out)
    assert file.stem == "animate2"
    assert (metadata(file)["config"], metadata(file)["training"]) == (ANIMATE2, "4000 steps")
    found = mark(source)
    assert found is not None
    assert mark(out) == replace(found, path=str(file.relative_to(out)))
    assert verify(out, VerifyOptions(against=source, client=layout)).exit_code == 0
    manifest = json.loads((out / "wanconv.json").read_bytes())
    assert (manifest["family"], manifest["release"], manifest["absent"]) == ("animate2", None, [])
    assert manifest["says"]["dit"]["said"] == {"model_type": '"animate2"'}
    card = (out / "README.md").read_text()
    assert card.startswith("---\ntags:\n- wanconv\n---\n\n# animate2, ")
    assert "its tensors are those of wan2.1-i2v as well" in card
    again = convert(out, ConvertOptions("keep", layout=layout, out=tmp_path / "again"))  # and so on, from GGUF too
    assert again.figures["family"] == report.figures["family"]


def test_the_header_of_a_gguf_file_goes_back_into_a_safetensors_file(
    marked: Callable[..., Path], tmp_path: Path
) -> None:
    convert(
        marked(T2V, '{"transformer":{"causal_ar":true}}'), ConvertOptions("bf16", layout="gguf", out=tmp_path / "gguf")
    )
    convert(tmp_path / "gguf", ConvertOptions("bf16", layout="comfyui", out=tmp_path / "out"))
    assert metadata(weights(tmp_path / "out")[0]) == {"format": "pt", "config": '{"transformer":{"causal_ar":true}}'}


@pytest.mark.parametrize("layout", ["official", "diffusers", "diffusers-single", "lightx2v", "diffsynth"])
@pytest.mark.parametrize(("release", "config", "name", "base"), MARKS[:1] + MARKS[4:5])
def test_a_client_that_does_not_read_it_is_refused(
    layout: str, release: str, config: str, name: str, base: str, marked: Callable[..., Path], tmp_path: Path
) -> None:
    source = marked(release, config)
    with pytest.raises(Refused) as caught:
        convert(source, ConvertOptions("bf16", layout=layout, out=tmp_path / "out"))
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"{name} has no {layout} layout: it says of itself that it is {name}, by {{")
    assert caught.value.message.endswith(
        f"in the header of model.safetensors, which the client of {layout} does not read: it would compute {base}"
    )
    assert caught.value.hint == "choose another `layout`: comfyui, comfyui-legacy, gguf"
    assert not (tmp_path / "out").exists()
    report = verify(source, VerifyOptions(client=layout))
    assert report.exit_code == 1
    assert any("says of itself" in one.message for one in report.findings if one.severity == "failure")


def without_config(file: Path) -> None:
    save_file(load_file(file), file, {key: text for key, text in metadata(file).items() if key != "config"})


def failures(path: Path, **options: Any) -> list[str]:
    report = verify(path, VerifyOptions(**options))
    assert report.exit_code
    return [one.message for one in report.findings if one.severity == "failure"]


def test_verify_finds_an_output_that_lost_what_it_is(marked: Callable[..., Path], tmp_path: Path) -> None:
    source, out = marked(I2V, ANIMATE2), tmp_path / "out"
    convert(source, ConvertOptions("keep", layout="comfyui", out=out))
    without_config(weights(out)[0])
    lost = "says of itself that it is what its tensors show, and by {} it is animate2 (header)"
    assert lost.format("wanconv.json") in failures(out, client="comfyui")
    (out / "wanconv.json").unlink()
    assert failures(out, against=source, client="comfyui") == [lost.format(source)]
    plain = marked(I2V, name="plain.safetensors")
    assert failures(source, against=plain) == [
        f"says of itself that it is animate2 (header), and by {plain} it is what its tensors show"
    ]


@pytest.mark.parametrize("config", AGREEING)
def test_a_config_that_says_what_the_tensors_do_refuses_nothing_and_goes_along(
    config: str, marked: Callable[..., Path], tmp_path: Path
) -> None:
    source = marked(T2V, config)
    assert mark(source) is None
    convert(source, ConvertOptions("bf16", layout="official", out=tmp_path / "out"))
    assert metadata(weights(tmp_path / "out")[0]) == {"format": "pt", "config": config}


@pytest.mark.parametrize("release", list(synthetic.releases()))
def test_what_layouts_write_says_nothing_else_than_the_tensors(release: str, tiny: Callable[..., Path]) -> None:
    family, _ = synthetic.releases()[release]
    for layout in ("official", "diffusers"):
        if family.name not in (LAYOUTS[layout].refused or {}):
            assert identify(open_checkpoint(tiny(release, layout))).mark is None
    assert home(family) in LAYOUTS


# Headers that nobody means


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("", "is not valid JSON"),
        ("not json", "is not valid JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ("1" * 5000, "is not valid JSON"),
        ('["animate2"]', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('{"transformer": "animate2"}', "has a transformer that is not a JSON object"),
    ],
    ids=["empty", "text", "deep", "digits", "list", "null", "transformer"],
)
def test_a_config_that_no_client_can_read_is_told_and_left_out(
    config: str, told: str, marked: Callable[..., Path], tmp_path: Path
) -> None:
    source = marked(T2V, config)
    sentence = f"the config of its header {told}: ComfyUI stops at it, and it is left out"
    assert [one.message for one in inspect(source).findings if one.severity == "warning"] == [sentence]
    assert sentence in failures(source, client="comfyui")
    report = convert(source, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "out"))
    assert sentence in [one.message for one in report.findings]
    assert metadata(weights(tmp_path / "out")[0]) == {"format": "pt"}
    assert verify(tmp_path / "out", VerifyOptions(client="comfyui", against=source)).exit_code == 0


def test_what_a_header_says_is_bounded_where_it_is_shown_and_where_it_is_carried(
    marked: Callable[..., Path], tmp_path: Path
) -> None:
    name = "\x1b[31m" + "x" * 2_000_000
    source = marked(T2V, json.dumps({"transformer": {"model_type": name}}))
    report = inspect(source)
    assert len(str(report.figures["family"])) < 120
    texts = [
        str(report.figures),
        *(str(row) for table in report.tables for row in table.rows),
        *(f"{one.where} {one.message}" for one in report.findings),
    ]
    assert all(len(text) < 1000 and "\x1b" not in text for text in texts)
    with pytest.raises(Refused, match=r"the config of its header names its network and has \d+ characters; at most"):
        convert(source, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "out"))
    deep = marked(T2V, '{"transformer": {"model_type": ' + '{"a":' * 400 + "1" + "}" * 400 + "}}")
    assert mark(deep) is not None


# What only tells of a model


def test_notes_of_a_header_go_along_and_what_is_no_longer_so_does_not(
    marked: Callable[..., Path], tmp_path: Path
) -> None:
    notes = {"modelspec.title": "mine", "model_type": "Wan2_2-T2V-A14B-HIGH", "zz": "z" * (1 << 20)}
    stale = {"modelspec.hash_sha256": "0", "sshs_model_hash": "0", "comfy.gguf.orig_shape.x": "0"}
    source = marked(T2V, **notes, **stale, **{"general.alignment": "64", "head.modulation": "{}"})
    for layout in ("official", "comfyui", "gguf"):
        out = tmp_path / layout
        report = convert(source, ConvertOptions("bf16", layout=layout, out=out))
        found = {key: text for key, text in metadata(weights(out)[0]).items() if not key.startswith("general.")}
        assert {key: text for key, text in found.items() if key not in ("format", "GGUF.version")} == {
            "modelspec.title": "mine",
            "model_type": "Wan2_2-T2V-A14B-HIGH",
        }
        assert "zz of its header is left out: at most 1.05 MB (1,048,576 bytes) are carried" in [
            one.message for one in report.findings
        ]
    assert mark(source) is None


@pytest.mark.parametrize("layout", ["official", "diffusers", "comfyui", "gguf"])
def test_a_note_that_names_the_other_expert_than_the_caller_does_is_left_out(
    layout: str, bare: Callable[[str], Path], tmp_path: Path
) -> None:
    (expert,) = bare("wan2.2-t2v-a14b").glob("high*/*.safetensors")
    source = tmp_path / "low_noise.safetensors"
    save_file(load_file(expert), source, {"model_type": "Wan2_2-T2V-A14B-HIGH", "modelspec.title": "mine"})
    recipe = "gguf-q8_0" if layout == "gguf" else "bf16"
    report = convert(source, ConvertOptions(recipe, layout=layout, out=tmp_path / "out", expert="low"))
    told = "model_type of its header says high, against the role that it was given, and is left out"
    assert told in [one.message for one in report.findings]
    (written,) = weights(tmp_path / "out")
    assert (metadata(written).get("model_type"), metadata(written)["modelspec.title"]) == (None, "mine")
    assert verify(tmp_path / "out", VerifyOptions()).exit_code == 0


def test_a_config_that_names_the_other_expert_than_the_caller_does_goes_along_without_that(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = copy(tiny("wan2.2-t2v-a14b", "diffusers") / "transformer", tmp_path / "low_noise_transformer")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "_name_or_path": "me/high_noise_model/"}))
    report = convert(source, ConvertOptions("keep", layout="diffusers", out=tmp_path / "out", expert="low"))
    told = "its _name_or_path says high, against the role that it was given, and is left out"
    assert told in [one.message for one in report.findings]
    assert json.loads((tmp_path / "out" / "transformer_2" / "config.json").read_text()) == config
    assert verify(tmp_path / "out", VerifyOptions()).exit_code == 0


def test_a_note_without_a_name_is_left_out_of_gguf_which_has_none_such(
    marked: Callable[..., Path], tmp_path: Path
) -> None:
    source = marked(T2V, **{"": "nameless", "author": "me"})
    report = convert(source, ConvertOptions("gguf-q8_0", out=tmp_path / "out"))
    assert "what its header says under no name has no place in GGUF and is left out" in [
        one.message for one in report.findings
    ]
    assert metadata(weights(tmp_path / "out")[0])["author"] == "me"
    assert verify(tmp_path / "out", VerifyOptions(against=source)).exit_code == 0


def test_notes_that_a_pth_file_has_no_room_for_are_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = copy(tiny(T2V, "diffusers"), tmp_path / "source")
    (file,) = (source / "vae").glob("*.safetensors")
    save_file(load_file(file), file, {"format": "pt", "author": "me"})
    report = preview(source, ConvertOptions("fp32", layout="official", out=tmp_path / "out"))
    assert "author of its header has no place in a .pth file and is left out" in [
        one.message for one in report.findings
    ]


def test_a_plan_is_another_one_where_something_else_is_carried(marked: Callable[..., Path]) -> None:
    def identity(**notes: str) -> str:
        model = identify(open_checkpoint(marked(T2V)))
        components = {
            name: replace(one, part=replace(one.part, metadata=notes)) for name, one in model.components.items()
        }
        return plan(replace(model, components=components), load("bf16"), LAYOUTS["comfyui"]).identity

    assert identity() == identity(format="pt")
    assert len({identity(), identity(author="me"), identity(author="you")}) == 3


# Several headers


def sharded(folder: Path, file: Path, *configs: str | None) -> Path:
    """Returns the index of a file that is cut into shards, one for each header."""
    tensors = sorted(load_file(file).items())
    weight_map: dict[str, str] = {}
    folder.mkdir()
    for number, config in enumerate(configs):
        name = f"model-{number + 1:05}-of-{len(configs):05}.safetensors"
        mine = dict(tensors[number :: len(configs)])
        save_file(mine, folder / name, {"format": "pt"} if config is None else {"format": "pt", "config": config})
        weight_map |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("configs", [(None, ANIMATE2), (ANIMATE2, json.dumps(json.loads(ANIMATE2), indent=1))])
def test_what_a_single_shard_says_counts_for_all(
    configs: tuple[str | None, ...], marked: Callable[..., Path], tmp_path: Path
) -> None:
    source = sharded(tmp_path / "shards", marked(I2V), *configs)
    convert(source, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "out"))
    assert metadata(weights(tmp_path / "out")[0])["config"] == ANIMATE2


def test_shards_that_say_two_different_things_are_an_error_that_quotes_both(
    marked: Callable[..., Path], tmp_path: Path
) -> None:
    source = sharded(tmp_path / "shards", marked(I2V), ANIMATE2, "{}")
    with pytest.raises(InputError, match="two of its shards say different things of their network") as caught:
        open_checkpoint(source)
    assert [line.partition(" has ")[2] for line in caught.value.details] == [
        f"the config {ANIMATE2!r}", "the config '{}'",
    ]  # fmt: skip


@pytest.mark.parametrize("low", [None, '{"transformer":{"model_type":"other"}}'])
def test_experts_that_say_two_different_things_are_an_error_that_quotes_both(
    low: str | None, bare: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy(bare("wan2.2-t2v-a14b"), tmp_path / "pair")
    high_file, low_file = sorted(folder.glob("*/*.safetensors"))
    save_file(load_file(high_file), high_file, {"config": '{"transformer":{"causal_ar":true}}'})
    save_file(load_file(low_file), low_file, {} if low is None else {"config": low})
    with pytest.raises(InputError, match="say that they are two different networks") as caught:
        identify(open_checkpoint(folder))
    assert [line.partition("safetensors: ")[2] for line in caught.value.details] == [
        '{"causal_ar": true}', "nothing" if low is None else '{"model_type": "other"}',
    ]  # fmt: skip
    save_file(load_file(low_file), low_file, {"config": '{"transformer": {"causal_ar": true}}'})
    report = convert(folder, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "out"))
    assert report.figures["family"] == "causal_ar, built on the tensors of wan2.2-t2v-a14b"
    assert [file.stem for file in weights(tmp_path / "out")] == ["causal_ar_high_noise", "causal_ar_low_noise"]


# Classes of config.json


def of_class(folder: Path, source: Path, name: str, path: str = "transformer/config.json") -> Path:
    copy(source, folder)
    config = json.loads((folder / path).read_bytes())
    (folder / path).write_text(json.dumps({**config, "_class_name": name}))
    return folder


@pytest.mark.parametrize("name", ["SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel"])
def test_a_diffusers_folder_is_called_what_its_config_says(
    name: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = of_class(tmp_path / "source", tiny(T2V, "diffusers"), name)
    assert inspect(source).figures["family"] == f"{name}, built on the tensors of wan2.1-t2v"
    assert clients(source)["diffusers"] == ""
    out = tmp_path / "out"
    convert(source, ConvertOptions("bf16", layout="diffusers", out=out))
    assert json.loads((out / "transformer" / "config.json").read_bytes())["_class_name"] == name
    assert f"# {name}, bf16, diffusers layout" in (out / "README.md").read_text()
    assert verify(out, VerifyOptions(against=source, client="diffusers")).exit_code == 0
    with pytest.raises(Refused) as caught:
        convert(source, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "other"))
    assert f"it says of itself that it is {name}" in caught.value.message
    hint = 'choose another `layout`: diffusers; or `exclude=["transformer/config.json"]`, which makes it wan2.1-t2v'
    assert caught.value.hint == hint
    report = convert(
        source, ConvertOptions("bf16", layout="comfyui", out=tmp_path / "other", exclude=("transformer/config.json",))
    )
    assert report.figures["family"] == "wan2.1-t2v"


def test_a_lone_denoiser_of_another_class_gets_no_pipeline_that_it_is_not_of(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    whole = of_class(tmp_path / "whole", tiny(T2V, "diffusers"), "SkyReelsV2Transformer3DModel")
    for path in [path for path in whole.iterdir() if path.name != "transformer"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    convert(whole, ConvertOptions("bf16", layout="diffusers", out=tmp_path / "out"))
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.json")}
    assert found == {"wanconv.json", "transformer/config.json"}


def test_an_official_config_of_an_unheard_type_is_named_too(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = copy(tiny(T2V, "official"), tmp_path / "source")
    config = json.loads((source / "config.json").read_bytes())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "t2v_causal"}))
    assert inspect(source).figures["family"] == "t2v_causal, built on the tensors of wan2.1-t2v"
    with pytest.raises(Refused, match="t2v_causal has no lightx2v layout"):
        preview(source, ConvertOptions("bf16", layout="lightx2v", out=tmp_path / "out"))
    convert(source, ConvertOptions("bf16", layout="official", out=tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["model_type"] == "t2v_causal"


def test_a_header_and_a_config_that_say_two_different_things_are_an_error(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source = of_class(tmp_path / "source", tiny(T2V, "diffusers"), "SkyReelsV2Transformer3DModel")
    (file,) = (source / "transformer").glob("*.safetensors")
    save_file(load_file(file), file, {"format": "pt", "config": ANIMATE2})
    with pytest.raises(InputError, match=r"its header and transformer/config.json say .* two different networks"):
        identify(open_checkpoint(source))


def test_validate_says_that_it_cannot_judge_a_network_of_another_name(
    marked: Callable[..., Path], tmp_path: Path
) -> None:
    report = validate(marked(T2V, MARKS[1][1]), ValidateOptions(profile="quick"))
    assert report.exit_code == 1
    assert "the candidate says of itself that it is causal_ar, which the engine does not compute" in str(report)


def test_a_manifest_whose_record_of_a_name_is_none_is_not_trusted(marked: Callable[..., Path], tmp_path: Path) -> None:
    convert(marked(I2V, ANIMATE2), ConvertOptions("keep", layout="comfyui", out=tmp_path / "out"))
    path = tmp_path / "out" / "wanconv.json"
    odd: tuple[object, ...] = (
        [],
        {"dit": 1},
        {"dit": {"name": "x", "by": "header", "said": {"a": 1}, "tensors_of": "y"}},
    )
    for says in odd:
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "says": says}))
        with pytest.raises(InputError, match="its record of the model's own name"):
            verify(tmp_path / "out", VerifyOptions())


def test_a_file_of_a_released_size_is_of_no_release_where_it_says_that_it_is_another() -> None:
    shapes = expand(architecture("wan-i2v-clip"), "official", RELEASES[I2V].dims)
    found = identify(
        Checkpoint(Path("/nowhere"), (replace(part("a.safetensors", shapes), metadata={"config": ANIMATE2}),))
    )
    assert (found.release, found.mark and found.mark.base, found.title) == (None, I2V, "animate2")
    plain = identify(Checkpoint(Path("/nowhere"), (part("a.safetensors", shapes),)))
    assert (plain.release and plain.release.name, plain.mark, plain.title) == (I2V, None, "wan2.1-i2v")
