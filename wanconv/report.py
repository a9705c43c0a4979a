"""What every verb returns: findings, figures and tables, as plain data with one versioned JSON form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

SCHEMA = "wanconv.report/1"

Severity = Literal["note", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a user should know: where, what, what would fix it. A failure carries its error code (errors.py)."""

    severity: Severity
    where: str
    message: str
    fix: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns. A column whose name ends in `bytes` holds byte counts and is shown with units."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`figures` are the facts in reading order, `tables` go below them; `exit_code` is what the command ends with."""

    verb: str
    title: str
    figures: Mapping[str, object]
    tables: Sequence[Table] = ()
    findings: Sequence[Finding] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    exit_code: int = 0

    def to_json(self) -> dict[str, object]:
        """Returns the report as JSON values; tables become lists of objects."""
        return {
            "schema": SCHEMA,
            "verb": self.verb,
            "title": self.title,
            "ok": self.exit_code == 0,
            "exit_code": self.exit_code,
            "figures": dict(self.figures),
            "tables": {
                table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in self.tables
            },
            "findings": [
                {"severity": f.severity, "where": f.where, "message": f.message, "fix": f.fix, "code": f.code}
                for f in self.findings
            ],
            **({"details": dict(self.details)} if self.details else {}),
        }
