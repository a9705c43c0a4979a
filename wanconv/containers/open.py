"""Opens a model folder, a weight file or an index as a Checkpoint: headers only, all checked, no links followed out."""

import json
import os
import re
import stat
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path

from wanconv.containers import gguf, pth, safetensors
from wanconv.containers.files import Header, OpenFile, combined, explained, regular_file, what_is
from wanconv.containers.index import Index, check_shard, check_total_size, read_index
from wanconv.errors import InputError
from wanconv.storage.paths import check_scheme
from wanconv.storage.reading import node_kind
from wanconv.types.exclusion import excluded_by, excluding
from wanconv.types.tensors import CONTAINERS, Checkpoint, Part, TensorRef
from wanconv.types.text import printable

WEIGHTS = tuple(CONTAINERS)
INDEX = ".index.json"
_READABLE = ", ".join(f"*{extension}" for extension in WEIGHTS)
_REMOVE = "remove it, or exclude it"
_CONFIG = "config"  # of a header's metadata: it may name the network (models/marks.py)
_SHOWN = 200  # most characters of a file's own text in a message
_MAX_POINTER = 1024  # bytes; a git-LFS pointer is smaller, by its specification
_VARIANT = re.compile(r"(?P<stem>.+)\.index\.(?P<variant>[^./]+)\.json")  # huggingface/diffusers, _add_variant
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<extension>\.[a-z]+)")


def open_checkpoint(path: Path, exclude: Sequence[str] = ()) -> Checkpoint:
    """Returns the checkpoint at `path`: a folder with everything below it, one weight file, or the shards of one index.

    `exclude` are globs as exclusion.py reads them. Raises InputError for files that cannot be trusted.
    """
    if not printable(str(path)):
        raise InputError(f"{str(path)!r} holds characters that no path should have", "rename the file or folder")
    if not os.path.lexists(path):
        check_scheme(str(path))
    with explained(path):
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    return _open_folder(path, exclude) if is_folder else replace(_open_file(path), unmatched=tuple(exclude))


def read_header(path: Path) -> Header:
    """Returns the header of a weight file, by its extension."""
    with regular_file(path) as file:
        return header_of(file)


def header_of(file: OpenFile) -> Header:
    """Returns the header of an open weight file, by its extension."""
    match CONTAINERS.get(file.path.suffix):
        case "gguf":
            return gguf.header_of(file)
        case "pth":
            return pth.header_of(file)
    return safetensors.header_of(file)


def header_digest(path: Path) -> str:
    """Returns the sha256 of a weight file's header: a cheap identity that changes with any name, shape or offset.

    safetensors: of the length and the JSON; GGUF: of all before the payloads; .pth: of data.pkl and the tensor table.
    """
    return read_header(path).digest


def _open_folder(root: Path, exclude: Sequence[str]) -> Checkpoint:
    files, problems, unmatched = _walk(root, exclude)
    unread: list[str] = []
    parts: list[Part] = []
    listed: dict[str, str] = {}  # shard → its index
    for path in (file for file in files if file.endswith(INDEX)):
        try:
            index = read_index(root / path, WEIGHTS)
            shards = _beside(path, index.shards)
            if again := next((shard for shard in shards if shard in listed), None):
                raise InputError(f"{root / again} is listed by {listed[again]} and by {path}", "remove one of the two")
            listed |= dict.fromkeys(shards, path)
            parts.append(_sharded(root, path, index, set(files)))
        except InputError as error:
            problems.append(error)
    rest = [file for file in files if file.endswith(WEIGHTS) and file not in listed]
    leftover = [file for file in rest if _is_shard(file)]
    if not problems:  # otherwise they probably belong to a bad index
        problems += _unlisted(root, leftover, files)
    for file in (file for file in rest if file not in leftover):
        try:
            parts.append(_single(root, file))
        except InputError as error:
            problems.append(error)
            unread.append(file)
    sidecars = tuple(file for file in files if not file.endswith((INDEX, *WEIGHTS)))
    problems += _pointers(root, sidecars)
    if problems:
        raise _advised(combined(problems, root), unread, parts)
    if not parts:
        raise InputError(f"{root} holds no weights", f"give a folder with {_READABLE} in it")
    return Checkpoint(root, tuple(sorted(parts, key=lambda part: part.path)), sidecars, unmatched)


