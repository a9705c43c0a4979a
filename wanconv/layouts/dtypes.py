"""The dtype in a transformers config.json: its loader casts every tensor to it."""

from collections.abc import Iterable

from wanconv.types.dtypes import DTYPES

# narrowest first; transformers 5.23 modeling_utils.py, _get_dtype: without one, all tensors take the first one's dtype
_NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}


def loading_dtype(stored: Iterable[str]) -> str:
    """Returns the narrowest dtype, in torch's word, that all these floating-point dtypes can be loaded in unchanged."""
    floats = [DTYPES[name] for name in stored if DTYPES[name].is_float]
    return next(word for name, word in _NAMES.items() if all(DTYPES[name].holds(each) for each in floats))
