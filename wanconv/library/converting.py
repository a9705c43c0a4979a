"""Plans conversions and carries them out."""

import os
from collections.abc import Sequence
from typing import overload

from wanconv.commands.convert import Conversion, carry_out
from wanconv.conversion.options import (
    ConvertOptions,
    check_base_model,
    default_jobs,
    named_layout,
    planned,
    target_folder,
)
from wanconv.errors import UsageError
from wanconv.layouts import Layout
from wanconv.library.paths import given, given_or_none
from wanconv.planning import Plan
from wanconv.recipe import Recipe, load
from wanconv.types.model import Model
from wanconv.types.progress import Progress, silent


def plan(
    model: Model,
    recipe: str | os.PathLike[str] | Recipe,
    layout: str | Layout | None = None,
    *,
    loras: Sequence[str] = (),
    lora_allow_unmatched: bool = False,
    shard_nbytes: int | None = None,
    allow_unsafe_fp16: bool = False,
    report: str | os.PathLike[str] | None = None,
) -> Plan:
    """Decide the place and the format of every output byte, from headers alone.

    The same arguments give the same plan, with the same `identity`.

    Args:
        model: What `open_model` returned.
        recipe: A recipe's name, the path of a .toml file, or a Recipe.
        layout: The client to write for, by name or as a Layout; None for the source's own, or else for the only one
            that takes the recipe.
        loras: LoRAs to merge, each `[EXPERT=]FILE[:STRENGTH]`.
        lora_allow_unmatched: Merge a LoRA without the keys that match nothing in the model.
        shard_nbytes: The largest weight file in bytes; None for the layout's own.
        allow_unsafe_fp16: Store a network in fp16 that is known to break when computed in fp16.
        report: The results.json of a validation with `numerics="fp16"`, which lets the model be stored in fp16.

    Returns:
        The plan; `.nbytes` is its size on disk in bytes, `.findings` are notes and warnings.

    Raises:
        Refused: If headers show that the conversion is impossible, with every reason at once.
        UsageError: For a recipe or layout that does not exist or is invalid.
        InputError: If a LoRA or a report cannot be read.

    Examples:
        >>> import wanconv as wc
        >>> made = wc.plan(wc.open_model(checkpoint), "bf16", "comfyui")
        >>> made.layout.name, made.nbytes > 10**6
        ('comfyui', True)
    """
    wanted = named_layout(layout) if isinstance(layout, str) else layout
    rules = recipe if isinstance(recipe, Recipe) else load(os.fspath(recipe))
    proof = given_or_none(report, "report")
    return planned(model, rules, wanted, loras, lora_allow_unmatched, shard_nbytes, allow_unsafe_fp16, proof)


@overload
def convert(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = ...,
    base_model: str | None = ...,
    hash_source: bool = ...,
    jobs: int | None = ...,
    progress: Progress = ...,
) -> Conversion: ...


@overload
def convert(
    plan: Sequence[Plan],
    out: Sequence[str | os.PathLike[str]],
    *,
    overwrite: bool = ...,
    base_model: str | None = ...,
    hash_source: bool = ...,
    jobs: int | None = ...,
    progress: Progress = ...,
) -> tuple[Conversion, ...]: ...


def convert(
    plan: Plan | Sequence[Plan],
    out: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    overwrite: bool = False,
    base_model: str | None = None,
    hash_source: bool = False,
    jobs: int | None = None,
    progress: Progress = silent,
) -> Conversion | tuple[Conversion, ...]:
    """Carry out a plan, or several one after the other; an interrupted conversion resumes.

    `out` appears whole or not at all. Threads of torch, signal handlers, the environment and the working directory are
    left as they were.

    Args:
        plan: What `plan` returned, or several.
        out: The folder to write, or as many folders as there are plans.
        overwrite: Replace a folder that wanconv wrote, and the remains of another run.
        base_model: OWNER/NAME of the base that the model card names.
        hash_source: Put full digests of the source into the manifest.
        jobs: Threads; None for two more than there are cores, at most 8.
        progress: Called with a `ProgressStep`, on any thread, as work is done.

    Returns:
        The result of the plan, or of each: `.out`, `.plan` with the fallbacks that values called for, `.written`
        (False if `out` held this conversion already), `.findings`.

    Raises:
        UsageError: If `out` holds something else, or is the source.
        InputError: If the source cannot be read or changes meanwhile.
        NotFinite: For NaN or infinity in the source; Overflow for a value that the format cannot hold.
        DigestMismatch: If `out` holds this conversion, but damaged.
        OutputError: If `out` cannot be written.
        Interrupted: By Ctrl-C; the same call resumes.

    Examples:
        >>> import wanconv as wc
        >>> made = wc.plan(wc.open_model(checkpoint), "bf16", "comfyui")
        >>> wc.convert(made, folder / "baked").written
        True
        >>> wc.convert(made, folder / "baked").written
        False
    """
    check_base_model(base_model)
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    outs = [out] if isinstance(out, str | os.PathLike) else list(out)
    if len(plans) != len(outs):
        raise UsageError(f"{len(plans)} plans cannot go to {len(outs)} folders", "give a folder for each plan as `out`")
    done = []
    for one, place in zip(plans, outs, strict=True):
        options = ConvertOptions(
            recipe=one.recipe.name,
            out=given(place, "out"),
            base_model=base_model,
            hash_source=hash_source,
            force=overwrite,
            jobs=jobs or default_jobs(),
        )
        done.append(carry_out(one, target_folder(one.model.checkpoint.root, options), options, progress))
    return done[0] if isinstance(plan, Plan) else tuple(done)
