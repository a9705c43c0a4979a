"""The one place that makes text safe for a terminal: text from data is shown, and never obeyed.

Names of files, tensors and keys, answers of hubs and lines of lists are untrusted. A control character in them
would move the cursor or change colours, a line break would forge a line, a bidirectional control would reverse a
name, and an invisible character would make two names look alike. All of them are shown as escapes: `\\x1b`, `\\n`,
`\\u202e`. Only the console's own layout makes lines and colours.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath

from wanconv.errors import WanconvError
from wanconv.report import Cell, Finding, Report

# Every code point of the categories Cc, Cf, Cs, Zl and Zp, and what Unicode's DerivedCoreProperties.txt lists as
# Default_Ignorable_Code_Point: drawn as nothing. A test holds the first part against Python's own tables.
# fmt: off
_UNSAFE = (
    (0x00, 0x1F), (0x7F, 0x9F),                                      # C0, DEL, C1
    (0xAD, 0xAD), (0x34F, 0x34F), (0x600, 0x605), (0x61C, 0x61C), (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891),
    (0x8E2, 0x8E2), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F),            # zero width, line separators, bidi
    (0x3164, 0x3164), (0xD800, 0xDFFF),                              # a lone surrogate: a byte that is not text
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB),
    (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),                                              # tags, variation selectors
)
# fmt: on
_CLASS = "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in _UNSAFE)
_ANY = re.compile(f"[{_CLASS}]")
_LONGEST = 4_096  # characters of one text; a path has at most as many bytes
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(match: "re.Match[str]") -> str:
    character = match[0]
    number = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def is_safe(text: str) -> bool:
    """True if a terminal shows every character of a text, in order and on one line."""
    return _ANY.search(text) is None


def safe(text: str, longest: int | None = _LONGEST) -> str:
    """Returns a text for one line of a terminal, with an escape for each character that would not be shown."""
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}… and {len(text) - longest} characters more"
    return _ANY.sub(_escape, text)


def safe_lines(text: str, passing: str = "") -> str:
    """Returns text of another program with its line breaks and tabs; text that `passing` matches stays, too."""
    kept = re.compile(rf"({passing or '(?!)'}|[\n\t]+)")
    return "".join(part if index % 2 else safe(part, None) for index, part in enumerate(kept.split(text)))


def safe_report(report: Report) -> Report:
    """Returns a report whose every text is safe; numbers stay numbers."""
    return replace(
        report,
        title=safe(report.title),
        figures={safe(name): _safe_value(value) for name, value in report.figures.items()},
        tables=[
            replace(
                table,
                title=safe(table.title),
                columns=tuple(safe(name) for name in table.columns),
                rows=tuple(tuple(_safe_value(value) for value in row) for row in table.rows),
            )
            for table in report.tables
        ],
        findings=[_safe_finding(finding) for finding in report.findings],
    )


def _safe_finding(finding: Finding) -> Finding:
    return replace(
        finding,
        where=safe(finding.where),
        message=safe(finding.message),
        fix=safe(finding.fix, None),
        code=safe(finding.code),
    )


def _safe_value(value: object) -> object:
    """Texts become safe, alone or inside of a list or a table; numbers, booleans and None are unchanged."""
    if isinstance(value, str | PurePath):
        return safe(str(value))
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Cell):
        return replace(value, value=_safe_value(value.value), text=safe(value.text))
    if isinstance(value, Mapping):
        return {safe(str(name)): _safe_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_safe_value(inner) for inner in value]
    return safe(str(value))


def safe_error(error: WanconvError, hint: str) -> tuple[str, list[str], str]:
    """Returns message, details and hint of an error; a hint may be a command to copy and is never shortened."""
    return safe(error.message), [safe(line) for line in error.details], safe(hint, None)


def json_text(value: object, indent: int | None = 2) -> str:
    """Returns a JSON document of ASCII alone: characters that a terminal would obey are escaped, and a reader restores
    them."""
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=True).replace("\x7f", "\\u007f")


def quoted(argument: str) -> str:
    """Returns an argument for a shell to copy; bash, zsh and ksh read the escapes of `$'…'`."""
    if is_safe(argument):
        return shlex.quote(argument)
    raw = argument.encode("utf-8", "surrogateescape").replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    return "$'" + "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}" for byte in raw) + "'"
