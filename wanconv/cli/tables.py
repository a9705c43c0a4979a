"""Layout of a report's figures and tables for any width: text wraps at words, names at their joints.

A table is laid out in the first of four ways that fits: a line per row; cells of several lines; the last column, a
sentence, below its row; and at last each row as a list of its values. Nothing is cut off, and only a part without a
joint that is longer than the screen is broken.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, split_text
from rich.markup import escape

from wanconv.report import Cell, Table, Tone
from wanconv.types import figures

STYLES = {"note": "dim", "warning": "yellow", "failure": "red", "success": "green", "": ""}
_OUTCOMES: Mapping[str, Tone] = {
    "PASS": "success",
    "WARNING": "warning",
    "CANNOT JUDGE": "warning",
    "FAIL": "failure",
    "NOT FINITE": "failure",
}
_GAP = 2
_PROSE = 24  # the least width of a sentence's column
_LABEL = 18  # most columns of a figure's name
_JOINTS = re.compile(r"[^/._:·-]*[/._:·-]+|[^/._:·-]+")


@dataclass(frozen=True, slots=True)
class _Shown:
    """A cell as a screen shows it."""

    text: str
    tone: Tone = ""
    right: bool = False

    @property
    def prose(self) -> bool:
        return " " in self.text


@dataclass(frozen=True, slots=True)
class _Column:
    label: str
    cells: tuple[_Shown, ...]
    first: bool = False

    @property
    def right(self) -> bool:
        return any(cell.right for cell in self.cells)

    @property
    def full(self) -> int:
        return max(cell_len(text) for text in (self.label, *(cell.text for cell in self.cells)))

    @property
    def least(self) -> int:
        """The width at which no joint-free part is broken, no sentence is a column of single words, and what a row
        is about, if short, is whole."""
        parts = [_longest(self.label), *(_longest(cell.text) for cell in self.cells if not cell.right)]
        numbers = [cell_len(cell.text) for cell in self.cells if cell.right]
        whole = self.first or any(cell.prose and not cell.right for cell in self.cells)
        return max(*parts, *numbers, min(self.full, _PROSE) if whole else 0)


def figure_lines(name: str, value: object, width: int | None) -> Iterator[str]:
    """Yields the lines, as markup, of a figure under its name; a width of None means no limit."""
    label = name.removesuffix("_nbytes").replace("_", " ")
    shown = _shown(value, name.endswith("_nbytes"))
    start = f"  {label:<{_LABEL}} "
    narrow = width is not None and width < 2 * cell_len(start)
    indent = 4 if narrow else cell_len(start)
    lines = [shown.text] if width is None else wrap(shown.text, max(width - indent, 1))
    if narrow and cell_len(f"  {label}  {shown.text}") <= (width or 0):
        lines, start, narrow = [shown.text], f"  {label}  ", False
    elif narrow:
        yield escape(f"  {label}")
    for number, line in enumerate(lines):
        before = start if number == 0 and not narrow else " " * indent
        yield escape(before) + _styled(line, shown.tone)


def table_lines(table: Table, width: int, verbose: bool) -> Iterator[str]:
    """Yields the lines of a table, as markup; `verbose` also shows the fingerprints."""
    columns = [
        _Column(
            name.removesuffix("_nbytes").replace("_", " "),
            tuple(_shown(row[index], name.endswith("_nbytes")) for row in table.rows),
            index == 0,
        )
        for index, name in enumerate(table.columns)
        if verbose or name != "fingerprint"
    ]
    last = columns[-1]
    below = len(columns) > 2 and any(cell.prose for cell in last.cells)
    if (widths := _widths(columns, width)) is not None:
        yield from _rows(columns, widths)
    elif below and (widths := _widths(columns[:-1], width)) is not None:
        yield from _rows(columns[:-1], widths, last, width)
    else:
        yield from _lists(columns, width)


def wrap(text: str, width: int) -> list[str]:
    """Returns text in lines of at most `width`: broken at spaces, a longer word at its joints, and one without
    joints at the end of the line."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            joined = f"{line} {word}" if line else word
            if cell_len(joined) <= width:
                line = joined
                continue
            pieces = _pieces(word, width) if cell_len(word) > width else [word]
            if line:
                lines.append(line)
            lines += pieces[:-1]
            line = pieces[-1]
        lines.append(line)
    return lines