def _advised(error: InputError, unread: Sequence[str], parts: Sequence[Part]) -> InputError:
    """Returns the error with a hint to exclude the unreadable files, if others are readable: they may not belong to
    the model."""
    if not unread or not parts:
        return error
    options = excluding(unread, [file for part in parts for file in part.files])
    hint = f"{error.hint}; or leave out what is not of the model: {options}"
    return InputError(error.message, hint, error.details)


def _open_file(path: Path) -> Checkpoint:
    root, name = path.parent, path.name
    if name.endswith(INDEX):
        with explained(root):
            present = {entry.name for entry in root.iterdir()}
        part = _sharded(root, name, read_index(path, WEIGHTS), present)
    elif not name.endswith(WEIGHTS):
        with regular_file(path) as file:
            known = what_is(file)
        what = known[0] if known else "not a weight file, by its name"
        raise InputError(f"{path} is {what}", f"wanconv reads {_READABLE} and *{INDEX}")
    elif _is_shard(name):
        raise InputError(f"{path} is one shard of several", f"give the folder, or the *{INDEX} that lists the shards")
    else:
        part = _single(root, name)
    sidecars = ("config.json",) if os.path.lexists(root / "config.json") else ()
    for sidecar in sidecars:
        check_file(root, sidecar)
    if pointers := _pointers(root, sidecars):
        raise combined(pointers, root)
    return Checkpoint(root, (part,), sidecars)


def _single(root: Path, file: str) -> Part:
    header = read_header(root / file)
    return Part(file, (file,), header.tensors, header.metadata)


def _sharded(root: Path, path: str, index: Index, present: Set[str]) -> Part:
    """Returns the shards of an index as one Part; for each metadata key, the first shard's value counts.

    Raises InputError if they contradict each other about the network.
    """
    files = _beside(path, index.shards)
    tensors: dict[str, TensorRef] = {}
    metadata: dict[str, str] = {}
    configs: list[tuple[str, str]] = []
    problems = []
    for file, promised in zip(files, index.shards.values(), strict=True):
        try:
            if file not in present:
                raise InputError(f"{root / file} is missing: {path} lists it", "download it, or do not exclude it")
            check_file(root, file)
            header = read_header(root / file)
            check_shard(root / file, promised, header)
            tensors |= header.tensors
            metadata = {**header.metadata, **metadata}
            configs += [(file, header.metadata[_CONFIG])] if _CONFIG in header.metadata else []
        except InputError as error:
            problems.append(error)
    if problems:
        raise combined(problems, index.path)
    check_total_size(index, tensors.values())
    _check_configs(index.path, configs)
    return Part(path, files, tensors, metadata)


def _check_configs(path: Path, configs: Sequence[tuple[str, str]]) -> None:
    """Raises InputError if the headers of two shards, each with its file, name different networks."""
    for file, text in configs[1:]:
        if not _same_json(text, configs[0][1]):
            raise InputError(
                f"{path}: two of its shards say different things of their network",
                "take all shards from one release",
                [f"{name} has the {_CONFIG} {said[:_SHOWN]!a}" for name, said in (configs[0], (file, text))],
            )


def _same_json(text: str, other: str) -> bool:
    try:
        return text == other or bool(json.loads(text) == json.loads(other))
    except (ValueError, RecursionError):
        return False


def _beside(path: str, names: Iterable[str]) -> tuple[str, ...]:
    folder = os.path.dirname(path)
    return tuple(f"{folder}/{name}" if folder else name for name in names)


def _is_shard(path: str) -> bool:
    match = _SHARD.fullmatch(path)
    return match is not None and match["count"] != "00001"


