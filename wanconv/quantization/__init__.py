"""How numbers are stored: the formats a recipe can name. This table is free of torch; the modules of each kind move the
bytes: `plain` casts, `scaled` divides by a scale first, `blocks` and `microscaled` by one for every few numbers of a
row."""

from collections.abc import Mapping
from dataclasses import dataclass

from wanconv.types.architecture import Kind
from wanconv.types.dtypes import DTYPES
from wanconv.types.tensors import Shape

MAX_ROW = 1 << 18  # elements of a row that takes a scale of its own: what fits a worker's scratch memory
ROUNDINGS = ("nearest", "mse")  # how a scale is found: from the largest magnitude, or by the least squared error


@dataclass(frozen=True, slots=True)
class Format:
    """A `storage` dtype, rounded to nearest even; None stores the source's own dtype, byte for byte.

    `scales` are what one scale may cover: nothing (a plain cast, or scales of the format's own inside it), the
    `tensor`, each `row` of axis 0, or each `block` of a row; `auto` leaves it to the layout.
    """

    name: str
    storage: str | None
    scales: tuple[str, ...] = ("none",)

    def stored(self, source: str) -> str:
        """Returns the dtype on disk of a tensor whose source dtype is `source`."""
        return self.storage or source

    def refuses(self, source: str, kind: Kind, shape: Shape, scale: str = "none") -> str | None:
        """Returns why, by its header alone, a tensor cannot be stored so.

        A bias in fp8 stops torch ("Bias must be BFloat16 or Half"), and arithmetic does not promote fp8.
        """
        if self.storage is None:
            return None
        if not DTYPES[source].is_float:
            return f"{source} numbers are no weights: only keep stores them"
        if source == "fp64":
            # Through float32 it would round twice, and the bound of verify is exact in float32 only.
            return "fp64 is only stored by keep: a cast of it would be rounded twice"
        block = DTYPES[self.storage].block
        if block > 1 and (kind != "linear" or len(shape) != 2 or not all(shape) or shape[1] % block):
            what = f"{kind} of shape {list(shape)}"
            return f"only the 2-D weight of a linear layer takes it, in rows of whole blocks of {block}: this is {what}"
        if scale == "block" and shape[0] % block:
            return f"its rows are no multiple of {block}: wanconv writes no padding, and this is of shape {list(shape)}"
        if scale == "none":
            if DTYPES[self.storage].itemsize > 1 or kind in ("linear", "embed"):
                return None
            return f"clients read {self.name} in the weights of linear layers and embeddings, and this is {kind}"
        if kind != "linear" or len(shape) != 2 or not all(shape):
            return f"only the 2-D weight of a linear layer takes a scale, and this is {kind} of shape {list(shape)}"
        if shape[1] > MAX_ROW:
            return f"its rows have {shape[1]} elements, more than the {MAX_ROW} that one scale may cover"
        return None


_SCALED = ("tensor", "row", "auto")
# fmt: off
_FORMATS = (
    Format("fp32",       "fp32"),
    Format("bf16",       "bf16"),
    Format("fp16",       "fp16"),
    Format("fp8_e4m3fn", "fp8_e4m3fn", ("none", *_SCALED)),
    Format("fp8_e5m2",   "fp8_e5m2",   ("none", *_SCALED)),
    Format("int8",       "int8",       _SCALED),
    Format("q8_0",       "q8_0"),
    Format("mxfp8",      "mxfp8",      ("block",)),
    Format("nvfp4",      "nvfp4",      ("block",)),
    Format("keep",       None),
)
# fmt: on
FORMATS: Mapping[str, Format] = {each.name: each for each in _FORMATS}
