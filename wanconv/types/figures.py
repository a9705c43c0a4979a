"""Counts, byte counts and other numbers as text for people; programs read the numbers."""

from math import isfinite

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_LEAST, _MOST = 1e-6, 1e15  # beyond it, readers would have to count zeros
_NBYTES = 10**18  # beyond it, a byte count is not real


def count(number: int, one: str, many: str = "") -> str:
    """Returns a number with its noun: 1 file, 12,345 files; `many` is a plural with more than an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def size(nbytes: int) -> str:
    """Returns a byte count with a decimal unit: 5.68 GB."""
    if nbytes > _NBYTES:
        return "over a million TB"
    value, unit = float(nbytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return count(nbytes, "byte")
    return f"{value:.3g} {_UNITS[unit]}" if value < 100 else f"{value:.0f} {_UNITS[unit]}"


def exact_size(nbytes: int) -> str:
    """Returns a byte count with its unit and to the byte, if single bytes matter: 5.68 kB (5,680 bytes)."""
    return size(nbytes) if not 1000 <= nbytes <= _NBYTES else f"{size(nbytes)} ({nbytes:,} bytes)"


def sizes(*counts: int) -> tuple[str, ...]:
    """Returns byte counts with units; to the byte if two different ones would look alike."""
    short = tuple(size(nbytes) for nbytes in counts)
    return short if len(set(short)) == len(set(counts)) else tuple(exact_size(nbytes) for nbytes in counts)


def figure(value: float, digits: int = 3) -> str:
    """Returns a number with the given digits and, as far as people can read it, without an exponent."""
    if not isfinite(value):
        return "not finite"
    if isinstance(value, int) or (value and 1000 <= abs(value) < _MOST):
        return f"{value:,.0f}"
    shown = f"{value:.{digits}g}"
    if "e" not in shown:
        return shown
    if 1 <= abs(value) < _MOST:
        return f"{value:,.0f}"
    mantissa, exponent = shown.split("e")
    if _LEAST <= abs(value) < 1:
        return f"{value:.{digits - 1 - int(exponent)}f}".rstrip("0")
    return f"{mantissa}e{int(exponent)}"
