"""The recorder: the range of every operation, the first operation that went wrong, and the ones just before.

    recorder = Recorder()
    recorder.watch(wan)                                   # names for the modules in it
    with recorder:
        recorder.at(step=3, timestep=875, expert="expert.high")
        wan.denoise(fetch, latents, timestep, context)
    recorder.ranges     # largest |x| per operation and place, and when it was seen
    recorder.inside     # what fp16 kernels would overflow inside of (ranges.INSIDE), and in sums if asked for
    recorder.first_bad  # None, or an Incident with the 20 operations before it

It is a TorchDispatchMode. Hooks on modules would miss residual additions and everything functional; here they only say
in which module an operation runs. A recorder imitates fp16 on a CPU as numerics.Imitation does. Within its
block it is in inference mode: linears, norms and attention arrive as one operation each, as a fused kernel computes
them. The product q·kᵀ, hidden in attention, is computed once more for its range. Views, copies, lookups and casts to
wider dtypes change no number and are left out.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from wanconv.engine.numerics import in_fp16, run, widened
from wanconv.engine.ranges import INSIDE, LARGEST, OVERFLOWS, accumulator, small_shares

Cause = Literal["overflow", "invalid", "given"]
_HISTORY = 20
_LOGITS_NUMEL = 1 << 26  # elements of q·kᵀ at a time


@dataclass(frozen=True, slots=True)
class Range:
    """The largest magnitude that the `nth` operation of a kind returned in a module, and when.

    `path` is the module's canonical name, "" outside of all modules. `flushed` and `subnormal` are shares of elements
    that fp16 loses or keeps with fewer bits, None unless asked for.
    """

    path: str
    op: str
    nth: int
    dtype: str
    amax: float
    step: int | None = None
    timestep: float | None = None
    expert: str | None = None
    flushed: float | None = None
    subnormal: float | None = None

    @property
    def operation(self) -> str:
        """Its kind, and from the second of a kind in one module on also its number: addcmul, addcmul#2."""
        return f"{self.op}#{self.nth + 1}" if self.nth else self.op

    @property
    def headroom(self) -> float:
        """fp16's largest number over the largest magnitude: below 1 it does not fit; 0 for infinity, NaN for NaN."""
        return LARGEST / self.amax if self.amax else inf


@dataclass(frozen=True, slots=True)
class InsideRange:
    """The largest input of an operation that forms `what` from it; fp16 overflows inside from `limit` on."""

    where: Range
    what: str
    limit: float
    harmless: bool

    @property
    def overflows(self) -> bool:
        return not self.where.amax < self.limit  # NaN does

    @property
    def headroom(self) -> float:
        return self.limit / self.where.amax if self.where.amax else inf


