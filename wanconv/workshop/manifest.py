"""wanconv.json, the proof beside every converted model: what it was made from, how, and the digest of every byte."""

import hashlib
import json
import platform
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from wanconv import __version__
from wanconv.checkpoint import header_digest, open_checkpoint
from wanconv.checkpoint.writer import Written
from wanconv.errors import CheckFailed, DigestMismatch, InputError
from wanconv.plan import Plan
from wanconv.report import Finding
from wanconv.tensors import Checkpoint, TensorRef

NAME = "wanconv.json"
SCHEMA = "wanconv.manifest/1"
_CHUNK_NBYTES = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

Json = dict[str, object]


def source_files(checkpoint: Checkpoint, digests: Mapping[str, str] | None = None) -> list[Json]:
    """Returns the source's weight files: size, digest of the header, and the full digest where one is known."""
    files: list[Json] = []
    for path in sorted({file for part in checkpoint.parts for file in part.files}):
        file = checkpoint.root / path
        entry: Json = {"path": path, "nbytes": file.stat().st_size, "header_sha256": header_digest(file)}
        if digests:
            entry |= {"sha256": digests[path], "sha256_from": "read"}
        elif (known := known_digest(checkpoint.root, path)) is not None:
            entry |= {"sha256": known, "sha256_from": "huggingface"}
        files.append(entry)
    return files


def known_digest(root: Path, path: str) -> str | None:
    """Returns the sha256 that Hugging Face's client left for a file: its blob's name, or the etag in .cache."""
    blob = (root / path).resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    metadata = root / ".cache" / "huggingface" / "download" / f"{path}.metadata"
    try:
        etag = metadata.read_text().split("\n")[1].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return etag if _SHA256.fullmatch(etag) else None


