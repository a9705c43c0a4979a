"""Canonical names, `<component>/<path>`, and the glob patterns that select them.

Segments end at `/` and `.`. `*` is one segment or a part of one, `{a,b}` are alternatives, and every other character
stands for itself. `**` at the end is all that follows; `**.` and `**/` are any number of whole segments, none as well.
A pattern always means the whole name.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

_TOKEN = re.compile(r"\*\*[./]|\*\*|\*|\{|\}|,|[^*{},]+")
_PARTIAL = re.compile(r"(?<=[^./{,])\*\*|\*\*(?=[^./},])")  # ** beside a part of a segment


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    depth, out = 0, []
    for token in _TOKEN.findall(pattern):
        match token:
            case "**." | "**/":
                out.append(r"(?:[^./]+[./])*")
            case "**":
                out.append(r".*")
            case "*":
                out.append(r"[^./]*")
            case "{":
                depth += 1
                out.append("(?:")
            case "}" if depth:
                depth -= 1
                out.append(")")
            case "," if depth:
                out.append("|")
            case "}" | ",":
                raise ValueError(f"{token!r} stands outside of braces")
            case _:
                out.append(re.escape(token))
    if depth:
        raise ValueError("a brace is not closed")
    if _PARTIAL.search(pattern):
        raise ValueError("** stands for whole segments: put a . or / beside it, or write * for a part of one")
    return re.compile("".join(out))


def check(pattern: str) -> None:
    """Raises ValueError with the reason where a pattern has no meaning."""
    if not pattern:
        raise ValueError("the pattern is empty")
    _compiled(pattern)


def matches(pattern: str, name: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` was probably meant to be."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
