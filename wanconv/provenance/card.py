"""The model card of a converted folder: what it is, what it was made from, how to load it."""

from wanconv.models import DENOISERS
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX
from wanconv.planning import Plan
from wanconv.provenance.markdown import inline, line, yaml
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import exact_size

_PIPELINE_TAGS = {"t2v": "text-to-video", "ti2v": "text-to-video", "i2v": "image-to-video", "flf2v": "image-to-video"}


def model_card(plan: Plan, base_model: str | None) -> bytes:
    """Returns README.md. It has `base_model_relation` only if numbers changed, by LoRAs or a narrower format:
    Hugging Face has no word for a change of layout (its values are adapter, merge, quantized, finetune)."""
    model = plan.model
    whole = any(name in DENOISERS for name in model.components)  # without one, nothing shows the family
    networks = ", ".join(component.architecture.name for component in model.components.values())
    mark = model.mark
    name = (model.release.name if model.release else model.title) if whole else networks
    base = base_model or (model.release.repository if model.release else None)
    narrowed = any(step.packing or not DTYPES[step.dtype].holds(DTYPES[step.tensor.dtype]) for step in plan.steps)
    head = [
        *([f"base_model: {yaml(base)}"] if base else []),
        *(
            [f"base_model_relation: {'merge' if model.loras else 'quantized'}"]
            if base and (model.loras or narrowed)
            else []
        ),
        *(["library_name: diffusers"] if plan.layout.name == "diffusers" else []),
        *(
            [f"pipeline_tag: {tag}"]
            if whole and not mark and (tag := _PIPELINE_TAGS.get(model.family.model_type))
            else []
        ),
        "tags:",
        *([] if mark else [f"- {'cogvideox' if model.family.name in COGVIDEOX else 'wan'}"]),
        "- wanconv",
    ]
    rows = []
    for component in model.components.values():
        formats = sorted(
            {
                step.dtype if step.packing is None else step.label
                for step in plan.steps
                if step.tensor.name in component.tensors
            }
        )
        rows.append(f"| {component.name} | {component.architecture.name} | {', '.join(formats)} |")
    merged = [
        f"| {inline(lora.file.name)} | {lora.component} | {lora.strength:g} | `{lora.sha256}` |" for lora in model.loras
    ]
    if merged:
        merged = ["", "| LoRA merged into it | component | strength | sha256 |", "|---|---|---|---|", *merged]
    summary = plan.recipe.summary.strip().removesuffix(".")
    lines = [
        "---",
        *head,
        "---",
        "",
        f"# {name}, {inline(plan.recipe.name)}, {plan.layout.name} layout",
        "",
        line(f"{summary[:1].upper()}{summary[1:]}."),
        f"{exact_size(plan.nbytes)} of weights, written by wanconv" + (f" from {inline(base)}." if base else "."),
        *([f"Its files say that it is {mark.name}; its tensors are those of {mark.base} as well."] if mark else []),
        "",
        "| component | network | stored as |",
        "|---|---|---|",
        *rows,
        *merged,
        "",
        "`wanconv.json` lists the digest of every file, the recipe, and the format of every tensor;",
        "`wanconv verify .` checks them, `wanconv verify . --against SOURCE` proves each element against its source.",
        "",
    ]
    return "\n".join(lines).encode()
