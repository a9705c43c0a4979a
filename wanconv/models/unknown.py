"""Files that fit no network: what their names show, and what the user can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wanconv.errors import Unrecognised, named
from wanconv.models.lora_names import TAILS
from wanconv.models.match import Match, fits
from wanconv.models.releases import ARCHITECTURES
from wanconv.quantization.packings import unexplained_reason, unpack
from wanconv.types.exclusion import excluding
from wanconv.types.figures import count
from wanconv.types.tensors import Part, TensorRef

_SHOWN = 10
_DEEPEST = 6  # most words of a prefix
# A tensor by which a file is known that wanconv does not read, what the file is, and what to do.
_NOT_READ = {
    "encoder.down.0.block.0.conv1.conv.weight": (  # zai-org/CogVideo sat/vae_modules/cp_enc_dec.py
        "the VAE of a CogVideoX training checkpoint, together with its training state: wanconv does not read these",
        "{exclude}, and take the VAE of zai-org's diffusers folders: it is the same",
    ),
}
# Suffixes by which a tool marks what it quantized, and the kind of file.
_QUANTIZED = (
    ("._data", "quantized by optimum-quanto"),  # huggingface/optimum-quanto, tensor/qtensor.py
    (".quant_state.bitsandbytes__nf4", "quantized to nf4 by bitsandbytes"),  # bitsandbytes functional.py, QuantState
    (".quant_state.bitsandbytes__fp4", "quantized to fp4 by bitsandbytes"),
)
# Prefixes of names in files of several networks, and in those that wrap one.
_PREFIXES = (
    *("model.diffusion_model.", "diffusion_model.", "text_encoders.umt5xxl.transformer.", "umt5xxl.transformer."),
    *("text_encoders.t5xxl.transformer.", "first_stage_model.", "vae.", "text_encoder.", "transformer.", "dit."),
)


def _known() -> str:
    return "wanconv knows " + ", ".join(architecture.name for architecture in ARCHITECTURES)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A part that fits no network. `error` says why; `what` describes it in a note. It is `foreign` if nothing suggests
    one of wanconv's networks in another packaging, of another size, or damaged."""

    part: Part
    error: Unrecognised
    what: str
    foreign: bool


def unknown(part: Part, found: Sequence[Match]) -> Unknown:
    """Returns what is known of a part; `found` are the networks that share some of its names, the nearest first."""
    for tensor, (what, hint) in _NOT_READ.items():
        if tensor in part.tensors:
            return _own(part, f"{part.path} is {what}", hint.format(exclude=excluding(part.files)))
    weights, _ = unpack(part)
    names = list(part.tensors)
    if names and all(name.endswith(_LORA_TAILS) for name in names):
        error = Unrecognised(
            f"{part.path} is a LoRA, not a model",
            "merge it into its model: wanconv `plan(MODEL, recipe, loras=[FILE])`",
        )
        return Unknown(part, error, "a LoRA, which `loras` merges", foreign=True)
    for tail, what in _QUANTIZED:
        if any(name.endswith(tail) for name in names):
            return _own(part, f"{part.path} is {what}, which wanconv does not read", "take the file it was made from")
    if (near := _nearest(weights, found)) is not None:
        return _near(part, near)
    if below := _below_prefixes(part):
        return _prefixed(part, below)
    hits = max((len(fit.found) for fit in found), default=0)
    none = "its only tensor is not" if len(names) == 1 else f"none of its {len(names)} tensors is"
    message = f"{part.path}: {none} in a network that wanconv knows"
    if hits:
        most = f"{hits} of its {count(len(names), 'tensor')}"
        message = f"{part.path} is not a network that wanconv knows: no known network has more than {most}"
    details = first_of([f"unknown: {name}" for name in names])
    return Unknown(
        part, Unrecognised(message, _known(), details), "not a network that wanconv knows", foreign=bool(names)
    )


_LORA_TAILS = tuple(tail.text for tail in TAILS)


def _own(part: Part, message: str, hint: str, details: Sequence[str] = ()) -> Unknown:
    return Unknown(part, Unrecognised(message, hint, details), message, foreign=False)


def _nearest(tensors: Mapping[str, TensorRef], found: Sequence[Match]) -> Match | None:
    """Returns the nearest network that has most of a file's tensors, or most of whose tensors a file has."""
    for fit in found:
        if 2 * len(fit.found) >= min(len(tensors), len(fit.found) + len(fit.missing)):
            return fit
    return None


