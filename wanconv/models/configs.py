"""What the JSON files next to the weights say, checked against the shapes of the tensors."""

from collections.abc import Mapping

from wanconv.errors import InputError
from wanconv.models.marks import is_other_type
from wanconv.models.match import Claim
from wanconv.models.names import size_of
from wanconv.models.releases import DENOISERS
from wanconv.storage.reading import TEXT_NBYTES, brief, parsed_json, read_small
from wanconv.types.architecture import Family
from wanconv.types.tensors import Checkpoint

_HINT = "download it again; without a config.json, sizes come from the weights"
# Further model types in configs: VACE's own code and VideoX-Fun call a VACE denoiser a T2V one with more blocks
_ALSO_CALLED = {"vace": ("t2v",)}


def read_json(checkpoint: Checkpoint, path: str) -> Mapping[str, object] | None:
    """Returns a sidecar's JSON object; None if there is no sidecar of this path."""
    if path not in checkpoint.sidecars:
        return None
    file = checkpoint.root / path
    try:
        value = parsed_json(read_small(file, TEXT_NBYTES))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", "check the permissions and the disk") from None
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}", _HINT) from None
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
            wrong.append(f"{key} is {brief(value)}, not a whole number")
        elif value != size_of(size, fit.dims):
            wrong.append(f"{key} is {brief(value)}, but {claim.part.path} has {size_of(size, fit.dims)}")
    heads = stated.get("heads")
    if heads is not None and (heads < 1 or fit.dims["d"] % heads):
        wrong.append(f"{fit.dims['d']} does not divide into {heads} heads")
    model_type = config.get("model_type")
    known = (None, family.model_type, *_ALSO_CALLED.get(family.model_type, ()))
    contradicts = model_type not in known and not is_other_type(model_type, family)
    if claim.component in DENOISERS and fit.scheme == "official" and contradicts:
        wrong.append(
            f"model_type is {brief(model_type)}, but {claim.part.path} is {family.name}: {family.model_type!r}"
        )
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(
            f"{path}: {wrong[0]}{more}",
            "take the config that belongs to the weights: it is another model's",
            wrong if len(wrong) > 1 else (),
        )
    return stated


def _value(config: Mapping[str, object], key: str) -> object:
    """Returns a config value, or the product of several (`a*b`); None if one is absent or null."""
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