def plan_key(plan: Plan) -> str:
    """Returns what makes two conversions the same: sources by size and header, recipe, layout, each byte's place."""
    table = [
        [[file["path"], file["nbytes"], file["header_sha256"]] for file in source_files(plan.model.checkpoint)],
        plan.recipe.text,
        plan.layout.name,
        plan.identity,
    ]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def build(plan: Plan, key: str, written: Sequence[Written], sources: list[Json], options: Json) -> bytes:
    """Returns the manifest. It holds no time and no absolute path, and depends on the tool only under `tool`."""
    import torch  # only for its version: a conversion has it loaded anyway

    home = {payload.key: image.path for image in plan.images for payload in image.payloads}
    digests = {key: digest for file in written for key, digest in file.tensors.items()}
    tensors = {}
    for output in plan.outputs.values():
        for step in output.steps:
            tensors[step.tensor.name] = {
                "file": home[output.slot.key],
                "name": output.slot.name,
                "shape": list(output.slot.shape),
                "dtype": output.slot.dtype,
                "format": step.format,
                "rule": step.rule + 1,
                **({"reason": step.reason} if step.reason else {}),
                "xxh3_128": digests[output.slot.key],
            }
    manifest = {
        "schema": SCHEMA,
        "plan": key,
        "family": plan.model.family.name,
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
        "files": [
            {"path": file.path, "nbytes": file.nbytes, "sha256": file.sha256}
            for file in sorted(written, key=lambda file: file.path)
        ],
        "tensors": tensors,
        "tool": {"wanconv": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    return json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n"


def read(folder: Path) -> Json | None:
    """Returns a folder's manifest, None where there is none; raises InputError for one that cannot be understood."""
    path = folder / NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the file's permissions") from None
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or not _well_formed(manifest):
        raise InputError(
            f"{path} is no manifest of this wanconv", "convert again, or check with the wanconv that wrote it"
        )
    return manifest


def files(manifest: Json) -> list[Written]:
    """Returns the files that a manifest from read() lists."""
    entries: list[dict[str, str | int]] = manifest["files"]  # type: ignore[assignment]  # read() has checked it
    return [Written(str(one["path"]), int(one["nbytes"]), str(one["sha256"]), {}) for one in entries]


def _well_formed(manifest: Json) -> bool:
    files, tensors = manifest.get("files"), manifest.get("tensors")
    return (
        isinstance(files, list)
        and all(
            isinstance(file, dict)
            and isinstance(file.get("path"), str)
            and isinstance(file.get("nbytes"), int)
            and isinstance(file.get("sha256"), str)
            for file in files
        )
        and isinstance(tensors, dict)
        and all(
            isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("file", "name", "xxh3_128"))
            for entry in tensors.values()
        )
    )


def read_chunks(path: Path) -> Iterator[memoryview]:
    """Yields a file's bytes in runs, through one buffer."""
    buffer = bytearray(_CHUNK_NBYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            yield memoryview(buffer)[:count]


def digest_file(path: Path, algorithm: str, progress: Callable[[int], None]) -> str:
    """Returns the hex digest of a file; raises OSError."""
    digest = hashlib.new(algorithm)
    for chunk in read_chunks(path):
        digest.update(chunk)
        progress(len(chunk))
    return digest.hexdigest()


def digest_files(
    root: Path, paths: Sequence[str], algorithm: str, progress: Callable[[int], None], jobs: int = 2
) -> dict[str, str | OSError]:
    """Returns path -> hex digest, or the error that kept it from being read; `jobs` files at a time."""
    lock = threading.Lock()

    def tell(nbytes: int) -> None:
        with lock:
            progress(nbytes)

    def one(path: str) -> str | OSError:
        try:
            return digest_file(root / path, algorithm, tell)
        except OSError as error:
            return error

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(paths, pool.map(one, paths), strict=True))


def check_files(folder: Path, manifest: Json, progress: Callable[[int], None], jobs: int = 2) -> list[Finding]:
    """Returns a failure for every file of the manifest that is missing, of another size or of other bytes.

    A weight file whose bytes differ is read once more, tensor by tensor, to name the ones that changed.
    """
    listed = files(manifest)
    found = digest_files(folder, [file.path for file in listed], "sha256", progress, jobs)
    findings = []
    for file in listed:
        path, digest = file.path, found[file.path]
        if isinstance(digest, FileNotFoundError):
            findings.append(Finding("failure", path, "is missing", "convert again", CheckFailed.code))
        elif isinstance(digest, OSError):
            findings.append(
                Finding("failure", path, f"cannot be read: {digest.strerror}", "check the disk", InputError.code)
            )
        elif digest != file.sha256:
            size = (folder / path).stat().st_size
            message = f"sha256 is {digest}, not {file.sha256}"
            if size != file.nbytes:
                message = f"is {size} bytes long, not {file.nbytes}"
            findings.append(Finding("failure", path, message, "convert again", DigestMismatch.code))
            findings += _changed_tensors(folder, path, manifest)
    return findings


def _changed_tensors(folder: Path, path: str, manifest: Json) -> list[Finding]:
    try:
        parts = open_checkpoint(folder / path).parts
    except InputError:
        return []  # the header itself is broken, and the headers' own check says how
    entries: dict[str, dict[str, str]] = manifest["tensors"]  # type: ignore[assignment]  # read() has checked it
    expected = {entry["name"]: (name, entry["xxh3_128"]) for name, entry in entries.items() if entry["file"] == path}
    findings = []
    for name, ref in parts[0].tensors.items():
        if name in expected and _digest_tensor(ref) != expected[name][1]:
            findings.append(_changed(expected[name][0], path))
    return findings


def _changed(name: str, path: str) -> Finding:
    return Finding("failure", name, f"its bytes in {path} have changed", "convert again", DigestMismatch.code)


def _digest_tensor(ref: TensorRef) -> str:
    digest, buffer = xxhash.xxh3_128(), bytearray(_CHUNK_NBYTES)
    with ref.file.open("rb", buffering=0) as stream:
        stream.seek(ref.offset)
        left = ref.nbytes
        while left and (count := stream.readinto(memoryview(buffer)[:left])):
            digest.update(memoryview(buffer)[:count])
            left -= count
    return digest.hexdigest()
