"""LoRAs for a model: the component of each file, what each of its keys changes there, and the scale."""

import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path

from wanconv.containers import Header, read_header
from wanconv.containers.files import explained
from wanconv.errors import InputError, NotFinite, Refused, UsageError, argument
from wanconv.models import DENOISERS
from wanconv.models.experts import Witness, hear, twin, witnesses_of
from wanconv.models.lora_names import LoraPart, Stems, Tail, read_key, stems
from wanconv.storage.digests import digest_file
from wanconv.storage.paths import local_path
from wanconv.storage.reading import brief, parsed_json
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import count
from wanconv.types.model import Component, Lora, Model, ModelTensor, Patch
from wanconv.types.names import suggestion
from wanconv.types.progress import unheard
from wanconv.types.tensors import TensorRef
from wanconv.types.text import printable

_COMPONENTS = {"high": "expert.high", "low": "expert.low"} | {name: name for name in DENOISERS}
_FORM = "write it as FILE, FILE:0.8 or high=FILE:0.8"
_ALPHAS = {"fp64": "<d", "fp32": "<f", "fp16": "<e", "int64": "<q", "int32": "<i"}
_METADATA = "lora_adapter_metadata"  # diffusers' save_lora_adapter: the LoraConfig of each component
_UNREAD = ("alpha_pattern", "use_rslora", "use_dora")  # keys of it that mean scales other than alpha / rank


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """One `--lora`: the component is None if the user names none."""

    file: Path
    strength: float = 1.0
    component: str | None = None


def parse(text: str) -> LoraRequest:
    """Returns what `[COMPONENT=]FILE[:strength]` means; a file with this whole name has no strength."""
    word, equals, rest = text.partition("=")
    component = _COMPONENTS.get(word) if equals else None
    name, where = rest if component else text, f"`loras` {text}".rstrip()
    whole = local_path(name, where)
    head, colon, tail = name.rpartition(":")
    if not colon or os.path.lexists(whole):
        return LoraRequest(whole, component=component)
    try:
        strength = float(tail)
    except ValueError:
        strength = float("nan")
    file = local_path(head, where)
    if not isfinite(strength):
        raise UsageError(f"`loras` {text}: {tail!r} is not a valid strength", _FORM)
    return LoraRequest(file, strength, component)


def with_loras(model: Model, texts: Sequence[str], allow_unmatched: bool) -> Model:
    """Returns the model with LoRAs to be merged into it, always in the same order.

    Raises UsageError if a LoRA's component is unclear, InputError for an invalid file, NotFinite for an alpha, and
    one Refused for all that does not fit: keys, kinds and shapes.
    """
    read: dict[Path, tuple[Header, str]] = {}

    def header_of(file: Path) -> Header:
        if file not in read:
            read[file] = _open(file)
        return read[file][0]

    wishes = [parse(text) for text in texts]
    names = sorted({wanted.file.name for wanted in wishes})
    aims = [aim for wanted in wishes for aim in [(wanted, *_component(model, wanted, header_of, names))]]
    found: list[Lora] = []
    patches: dict[str, list[Patch]] = {}
    refusals: list[Refused] = []
    for wanted, _, _ in aims:
        header_of(wanted.file)
    aims.sort(key=lambda aim: (read[aim[0].file][1], aim[1].name))
    for wanted, component, evidence in aims:
        header, sha256 = read[wanted.file]
        if any(one.sha256 == sha256 and one.component == component.name for one in found):
            raise UsageError(
                f"`loras` {wanted.file} is given twice for {component.name}",
                "give it once, with the sum as its strength",
            )
        try:
            made, unmatched = _patches(wanted, component, header, allow_unmatched)
        except Refused as refusal:
            refusals.append(refusal)
            continue
        ranks = tuple(sorted({each.rank for all in made.values() for each in all if each.rank is not None}))
        found.append(Lora(wanted.file, sha256, component.name, wanted.strength, len(made), ranks, unmatched, evidence))
        for name, each in made.items():
            patches.setdefault(name, []).extend(each)
    if refusals:
        raise _all_of(refusals)
    components = {
        name: replace(
            component,
            tensors={
                full: replace(tensor, patches=tuple(patches[full])) if full in patches else tensor
                for full, tensor in component.tensors.items()
            },
        )
        for name, component in model.components.items()
    }
    return replace(model, components=components, loras=tuple(found))


def _all_of(refusals: Sequence[Refused]) -> Refused:
    first, *others = refusals
    details = [*first.details, *(line for other in others for line in (other.message, *other.details))]
    return Refused(first.message, first.hint, details)


