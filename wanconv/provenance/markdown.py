"""Text of users and files as Markdown that shows it unchanged: no markup, no HTML, no extra lines.

Every character that CommonMark, GitHub's tables and strikethrough, and formulas between `$` give a meaning is escaped
by a backslash (CommonMark 0.31, 2.4); a string of JSON is one of YAML (YAML 1.2, 1.2).
"""

import json
import re
import unicodedata

_MARKUP = re.compile(r"[\\`*_\[\]<>&|~$]")
_NUMBERED = re.compile(r"(\d{1,9})[.)]")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_KEPT = {"\u200c", "\u200d"}  # joiners: emoji and scripts need them, and they change no direction


def inline(text: str) -> str:
    """Returns text for a place within a line: one line, markup escaped, invisible characters replaced."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def line(text: str) -> str:
    """Returns text for the beginning of a line: inline(), and no heading, quotation, list or rule."""
    made = inline(text)
    if numbered := _NUMBERED.match(made):
        return f"{numbered[1]}\\{made[numbered.end(1) :]}"
    return f"\\{made}" if made[:1] in ("#", "+", "-", "=") else made


def yaml(text: str) -> str:
    """Returns text as a YAML string: bare if it is the name of a repository, else in quotes."""
    return text if _REPOSITORY.fullmatch(text) else json.dumps(_one_line(text))


def _one_line(text: str) -> str:
    """Returns text with white space as single spaces, and a replacement for invisible and direction-changing
    characters."""
    spaced = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(one) in _UNSEEN and one not in _KEPT else one for one in spaced)
