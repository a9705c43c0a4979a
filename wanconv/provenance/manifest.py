"""wanconv.json, the proof in every converted model: what it was made from, how, and the digest of every byte."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from wanconv import __version__
from wanconv.containers import check_file, header_digest, read_header
from wanconv.containers.files import regular_file, strict_json
from wanconv.errors import CheckFailed, DigestMismatch, InputError
from wanconv.layouts import LAYOUTS
from wanconv.models import ARCHITECTURE_TABLE, FAMILY_TABLE, Expert
from wanconv.planning import Plan, Slot, Step
from wanconv.provenance import download_record
from wanconv.report import Finding
from wanconv.storage.digests import digest_file, digest_files
from wanconv.storage.local import Written
from wanconv.storage.reading import fill_at, opened, read_small
from wanconv.types.documents import Json
from wanconv.types.figures import exact_size
from wanconv.types.model import Model
from wanconv.types.progress import Advance, unheard
from wanconv.types.registry import Distribution
from wanconv.types.tensors import Checkpoint, TensorRef
from wanconv.types.text import printable

NAME = "wanconv.json"
SCHEMA = "wanconv.manifest/1"
_SEAL = "self_sha256"
_NAMED = ("name", "xxh3_128")  # required fields of a tensor's entry
_COMPANIONS = {"scales": "scales", "whole": "scale of scales"}  # entries of a payload's companion tensors, in words
_CHUNK_NBYTES = 4 << 20
_MAX_NBYTES = 64_000_000  # enough for 200 000 tensors, the most that a file may hold
_MAX_ETAG_NBYTES = 10_000  # for the three lines that Hugging Face's client leaves
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def source_files(checkpoint: Checkpoint, digests: Mapping[str, str] | None = None) -> list[Json]:
    """Returns the source's weight files: size, digest of the header, and the full digest if one is known, with its
    origin: read now, listed by the hub of the download, or left by Hugging Face's client."""
    files: list[Json] = []
    record = download_record.read(checkpoint.root)
    recorded = download_record.sha256_by_file(record)
    for path in checkpoint.weight_files:
        file = checkpoint.root / path
        nbytes = file.stat().st_size
        entry: Json = {"path": path, "nbytes": nbytes, "header_sha256": header_digest(file)}
        if digests:
            entry |= {"sha256": digests[path], "sha256_from": "read"}
        elif record is not None and (listed := recorded.get((path, nbytes))) is not None:
            entry |= {"sha256": listed, "sha256_from": record.uri}
        elif (known := known_digest(checkpoint.root, path)) is not None:
            entry |= {"sha256": known, "sha256_from": "huggingface"}
        files.append(entry)
    return files


def known_digest(root: Path, path: str) -> str | None:
    """Returns the sha256 that Hugging Face's client left for a file."""
    etag = known_etag(root, path)
    return etag if etag is not None and _SHA256.fullmatch(etag) else None


def known_etag(root: Path, path: str) -> str | None:
    """Returns the sha256 or git's sha1 that Hugging Face's client left: the name of a blob, or the etag in .cache."""
    blob = (root / path).resolve()
    if blob.parent.name == "blobs" and _ETAG.fullmatch(blob.name):
        return blob.name
    metadata = root / ".cache" / "huggingface" / "download" / f"{path}.metadata"
    try:
        etag = read_small(metadata, _MAX_ETAG_NBYTES).decode().split("\n")[1].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return etag if _ETAG.fullmatch(etag) else None


def plan_key(plan: Plan, base_model: str | None) -> str:
    """Returns a key that is equal for equal conversions: sources by size and header, sidecars, recipe, layout, base
    model, LoRAs, each byte's place. Raises InputError for a sidecar that cannot be read."""
    table = [
        [[file["path"], file["nbytes"], file["header_sha256"]] for file in source_files(plan.model.checkpoint)],
        plan.recipe.text,
        plan.layout.name,
        plan.identity,
        base_model,
        [[path, _sidecar_digest(copied)] for path, copied in sorted(plan.copies.items())],
        *([lora.sha256, lora.component, lora.strength] for lora in plan.model.loras),
        *([origin.distribution, origin.version] for origin in plugins_of(plan)),
    ]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def plugins_of(plan: Plan) -> list[Distribution]:
    """Return the installed distributions that the plan's layout, family and networks are from."""
    found = {
        LAYOUTS.origin(plan.layout.name),
        FAMILY_TABLE.origin(plan.model.family.name),
        *(ARCHITECTURE_TABLE.origin(one.architecture.name) for one in plan.model.components.values()),
    }
    return sorted(origin for origin in found if origin is not None)