def _component(
    model: Model, wanted: LoraRequest, header_of: Callable[[Path], Header], names: Sequence[str]
) -> tuple[Component, str]:
    """Returns the component that a LoRA changes, and the evidence if the user named none; `names` are all LoRAs'."""
    denoisers = [component for name, component in model.components.items() if name in DENOISERS]
    word, equals, _ = str(wanted.file).partition("=")
    if wanted.component is None and equals and not os.path.lexists(wanted.file):
        message = f"`loras` {wanted.file}: the file does not exist, and {word!r} is not a component"
        raise UsageError(message, suggestion(word, _COMPONENTS, _FORM))
    if wanted.component is not None:
        if wanted.component not in {component.name for component in denoisers}:
            has = ", ".join(component.name for component in denoisers) or "no denoiser"
            raise UsageError(
                f"`loras` {wanted.file} is for {wanted.component}, and {model.checkpoint.root} holds {has}",
                "name a component that is there, or none",
            )
        return model.components[wanted.component], ""
    if not denoisers:
        raise UsageError(
            f"`loras` {wanted.file}: {model.checkpoint.root} holds no denoiser", "give the model that the LoRA is for"
        )
    if denoisers[0].name == "dit":
        return denoisers[0], ""
    return _expert(model, wanted.file, denoisers, _witnesses(wanted.file, header_of(wanted.file), names))


def _expert(
    model: Model, file: Path, denoisers: Sequence[Component], witnesses: Sequence[Witness]
) -> tuple[Component, str]:
    """Returns the expert that the witnesses of a LoRA name, and which of them did; they are weighed like those of a
    model's files."""
    held = {component.name: component for component in denoisers}
    heard, name = hear(witnesses), ""
    if heard.contradiction:
        message = f"`loras` {file}: what says which expert it is for contradicts itself"
        raise UsageError(message, _say(file, held), heard.contradiction)
    named = sorted({f"expert.{expert}" for witness in witnesses for expert in witness.said.weights})
    if heard.expert is not None:
        name = f"expert.{heard.expert}"
        if name in held:
            return held[name], heard.evidence
    if (name and name not in held) or len(named) > 1:
        raise UsageError(
            f"`loras` {file}: its name speaks of {' and '.join(named)}, and "
            f"{model.checkpoint.root} holds {', '.join(held)}",
            _say(file, held),
        )
    if len(denoisers) > 1:
        raise UsageError(
            f"`loras` {file}: neither its name nor a word before it says which expert it is for", _say(file, held)
        )
    return denoisers[0], ""


def _witnesses(file: Path, header: Header, names: Sequence[str]) -> list[Witness]:
    found = witnesses_of([file.name], file.absolute().parent.name, header.metadata, "header")
    return found + [pair for other in names if (pair := twin(file.name, other)) is not None]


def _say(file: Path, held: Collection[str]) -> str:
    """Returns a hint: how to name a LoRA's expert."""
    words = [f"{name.rpartition('.')[2]}={file}" for name in held]
    forms = [argument("loras", [word]) for word in words]
    if len(forms) == 1:
        return f"say which it is for: {forms[0]}"
    return f"say {' or '.join(forms)}, or both where one file serves both"


def _open(file: Path) -> tuple[Header, str]:
    if not printable(str(file)):
        raise InputError(f"`loras` {str(file)!r} holds characters that no path should have", "rename the file")
    if file.suffix != ".safetensors":
        with explained(file):
            file.stat()
        raise InputError(f"{file} is not a .safetensors file", "re-save its tensors as .safetensors")
    header = read_header(file)
    with explained(file):
        return header, digest_file(file, "sha256", unheard)


def _patches(
    wanted: LoraRequest, component: Component, header: Header, allow_unmatched: bool
) -> tuple[dict[str, list[Patch]], tuple[str, ...]]:
    """Returns canonical name -> what is added, and the keys that name nothing in the component."""
    where = f"{wanted.file} for {component.name}"
    parts, unmatched, refused = _sort(stems(component.architecture, component.dims), header, wanted.file)
    if refused:
        kinds = ", ".join(dict.fromkeys(tail.word for tail, _ in refused))
        message = f"{where} holds {kinds}: only products of two matrices and differences are merged"
        raise Refused(message, "merge it with the tool that it is for", [name for _, name in refused])
    if not parts:
        keys = len(header.tensors)
        none = "its only key does not name" if keys == 1 else f"none of its {keys} keys names"
        message = f"{where}: {none} a tensor of {component.architecture.name}"
        raise Refused(message, "check which model and which expert it was made for", unmatched)
    if unmatched and not allow_unmatched:
        names = ("key names", "keys names" if len(unmatched) == 1 else "keys name")
        message = f"{where}: {len(unmatched)} of its {count(len(header.tensors), *names)} no tensor there"
        raise Refused(
            message, "check which model it was made for; `lora_allow_unmatched=True` merges the others alone", unmatched
        )
    alpha = _metadata_alpha(header, wanted.file)
    made: dict[str, list[Patch]] = {}
    wrong: list[str] = []
    for canonical, found in parts.items():
        name = f"{component.name}/{canonical}"
        for patch in _of_tensor(found, wanted, alpha):
            if fault := _wrong_shape(patch, component.tensors[name]):
                wrong.append(fault)
            made.setdefault(name, []).append(patch)
    if wrong:
        message = f"{where} does not fit its shapes: {len(wrong)} of {count(len(made), 'tensor')}"
        raise Refused(message, "check which size of the model it was made for", wrong)
    return made, tuple(unmatched)


