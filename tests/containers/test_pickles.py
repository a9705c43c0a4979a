"""Pickles that would run something: every way in is refused in a sentence, and nothing of it is run."""

import io
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from command import Done, run_all


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def short(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def binary(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def called(function: str, *arguments: bytes) -> bytes:
    """Returns opcodes that call a global."""
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def zipped(opcodes: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", opcodes)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/version", b"3\n")
    return stream.getvalue()


def tarred(opcodes: bytes) -> bytes:
    """torch's format of 2016: already the number of storages is a pickle."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(opcodes)
            archive.addfile(member, io.BytesIO(opcodes))
    return stream.getvalue()


def streamed(opcodes: bytes) -> bytes:
    """torch's format before version 1.6: a magic number, a version, the machine, the content."""
    head: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join(pickle.dumps(value, protocol=2) for value in head) + opcodes


def partial(function: bytes, arguments: bytes, named: bytes) -> bytes:
    """Returns opcodes for a functools.partial, made without a call of it."""
    empty = b"cfunctools\npartial\n(" + function + b"t\x81"
    return empty + b"(" + function + arguments + named + b"Ntb"


# What a pickle does here, if anybody runs it, is to make a folder.
CANARY, MKDIR = text("canary"), b"cos\nmkdir\n"
TOUCH = CANARY + b"\x85R"  # calls what is on the stack
CODE, COMMAND = text("__import__('os').mkdir('canary')"), text("mkdir canary")
CALL = called("os.mkdir", CANARY)
BARE = b"\x80\x02" + CALL + b"."
IMPORT_OS = called("builtins.__import__", text("os"))
WORDS = b"](" + text("mkdir") + CANARY + b"e"
ORDERED, NAMESPACE = b"ccollections\nOrderedDict\n)R", b"ctypes\nSimpleNamespace\n)R"
SET_STATE = b"}" + text("__setstate__") + MKDIR + b"sb"
EXTENSION = called("copyreg.add_extension", text("os"), text("mkdir"), b"K\x7f")
STORAGE = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"
HOOKED = b"ctorch._utils\n_rebuild_tensor_v2\n" + STORAGE + b"K\0(K\x01t(K\x01t\x89" + CALL + b"tRs"
BYTES_IO = called("_io.BytesIO", binary(zipped(BARE)))
UNSAFE_LOAD = partial(b"ctorch\nload\n", b")", b"}" + text("weights_only") + b"\x89s")
EXEC = "torch.jit.unsupported_tensor_ops.execWrapper"

# fmt: off
PAYLOADS = {
    "os.system":           (called("os.system", COMMAND),                                       "(os.system)"),
    "posix.system":        (called("posix.system", COMMAND),                                    "(posix.system)"),
    "subprocess":          (called("subprocess.call", WORDS),                                   "(subprocess.call)"),
    "eval":                (called("builtins.eval", CODE),                                      "(builtins.eval)"),
    "exec":                (called("builtins.exec", CODE),                                      "(builtins.exec)"),
    "getattr of a module": (called("builtins.getattr", IMPORT_OS, text("mkdir")) + TOUCH,       "(builtins.getattr)"),
    "stack global":        (short("os") + short("mkdir") + b"\x93" + TOUCH,                     "SHORT_BINUNICODE"),
    "global from a memo":  (text("os") + b"\x940" + text("mkdir") + b"\x940h\0h\x01\x93" + TOUCH, "MEMOIZE"),
    "dotted stack global": (text("torch.serialization") + text("os.mkdir") + b"\x93" + TOUCH,   "STACK_GLOBAL"),
    "global in the memo":  (b"}" + MKDIR + b"q\x070h\x07" + TOUCH + b"0",                       "(os.mkdir)"),
    "INST":                (b"(" + CANARY + b"ios\nmkdir\n",                                    "INST"),
    "OBJ":                 (b"(" + MKDIR + CANARY + b"o",                                       "(os.mkdir)"),
    "functools.partial":   (partial(MKDIR, b"(" + CANARY + b"t", b"}") + b")R",                 "(functools.partial)"),
    "__setstate__":        (NAMESPACE + SET_STATE + CANARY + b"b", "(types.SimpleNamespace)"),
    "extension registry":  (EXTENSION + b"\x82\x7f" + TOUCH, "(copyreg.add_extension)"),
    "numpy":               (called("numpy.testing._private.utils.runstring", CODE, b"}"),       "utils.runstring)"),
    "torch's own exec":    (called(EXEC, CODE, b"}", b"}"),                                     f"({EXEC})"),
    "pickle in a pickle":  (called("pickle.loads", binary(BARE)),                               "(pickle.loads)"),
    "zip in a pickle":     (UNSAFE_LOAD + b"(" + BYTES_IO + b"tR",                              "(functools.partial)"),
    "hooks of a tensor":   (b"}" + text("a") + HOOKED,                                          "(os.mkdir)"),
    "notes of a dict":     (ORDERED + b"}" + text("_metadata") + CALL + b"sb",                  "(os.mkdir)"),
}
FILES = {kind: (zipped(b"\x80\x04" + opcodes + b"."), message) for kind, (opcodes, message) in PAYLOADS.items()} | {
    "torch's tar":     (tarred(BARE),                                                   "none of the formats"),
    "torch's stream":  (streamed(BARE),                                                 "before version 1.6"),
    "bare":            (BARE,                                                           "a bare pickle"),
}
# fmt: on

LOAD = """
import os, sys, torch
for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            os.mkdir(path + ".ran")
            os.chdir(path + ".ran")
            torch.load(path, weights_only=False)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[Done, Done]]]:
    """Returns where the files are, and what inspect and convert said of each file."""
    root = tmp_path_factory.mktemp("pickles")
    commands = []
    for number, (content, _) in enumerate(FILES.values()):
        path = root / f"{number}.pth"
        path.write_bytes(content)
        commands.append(["inspect", str(path)])
        commands.append(["convert", str(path), "-r", "bf16", "-o", str(root / "out")])
    done = iter(run_all(commands, root))
    return root, {kind: (next(done), next(done)) for kind in FILES}


@pytest.mark.parametrize("kind", FILES)
def test_a_pickle_that_would_run_something_is_refused_in_a_sentence(
    kind: str, tried: tuple[Path, dict[str, tuple[Done, Done]]]
) -> None:
    root, dones = tried
    assert not list(root.rglob("canary"))
    number = list(FILES).index(kind)
    for done in dones[kind]:
        assert (done.exit_code, done.output) == (3, "")
        assert done.errors.startswith("error[unreadable]: ")
        assert f"{number}.pth" in done.errors
        assert FILES[kind][1] in done.errors
        assert done.errors.splitlines()[-1].startswith("hint: ")
        assert "Traceback" not in done.errors


@pytest.mark.exhaustive
def test_every_one_of_them_runs_where_torch_is_told_to_trust_it(tmp_path: Path) -> None:
    """What the test above proves is that nobody ran them, and not that they do nothing."""
    paths = [tmp_path / f"{number}.pth" for number in range(len(FILES))]
    for path, (content, _) in zip(paths, FILES.values(), strict=True):
        path.write_bytes(content)
    subprocess.run([sys.executable, "-c", LOAD, *map(str, paths)], capture_output=True, timeout=120, check=True)
    quiet = {path.name for path in paths if not path.with_name(f"{path.name}.ran").joinpath("canary").is_dir()}
    assert quiet == set()
