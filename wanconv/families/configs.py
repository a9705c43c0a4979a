"""What the JSON files beside the weights say, held against the shapes of the tensors."""

import json
from collections.abc import Mapping

from wanconv.errors import InputError
from wanconv.families.match import Claim
from wanconv.families.names import size_of
from wanconv.families.releases import DENOISERS
from wanconv.tensors import Checkpoint, Family

_HINT = "download it again; without a config.json, sizes come from the weights"


def read_json(checkpoint: Checkpoint, path: str) -> Mapping[str, object] | None:
    """Returns a sidecar's JSON object; None where there is no such sidecar."""
    if path not in checkpoint.sidecars:
        return None
    file = checkpoint.root / path
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", "check the permissions and the disk") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}", _HINT) from None
    if not isinstance(value, dict):
        raise InputError(f"{file} holds no JSON object", _HINT)
    return value


def stated_sizes(config: Mapping[str, object], path: str, claim: Claim, family: Family) -> dict[str, int]:
    """Returns sizes that only the config states (`heads`); raises where it contradicts the tensors' shapes."""
    fit = claim.fit
    stated: dict[str, int] = {}
    wrong: list[str] = []
    for key, size in fit.architecture.config[fit.scheme]:
        value = _value(config, key)
        if value is None:
            continue
        if isinstance(size, str) and size not in fit.dims:
            if isinstance(value, int):
                stated[size] = value
                continue
            wrong.append(f"{key} is {value!r}, not a whole number")
        elif value != size_of(size, fit.dims):
            wrong.append(f"{key} is {value!r}, but {claim.part.path} has {size_of(size, fit.dims)}")
    heads = stated.get("heads")
    if heads is not None and (heads < 1 or fit.dims["d"] % heads):
        wrong.append(f"{fit.dims['d']} does not divide into {heads} heads")
    model_type = config.get("model_type")
    if claim.component in DENOISERS and fit.scheme == "official" and model_type not in (None, family.model_type):
        wrong.append(f"model_type is {model_type!r}, but {claim.part.path} is {family.name}: {family.model_type!r}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(
            f"{path}: {wrong[0]}{more}",
            "take the config that belongs to the weights: it is another model's",
            wrong if len(wrong) > 1 else (),
        )
    return stated


def _value(config: Mapping[str, object], key: str) -> object:
    """Returns a config value, or the product of several (`a*b`); None where one is absent or null."""
    values = [config.get(name) for name in key.split("*")]
    if None in values:
        return None
    if len(values) == 1:
        return values[0]
    product = 1
    for value in values:
        if not isinstance(value, int):
            return value
        product *= value
    return product
