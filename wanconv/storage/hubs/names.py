"""The names a hub may give to files: relative, plain, the same on every system. Others are refused before writing."""

import re
import unicodedata
from collections.abc import Iterable

from wanconv.errors import InputError
from wanconv.types.figures import count

_MAX_SEGMENT_NBYTES = 200  # file systems allow 255; an unfinished file has a longer name
_MAX_NBYTES = 1000
_MAX_DEPTH = 16  # folders; released models have three
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"}
_DEVICES |= {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, bidi overrides, lone surrogates, unassigned
_PRIVATE = re.compile(r"\.wanconv.*|\..+\.[0-9a-f]{16}\.part")


def check_names(paths: Iterable[str], where: str) -> None:
    """Raises InputError, with every reason, unless all of `paths` can be written below a folder and nowhere else."""
    paths = list(paths)
    faults = [f"{path[:200]!r}: {fault}" for path in paths if (fault := _fault(path))]
    faults += [] if faults else _collisions(paths)
    if faults:
        message = f"{where} lists {count(len(faults), 'file')} under names that are not safe to write"
        raise InputError(message, "do not trust this repository; `exclude` leaves files out", faults)


def _fault(path: str) -> str:
    if not path:
        return "it is empty"
    if any(unicodedata.category(character) in _INVISIBLE for character in path):
        return "it holds characters that cannot be seen"
    if "\\" in path or ":" in path:
        return "it is a Windows path"
    if path.startswith("/"):
        return "it is absolute"
    if len(path.encode()) > _MAX_NBYTES:
        return "it is too long"
    if path.count("/") > _MAX_DEPTH:
        return "it lies too deep"
    return next((fault for segment in path.split("/") if (fault := _segment_fault(segment))), "")


def _segment_fault(segment: str) -> str:
    folded = unicodedata.normalize("NFKC", segment).casefold()
    if segment in ("", ".", ".."):
        return "it leads elsewhere"
    if segment != segment.strip() or segment.endswith("."):
        return "it begins or ends with a blank, or ends with a dot"
    if len(segment.encode()) > _MAX_SEGMENT_NBYTES:
        return "it is too long"
    if folded.split(".")[0].rstrip() in _DEVICES or segment.casefold().split(".")[0] in _DEVICES:
        return "it is a device on Windows"
    if folded == ".git" or _PRIVATE.fullmatch(folded):
        return "it is a private name of git or wanconv"
    return ""


def _collisions(paths: list[str]) -> list[str]:
    """Returns the paths that are one file on systems without case or Unicode forms, or both file and folder."""
    faults = []
    files: dict[tuple[int, str], str] = {}  # (folder, key of a name) → path
    folders: dict[tuple[int, str], tuple[int, str]] = {}  # (folder above, key of a name) → folder, its path
    for path in sorted(paths):
        above, start = 0, 0
        while (end := path.find("/", start)) >= 0:
            place = above, _key(path[start:end])
            above, spelled = folders.setdefault(place, (len(folders) + 1, path[:end]))
            if spelled != path[:end]:
                faults.append(f"{path!r}: its folder is {spelled!r} where case does not count")
                break
            start = end + 1
        else:
            place = above, _key(path[start:])
            if place in files:
                faults.append(f"{path!r}: it is {files[place]!r} where case does not count, or listed twice")
            files[place] = path
    faults += [f"{path!r}: {folders[place][1]!r} is a folder" for place, path in files.items() if place in folders]
    return faults


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
