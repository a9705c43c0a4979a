"""Other people's networks: built without memory, given weights by our names, and without their talk."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from wanconv.errors import InputError


@contextmanager
def quiet() -> Iterator[None]:
    """Swallows warnings and log lines: importing diffusers or transformers alone prints a page about torchao."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def assign(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Makes `weights` the module's parameters, without a copy; raises InputError where names or shapes differ."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != given:
        raise InputError(
            f"the {what}'s configuration does not describe its weights",
            "check the component's config.json",
            details=[
                f"{name}: configured {wanted.get(name, 'not at all')}, there is {given.get(name, 'none')}"
                for name in sorted(wanted.keys() | given.keys())
                if wanted.get(name) != given.get(name)
            ],
        )
    module.load_state_dict(weights, assign=True)


def release(module: nn.Module) -> None:
    """Gives a module's weights back: it stands on the meta device again."""
    module.to_empty(device="meta")
