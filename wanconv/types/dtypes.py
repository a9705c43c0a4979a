"""How numbers are stored."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """How numbers are stored; `code` is the name in a safetensors header, empty if that has none.

    `itemsize` are the bytes of an element, or of a `block` of elements along a row. Floats carry what a cast needs:
    `mantissa` bits, `min_exponent` of the smallest normal, `largest` finite value. `gguf` are its numbers in GGUF,
    if GGUF has it: the type of a tensor, and the type of a file whose matrices are mostly of it.
    """

    name: str
    code: str
    itemsize: int
    mantissa: int | None = None
    min_exponent: int = 0
    largest: float = 0.0
    block: int = 1
    gguf: tuple[int, int] | None = None

    def nbytes(self, numel: int) -> int:
        """Returns the bytes of `numel` elements, whole blocks."""
        return numel // self.block * self.itemsize

    def numel(self, nbytes: int) -> int:
        """Returns the elements that whole blocks of `nbytes` hold."""
        return nbytes // self.itemsize * self.block

    @property
    def blocked(self) -> bool:
        """True if several numbers are coded together, with a scale of their own."""
        return self.block > 1

    @property
    def is_float(self) -> bool:
        return self.mantissa is not None

    def holds(self, other: "DType") -> bool:
        """True when every value of `other` can be stored in this dtype without a change."""
        if self.name == other.name:
            return True
        if self.mantissa is None or other.mantissa is None:
            return False
        smallest, other_smallest = self.min_exponent - self.mantissa, other.min_exponent - other.mantissa
        return self.mantissa >= other.mantissa and smallest <= other_smallest and self.largest >= other.largest


# gguf: gguf-py's GGMLQuantizationType and LlamaFileType
# fmt: off
_DTYPES = (
    #      name           code       bytes  mantissa  min_exponent  largest
    DType("fp64",        "F64",      8,     52,       -1022,        (2 - 2**-52) * 2.0**1023),
    DType("fp32",        "F32",      4,     23,       -126,         (2 - 2**-23) * 2.0**127,   gguf=(0, 0)),
    DType("bf16",        "BF16",     2,     7,        -126,         (2 - 2**-7) * 2.0**127,    gguf=(30, 32)),
    DType("fp16",        "F16",      2,     10,       -14,          65504.0,                   gguf=(1, 1)),
    DType("fp8_e4m3fn",  "F8_E4M3",  1,     3,        -6,           448.0),
    DType("fp8_e5m2",    "F8_E5M2",  1,     2,        -14,          57344.0),
    DType("int64",       "I64",      8),
    DType("int32",       "I32",      4),
    DType("int16",       "I16",      2),
    DType("int8",        "I8",       1),
    DType("uint64",      "U64",      8),
    DType("uint32",      "U32",      4),
    DType("uint16",      "U16",      2),
    DType("uint8",       "U8",       1),
    DType("bool",        "BOOL",     1),
    # GGUF's: 32 numbers in int8 behind their fp16 scale, which bounds them
    DType("q8_0",        "",         34,    largest=127 * 65504.0, block=32, gguf=(8, 7)),
    # Their scales are in other tensors: 32 numbers in E4M3, 16 in four bits; float32 must hold what they decode to
    DType("mxfp8",       "",         32,    largest=240 * 2.0**120, block=32),
    DType("nvfp4",       "",         8,     largest=240 * 2.0**120, block=16),
)
# fmt: on

DTYPES: Mapping[str, DType] = {dtype.name: dtype for dtype in _DTYPES}
