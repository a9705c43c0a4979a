"""Libraries of the package's extras, and the error if they are missing."""

from collections.abc import Mapping
from importlib.util import find_spec

from wanconv.errors import UsageError

# extra -> module -> distribution
EXTRAS: Mapping[str, Mapping[str, str]] = {
    "validate": {
        "PIL": "pillow",
        "av": "av",
        "diffusers": "diffusers",
        "jinja2": "jinja2",
        "transformers": "transformers",
    }
}


def need(extra: str, what: str) -> None:
    """Check that the libraries of an extra are installed, without importing them.

    Args:
        extra: The extra of the package, a key of EXTRAS.
        what: What needs it, the beginning of the sentence: "validate".

    Raises:
        UsageError: If one is missing, with the command that installs them.
    """
    absent = [distribution for module, distribution in EXTRAS[extra].items() if find_spec(module) is None]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        message = f"{what} needs {', '.join(absent)}, which {verb} not installed"
        raise UsageError(message, f'pip install "wanconv[{extra}]"')
