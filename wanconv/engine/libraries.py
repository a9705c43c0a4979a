"""Third-party networks: built without memory, given weights by canonical names, and without their log output."""

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from wanconv.engine.recorder import Recorder
from wanconv.errors import InputError


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings and log lines: importing diffusers or transformers prints a page about torchao.

    Variables of the environment that an import sets go again: torch's compiler leaves its cache folder in one.
    """
    before, known = logging.root.manager.disable, set(os.environ)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        for name in set(os.environ) - known:
            del os.environ[name]


def assign(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Makes `weights` the module's parameters, without a copy; raises InputError if names or shapes differ."""
    check(module, weights, what)
    module.load_state_dict(weights, assign=True)


@contextmanager
def assigned(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> Iterator[nn.Module]:
    """Gives a module `weights` as its parameters within the block; raises as `assign` does."""
    assign(module, weights, what)
    try:
        yield module
    finally:
        release(module)


def check(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Raises InputError if names or shapes of `weights` differ from the module's."""
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


def run(module: nn.Module, weights: Mapping[str, Tensor], arguments: Sequence[object], what: str) -> Any:
    """Returns a module's result for its arguments with these weights, which it does not keep; checked by `check`."""
    check(module, weights, what)
    return functional_call(module, dict(weights), tuple(arguments))


def release(module: nn.Module) -> None:
    """Drops a module's weights: it is on the meta device again."""
    module.to_empty(device="meta")


def watch(recorder: Recorder, module: nn.Module, names: Mapping[str, str]) -> None:
    """Gives a network's modules their names in a recorder; `names`: canonical name -> the network's, of every
    tensor."""
    canonical = module_names(names)
    recorder.watch(module)
    for path, part in module.named_modules():
        if canonical.get(path):
            recorder.watch(part, canonical[path])


def module_names(names: Mapping[str, str]) -> Mapping[str, str]:
    """Returns module of the library -> canonical path, the longest that its tensors begin with.

    If tensors have different first words, the most frequent one counts: T5's first block holds a bias of
    all blocks.
    """
    found: dict[str, list[list[str]]] = {}
    for canonical, theirs in names.items():
        parts = theirs.split(".")
        for length in range(1, len(parts)):
            found.setdefault(".".join(parts[:length]), []).append(canonical.split(".")[:-1])
    return {module: ".".join(_shared(paths)) for module, paths in found.items()}


def _shared(paths: Sequence[list[str]]) -> list[str]:
    ((word, _),) = Counter(path[0] for path in paths if path).most_common(1) or [("", 0)]
    same = [path for path in paths if path and path[0] == word]
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*same, strict=False))]