def _near(part: Part, fit: Match) -> Unknown:
    message = (
        f"{part.path} fits no known network; the nearest is {fit.architecture.name} ({fit.scheme} names): "
        f"{len(fit.missing)} missing, {len(fit.extra)} unknown, {len(fit.wrong)} wrongly shaped"
    )
    reasons = {name: unexplained_reason(name, part) for name in fit.extra}
    details = [
        *first_of(
            [f"shape of {bad.name}: found {_shape(bad.found)}, expected {_shape(bad.expected)}" for bad in fit.wrong]
        ),
        *first_of([f"missing: {name}" for name in fit.missing]),
        *first_of([f"unknown: {name}" + (f" ({why})" if why else "") for name, why in reasons.items()]),
    ]
    return _own(part, message, _advice(fit, any(reasons.values())), details)


def _advice(fit: Match, odd_scales: bool) -> str:
    """Returns the most likely reason why a file is nearly a network."""
    name = fit.architecture.name
    if odd_scales:
        return "wanconv does not read its scales: take the file that it was quantized from"
    if fit.missing and not (fit.extra or fit.wrong):
        return f"it holds a part of {name}: give the rest of it in the same folder, with the index that lists all"
    if fit.extra and not (fit.missing or fit.wrong):
        return f"it is {name} and more: a variant that wanconv does not know, or its training checkpoint"
    return f"it may be a variant of {name} that wanconv does not know; {_known()}"


@dataclass(frozen=True, slots=True)
class _Below:
    """The tensors below a prefix: `fit` is exact, or the nearest one that most of them fit, or None."""

    prefix: str
    count: int
    fit: Match | None

    def __str__(self) -> str:
        if self.fit is None:
            what = "not a network that wanconv knows"
        else:
            what = ("nearly " if self.fit.differences else "") + self.fit.architecture.name
        where = f"below the prefix {self.prefix!r}" if self.prefix else "without a prefix"
        return f"{count(self.count, 'tensor is', 'tensors are')} {what} {where}"


def _below_prefixes(part: Part) -> list[_Below]:
    """Returns the networks of a file below prefixes; empty if there is none."""
    names, prefix = list(part.tensors), ""
    for segment in (names[0] if names else "").split(".")[:_DEEPEST]:
        prefix += f"{segment}."
        if not all(name.startswith(prefix) for name in names):
            break
        if (one := _below(prefix, part, names)).fit is not None:
            return [one]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(next((one for one in _PREFIXES if name.startswith(one)), ""), []).append(name)
    found = [_below(prefix, part, group) for prefix, group in groups.items()]
    return found if any(one.fit is not None and one.prefix for one in found) else []


def _below(prefix: str, part: Part, names: Sequence[str]) -> _Below:
    inner = {name.removeprefix(prefix): part.tensors[name] for name in names}
    weights, _ = unpack(replace(part, tensors={name: replace(ref, name=name) for name, ref in inner.items()}))
    return _Below(prefix, len(names), _nearest(weights, fits(weights)))


def _prefixed(part: Part, below: Sequence[_Below]) -> Unknown:
    if len(below) == 1 and below[0].fit is not None:
        message = f"{part.path}: all {below[0]}"
        return _own(part, message, f"re-save it without {below[0].prefix!r} in its names, which wanconv does not read")
    message = f"{part.path} holds several networks in one file, which wanconv does not read"
    return _own(part, message, "re-save each in a file of its own, without its prefix", [str(one) for one in below])


def first_of(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"… and {more} more"] if more > 0 else list(lines)


def _shape(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def refusal(found: Sequence[Unknown], matched: Sequence[Part]) -> Unrecognised:
    """Returns one error for all parts that fit no network; next to known parts, with how to exclude the foreign ones,
    or else all of them: a near fit may be a damaged file, or an unknown network."""
    first = found[0].error
    message = first.message + (f"; {len(found)} files fit none" if len(found) > 1 else "")
    others = [line for one in found[1:] for line in (one.error.message, *one.error.details)]
    foreign = [file for one in found if one.foreign for file in one.part.files]
    kept = [file for part in matched for file in part.files]
    hint = first.hint
    if foreign and (matched or len(foreign) < len(found)):
        options = excluding(foreign, kept)
        leave = f"leave out what is not of the model: {options}"
        hint = leave if hint == _known() else f"{hint}; {'or' if found[0].foreign else 'and'} {leave}"
    elif matched and "exclude" not in named(hint):
        options = excluding([file for one in found for file in one.part.files], kept)
        hint += f"; or leave out what is not of the model: {options}"
    return Unrecognised(message, hint, (*first.details, *others))
