"""wanconv pre-bakes video diffusion checkpoints: verify, convert, and prove what was converted.

    import wanconv as wc

    model = wc.open_model("Wan2.2-T2V-A14B")
    plan = wc.plan(model, "fp8-scaled", "comfyui")
    wc.convert(plan, "baked")
    assert wc.verify("baked", against="Wan2.2-T2V-A14B").ok

Importing it loads nothing: each name below is loaded when it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wanconv.commands.convert import Conversion
    from wanconv.errors import (
        CheckFailed,
        DigestMismatch,
        HubUnreachable,
        InputError,
        Interrupted,
        NotFinite,
        Occupied,
        OutputError,
        Overflow,
        PluginError,
        Refused,
        Unrecognised,
        UsageError,
        WanconvError,
    )
    from wanconv.layouts import Layout
    from wanconv.library.checking import RunSettings, Validation, Verification, validate, verify
    from wanconv.library.converting import convert, plan
    from wanconv.library.listing import list_formats, list_layouts, list_recipes
    from wanconv.library.opening import open_model, tensors
    from wanconv.planning import Plan
    from wanconv.recipe import Recipe, Rule
    from wanconv.report import Finding, Report
    from wanconv.types.model import Model
    from wanconv.types.progress import Progress, ProgressStep
    from wanconv.verdict import Profile
    from wanconv.weights.lazy import LazyTensor

__version__ = "0.1.0"

_HOMES = {
    "commands.convert": ("Conversion",),
    "errors": (
        "CheckFailed",
        "DigestMismatch",
        "HubUnreachable",
        "InputError",
        "Interrupted",
        "NotFinite",
        "Occupied",
        "OutputError",
        "Overflow",
        "PluginError",
        "Refused",
        "Unrecognised",
        "UsageError",
        "WanconvError",
    ),
    "layouts": ("Layout",),
    "library.checking": ("RunSettings", "Validation", "Verification", "validate", "verify"),
    "library.converting": ("convert", "plan"),
    "library.listing": ("list_formats", "list_layouts", "list_recipes"),
    "library.opening": ("open_model", "tensors"),
    "planning": ("Plan",),
    "recipe": ("Recipe", "Rule"),
    "report": ("Finding", "Report"),
    "types.model": ("Model",),
    "types.progress": ("Progress", "ProgressStep"),
    "verdict": ("Profile",),
    "weights.lazy": ("LazyTensor",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CheckFailed",
    "Conversion",
    "DigestMismatch",
    "Finding",
    "HubUnreachable",
    "InputError",
    "Interrupted",
    "Layout",
    "LazyTensor",
    "Model",
    "NotFinite",
    "Occupied",
    "OutputError",
    "Overflow",
    "Plan",
    "PluginError",
    "Profile",
    "Progress",
    "ProgressStep",
    "Recipe",
    "Refused",
    "Report",
    "Rule",
    "RunSettings",
    "Unrecognised",
    "UsageError",
    "Validation",
    "Verification",
    "WanconvError",
    "convert",
    "list_formats",
    "list_layouts",
    "list_recipes",
    "open_model",
    "plan",
    "tensors",
    "validate",
    "verify",
]


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
