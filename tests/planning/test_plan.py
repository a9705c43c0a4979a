"""Plans: bytes, files and reasons, decided from headers alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import sparse
from covering import covering, takes
from header_lists import LISTS, list_id, read_list
from safetensors import safe_open

from wanconv.commands.convert import convert
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions, prepare
from wanconv.errors import Refused
from wanconv.layouts import LAYOUTS
from wanconv.models import FAMILIES, identify
from wanconv.planning import Plan, by_component, by_rule, plan
from wanconv.recipe import load, names, parse
from wanconv.types.architecture import Family
from wanconv.types.dtypes import DTYPES
from wanconv.types.model import Model
from wanconv.types.names import matches

OFFICIAL, DIFFUSERS = LAYOUTS["official"], LAYOUTS["diffusers"]
A14B = "wan2.2-t2v-a14b"
DOCUMENTS = ("lightx2v.json", "model_index.json", "scheduler_config.json", "preprocessor_config.json")


def model_of(folder: Path, *exclude: str) -> Model:
    return identify(open_checkpoint(folder, exclude))


def recipe_of(*rules: str) -> str:
    return 'schema = 1\nsummary = "a test"\n' + "".join(f"[[rule]]\n{rule}\n" for rule in rules)


def messages(made: Plan, where: str = "") -> list[str]:
    return [finding.message for finding in made.findings if where in finding.where]


# every family, recipe and layout


@covering(("family", "recipe", "layout"), FAMILIES, names(), list(LAYOUTS))
def test_every_recipe_is_planned_in_every_layout_or_refused_with_a_sentence(
    family: Family, recipe: str, layout: str, tiny: Callable[..., Path]
) -> None:
    model, one = model_of(tiny(family.releases[-1].name)), load(recipe)
    elsewhere = not any(matches(glob, family.name) for glob in one.families)
    if elsewhere or family.name in (LAYOUTS[layout].refused or {}):
        with pytest.raises(
            Refused, match=r"^recipe \S+ is for .*, and this model is \S+$|^\S+ has no \S+ layout: \w+ "
        ):
            plan(model, one, LAYOUTS[layout])
        return
    if not takes(layout, recipe):
        with pytest.raises(Refused, match=rf"^the {layout} layout does not take this recipe: "):
            plan(model, one, LAYOUTS[layout])
        return
    if family.name == "wan2.2-animate-14b" and layout == "lightx2v" and any(rule.scale != "none" for rule in one.rules):
        # LightX2V scales the face adapter as it does the blocks, and its keys and values are one tensor
        with pytest.raises(
            Refused, match=r"it stores weights of wan-animate as one tensor, for which wanconv writes no "
        ):
            plan(model, one, LAYOUTS[layout])
        return
    made = plan(model, one, LAYOUTS[layout])
    placed = [payload.key for image in made.images for payload in image.payloads]
    assert sorted(placed) == sorted(made.outputs) != []
    assert {path.split("/")[-1] for path in made.documents} <= {"config.json", *DOCUMENTS}


def test_a_family_without_a_home_in_a_layout_is_refused_with_the_reason(tiny: Callable[..., Path]) -> None:
    with pytest.raises(Refused) as raised:
        plan(model_of(tiny("wan2.2-s2v-14b")), load("keep"), DIFFUSERS)
    assert raised.value.message == (
        "wan2.2-s2v-14b has no diffusers layout: diffusers has no model or pipeline for the audio-driven Wan 2.2 S2V"
    )
    assert raised.value.hint == "choose another `layout`; the source's own is official"


def test_all_refusals_come_at_once(tiny: Callable[..., Path]) -> None:
    with pytest.raises(Refused) as raised:
        plan(model_of(tiny("wan2.2-s2v-14b")), load("high-bf16-low-fp32"), DIFFUSERS)
    assert raised.value.message.endswith("the audio-driven Wan 2.2 S2V; and 1 more reason")
    assert raised.value.details == ("recipe high-bf16-low-fp32 is for wan2.2-*-a14b, and this model is wan2.2-s2v-14b",)


def test_refusals_of_recipe_and_source_come_at_once(tiny: Callable[..., Path]) -> None:
    recipe = parse("mine", recipe_of('match = "dit/**"\nformat = "bf16"'))
    with pytest.raises(Refused) as raised:
        plan(model_of(tiny("wan2.1-i2v-14b", "diffusers")), recipe, OFFICIAL)
    assert raised.value.message == "recipe mine does not fit wan2.1-i2v; and 1 more reason"
    assert raised.value.details[0].startswith("image_encoder: the official layout needs ")
    assert "no rule covers vae/encoder.conv_in.weight" in raised.value.details


def test_tensors_that_a_layout_fuses_must_have_one_format(tiny: Callable[..., Path]) -> None:
    recipe = parse("mine", recipe_of('match = "**.attn.q.weight"\nformat = "bf16"', 'match = "**"\nformat = "keep"'))
    model = model_of(tiny("wan2.1-i2v-14b"))
    with pytest.raises(Refused, match=r"^image_encoder: the official layout stores as one tensor what") as raised:
        plan(model, recipe, OFFICIAL)
    block = "image_encoder/visual.blocks.0.attn"
    assert raised.value.details[0] == f"{block}.q.weight as bf16, {block}.k.weight as keep, {block}.v.weight as keep"
    assert plan(model, recipe, DIFFUSERS).outputs


def test_fused_tensors_take_a_fallback_together(tiny: Callable[..., Path]) -> None:
    name = "image_encoder/visual.blocks.0.attn.{}.weight"
    model, recipe = model_of(tiny("wan2.1-i2v-14b")), load("experts-bf16-rest-fp16")
    formats = {}
    for layout in (OFFICIAL, DIFFUSERS):
        made = plan(model, recipe, layout, overflowing=frozenset({name.format("q")}))
        steps = {step.tensor.name: step for step in made.steps}
        formats[layout.name] = [steps[name.format(part)].format for part in "qkv"]
        assert steps[name.format("q")].reason == "fallback from fp16: a value exceeds 65504"
    assert formats == {"official": ["bf16", "bf16", "bf16"], "diffusers": ["bf16", "fp16", "fp16"]}


def test_a_dtype_that_a_format_refuses_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny("wan2.1-t2v-1.3b"), source)
    file = source / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"I32"'))
    with pytest.raises(Refused) as raised:
        plan(model_of(source), load("bf16"), OFFICIAL)
    assert raised.value.message == f"recipe bf16 does not fit the numbers of {source}"
    assert raised.value.details[0] == (
        "dit/patch_embedding.weight as bf16: int32 numbers are not weights: only keep stores them"
    )
    assert plan(model_of(source), load("keep"), OFFICIAL).outputs


# what a plan says


def test_an_override_is_told_with_its_reason(tiny: Callable[..., Path]) -> None:
    made = plan(model_of(tiny(A14B)), load("fp16"), OFFICIAL)
    assert {step.format for step in made.steps if step.tensor.name.startswith("vae/")} == {"fp32"}
    assert messages(made, "vae/") == [
        "stored as fp32: the official code runs the VAE in its file's dtype under fp32 inputs: a narrower file stops it"
    ]
    made = plan(model_of(tiny(A14B)), load("bf16"), DIFFUSERS)
    kept = {step.tensor.name for step in made.steps if step.format == "fp32"}
    assert "expert.high/blocks.0.modulation" in kept
    assert "expert.high/blocks.0.cross_attn.norm_in.weight" in kept
    assert "expert.high/blocks.0.cross_attn.norm_q.weight" not in kept
    assert [text for text in messages(made) if text.startswith("stored as fp32: diffusers computes it in fp32")]


def test_keep_is_never_overridden_but_warned_of(tiny: Callable[..., Path], tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    convert(tiny(A14B, "diffusers"), ConvertOptions("fp16", out=narrow))
    made = plan(model_of(narrow), load("keep"), OFFICIAL)
    assert {step.format for step in made.steps} == {"keep"}
    warnings = [finding for finding in made.findings if finding.severity == "warning"]
    assert [finding.message[:38] for finding in warnings] == ["kept as it is, although the official c"]


def test_a_format_that_brings_a_client_nothing_is_warned_of(tiny: Callable[..., Path]) -> None:
    made = plan(model_of(tiny(A14B)), load("fp8-plain"), DIFFUSERS)
    warned = {finding.where: finding.message for finding in made.findings if finding.severity == "warning"}
    assert warned["fp8_e4m3fn"].endswith("it saves disk, not memory")


def test_what_the_source_lacks_and_what_told_the_experts_is_said(tiny: Callable[..., Path]) -> None:
    made = plan(model_of(tiny(A14B), "low_noise_model/*", "*.pth"), load("experts-bf16-rest-fp16"), OFFICIAL)
    assert [(finding.where, finding.message) for finding in made.findings] == [
        ("expert.low", "not in the source, so not in the output (wan2.2-t2v-a14b has one)"),
        ("text_encoder", "not in the source, so not in the output (wan2.2-t2v-a14b has one)"),
        ("vae", "not in the source, so not in the output (wan2.2-t2v-a14b has one)"),
        ("expert.high", "its role comes from folder name high_noise_model"),
    ]


def test_a_dense_family_is_told_that_its_denoiser_is_the_expert(tiny: Callable[..., Path]) -> None:
    said = "wan2.1-t2v has one denoiser: what the recipe says of the experts is done to it"
    made = {name: plan(model_of(tiny("wan2.1-t2v-14b")), load(name), OFFICIAL) for name in ("keep", "fp8-plain")}
    assert said in messages(made["fp8-plain"], "dit")
    assert said not in messages(made["keep"], "dit")


def test_roles_without_a_home_are_counted(tiny: Callable[..., Path]) -> None:
    made = plan(model_of(tiny("wan2.1-i2v-14b")), load("keep"), DIFFUSERS)
    (said,) = messages(made, "image_encoder")
    assert said.endswith(
        "image_encoder/visual.head.proj.weight, image_encoder/log_scale, image_encoder/textual.token_embedding.weight …"
    )


# bytes


@covering(
    ("release", "recipe", "layout"),
    [A14B, "wan2.1-i2v-14b"],
    ["keep", "fp8-plain", "int8-row", "experts-bf16-rest-fp16"],
    list(LAYOUTS),
    strength=1,
    given=lambda release, recipe, layout: takes(layout, recipe),
)
def test_the_bytes_of_a_plan_are_the_bytes_written(
    release: str, recipe: str, layout: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    options = ConvertOptions(recipe, layout=layout, out=tmp_path / "out", shard_nbytes=500_000)
    made = prepare(tiny(release), options)
    convert(tiny(release), options)
    written = open_checkpoint(tmp_path / "out")
    payload = {part.path: sum(ref.nbytes for ref in part.tensors.values()) for part in written.parts}
    components = by_component(made)
    after = components.columns.index("after_nbytes")
    assert components.rows[-1][after] == sum(row[after] for row in components.rows[:-1]) == sum(payload.values())  # type: ignore[misc]  # numbers, in that column
    rules = by_rule(made)
    assert sum(row[rules.columns.index("after_nbytes")] for row in rules.rows) == sum(payload.values())  # type: ignore[misc]  # numbers, in that column
    assert {image.path: image.nbytes for image in made.images} == {
        file: (tmp_path / "out" / file).stat().st_size for part in written.parts for file in part.files
    }
    ours = ("wanconv.json", "README.md")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name not in ours]
    assert made.nbytes == sum(path.stat().st_size for path in files)


def test_shards_are_as_large_as_asked_and_the_index_is_right(tiny: Callable[..., Path], tmp_path: Path) -> None:
    limit = 300_000
    convert(tiny(A14B), ConvertOptions("bf16", layout="diffusers", out=tmp_path / "out", shard_nbytes=limit))
    folder = tmp_path / "out" / "transformer"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_bytes())
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards == [
        f"diffusion_pytorch_model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)
    ]
    found: dict[str, str] = {}
    for shard in shards:
        with safe_open(folder / shard, "pt") as opened:  # the library itself
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
            assert opened.metadata() == {"format": "pt"}
        assert sum(tensor.nbytes for tensor in tensors.values()) <= limit or len(tensors) == 1
        found |= dict.fromkeys(tensors, shard)
    assert index["weight_map"] == found
    (part,) = (part for part in open_checkpoint(tmp_path / "out").parts if part.folder == "transformer")
    assert index["metadata"]["total_size"] == sum(ref.nbytes for ref in part.tensors.values())


def test_every_tensor_starts_at_a_multiple_of_its_element_size(tiny: Callable[..., Path], tmp_path: Path) -> None:
    convert(tiny(A14B), ConvertOptions("fp8-plain", layout="diffusers", out=tmp_path / "out"))
    refs = [ref for part in open_checkpoint(tmp_path / "out").parts for ref in part.tensors.values()]
    assert len({ref.dtype for ref in refs}) >= 3
    assert [ref.name for ref in refs if ref.offset % DTYPES[ref.dtype].itemsize] == []


@pytest.mark.parametrize(
    ("stored", "recipe", "layout"),
    [("diffusers", "bf16", "diffusers"), ("diffusers", "fp8-scaled", "comfyui"), ("official", "int8-row", "lightx2v")],
)
def test_the_files_of_a_source_are_needed_one_after_the_other(
    tmp_path: Path, stored: str, recipe: str, layout: str
) -> None:
    source = sparse.make(tmp_path / "source", A14B, stored, ("expert.low", "text_encoder"))
    made = plan(model_of(source), load(recipe), LAYOUTS[layout])
    needed: list[str] = []
    for image in made.images:
        for payload in sorted(image.payloads, key=lambda payload: payload.offset):
            files = {piece.ref.file.name for piece in made.outputs[payload.key].step.tensor.pieces}
            needed += [file for file in files if file not in needed[-1:]]
    assert len(needed) == len(set(needed)) == len(made.model.checkpoint.weight_files) > 6


# what lies beside the weights


def test_a_lone_file_takes_its_config_along(tiny: Callable[..., Path]) -> None:
    high = tiny(A14B) / "high_noise_model" / "diffusion_pytorch_model.safetensors"
    made = prepare(high, ConvertOptions("keep"))
    assert made.copies == {"high_noise_model/config.json": high.parent / "config.json"}
    assert not made.documents


def test_a_config_that_belongs_to_another_component_stays_behind(tiny: Callable[..., Path]) -> None:
    made = prepare(tiny("wan2.1-t2v-1.3b") / "Wan2.1_VAE.pth", ConvertOptions("keep"))
    assert (made.copies, made.documents) == ({}, {})
    assert messages(made, "config.json") == ["belongs to none of the weights and is left out"]


def test_sidecars_go_where_the_client_looks(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny("wan2.1-i2v-14b"), source)
    (source / "xlm-roberta-large").mkdir()
    for path in ("README.md", "wanconv.json", "LICENSE.txt", "xlm-roberta-large/tokenizer.json", "model_index.json"):
        (source / path).write_text("{}")
    there = prepare(source, ConvertOptions("keep", layout="diffusers"))
    assert sorted(there.copies) == [
        "LICENSE.txt", "README.source.md", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    ]  # fmt: skip
    assert messages(there, "xlm-roberta-large") == ["has no place in the diffusers layout and is left out"]
    assert json.loads(there.documents["model_index.json"])["_class_name"] == "WanImageToVideoPipeline"
    here = prepare(source, ConvertOptions("keep"))
    assert "xlm-roberta-large/tokenizer.json" in here.copies
    assert "wanconv.json" not in here.copies


# before a byte is read

PLAN = """
import json, sys
from wanconv.cli import main
sys.argv = ["wanconv", "convert", *sys.argv[1:], "--dry-run", "--json"]
try:
    main()