def _sort(
    known: Stems, header: Header, file: Path
) -> tuple[dict[str, dict[LoraPart, TensorRef]], list[str], list[tuple[Tail, str]]]:
    """Returns the tensors of each canonical name, the keys that name nothing, and those of a kind that is not read."""
    parts: dict[str, dict[LoraPart, TensorRef]] = {}
    unmatched: list[str] = []
    refused: list[tuple[Tail, str]] = []
    for key, ref in sorted(header.tensors.items()):
        found = read_key(known, key)
        if found is None:
            unmatched.append(key)
            continue
        tail, canonical = found
        if tail.part == "refused":
            refused.append((tail, key))
            continue
        of_it = parts.setdefault(canonical, {})
        if tail.part in of_it:
            raise InputError(
                f"{file}: {of_it[tail.part].name} and {key} say the same thing of one tensor", "remove one of the two"
            )
        if tail.part != "alpha" and not (DTYPES[ref.dtype].is_float and ref.dtype != "fp64"):
            raise InputError(f"{file}: {key} is {ref.dtype}", "get the LoRA in a float dtype of at most 32 bits")
        of_it[tail.part] = ref
    return parts, unmatched, refused


def _of_tensor(parts: Mapping[LoraPart, TensorRef], wanted: LoraRequest, alpha: float | None) -> Iterator[Patch]:
    up, down = parts.get("up"), parts.get("down")
    if (up is None) != (down is None) or (down is None and "alpha" in parts):
        some = next(iter(parts.values()))
        raise InputError(
            f"{wanted.file}: of a pair of matrices there is only {some.name}",
            "export the LoRA again, with both of each pair",
        )
    if up is not None and down is not None:
        rank = down.shape[0] if down.shape else 0
        if "alpha" in parts:
            alpha = _alpha(parts["alpha"])
        yield Patch(wanted.strength * (1.0 if alpha is None else alpha / max(rank, 1)), down, up)
    if "difference" in parts:
        yield Patch(wanted.strength, parts["difference"])


def _wrong_shape(patch: Patch, tensor: ModelTensor) -> str:
    """Returns a sentence about a patch's wrong shapes, or ""."""
    down, up, shape = patch.down, patch.up, tensor.shape
    if tensor.dtype == "fp64" or not (DTYPES[tensor.dtype].is_float or tensor.quantized):
        return f"{tensor.name} is {tensor.dtype}, to which nothing can be added"
    if up is None:
        if down.shape == shape:
            return ""
        return f"{down.name} is {list(down.shape)}, and {tensor.name} {list(shape)}"
    flat = [(each[0], prod(each[1:])) if len(each) > 1 else (0, 0) for each in (up.shape, down.shape)]
    (rows, rank), (other, columns) = flat
    if rank == other > 0 and (rows, columns) == (shape[0], prod(shape[1:])) and len(shape) > 1:
        return ""
    product = f"{up.name} {list(up.shape)} times {down.name} {list(down.shape)}"
    return f"{product} does not have the shape of {tensor.name} {list(shape)}"


def _alpha(ref: TensorRef) -> float:
    """Returns an alpha, the only number that is read while a plan is made."""
    if ref.numel != 1 or ref.dtype not in (*_ALPHAS, "bf16"):
        raise InputError(
            f"{ref.file}: {ref.name} is not a single number: {ref.dtype} {list(ref.shape)}",
            "export the LoRA again, with one number for each alpha",
        )
    with explained(ref.file):
        raw = ref.read()
    value = struct.unpack(_ALPHAS.get(ref.dtype, "<f"), b"\0\0" + raw if ref.dtype == "bf16" else raw)[0]
    if not isfinite(value):
        raise NotFinite(f"{ref.file}: {ref.name} is {value}", "get the LoRA again and check its digest")
    return float(value)


def _metadata_alpha(header: Header, file: Path) -> float | None:
    """Returns the alpha that diffusers wrote into the header, which counts where a key has none of its own."""
    if _METADATA not in header.metadata:
        return None
    try:
        config = parsed_json(header.metadata[_METADATA].encode())
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
        words = {key.removeprefix("transformer."): value for key, value in config.items()}
    except ValueError:
        raise InputError(f"{file}: its {_METADATA} is not a JSON object", "export the LoRA again") from None
    if unread := [word for word in _UNREAD if words.get(word)]:
        message = f"{file} is scaled in a way that is not read: {', '.join(unread)}"
        raise Refused(message, "fuse it with diffusers, and save it without")
    alpha = words.get("lora_alpha")
    if alpha is not None and not (isinstance(alpha, int | float) and isfinite(alpha)):
        raise InputError(f"{file}: its {_METADATA} has the lora_alpha {brief(alpha)}", "export the LoRA again")
    return alpha
