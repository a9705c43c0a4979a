"""Look-up of a weight's codec by the dtype on disk and by what its scales cover."""

from collections.abc import Callable, Mapping
from functools import partial

from wanconv.quantization.blocks import Q8
from wanconv.quantization.codec import Codec
from wanconv.quantization.microscaled import Microscaled
from wanconv.quantization.plain import Plain
from wanconv.quantization.scaled import Scaled
from wanconv.types.dtypes import DTYPES
from wanconv.types.packing import Packing

# fmt: off
_CODECS: Mapping[tuple[str, str], Callable[[], Codec]] = {
    **{(dtype, "none"): Plain for dtype in DTYPES},
    **{(dtype, scale): partial(Scaled, dtype, scale)
       for dtype in ("fp8_e4m3fn", "fp8_e5m2", "int8") for scale in ("tensor", "row")},
    ("q8_0",  "none"):  Q8,
    ("mxfp8", "block"): partial(Microscaled, "mxfp8"),
    ("nvfp4", "block"): partial(Microscaled, "nvfp4"),
}
# fmt: on


class Codecs:
    """The codecs of one thread, each made when it is first needed."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Codec] = {}

    def of(self, dtype: str, packing: Packing | None) -> Codec:
        """Returns the codec of weights stored like this; KeyError for a pair that no packing table has."""
        key = dtype, "none" if packing is None else packing.scale
        if key not in self._made:
            self._made[key] = _CODECS[key]()
        return self._made[key]