except SystemExit:
    pass
read = int(open("/proc/self/io").read().split("rchar: ")[1].split()[0])
print(json.dumps({"read": read, "torch": "torch" in sys.modules, "numpy": "numpy" in sys.modules}), file=sys.stderr)
"""


def count(name: str) -> int:
    """Returns the parameters of a released file."""
    (path,) = (path for path in LISTS if list_id(path) == f"official/{name}")
    return sum(prod(shape) for shape in read_list(path).values())


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux tells how much was read")
def test_a_14b_folder_is_planned_from_its_headers_alone(tmp_path: Path) -> None:
    source = sparse.make(tmp_path / "source", A14B)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(source), "-r", "experts-bf16-rest-fp16", "--layout", "diffusers"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    report, used = json.loads(done.stdout), json.loads(done.stderr)
    assert (report["figures"]["family"], report["figures"]["release"]) == (A14B, A14B)
    numbers = [count(name) for name in (A14B, "umt5", "wan-vae-2.1")]
    total = report["tables"]["components"][-1]
    assert total["before_nbytes"] == 2 * 4 * numbers[0] + 2 * numbers[1] + 4 * numbers[2]
    assert total["after_nbytes"] < 0.6 * total["before_nbytes"]
    assert used == {"read": used["read"], "torch": False, "numpy": False}
    assert used["read"] < 20_000_000
    assert sorted(tmp_path.rglob("*")) == before