def _unlisted(root: Path, shards: Iterable[str], files: Sequence[str]) -> list[InputError]:
    groups: dict[str, list[str]] = {}
    for path in shards:
        groups.setdefault(_SHARD.sub(r"\g<stem>-*-of-\g<count>\g<extension>", path), []).append(path)
    indexes = [file for file in files if _VARIANT.fullmatch(file)]
    return [_without_index(root, pattern, found, indexes) for pattern, found in groups.items()]


def _without_index(root: Path, pattern: str, shards: Sequence[str], indexes: Sequence[str]) -> InputError:
    """Returns the error for shards without an index, or with one of another name, such as a variant of diffusers."""
    for file in indexes:
        try:
            listed = _beside(file, read_index(root / file, WEIGHTS).shards)
        except InputError:
            continue
        if set(shards) <= set(listed):
            message = f"{root / pattern}: the index that lists these shards is called {os.path.basename(file)}"
            variant = _VARIANT.sub(r"\g<stem>.\g<variant>" + INDEX, os.path.basename(file))
            return InputError(message, f"rename it to {variant}: wanconv reads *{INDEX}")
    message = f"{root / pattern}: no index lists these shards ({len(shards)} of them)"
    return InputError(message, f"fetch the *{INDEX} that belongs to them, or remove or exclude what is left over")


def _walk(root: Path, exclude: Sequence[str]) -> tuple[list[str], list[InputError], tuple[str, ...]]:
    """Returns the sorted files below `root`, the errors of others, and the globs of `exclude` that match nothing;
    hidden files are ignored."""
    files: list[str] = []
    matched: set[str] = set()
    problems: list[InputError] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        with explained(root / folder), os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if taken := [glob for glob in exclude if excluded_by(path, (glob,)) is not None]:
                    matched.update(taken)
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if path.endswith(WEIGHTS):
                        problems.append(InputError(f"{root / path} is a folder, not a file", _REMOVE))
                    folders.append(path)
                    continue
                try:
                    check_file(root, path)
                    files.append(path)
                except InputError as error:
                    problems.append(error)
    unmatched = tuple(glob for glob in dict.fromkeys(exclude) if glob not in matched)
    return sorted(files), sorted(problems, key=lambda error: error.message), unmatched


def check_file(root: Path, path: str) -> None:
    """Raises InputError unless `path` is a readable regular file and not a link to outside the checkpoint."""
    if not printable(path):
        raise InputError(f"{root} holds a file named {path!r}", "rename it, or exclude it")
    where = root / path
    with explained(where):
        mode = where.stat().st_mode
        if os.path.realpath(where) != os.path.join(os.path.realpath(root), path):  # a link, or below a link
            if stat.S_ISDIR(mode):
                raise InputError(f"{where} links to a folder; that is not followed", "copy the folder, or exclude it")
            if not _is_own_link(root, where):
                target = os.path.realpath(where)
                raise InputError(
                    f"{where} links to {target}, outside of the checkpoint", "copy it there, or exclude it"
                )
        if not stat.S_ISREG(mode):
            raise InputError(f"{where} is {node_kind(mode)}, not a file", _REMOVE)
        if not os.access(where, os.R_OK, effective_ids=True):
            raise InputError(f"{where} cannot be read: permission denied", "check the permissions")


def _is_own_link(root: Path, link: Path) -> bool:
    """True for a link that stays below the root or goes to the blobs of the same Hugging Face cache entry.

    The cache: models--o--n/snapshots/<revision>/… links to models--o--n/blobs/<digest>.
    """
    home, target = (Path(os.path.realpath(path, strict=True)) for path in (root, link))
    if target.is_relative_to(home):
        return True
    blobs = [folder.parent.parent / "blobs" for folder in (home, *home.parents) if folder.parent.name == "snapshots"]
    return target.parent in blobs


def _pointers(root: Path, sidecars: Iterable[str]) -> list[InputError]:
    """Returns an error for each git-LFS pointer among the sidecars: a tokenizer may be one, too."""
    problems = []
    for path in sidecars:
        with regular_file(root / path) as file:
            known = what_is(file) if file.size < _MAX_POINTER else None
        if known and "git-LFS" in known[0]:
            problems.append(InputError(f"{root / path} is {known[0]}", known[1]))
    return problems
