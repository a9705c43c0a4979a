"""The pickle inside a .pth: a state dict whose tensors point to storages. Read without running it, and written.

A pickle is a program for a stack machine. The machine here knows the opcodes that torch.save writes and four functions
that only record their arguments: a hostile file has nothing to call. (A ten-byte file can make Python's own unpickler
allocate gigabytes, even with find_class closed.)
"""

import pickletools
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wanconv.containers.files import Entry
from wanconv.errors import InputError
from wanconv.types.dtypes import DTYPES
from wanconv.types.figures import count
from wanconv.types.tensors import Shape

# fmt: off
TORCH_DTYPES = (
    #  name          torch.*          storage class; None: torch._utils._rebuild_tensor_v3 on an UntypedStorage
    ("fp64",       "float64",       "DoubleStorage"),
    ("fp32",       "float32",       "FloatStorage"),
    ("bf16",       "bfloat16",      "BFloat16Storage"),
    ("fp16",       "float16",       "HalfStorage"),
    ("fp8_e4m3fn", "float8_e4m3fn", None),
    ("fp8_e5m2",   "float8_e5m2",   None),
    ("int64",      "int64",         "LongStorage"),
    ("int32",      "int32",         "IntStorage"),
    ("int16",      "int16",         "ShortStorage"),
    ("int8",       "int8",          "CharStorage"),
    ("uint64",     "uint64",        None),
    ("uint32",     "uint32",        None),
    ("uint16",     "uint16",        None),
    ("uint8",      "uint8",         "ByteStorage"),
    ("bool",       "bool",          "BoolStorage"),
)
# fmt: on
_UNTYPED = "torch.storage UntypedStorage"
_ORDERED_DICT = "collections OrderedDict"
_TENSOR_V2 = "torch._utils _rebuild_tensor_v2"
_TENSOR_V3 = "torch._utils _rebuild_tensor_v3"
_PARAMETER = "torch._utils _rebuild_parameter"
_DTYPE_OF_STORAGE = {f"torch {storage}": name for name, _, storage in TORCH_DTYPES if storage}
_DTYPE_OF_GLOBAL = {f"torch {torch_name}": name for name, torch_name, _ in TORCH_DTYPES}
_KNOWN = {_UNTYPED, _ORDERED_DICT, _TENSOR_V2, _TENSOR_V3, _PARAMETER, *_DTYPE_OF_STORAGE, *_DTYPE_OF_GLOBAL}
_PROTOCOL = 2
_WRAPPERS = ("state_dict", "module", "model")
_STATE_DICT = "wanconv reads state dicts: re-save just the tensors, torch.save(model.state_dict(), path)"
_NOT_TORCHS = "if you trust its maker, re-save it with a current torch: torch.save(state_dict, path)"
_RE_SAVE = "re-save it with a current torch: torch.save(state_dict, path)"
_OTHERS = ("entry that is not a tensor", "entries that are not tensors")


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that the pickle would import."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A record `data/<key>`; `dtype` is None for an untyped storage, whose size is in bytes."""

    dtype: str | None
    key: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the pickle describes it; `start` and `stride` count elements."""

    storage: Storage
    dtype: str
    start: int
    shape: Shape
    stride: tuple[int, ...]


def parse(pickle: bytes, path: Path) -> dict[str, StoredTensor]:
    """Returns the state dict in a pickle; raises InputError for any other content. Runs nothing."""
    content = _run(pickle, path)
    outer: list[object] = []
    if isinstance(content, dict) and len(content) == 1:
        key, inner = next(iter(content.items()))
        if key in _WRAPPERS and isinstance(inner, dict):
            content, outer = inner, [key]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {_describe(content)} instead of a dict of tensors", _STATE_DICT)
    if inside := [name for name, value in content.items() if _has_tensors(value)]:
        raise _wrapped(path, content, outer, inside)
    others = [f"{name}: {_describe(value)}" for name, value in content.items() if not isinstance(value, StoredTensor)]
    if others:
        message = f"{path} holds {count(len(others), *_OTHERS)}, the first {others[0]}"
        raise InputError(message, _STATE_DICT, others)
    if odd := [name for name in content if not isinstance(name, str)]:
        raise InputError(f"{path} holds a tensor under the key {odd[0]!r}, which is not text", _STATE_DICT)
    return content


def _has_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, StoredTensor) for inner in value.values())


def _wrapped(
    path: Path, content: Mapping[object, object], outer: Sequence[object], inside: Sequence[object]
) -> InputError:
    """Returns the error for a training checkpoint, whose tensors are in nested dicts among other objects."""
    where = ", ".join(f"{name}: {_describe(content[name])}" for name in inside)
    message = f"{path} is a checkpoint of a training run, and its tensors stand under {where}"
    keys = "".join(f"[{key!r}]" for key in (*outer, inside[0]))
    hint = f"re-save them alone: torch.save(torch.load(path, weights_only=True){keys}, path)"
    return InputError(message, hint, [f"{name}: {_describe(value)}" for name, value in content.items()])


def dump(entries: Iterable[Entry]) -> bytes:
    """Returns the pickle (protocol 2) of an OrderedDict of contiguous tensors; entry i lies in storage i."""
    tensors = b"".join(_text(entry[0]) + _tensor(str(key), entry) for key, entry in enumerate(entries))
    return b"\x80\x02" + _EMPTY_DICT + b"(" + tensors + b"u."


# Reading

_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Unreadable(ValueError):
    """Opcodes in an invalid order."""


def _run(pickle: bytes, path: Path) -> object:
    machine = _Machine(path)
    try:
        for opcode, argument, position in pickletools.genops(pickle):
            if opcode.name == "STOP" and position == len(pickle) - 1 and len(machine.stack) == 1 and not machine.marks:
                return machine.stack[0]
            if opcode.proto > _PROTOCOL:  # the record's CRC is right: the file was written like this
                stated = pickle[1] if pickle.startswith(b"\x80") else 0
                message = (
                    f"{path}: its data.pkl is of pickle protocol {max(stated, opcode.proto)} (it has {opcode.name})"
                )
                raise InputError(f"{message}, and wanconv reads {_PROTOCOL}, the default of torch.save", _RE_SAVE)
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError) as error:  # errors of genops and of the machine's stack and memo
        reason = f"nothing was noted as {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: its data.pkl is not what torch.save writes: {reason}", _NOT_TORCHS) from error
    raise AssertionError("genops ends with STOP")


class _Machine:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def step(self, opcode: str, argument: object) -> None:
        match opcode:
            case "PROTO":
                pass
            case "BINPUT" | "LONG_BINPUT" if isinstance(argument, int):
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" if isinstance(argument, int):
                self.stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(self.stack))
            case "GLOBAL":
                self.stack.append(self.known_global(str(argument)))
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "TUPLE":
                self.stack.append(tuple(self.pop_to_mark()))
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "APPEND":
                self.extend([self.stack.pop()])
            case "APPENDS":
                self.extend(self.pop_to_mark())
            case "BINPERSID":
                self.stack.append(self.storage(self.stack.pop()))
            case "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self.call(function, arguments))
            case "BUILD":
                self.build(self.stack.pop())
            case _ if opcode in _LITERALS:
                self.stack.append(argument)
            case _ if opcode in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode])
            case _ if opcode in _TUPLES:
                self.marks.append(len(self.stack) - _TUPLES[opcode])
                self.stack.append(tuple(self.pop_to_mark()))
            case _:
                raise _Unreadable(f"torch.save never writes the opcode {opcode}")

    def pop_to_mark(self) -> list[object]:
        mark = self.marks.pop()
        if not 0 <= mark <= len(self.stack):
            raise _Unreadable("the stack ends before the mark")
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def known_global(self, name: str) -> _Global:
        if name not in _KNOWN:
            message = (
                f"{self.path} holds code or objects other than tensors ({name.replace(' ', '.')}); nothing was run"
            )
            raise InputError(message, _STATE_DICT)
        return _Global(name)

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise _Unreadable("items for something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | None):  # a tuple of tuples of … takes forever to hash
                raise _Unreadable(f"{_describe(key)} as a key")
            if key in target:
                raise _Unreadable(f"the key {key!r} stands twice in one dict")
            target[key] = value

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _Unreadable("items for something that is not a list")
        target.extend(items)

    def build(self, state: object) -> None:
        # Module.state_dict() attaches `_metadata` (versions of modules) to the OrderedDict: no tensors, so ignored.
        if not isinstance(self.stack[-1], dict) or not isinstance(state, dict) or state.keys() != {"_metadata"}:
            raise _Unreadable("attributes for something that has none")

    def storage(self, value: object) -> Storage:
        match value:
            case ("storage", _Global(name), str(key), str(), size) if type(size) is int and size >= 0:
                if name == _UNTYPED:
                    return Storage(None, key, size)
                if name in _DTYPE_OF_STORAGE:
                    dtype = _DTYPE_OF_STORAGE[name]
                    return Storage(dtype, key, size * DTYPES[dtype].itemsize)
        raise _Unreadable("a reference to something that is not a storage")

    def call(self, function: object, arguments: object) -> object:
        match function, arguments:
            case _Global("collections OrderedDict"), ():
                return {}
            case _Global("torch._utils _rebuild_tensor_v2"), (Storage(dtype=str(dtype)) as storage, *rest):
                return self.tensor(storage, dtype, rest)
            case _Global("torch._utils _rebuild_tensor_v3"), (Storage() as storage, *rest, _Global(name)) if (
                name in _DTYPE_OF_GLOBAL
            ):
                return self.tensor(storage, _DTYPE_OF_GLOBAL[name], rest)
            case _Global("torch._utils _rebuild_parameter"), (StoredTensor() as tensor, bool(), hooks) if hooks == {}:
                return tensor
        raise _Unreadable(f"a call of {_describe(function)} with arguments that torch.save does not write")

    def tensor(self, storage: Storage, dtype: str, rest: list[object]) -> StoredTensor:
        match rest:
            case [start, tuple(shape), tuple(stride), bool(), hooks] if hooks == {} and len(shape) == len(stride):
                numbers = (start, *shape, *stride)
                if all(type(number) is int and number >= 0 for number in numbers) and isinstance(start, int):
                    return StoredTensor(storage, dtype, start, shape, stride)
        raise _Unreadable("a tensor with arguments that torch.save does not write")


def _describe(value: object) -> str:
    match value:
        case None:
            return "None"
        case _Global():
            return value.name.replace(" ", ".")
        case StoredTensor():
            return f"a tensor of shape {list(value.shape)}"
        case Storage():
            return "a bare storage"
        case dict() | list() | tuple():
            return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"


# Writing. No memo: nothing in a state dict needs identity, and every entry is then written the same way.


def _tensor(key: str, entry: Entry) -> bytes:
    _, dtype, shape, nbytes = entry
    torch_name, storage = next(row[1:] for row in TORCH_DTYPES if row[0] == dtype)
    size = nbytes // DTYPES[dtype].itemsize if storage else nbytes
    name = f"torch {storage}" if storage else _UNTYPED
    reference = b"(" + _text("storage") + _global(name) + _text(key) + _text("cpu") + _integer(size) + b"tQ"
    place = _integer(0) + _integers(shape) + _integers(contiguous_stride(shape))
    rest = b"\x89" + _EMPTY_DICT + (b"" if storage else _global(f"torch {torch_name}"))  # \x89: requires_grad False
    return _global(_TENSOR_V2 if storage else _TENSOR_V3) + b"(" + reference + place + rest + b"tR"


def contiguous_stride(shape: Shape) -> tuple[int, ...]:
    """Returns the strides, in elements, of a tensor in C order, as torch counts them where sizes are 0."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little")


def _integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"


def _global(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return f"c{module}\n{attribute}\n".encode("ascii")


_EMPTY_DICT = _global(_ORDERED_DICT) + b")R"
