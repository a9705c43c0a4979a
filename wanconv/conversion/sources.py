"""The sources of a conversion: the protocol, and a local folder."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wanconv.containers.writer import Fill, Journal
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, UsageError
from wanconv.planning import Plan
from wanconv.provenance import manifest, twins
from wanconv.storage.digests import digest_files
from wanconv.storage.reading import opened
from wanconv.types.documents import Json
from wanconv.types.model import Model
from wanconv.types.progress import Progress, total
from wanconv.weights.source_files import Files, FilesHere

if TYPE_CHECKING:  # it imports torch, which a plan does not need
    from wanconv.conversion.encode import TensorEncoder

_READ_AHEAD_NBYTES = 2 << 30
_SAMPLE_NBYTES = 1 << 16
_SCALES_NBYTES = 1 << 5  # number of scales that are measured again, on whole rows


class Origin(Protocol):
    """A source as `convert` sees it. `compared` says in words what `prove` compares."""

    compared: str

    def same_experts(self, model: Model) -> InputError | None:
        """Returns an error for two experts that are the same, as far as is known before they are read."""

    def begin(self, made: Plan) -> None:
        """Called before the plan is carried out; raises InputError if the source does not allow it."""

    def identity(self, made: Plan) -> object:
        """Returns, as JSON values, the state that a resumed run must find unchanged."""

    def disk_nbytes(self, made: Plan, options: ConvertOptions, journal: Journal | None) -> int:
        """Returns the disk space in bytes that the source needs besides the output, for blocks not in a journal."""

    def files(self, made: Plan, options: ConvertOptions, journal: Journal, progress: Progress) -> Files:
        """Returns the source's files for those blocks that the journal does not know."""

    def filling(self, made: Plan, mover: "TensorEncoder", fallen: Callable[[str], None]) -> Fill:
        """Returns the function that fills the plan's payload; raises InputError if `begin` could not check yet. If a
        tensor overflows its format, it raises NeedsFallback, or calls `fallen` with its name if restarting would
        download the source again."""

    def prove(self, made: Plan, folder: Path) -> None:
        """Raises UsageError if a finished folder was made from other values than this source's."""

    def listed(self, made: Plan, options: ConvertOptions, progress: Progress) -> list[Json]:
        """Returns the source's files for the manifest."""

    def end(self, progress: Progress) -> None:
        """Called when the output is whole."""


class Here:
    """A folder on this machine."""

    compared = "its bytes are those once written; of the source, headers and a sample of every tensor were compared"

    def same_experts(self, model: Model) -> InputError | None:
        return twins.sampled(model)

    def begin(self, made: Plan) -> None:
        _read_ahead(made)  # first, so that the disk works while torch is imported
        from wanconv.conversion.encode import TensorEncoder

        with TensorEncoder(made) as mover:
            mover.confirm()

    def identity(self, made: Plan) -> object:
        root = made.model.checkpoint.root
        stats = []
        for file in made.model.checkpoint.weight_files:
            try:
                known = (root / file).stat()
            except OSError as error:
                raise InputError(f"{root / file} cannot be read: {error.strerror}", "check the file") from None
            stats.append([file, known.st_size, known.st_mtime_ns])
        return stats

    def disk_nbytes(self, made: Plan, options: ConvertOptions, journal: Journal | None) -> int:
        return 0

    def files(self, made: Plan, options: ConvertOptions, journal: Journal, progress: Progress) -> Files:
        return FilesHere()

    def filling(self, made: Plan, mover: "TensorEncoder", fallen: Callable[[str], None]) -> Fill:
        return mover.fill

    def prove(self, made: Plan, folder: Path) -> None:
        """A fine-tune has the same header as its base. So the middle of every tensor, and of its scales, is made again
        and compared. Only the scales differ if all of the source's values have grown by one factor."""
        from wanconv.conversion.encode import NeedsFallback, TensorEncoder

        with TensorEncoder(made) as mover:
            for image in made.images:
                with (folder / image.path).open("rb") as stream:
                    for payload in image.payloads:
                        scaled = made.outputs[payload.key].scales_of
                        most = _SCALES_NBYTES if scaled and not scaled.carried else _SAMPLE_NBYTES
                        nbytes = min(payload.nbytes, most)
                        start = (payload.nbytes - nbytes) // 2 // most * most
                        sample = bytearray(nbytes)
                        stream.seek(payload.offset + start)
                        try:
                            mover.fill(payload.key, start, memoryview(sample))
                            same = stream.read(nbytes) == sample
                        except NeedsFallback:
                            same = False
                        if not same:
                            raise other_numbers(folder, f"for instance in {made.outputs[payload.key].step.tensor.name}")

    def listed(self, made: Plan, options: ConvertOptions, progress: Progress) -> list[Json]:
        """`hash_source` reads them whole."""
        checkpoint = made.model.checkpoint
        if not options.hash_source:
            return manifest.source_files(checkpoint)
        root, paths = checkpoint.root, checkpoint.weight_files
        tell = total(progress, "hashing the source", sum((root / path).stat().st_size for path in paths))
        found = digest_files(root, paths, "sha256", tell, options.jobs)
        digests = {}
        for path, digest in found.items():
            if isinstance(digest, OSError):
                raise InputError(f"{root / path} cannot be read: {digest.strerror}", "check the disk")
            digests[path] = digest
        return manifest.source_files(checkpoint, digests)

    def end(self, progress: Progress) -> None:
        """Does nothing: a local source stays."""


def other_numbers(folder: Path, where: str) -> UsageError:
    message = f"{folder} was made from other numbers, {where}: its source has changed"
    return UsageError(message, "choose another `out`, or `overwrite=True` to write it again")


def _read_ahead(made: Plan) -> None:
    """Makes the kernel read ahead the files that are converted first."""
    refs = [piece.ref for step in made.steps for piece in step.tensor.pieces]

    def advise() -> None:
        left = _READ_AHEAD_NBYTES
        for ref in refs:
            if left <= 0:
                return
            with suppress(OSError), opened(ref.file) as descriptor:
                os.posix_fadvise(descriptor, ref.offset, ref.nbytes, os.POSIX_FADV_WILLNEED)
            left -= ref.nbytes

    with suppress(RuntimeError):  # no thread can be started: nothing depends on it
        threading.Thread(target=advise, daemon=True).start()
