"""The formats that a recipe can name. This table does not import torch; the modules of each kind move the bytes:
`plain` casts, `scaled` divides by a scale first, `blocks` and `microscaled` by one scale for every few numbers of a
row."""

from collections.abc import Mapping
from dataclasses import dataclass

from wanconv.types.architecture import Kind
from wanconv.types.dtypes import DTYPES
from wanconv.types.tensors import Shape

MAX_ROW = 1 << 18  # most elements of a row with its own scale: they must fit a worker's scratch memory
ROUNDINGS = ("nearest", "mse")  # how a scale is found: from the largest magnitude, or by the least squared error


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest relative L2 errors that rounding to a format explains, unless a profile says otherwise.

    Limits of a teacher-forced `noise` prediction, of a `block`'s change of the reference's input, of each
    stored `weight`, and of the result of a text encoder or a VAE as a `component`.
    """

    noise: float
    block: float
    weight: float
    component: float


EXACT = Limits(noise=1e-5, block=1e-5, weight=0.0, component=1e-5)  # for formats that hold every value of the source


@dataclass(frozen=True, slots=True)
class Format:
    """A `storage` dtype, rounded to nearest even; None stores the source's own dtype, byte for byte.

    `scales` are what one scale may cover: nothing (a plain cast, or scales of the format's own inside it), the
    `tensor`, each `row` of axis 0, or each `block` of a row; `auto` leaves it to the layout.

    For verdicts: `limits`, None if rounding to it is never lossy enough to be judged;
    `significand_bits` if the storage is not a float, so that formats can be ordered from coarse to fine; `linear_only`
    for formats that clients read in linear layers alone; `flushed_share`, of the numbers of a weight, that may become
    zero. `clips`: a search may choose a scale that does not reach the largest numbers.

    `needs` are the statistics of a layer's inputs that the codec needs; no conversion has any yet.
    """

    name: str
    storage: str | None
    scales: tuple[str, ...] = ("none",)
    limits: Limits | None = None
    significand_bits: int | None = None
    linear_only: bool = False
    flushed_share: float = 0.01
    clips: bool = False
    needs: frozenset[str] = frozenset()

    def stored(self, source: str) -> str:
        """Returns the dtype on disk of a tensor whose source dtype is `source`."""
        return self.storage or source

    def refuses(self, source: str, kind: Kind, shape: Shape, scale: str = "none") -> str | None:
        """Returns why, by its header alone, a tensor cannot be stored so.

        A bias in fp8 stops torch ("Bias must be BFloat16 or Half"), and arithmetic does not promote fp8.
        """
        if self.storage is None:
            return None
        if self.needs:
            return f"{self.name} needs a calibration's {', '.join(sorted(self.needs))}, and a conversion has none"
        if not DTYPES[source].is_float:
            return f"{source} numbers are not weights: only keep stores them"
        if source == "fp64":
            # Through float32 it would round twice, and the bound of verify is exact in float32 only.
            return "fp64 is only stored by keep: a cast of it would be rounded twice"
        block = DTYPES[self.storage].block
        if DTYPES[self.storage].blocked and (kind != "linear" or len(shape) != 2 or not all(shape) or shape[1] % block):
            what = f"{kind} of shape {list(shape)}"
            return f"only the 2-D weight of a linear layer takes it, in rows of whole blocks of {block}: this is {what}"
        if scale == "block" and shape[0] % block:
            return f"its row count is not a multiple of {block}: wanconv writes no padding, its shape is {list(shape)}"
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
_FP16  = Limits(noise=1e-3,   block=1e-3,   weight=2e-3,   component=2e-3)
_BF16  = Limits(noise=1e-2,   block=1e-2,   weight=5e-3,   component=2e-2)
_E4M3  = Limits(noise=8e-2,   block=8e-2,   weight=1e-1,   component=1.6e-1)
_E5M2  = Limits(noise=1.6e-1, block=1.6e-1, weight=2e-1,   component=3.2e-1)
_INT8  = Limits(noise=3e-2,   block=3e-2,   weight=5e-2,   component=6e-2)
_Q8_0  = Limits(noise=2e-2,   block=2e-2,   weight=2.5e-2, component=4e-2)
_MXFP8 = Limits(noise=8e-2,   block=8e-2,   weight=5e-2,   component=1.6e-1)
_NVFP4 = Limits(noise=1.5e-1, block=3e-1,   weight=1.5e-1, component=3e-1)
_FORMATS = (
    Format("fp32",       "fp32"),
    Format("bf16",       "bf16",       limits=_BF16),
    Format("fp16",       "fp16",       limits=_FP16),
    Format("fp8_e4m3fn", "fp8_e4m3fn", ("none", *_SCALED), _E4M3, linear_only=True),
    Format("fp8_e5m2",   "fp8_e5m2",   ("none", *_SCALED), _E5M2, linear_only=True),
    Format("int8",       "int8",       _SCALED,    _INT8,  significand_bits=6, linear_only=True, clips=True),
    Format("q8_0",       "q8_0",       ("none",),  _Q8_0,  significand_bits=6),
    Format("mxfp8",      "mxfp8",      ("block",), _MXFP8, significand_bits=3),
    # The least number is a twelfth of a block's largest: 7 % of Gaussian ones are nearer to 0.
    Format("nvfp4",      "nvfp4",      ("block",), _NVFP4, significand_bits=1, flushed_share=0.25),
    Format("keep",       None),
)
# fmt: on
FORMATS: Mapping[str, Format] = {each.name: each for each in _FORMATS}


def stored_as(dtype: str) -> Format | None:
    """Returns the format whose numbers a dtype on disk holds; None if no recipe writes it."""
    return next((one for one in _FORMATS if one.storage == dtype), None)


def significand_bits(dtype: str) -> int:
    """Returns the significand bits that a dtype on disk keeps, without the leading one."""
    known = stored_as(dtype)
    return known.significand_bits if known and known.significand_bits is not None else DTYPES[dtype].mantissa or 0
