"""How a verb tells what it is doing: (what, bytes done, bytes in all)."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def total(progress: Progress, what: str, nbytes: int) -> Callable[[int], None]:
    """Returns a function that takes further bytes and tells the sum."""
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(what, done, nbytes)

    return tell
