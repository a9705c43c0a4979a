"""The result of every command: findings, figures and tables, as plain data with one versioned JSON form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

SCHEMA = "wanconv.report/1"

Severity = Literal["note", "warning", "failure"]
Tone = Literal["", "success", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact for the user: where, what, and the fix. A failure carries its error code (errors.py)."""

    severity: Severity
    where: str
    message: str
    fix: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in a table or figure that a screen shows with another text, or in a colour.

    `value` is for JSON, `text` for people; `tone` says how good it is.
    """

    value: object
    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns. A column whose name ends in `_nbytes` holds byte counts and is shown with units."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`figures` are the facts in reading order, `tables` follow them; `exit_code` is the command's exit code.

    `tone` says how good the news in the title is.
    """

    verb: str
    title: str
    figures: Mapping[str, object]
    tables: Sequence[Table] = ()
    findings: Sequence[Finding] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    exit_code: int = 0
    tone: Tone = ""

    def text(self, figure: str) -> str:
        """Return a figure as people read it."""
        value = self.figures[figure]
        return value.text if isinstance(value, Cell) else str(value)

    def to_json(self) -> dict[str, object]:
        """Returns the report as JSON values; tables become lists of objects."""
        return {
            "schema": SCHEMA,
            "verb": self.verb,
            "title": self.title,
            "ok": self.exit_code == 0,
            "exit_code": self.exit_code,
            "figures": {name: _exact(value) for name, value in self.figures.items()},
            "tables": {
                table.title: [dict(zip(table.columns, map(_exact, row), strict=True)) for row in table.rows]
                for table in self.tables
            },
            "findings": [
                {"severity": f.severity, "where": f.where, "message": f.message, "fix": f.fix, "code": f.code}
                for f in self.findings
            ],
            **({"details": dict(self.details)} if self.details else {}),
        }


def _exact(value: object) -> object:
    return value.value if isinstance(value, Cell) else value