def _sidecar_digest(path: Path) -> str:
    try:
        return digest_file(path, "sha256", unheard)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the file") from None


def build(plan: Plan, key: str, written: Sequence[Written], sources: list[Json], options: Json) -> bytes:
    """Returns the manifest. It holds no time and no absolute path; only `tool` depends on wanconv's version."""
    import torch  # for its version; a conversion has imported it anyway

    home = {payload.key: image.path for image in plan.images for payload in image.payloads}
    digests = {key: digest for file in written for key, digest in file.tensors.items()}
    companions: dict[Step, dict[str, Slot]] = {}
    for output in plan.outputs.values():
        if output.scales_of is not None:
            companions.setdefault(output.scales_of, {})["whole" if output.whole else "scales"] = output.slot
    tensors = {}
    for output in plan.outputs.values():
        for step in output.steps:
            tensors[step.tensor.name] = {
                "file": home[output.slot.key],
                "name": output.slot.name,
                "shape": list(output.slot.shape),
                "dtype": output.slot.dtype,
                "format": step.format,
                **(_scales_entry(step, companions[step], digests) if step in companions else {}),
                "rule": step.rule + 1,
                **({"reason": step.reason} if step.reason else {}),
                "xxh3_128": digests[output.slot.key],
            }
    manifest: Json = {
        "schema": SCHEMA,
        "plan": key,
        "family": plan.model.title,
        **({"says": said} if (said := says_entry(plan.model)) else {}),
        "release": plan.model.release.name if plan.model.release else None,
        "layout": plan.layout.name,
        "recipe": {"name": plan.recipe.name, "text": plan.recipe.text},
        "options": options,
        "components": {
            name: {"architecture": component.architecture.name, "fingerprint": component.fingerprint}
            for name, component in plan.model.components.items()
        },
        "absent": list(plan.model.absent),
        "source": sources,
        **({"loras": lora_entries(plan.model)} if plan.model.loras else {}),
        **({"plugins": plugins} if (plugins := _plugin_entries(plan)) else {}),
        "files": [
            {"path": file.path, "nbytes": file.nbytes, "sha256": file.sha256}
            for file in sorted(written, key=lambda file: file.path)
        ],
        "tensors": tensors,
        "tool": {"wanconv": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    manifest[_SEAL] = _seal(manifest)
    return json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n"


def _plugin_entries(plan: Plan) -> list[Json]:
    return [{"name": origin.distribution, "version": origin.version} for origin in plugins_of(plan)]


def _seal(manifest: Json) -> str:
    """Returns the digest of a manifest's content, independent of white space."""
    content = {key: value for key, value in manifest.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _scales_entry(step: Step, slots: Mapping[str, Slot], digests: Mapping[str, str]) -> Json:
    assert step.packing is not None
    return {
        "scale": step.packing.scale,
        **({} if step.carried else {"rounding": step.rounding}),
        **{what: {"name": slot.name, "xxh3_128": digests[slot.key]} for what, slot in slots.items()},
    }


def lora_entries(model: Model) -> list[Json]:
    """Returns the records of the merged LoRAs, in their order."""
    return [
        {
            "file": lora.file.name,
            "sha256": lora.sha256,
            "component": lora.component,
            "strength": lora.strength,
            "tensors": lora.changed,
        }
        for lora in model.loras
    ]


def says_entry(model: Model) -> dict[str, Json]:
    """Returns the record of each component that says it is another network than its tensors show."""
    return {
        name: {"name": mark.name, "by": mark.by, "said": dict(mark.said), "tensors_of": mark.base}
        for name, component in model.components.items()
        if (mark := component.mark) is not None
    }


def says(manifest: Json) -> Mapping[str, Json]:
    """Returns the networks that a model says it is, as recorded in a manifest from read(): says_entry()."""
    entries: dict[str, Json] = manifest.get("says", {})  # type: ignore[assignment]  # read() has checked it
    return entries


def read(folder: Path) -> Json | None:
    """Returns a folder's manifest, None if there is none; raises InputError for one that cannot be trusted."""
    path = folder / NAME
    if not os.path.lexists(path):
        return None
    check_file(folder, NAME)
    with regular_file(path) as file:
        fault = f"it has {exact_size(file.size)}" if file.size > _MAX_NBYTES else ""
        manifest = None if fault else strict_json(file.read(0, file.size), str(path))
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        fault = fault or f"its schema is not {SCHEMA}"
    else:
        fault = _fault(manifest)
    if fault:
        message = f"{path} is not a valid manifest of this wanconv: {fault}"
        raise InputError(message, "convert again, or check with the wanconv that wrote it")
    assert isinstance(manifest, dict)
    return manifest


def files(manifest: Json) -> list[Written]:
    """Returns the files that a manifest from read() lists."""
    entries: list[dict[str, str | int]] = manifest["files"]  # type: ignore[assignment]  # read() has checked it
    return [Written(str(one["path"]), int(one["nbytes"]), str(one["sha256"]), {}) for one in entries]


def source_options(manifest: Json) -> tuple[Expert | None, tuple[str, ...]]:
    """Returns the conversion's `expert` and `exclude`, which select its part of the source."""
    options: Json = manifest["options"]  # type: ignore[assignment]  # read() has checked it, and what follows
    expert: Expert | None = options["expert"]  # type: ignore[assignment]
    return expert, tuple(options["exclude"])  # type: ignore[arg-type]


def unclipped(manifest: Json) -> frozenset[str]:
    """Returns the tensors of a manifest from read() whose scales were found without a search."""
    tensors: dict[str, Json] = manifest["tensors"]  # type: ignore[assignment]  # read() has checked it
    return frozenset(name for name, entry in tensors.items() if entry.get("rounding") == "nearest")


def loras(manifest: Json) -> list[Json]:
    """Returns the records of merged LoRAs in a manifest from read(): lora_entries()."""
    entries: list[Json] = manifest.get("loras", [])  # type: ignore[assignment]  # read() has checked it
    return entries


def _fault(manifest: Json) -> str:
    """Returns the first fault of the fields that are read again: a manifest may have any origin."""
    files, tensors, options = manifest.get("files"), manifest.get("tensors"), manifest.get("options")
    if not isinstance(manifest.get("plan"), str):
        return "it names no plan"
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        return "it lists no files"
    for file in files:
        path, nbytes, digest = file.get("path"), file.get("nbytes"), file.get("sha256")
        if not isinstance(path, str) or not is_inside(path):
            return f"{path!r} is not a path inside the folder"
        if type(nbytes) is not int or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            return f"size or sha256 of {path} is invalid"
    listed = {file["path"] for file in files}
    if not isinstance(tensors, dict):
        return "it lists no tensors"
    for name, entry in tensors.items():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in _NAMED):
            return f"its entry of {name} is invalid"
        for what, said in _COMPANIONS.items():
            scales = entry.get(what, {"name": "", "xxh3_128": ""})
            if not isinstance(scales, dict) or not all(isinstance(scales.get(key), str) for key in _NAMED):
                return f"its entry of the {said} of {name} is invalid"
        if entry.get("file") not in listed:
            return f"{name} is in {entry.get('file')!r}, which it does not list"
    if not isinstance(options, dict) or options.get("expert") not in (None, "high", "low"):
        return "it has no options"
    exclude = options.get("exclude")
    if not isinstance(exclude, list) or not all(isinstance(glob, str) for glob in exclude):
        return "its option exclude is not a list of texts"
    marks = manifest.get("says", {})
    if not isinstance(marks, dict) or not all(map(_is_said, marks.values())):
        return "its record of the model's own name is invalid"
    entries = manifest.get("loras", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return "its loras are not a list of objects"
    for entry in entries:
        words = (entry.get(key) for key in ("file", "sha256", "component"))
        if not all(isinstance(word, str) for word in words) or type(entry.get("strength")) is not float:
            return "its entry of a LoRA is invalid"
    return ""


def _is_said(entry: object) -> bool:
    """True for an entry of says_entry(): its name has the letters of a mark's name, the rest is text."""
    if not isinstance(entry, dict) or not isinstance(entry.get("said"), dict):
        return False
    words = [entry.get("name"), entry.get("by"), entry.get("tensors_of"), *entry["said"].values()]
    return all(isinstance(word, str) for word in words)


def is_inside(path: str) -> bool:
    """True for the plain relative path of a file: no root, no `..`, no `.`, no backslash, no control character."""
    pure = PurePosixPath(path)
    return (
        str(pure) == path
        and not pure.is_absolute()
        and not {"..", "."} & {*pure.parts, path}
        and "\\" not in path
        and printable(path)
    )


def check_files(
    folder: Path, manifest: Json, progress: Advance, jobs: int = 2, read: dict[str, str] | None = None
) -> list[Finding]:
    """Returns a failure for every file of the manifest, and the manifest itself, that is missing or has another size or
    other bytes. Adds path -> sha256 of the files that it read to `read`.

    A weight file whose bytes differ is read once more, tensor by tensor, to name the ones that changed: they come last.
    """
    findings: list[Finding] = []
    changed: list[Finding] = []
    readable: list[Written] = []
    for file in files(manifest):
        if finding := unreadable(folder, file.path):
            findings.append(finding)
        elif (size := (folder / file.path).stat().st_size) != file.nbytes:
            findings.append(_failure(file.path, f"is {exact_size(size)} long, not {exact_size(file.nbytes)}"))
        else:
            readable.append(file)
    found = digest_files(folder, [file.path for file in readable], "sha256", progress, jobs)
    if read is not None:
        read |= {path: digest for path, digest in found.items() if isinstance(digest, str)}
    for file in readable:
        digest = found[file.path]
        if isinstance(digest, OSError):
            message = f"cannot be read: {digest.strerror}"
            findings.append(Finding("failure", file.path, message, "check the disk", InputError.code))
        elif digest != file.sha256:
            findings.append(_failure(file.path, f"sha256 is {digest}, not {file.sha256}"))
            changed += _changed_tensors(folder, file.path, manifest)
    if manifest.get(_SEAL) != _seal(manifest):
        changed.append(_failure(NAME, f"is not what was written: its {_SEAL} does not fit the rest of it"))
    return findings + changed


def unreadable(folder: Path, path: str) -> Finding | None:
    """Returns why a listed file cannot be read: missing, a link to elsewhere, or not a file."""
    if not os.path.lexists(folder / path):
        return Finding("failure", path, "is missing", "get the file again, or convert again", CheckFailed.code)
    try:
        check_file(folder, path)
    except InputError as error:
        return Finding("failure", path, error.message, error.hint, error.code)
    return None


def _failure(where: str, message: str) -> Finding:
    return Finding("failure", where, message, "convert again", DigestMismatch.code)


def _changed_tensors(folder: Path, path: str, manifest: Json) -> list[Finding]:
    """Returns a failure for every tensor of a changed weight file that is not what the manifest says."""
    entries: dict[str, dict[str, Any]] = manifest["tensors"]  # type: ignore[assignment]  # read() has checked it
    expected = {name: entry for name, entry in entries.items() if entry["file"] == path}
    expected |= {
        f"the {words} of {name}": entry[what]
        for name, entry in expected.items()
        for what, words in _COMPANIONS.items()
        if what in entry
    }
    try:
        tensors = read_header(folder / path).tensors if expected else {}
    except InputError:
        return []  # the header itself is broken; its own check reports it
    digests = {name: _digest_tensor(ref) for name, ref in tensors.items()}
    return [
        _failure(name, f"its bytes in {path} have changed" if entry["name"] in digests else f"is missing from {path}")
        for name, entry in expected.items()
        if digests.get(entry["name"]) != entry["xxh3_128"]
    ]


def _digest_tensor(ref: TensorRef) -> str:
    digest, buffer = xxhash.xxh3_128(), bytearray(_CHUNK_NBYTES)
    with opened(ref.file) as descriptor:
        at, end = ref.offset, ref.offset + ref.nbytes
        while count := fill_at(descriptor, memoryview(buffer)[: end - at], at):
            digest.update(memoryview(buffer)[:count])
            at += count
    return digest.hexdigest()
