"""Small files that may be anything – devices, FIFOs, folders, sockets, endless or growing ones – in every place."""

import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import pytest

from wanconv.commands.validate import recheck
from wanconv.commands.verify import VerifyOptions, verify
from wanconv.containers import open_checkpoint
from wanconv.conversion import fp16_gate
from wanconv.engine import audio
from wanconv.errors import InputError, UsageError, WanconvError
from wanconv.evaluation.backbone import ALEXNET, Backbone
from wanconv.generation import pictures
from wanconv.models import identify
from wanconv.provenance import download_record, manifest
from wanconv.recipe import load
from wanconv.storage import reading
from wanconv.verdict import load_profile
from wanconv.weights.lora import with_loras

Make = Callable[[Path], object]
T2V = "wan2.1-t2v-1.3b"
_MEMORY_NBYTES = 2 << 30  # beyond what the process has
_PATIENCE_S = 20


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Where one of these is read after all, the test fails: it neither hangs nor fills the memory."""

    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail("it waits for something that does not come")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MEMORY_NBYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def bind(path: Path) -> None:
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(path.parent)  # the name of a socket may not be long
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole


def link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


NODES: Mapping[str, Make] = {
    "zeros without end": link_to("/dev/zero"),
    "a terminal": link_to("/dev/tty"),
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "socket": bind,
    "hole of a terabyte": huge,
    "memory of a process": link_to("/proc/self/mem"),
    "text of the kernel": link_to("/proc/self/status"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: None,
}


@pytest.fixture
def model(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny(T2V), tmp_path / "model", copy_function=os.link)


def in_place_of(name: str, read: Callable[[Path], object]) -> Callable[[Path, Make], object]:
    """Returns what puts a node at this place of a model's folder, and reads the folder."""

    def tried(folder: Path, make: Make) -> object:
        path = folder / name
        path.unlink(missing_ok=True)
        make(path)
        return read(folder)

    return tried


def by_name(name: str, read: Callable[[Path, Path], object]) -> Callable[[Path, Make], object]:
    """Returns what puts a node beside a model's folder, and reads it by its path."""

    def tried(folder: Path, make: Make) -> object:
        path = folder.parent / name
        make(path)
        return read(path, folder)

    return tried


def opened(folder: Path) -> object:
    return identify(open_checkpoint(folder))


def by_lists(folder: Path) -> None:
    """Verifies a folder by the lists in it, and raises what the first failure says."""
    for finding in verify(folder, VerifyOptions()).findings:
        if finding.severity == "failure":
            raise InputError(finding.message, finding.fix)


def lpips(path: Path, folder: Path) -> object:
    path.rename(folder / ALEXNET.file) if os.path.lexists(path) else None
    return Backbone(folder).read()