def _pieces(word: str, width: int) -> list[str]:
    """Returns a long word in lines: names and paths are broken after a slash, a dot or the like."""
    lines = [""]
    for part in _JOINTS.findall(word):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        while cell_len(part) > width:
            first, part = split_text(part, width)
            lines[-1] = first
            lines.append("")
        lines[-1] += part
    return [line for line in lines if line] or [""]


def _longest(text: str) -> int:
    return max((cell_len(part) for word in text.split() for part in _JOINTS.findall(word)), default=0)


def _shown(value: object, nbytes: bool = False) -> _Shown:
    if isinstance(value, Cell):
        return _Shown(value.text, value.tone, isinstance(value.value, int | float))
    if isinstance(value, int) and not isinstance(value, bool):
        return _Shown(figures.size(value) if nbytes else f"{value:,}", right=True)
    if isinstance(value, float):
        return _Shown(figures.figure(value), right=True)
    return _Shown(str(value), _OUTCOMES.get(str(value), ""))


def _styled(text: str, tone: Tone) -> str:
    style = STYLES[tone]
    return f"[{style}]{escape(text)}[/{style}]" if style else escape(text)


def _widths(columns: Sequence[_Column], width: int) -> list[int] | None:
    """Returns the columns' widths: their preferred widths, or their least and a fair part of the rest; None if even the
    least is too much."""
    room = width - _GAP * (len(columns) - 1)
    widths = [column.least for column in columns]
    if sum(widths) > room:
        return None
    while (left := room - sum(widths)) > 0:
        wanting = [i for i, column in enumerate(columns) if widths[i] < column.full]
        if not wanting:
            break
        for i in wanting[:left]:
            widths[i] += 1
    return widths


def _rows(
    columns: Sequence[_Column], widths: Sequence[int], below: _Column | None = None, width: int = 0
) -> Iterator[str]:
    heads = [_Shown(column.label, right=column.right) for column in columns]
    for line in _row(heads, columns, widths):
        yield f"[bold dim]{line}[/bold dim]"
    for number in range(len(columns[0].cells)):
        yield from _row([column.cells[number] for column in columns], columns, widths)
        if below is not None and below.cells[number].text:
            for text in wrap(below.cells[number].text, width - 2 * _GAP):
                yield " " * 2 * _GAP + f"[dim]{escape(text)}[/dim]"


def _row(cells: Sequence[_Shown], columns: Sequence[_Column], widths: Sequence[int]) -> Iterator[str]:
    texts = [wrap(cell.text, width) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(len(lines) for lines in texts)):
        line, behind = "", 0  # spaces after the last cell are left out
        for cell, column, lines, width in zip(cells, columns, texts, widths, strict=True):
            text = lines[number] if number < len(lines) else ""
            room = width - cell_len(text)
            before = room if column.right else 0
            if text:
                line += " " * (behind + before) + _styled(text, cell.tone)
                behind = room - before + _GAP
            else:
                behind += width + _GAP
        yield line


def _lists(columns: Sequence[_Column], width: int) -> Iterator[str]:
    """Yields each row as its first value, and below it the names and values of the others."""
    for number in range(len(columns[0].cells)):
        head = columns[0].cells[number]
        for text in wrap(f"{columns[0].label} {head.text or '–'}", width):
            yield f"[bold]{_styled(text, head.tone)}[/bold]"
        for column in columns[1:]:
            cell = column.cells[number]
            if not cell.text:
                continue
            label = f"  {column.label}  "
            lines = wrap(cell.text, max(width - cell_len(label), 1))
            if len(lines) > 1:  # the whole width below its name has more room
                yield f"[dim]{escape(label.rstrip())}[/dim]"
                lines, label = wrap(cell.text, max(width - 4, 1)), ""
            for text in lines:
                yield (f"[dim]{escape(label)}[/dim]" if label else "    ") + _styled(text, cell.tone)
