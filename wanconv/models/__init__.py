"""Tables of tensors, one per network, and identify(), which finds a checkpoint's networks in them."""

from wanconv.models.experts import expert_named, expert_unless_dense
from wanconv.models.identify import identify
from wanconv.models.marks import CONFIG, header_config, quoted, read_since
from wanconv.models.names import Target, expand, fill, fingerprint, homeless, targets, vocabulary
from wanconv.models.releases import (
    ARCHITECTURE_TABLE,
    ARCHITECTURES,
    DENOISERS,
    FAMILIES,
    FAMILY_TABLE,
    OWN_FAMILIES,
    architecture_named,
    family_named,
)
from wanconv.models.roles import FIELDS, Expert
from wanconv.quantization.packings import (
    TOKENIZER,
    TOKENIZER_NBYTES,
    Packed,
    in_full_precision,
    is_constant,
    is_input_scale,
    leaf_of,
    multiplied_as,
    of_client,
    same_meaning,
    stated,
    tokenizer_of,
)

__all__ = [
    "ARCHITECTURES",
    "ARCHITECTURE_TABLE",
    "CONFIG",
    "DENOISERS",
    "FAMILIES",
    "FAMILY_TABLE",
    "FIELDS",
    "OWN_FAMILIES",
    "TOKENIZER",
    "TOKENIZER_NBYTES",
    "Expert",
    "Packed",
    "Target",
    "architecture_named",
    "expand",
    "expert_named",
    "expert_unless_dense",
    "family_named",
    "fill",
    "fingerprint",
    "header_config",
    "homeless",
    "identify",
    "in_full_precision",
    "is_constant",
    "is_input_scale",
    "leaf_of",
    "multiplied_as",
    "of_client",
    "quoted",
    "read_since",
    "same_meaning",
    "stated",
    "targets",
    "tokenizer_of",
    "vocabulary",
]