# fmt: off
PLACES: Mapping[str, tuple[Callable[[Path, Make], object], type[WanconvError]]] = {
    "recipe":        (by_name("mine.toml", lambda path, folder: load(str(path))), UsageError),
    "profile":       (by_name("mine.toml", lambda path, folder: load_profile(str(path))), UsageError),
    "results":       (by_name("results.json", lambda path, folder: recheck(path, "quick")), InputError),
    "report":        (by_name("results.json",
                              lambda path, folder: next(fp16_gate._doubts(path, identify(open_checkpoint(folder))))),
                      InputError),
    "list":          (by_name("LIST", lambda path, folder: verify(folder, VerifyOptions(sums=(path,)))), InputError),
    "list found":    (in_place_of("SHA256SUMS", by_lists), InputError),
    "manifest":      (in_place_of(manifest.NAME, manifest.read), InputError),
    "record":        (in_place_of(download_record.NAME, download_record.read), InputError),
    "config":        (in_place_of("config.json", opened), InputError),
    "sidecar":       (in_place_of("tokenizer.json", opened), InputError),
    "index":         (in_place_of("model.safetensors.index.json", opened), InputError),
    "weights":       (in_place_of("diffusion_pytorch_model.safetensors", opened), InputError),
    "weights alone": (by_name("model.safetensors", lambda path, folder: open_checkpoint(path)), InputError),
    "pth alone":     (by_name("model.pth", lambda path, folder: open_checkpoint(path)), InputError),
    "gguf alone":    (by_name("model.gguf", lambda path, folder: open_checkpoint(path)), InputError),
    "index alone":   (by_name("model.safetensors.index.json", lambda path, folder: open_checkpoint(path)), InputError),
    "LoRA":          (by_name("lora.safetensors", lambda path, folder: with_loras(
                          identify(open_checkpoint(folder)), [str(path)], allow_unmatched=False)), InputError),
    "image":         (by_name("image.png", lambda path, folder: pictures.read(path)), InputError),
    "sound":         (by_name("sound.wav", lambda path, folder: audio.read(path, 1.0)), InputError),
    "LPIPS":         (by_name("weights", lpips), InputError),
}
HARMLESS = {  # what is absent, and may be; and what is text, and may be
    ("list found", "nothing"), ("manifest", "nothing"), ("record", "nothing"), ("config", "nothing"),
    ("sidecar", "nothing"), ("index", "nothing"), ("sidecar", "folder"), ("config", "folder"), ("index", "folder"),
    ("list found", "folder"), ("sidecar", "hole of a terabyte"),
    ("weights", "nothing"),
}
# fmt: on


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("place", PLACES)
def test_a_special_file_in_any_place_is_a_sentence(place: str, node: str, model: Path) -> None:
    """At once, and without reading it: it neither hangs nor fills the memory."""
    tried, error = PLACES[place]
    if (place, node) in HARMLESS:
        tried(model, NODES[node])
        return
    with pytest.raises(error) as caught:
        tried(model, NODES[node])
    assert str(model.parent) in caught.value.message or caught.value.message.startswith(
        f"{place} mine is not valid TOML"
    )
    assert "\n" not in caught.value.message
    assert caught.value.hint
    for word in ("FIFO", "folder", "socket"):
        assert node != word or f"is a {word}" in caught.value.message or place.endswith("alone")
    assert node != "zeros without end" or "is a device" in caught.value.message or "outside" in caught.value.message


@pytest.mark.parametrize("node", NODES)
def test_a_digest_that_hugging_face_left_is_read_from_a_small_file_alone(node: str, model: Path) -> None:
    metadata = model / ".cache" / "huggingface" / "download" / "Wan2.1_VAE.pth.metadata"
    metadata.parent.mkdir(parents=True)
    NODES[node](metadata)
    assert manifest.known_etag(model, "Wan2.1_VAE.pth") is None
    if metadata.is_symlink() or not metadata.is_dir():
        metadata.unlink(missing_ok=True)
        metadata.write_text(f"{'a' * 40}\n{'b' * 64}\n0\n")
        assert manifest.known_etag(model, "Wan2.1_VAE.pth") == "b" * 64


def test_a_file_that_grows_while_it_is_read_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "log", os.read
    path.write_bytes(b"0")

    def grown(descriptor: int, nbytes: int) -> bytes:
        with path.open("ab") as file:
            file.write(bytes(1000))
        return read(descriptor, nbytes)

    monkeypatch.setattr(os, "read", grown)
    with pytest.raises(OSError, match="it has more than 5000 bytes"):
        reading.read_small(path, 5000)


def test_a_file_that_comes_byte_by_byte_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "slow", os.read
    path.write_bytes(bytes(1000))
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr(os, "read", lambda descriptor, nbytes: read(descriptor, 1))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    with pytest.raises(OSError, match="it takes more than 60 seconds"):
        reading.read_small(path, 5000)


def test_a_file_of_the_kernel_that_says_it_is_empty_is_read(tmp_path: Path) -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    assert b"Pid:" in reading.read_small(Path("/proc/self/status"), 1_000_000)


def test_what_takes_a_files_place_before_it_is_opened_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opener = tmp_path / "file", os.open
    path.write_text("text")

    def swapped(*arguments: object) -> int:
        path.unlink()
        os.mkfifo(path)
        return opener(*arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(OSError, match="it is a FIFO, not a file"):
        reading.open_regular(path)


def test_sound_that_names_another_file_is_not_followed(tmp_path: Path) -> None:
    """A list of FFmpeg's is a sound file, too, and may name what lies anywhere."""
    shutil.copy(Path(audio.__file__).parent.parent / "generation" / "speech.wav", tmp_path / "secret.wav")
    (tmp_path / "list.wav").write_text("ffconcat version 1.0\nfile secret.wav\n")
    with pytest.raises(InputError, match="cannot be read as sound"):
        audio.read(tmp_path / "list.wav", 0.5)
