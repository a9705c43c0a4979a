"""The options of a conversion, and the plan that follows from them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from wanconv.containers import open_checkpoint
from wanconv.containers.writer import BLOCK_NBYTES
from wanconv.conversion import fp16_gate
from wanconv.errors import InputError, Refused, UsageError, argument
from wanconv.layouts import COMFYUI, COMFYUI_GENERATIONS, LAYOUTS, Layout, source_layout
from wanconv.models import Expert, identify
from wanconv.planning import Plan, plan
from wanconv.recipe import Recipe, load
from wanconv.report import Finding
from wanconv.types.model import Model, Opened
from wanconv.types.names import alternatives, suggestion
from wanconv.weights.lora import with_loras


def default_jobs() -> int:
    """Returns the number of threads that keep every core busy: two more than cores, since some wait for the disk."""
    return min(8, (os.cpu_count() or 1) + 2)


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The options of `convert`; None leaves the choice to the source."""

    recipe: str
    layout: str | None = None
    comfyui_generation: Literal["native", "legacy"] | None = None
    out: Path | None = None
    shard_nbytes: int | None = None
    expert: Expert | None = None
    exclude: tuple[str, ...] = ()
    base_model: str | None = None
    hash_source: bool = False
    loras: tuple[str, ...] = ()
    lora_allow_unmatched: bool = False
    force: bool = False
    allow_unsafe_fp16: bool = False
    report: Path | None = None
    jobs: int = field(default_factory=default_jobs)
    block_nbytes: int = BLOCK_NBYTES


def named_layout(name: str) -> Layout:
    """Returns a layout by its name; raises UsageError if there is none."""
    if name not in LAYOUTS:
        raise UsageError(f"there is no layout {name!r}", suggestion(name, LAYOUTS))
    return LAYOUTS[name]


def _wanted_layout(options: ConvertOptions) -> Layout | None:
    if options.comfyui_generation is None:
        return None if options.layout is None else named_layout(options.layout)
    if options.layout != COMFYUI.name:
        comfyui = argument("layout", COMFYUI.name)
        about = "no layout is named" if options.layout is None else f"this is {options.layout}"
        message = f"`comfyui_generation` is about {comfyui}, and {about}"
        raise UsageError(message, f"say {comfyui}, or leave `comfyui_generation` out")
    return COMFYUI_GENERATIONS[options.comfyui_generation]


def prepare(source: Path, options: ConvertOptions) -> Plan:
    """Returns the plan of a conversion; raises all errors that headers can show."""
    recipe = load(options.recipe)
    wanted = _wanted_layout(options)
    _check_report(options.loras, options.report)
    check_base_model(options.base_model)
    model = open_model(source, options.exclude, options.expert)
    return planned(
        model,
        recipe,
        wanted,
        options.loras,
        options.lora_allow_unmatched,
        options.shard_nbytes,
        options.allow_unsafe_fp16,
        options.report,
    )


def open_model(source: Path, exclude: Sequence[str] = (), expert: Expert | None = None) -> Model:
    """Returns the model at a path, from its headers; it remembers how it was opened."""
    model = identify(open_checkpoint(source, exclude), expert)
    return replace(model, opened=Opened(source, expert, tuple(exclude)))


def check_base_model(name: str | None) -> None:
    """Raises UsageError for an invalid repository name of a base model."""
    if name is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise UsageError(f"`base_model` {name!r} is not a valid repository name", "write it as Wan-AI/Wan2.2-T2V-A14B")


def _check_report(loras: Sequence[str], report: Path | None) -> None:
    if loras and report:
        raise UsageError("`report` is of the source as it is, and `loras` changes it", "leave one of them out")


def planned(
    model: Model,
    recipe: Recipe,
    wanted: Layout | None,
    loras: Sequence[str] = (),
    lora_allow_unmatched: bool = False,
    shard_nbytes: int | None = None,
    allow_unsafe_fp16: bool = False,
    report: Path | None = None,
) -> Plan:
    """Returns the plan of a model; raises Refused with every reason that headers can show."""
    _check_report(loras, report)
    if loras:
        model = with_loras(model, loras, lora_allow_unmatched)
    made = _planned(model, recipe, wanted, shard_nbytes)
    fp16_gate.check(made, allow_unsafe_fp16, report)
    return made


def _planned(model: Model, recipe: Recipe, wanted: Layout | None, shard_nbytes: int | None) -> Plan:
    """Returns the plan in the wanted layout; without one, in the source's own, or else in the only one that takes the
    recipe. Raises Refused; if the layout takes the model but not the recipe, it names the layouts that take both."""
    layout = wanted or source_layout(model)
    try:
        return plan(model, recipe, layout, shard_nbytes)
    except Refused as refusal:
        others = [one for one in LAYOUTS.values() if one != layout and _takes(model, recipe, one)]
        if not others or not _takes(model, load("keep"), layout):
            raise
        names = alternatives([one.name for one in others])
        if wanted is None and len(others) == 1:
            made = plan(model, recipe, others[0], shard_nbytes)
            message = f"chosen, for no other layout takes {recipe.name}: {refusal.message}"
            return replace(made, notes=(Finding("note", names, message),))
        hint = f"choose another `layout`, which takes this recipe: {names}"
        raise Refused(refusal.message, hint, refusal.details) from None


def _takes(model: Model, recipe: Recipe, layout: Layout) -> bool:
    try:
        plan(model, recipe, layout)
    except (Refused, InputError):  # a tokenizer next to it may be damaged
        return False
    return True


def target_folder(source: Path, options: ConvertOptions) -> Path:
    """Returns OUT as an absolute path: `--out`, or `<SRC>-<recipe>` next to the source."""
    if options.out is not None:
        out = Path.cwd() / options.out
        return out.resolve() if out.name == ".." else out
    resolved = source.resolve()
    stem = resolved.stem if resolved.is_file() else resolved.name
    return resolved.parent / f"{stem}-{Path(options.recipe).stem}"
