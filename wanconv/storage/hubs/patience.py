"""Limits for a server: attempts without progress, waits, silence; for a list also its pages, bytes and time."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BUSY = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_S = 1e9  # the longest wait that a server may ask for
_SECONDS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Patience:
    """Attempts without progress, the wait between them (doubled each time), and the longest silence.

    If a server asks for a wait above `longest_wait_s`, wanconv gives up. A header, and each read of a body, ends within
    `stall_s`. The list of a repository ends within `list_s` and within its limits of answers and bytes, or is refused.
    """

    attempts: int = 6
    delay_s: float = 1.0
    longest_delay_s: float = 60.0
    longest_wait_s: float = 300.0
    stall_s: float = 30.0
    list_s: float = 300.0
    list_pages: int = 1000
    list_nbytes: int = 64_000_000


class Passing(Exception):
    """A temporary failure; `wait_s` is the wait that the server asks for."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Unreachable(Passing):
    """No connection could be made."""


def retry_after(value: str | None) -> float:
    """Returns the seconds that a Retry-After header asks for, given as a number or a date; 0 for anything else."""
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), _LONGEST_S)
    try:
        date = parsedate_to_datetime(text[:100])
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return min(max(0.0, (date - datetime.now(UTC)).total_seconds()), _LONGEST_S)
    except (ValueError, TypeError, OverflowError):
        return 0.0
