"""Text from a file or a hub: a check that it can be shown and written."""

import re

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> bool:
    """True for text that UTF-8 can carry and that holds no control characters."""
    return not UNPRINTABLE.search(text)
