"""How numbers are stored: the formats a recipe can name. This table is free of torch; `plain` moves the bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from wanconv.tensors import DTYPES, Kind, Shape


@dataclass(frozen=True, slots=True)
class Format:
    """A cast to `storage`, rounded to nearest even; None stores the source's own dtype, byte for byte."""

    name: str
    storage: str | None
    scales: tuple[str, ...] = ("none",)

    def stored(self, source: str) -> str:
        """Returns the dtype on disk of a tensor whose source dtype is `source`."""
        return self.storage or source

    def refuses(self, source: str, kind: Kind, shape: Shape) -> str | None:
        """Returns why, by its header alone, a tensor cannot be stored so; a plain cast only asks for the dtype."""
        if self.storage is None:
            return None
        if not DTYPES[source].is_float:
            return f"{source} numbers are no weights: only keep stores them"
        if source == "fp64":
            # Through float32 it would round twice, and the bound of verify is exact in float32 only.
            return "fp64 is only stored by keep: a cast of it would be rounded twice"
        return None


# fmt: off
_FORMATS = (
    Format("fp32",       "fp32"),
    Format("bf16",       "bf16"),
    Format("fp16",       "fp16"),
    Format("fp8_e4m3fn", "fp8_e4m3fn"),
    Format("fp8_e5m2",   "fp8_e5m2"),
    Format("keep",       None),
)
# fmt: on
FORMATS: Mapping[str, Format] = {each.name: each for each in _FORMATS}
