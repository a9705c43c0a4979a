"""The small trained model that ships in the package, written as a checkpoint in the official layout.

In the package every weight file is safetensors; text encoder and VAE are `.pth` files in an official folder, and are
converted to them here. The same package gives the same bytes.
"""

import filecmp
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path

from wanconv.containers.open import read_header
from wanconv.containers.writer import Journal, write_images
from wanconv.errors import UsageError
from wanconv.layouts import LAYOUTS, Place
from wanconv.planning import Slot, lay_out
from wanconv.storage.local import describe_output_error, publish, sync_folders, write_file
from wanconv.storage.reading import fill_at
from wanconv.storage.tempdir import scratch
from wanconv.types.progress import Progress, silent, total

# what it was trained to generate
SIZE, FRAMES, STEPS = (48, 48), 17, 12
PROMPT = "a red circle moves left"
_OFFICIAL = LAYOUTS["official"]
# file in the package -> what it becomes in an official folder
_PICKLED = {
    "text_encoder.safetensors": _OFFICIAL.places["text_encoder"],
    "vae.safetensors": _OFFICIAL.places["vae:wan-vae-2.1"],
}


def make(folder: Path, progress: Progress = silent) -> Path:
    """Makes the model at `folder`, whole or not at all, and returns it; an existing one is left unchanged.

    Raises UsageError if the folder holds something else.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise describe_output_error(error, folder) from error
    with packaged() as root, scratch(folder.parent, ".wanconv-demo-") as room:
        made = room / folder.name
        _set_out(root, made, progress)
        if os.path.lexists(folder):
            _check_same(made, folder)
        else:
            sync_folders(made)
            publish(made, folder)
    return folder


@contextmanager
def packaged() -> Iterator[Path]:
    """Yields the model's folder in the package."""
    with resources.as_file(resources.files("wanconv.samples") / "tiny") as root:
        yield root


def _set_out(root: Path, folder: Path, progress: Progress) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    tell = total(progress, "setting the model out", sum(path.stat().st_size for path in files))
    for path in files:
        place = _PICKLED.get(path.relative_to(root).as_posix())
        if place is None:
            write_file(folder / path.relative_to(root), path.read_bytes())
        else:
            _pickle(path, place, folder)
        tell(path.stat().st_size)


def _pickle(source: Path, place: Place, folder: Path) -> None:
    """Writes the tensors of a safetensors file as the `.pth` that has this place in `folder`."""
    tensors = read_header(source).tensors
    (image,), _ = lay_out(place, [Slot(name, name, one.dtype, one.shape) for name, one in tensors.items()], None)
    journal = folder / ".journal"
    with source.open("rb") as stream, closing(Journal(journal)) as opened:

        def fill(name: str, start: int, view: memoryview) -> None:
            done = fill_at(stream.fileno(), view, tensors[name].offset + start)
            assert done == len(view), "the header was checked against the file's size"

        write_images(folder, [image], fill, opened, jobs=1)
    journal.unlink()


def _check_same(made: Path, folder: Path) -> None:
    """Raises UsageError unless `folder` holds every file that was made, with its bytes; it may hold more."""
    for path in sorted(made.rglob("*")):
        there = folder / path.relative_to(made)
        if path.is_file() and not (there.is_file() and filecmp.cmp(path, there, shallow=False)):
            message = f"{folder} is there already, and is not the model that ships with wanconv: {there.name} differs"
            raise UsageError(message, "name another folder, or remove this one")