@dataclass(frozen=True, slots=True)
class Incident:
    """The first operation that returned a number that is not finite, or one that fp16 cannot hold.

    cause: `overflow`: its inputs were finite and it returned infinity or, in a wider dtype, more than fp16's largest;
    `invalid`: its inputs were finite and it returned NaN; `given`: a weight or an input held NaN or infinity already.
    """

    bad: Range
    cause: Cause
    before: tuple[Range, ...]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's modes are untyped
    """Records operations between `with` and its end; may be entered again and goes on with what it has.

    `strict` counts |x| >= 65520 as an overflow in every dtype, to judge by a float32 or bf16 run; fp16 itself shows it
    as infinity. `shares` adds the shares of small numbers, at the price of a second computation; `sums` bounds the
    accumulators of linears (ranges.accumulator).
    """

    def __init__(self, strict: bool = False, shares: bool = False, sums: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.strict, self.shares, self.sums = strict, shares, sums
        self.first_bad: Incident | None = None
        self._ranges: dict[tuple[object, ...], Range] = {}
        self._inside: dict[tuple[object, ...], InsideRange] = {}
        self._history: deque[Range] = deque(maxlen=_HISTORY)
        self._names: dict[nn.Module, str] = {}
        self._frames: list[tuple[str, dict[str, int]]] = [("", {})]
        self._now: tuple[int | None, float | None, str | None] = (None, None, None)
        self._kinds: dict[Any, str | None] = {}
        self._entered = ExitStack()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in numerics.Imitation

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Every operation in the order in which it was first seen, with its largest magnitude."""
        return tuple(self._ranges.values())

    @property
    def inside(self) -> tuple[InsideRange, ...]:
        """Every operation with intermediate values, in the order in which it was first seen, with its largest input."""
        return tuple(self._inside.values())

    def watch(self, root: nn.Module, name: str = "") -> None:
        """Gives the modules below `root` their names; `name` goes before them."""
        for path, module in root.named_modules():
            self._names[module] = ".".join(part for part in (name, path) if part)

    def at(self, step: int | None = None, timestep: float | None = None, expert: str | None = None) -> None:
        """Sets the place in the sampling of the operations that follow."""
        self._now = (step, timestep, expert)

    @contextmanager
    def scope(self, path: str) -> Iterator[None]:
        """Gives operations outside of watched modules this path."""
        self._frames.append((path, {}))
        try:
            yield
        finally:
            self._frames.pop()

    def __enter__(self) -> "Recorder":
        self._entered.enter_context(torch.inference_mode())
        for handle in (
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ):
            self._entered.callback(handle.remove)
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]  # torch's
        self._entered.close()

    def _enter_module(self, module: nn.Module, arguments: object) -> None:
        if module in self._names:
            self._frames.append((self._names[module], {}))

    def _leave_module(self, module: nn.Module, arguments: object, result: object) -> None:
        if module in self._names:
            self._frames.pop()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._kinds:
            self._kinds[func] = _kind(func)
        op = self._kinds[func]
        if op is None:
            return func(*args, **kwargs)
        self._look_inside(op, args, kwargs)
        result = run(func, args, kwargs)
        first = result[0] if isinstance(result, tuple | list) else result
        if _is_float(first) and (op not in _CASTS or first.itemsize < args[_CASTS[op]].itemsize):
            self._record(op, func, args, kwargs, first)
        return result

    def _look_inside(self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if op in INSIDE:
            rule = INSIDE[op]
            if _is_float(args[0]) and (op != "pow" or (isinstance(args[1], int | float) and args[1] == 2)):
                self._note(op, rule.what, _amax(args[0]), rule.limit, rule.harmless)
        elif op == "mul" and args[0] is args[1]:
            square = INSIDE["square"]
            self._note(op, square.what, _amax(args[0]), square.limit, square.harmless)
        elif op == "scaled_dot_product_attention":
            logit = INSIDE["softmax"]
            self._note(op, logit.what, _largest_logit(args[0], args[1], kwargs.get("scale")), logit.limit)
        elif op == "linear" and self.sums and (self.strict or args[0].dtype == torch.float16):
            sums = accumulator(args[0], args[1])
            self._note(op, "Σ|x·w|", sums.bound, sums.limit)

    def _note(self, op: str, what: str, amax: float, limit: float, harmless: bool = False) -> None:
        where = self._range(op, f"{op} {what}", torch.float32, amax)
        key = (where.expert, where.path, op, where.nth, what)
        if key not in self._inside or _larger(where, self._inside[key].where):
            self._inside[key] = InsideRange(where, what, limit, harmless)

    def _range(self, op: str, counter: str, dtype: torch.dtype, amax: float) -> Range:
        path, counts = self._frames[-1]
        nth = counts[counter] = counts.get(counter, -1) + 1
        return Range(path, op, nth, str(dtype).removeprefix("torch."), amax, *self._now)

    def _record(self, op: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        found = self._range(op, op, result.dtype, _amax(result))
        if self.shares:
            wide, rounded = result, None
            if in_fp16(result) and not func._schema.is_mutable:
                computed = widened(func, args, kwargs)
                wide, rounded = (computed if isinstance(computed, Tensor) else computed[0]), result
            flushed, subnormal = small_shares(wide, rounded)
            found = replace(found, flushed=flushed, subnormal=subnormal)
        key = (found.expert, found.path, op, found.nth)
        if key not in self._ranges or _larger(found, self._ranges[key]):
            self._ranges[key] = found
        if self.first_bad is None:
            strict = self.strict and op not in _SQUARES
            if not found.amax < (OVERFLOWS if strict else inf):
                self.first_bad = self._incident(found, args, kwargs, result)
            self._history.append(found)

    def _incident(self, bad: Range, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> Incident | None:
        inputs = [tensor for tensor in _tensors((*args, *kwargs.values())) if tensor.data_ptr() != result.data_ptr()]
        given = [tensor for tensor in inputs if not isfinite(_amax(tensor))]
        if given and all(_masks(tensor) for tensor in (*given, result)):
            return None
        cause: Cause = "given" if given else "invalid" if isnan(bad.amax) else "overflow"
        return Incident(bad, cause, tuple(self._history))


# Casts, and which argument holds the numbers; they are recorded where they narrow.
_CASTS = {"to": 0, "_to_copy": 0, "copy_": 1}
# Their results stay inside of a fused norm, which INSIDE judges by its input.
_SQUARES = frozenset(("pow", "square", "sum", "mean", "var", "linalg_vector_norm"))
# Numbers are moved, not changed. Views are known by their schemas.
# fmt: off
_MOVES = frozenset((
    "cat", "concat", "stack", "clone", "index", "index_select", "index_put_", "gather", "take_along_dim", "embedding",
    "repeat", "repeat_interleave", "roll", "flip", "pad", "constant_pad_nd", "where", "masked_fill", "masked_fill_",
    "fill_", "zero_", "full_like", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_empty", "new_full",
    "unique2", "_unique2", "sort", "detach", "lift_fresh", "tril", "triu", "pixel_shuffle", "upsample_nearest2d",
))
# fmt: on


def _kind(func: Any) -> str | None:
    """Returns an operation's name; None if it changes no number (views, moves) or reads no tensor."""
    name: str = func.overloadpacket.__name__
    if name in _CASTS:
        return name
    reads = any("Tensor" in str(argument.type) for argument in func._schema.arguments)
    view = all(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    return None if view or not reads or name in _MOVES else name


def _amax(values: Tensor) -> float:
    """Returns the largest |x|; NaN if there is any."""
    low, high = torch.aminmax(values)
    return max(-low.item(), high.item())


def _larger(found: Range, known: Range) -> bool:
    """True if `found` should replace `known`: the first that is not finite stays."""
    return isfinite(known.amax) and not found.amax <= known.amax


def _largest_logit(q: Tensor, k: Tensor, scale: float | None) -> float:
    """Returns the largest |q·kᵀ|·scale in float32, some queries at a time; q and k (B, heads, tokens, c)."""
    rows = max(1, _LOGITS_NUMEL // (k.numel() // k.shape[-1]))
    keys = k.float().transpose(-1, -2)
    largest = [_amax(part.float() @ keys) for part in torch.split(q, rows, dim=-2)]
    broken = [value for value in largest if isnan(value)]
    return (broken or [max(largest)])[0] * (q.shape[-1] ** -0.5 if scale is None else scale)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """Returns the float tensors among arguments and in lists of them."""
    found = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _tensors(value)
        elif _is_float(value):
            found.append(value)
    return found


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _masks(values: Tensor) -> bool:
    """True for infinities of an attention mask: all negative, no NaN."""
    return _amax(values) == inf and values.max().item() < inf
