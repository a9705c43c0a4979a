"""Digests of files, read in runs: one file, or several at a time."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wanconv.storage.hubs import hasher
from wanconv.storage.reading import opened
from wanconv.types.progress import Advance

_CHUNK_NBYTES = 4 << 20


def read_chunks(path: Path) -> Iterator[memoryview]:
    """Yields a file's bytes in runs, through one buffer."""
    buffer = bytearray(_CHUNK_NBYTES)
    with opened(path) as descriptor:
        while count := os.readv(descriptor, [buffer]):
            yield memoryview(buffer)[:count]


def digest_file(path: Path, algorithm: str, progress: Advance) -> str:
    """Returns the hex digest of a file, `git-sha1` among the algorithms; raises OSError."""
    return _digests_of_file(path, [algorithm], progress)[algorithm]


def _digests_of_file(path: Path, algorithms: Iterable[str], progress: Callable[[int], None]) -> dict[str, str]:
    nbytes = path.stat().st_size
    digests = {algorithm: hasher(algorithm, nbytes) for algorithm in algorithms}
    for chunk in read_chunks(path):
        for digest in digests.values():
            digest.update(chunk)
        progress(len(chunk))
    return {algorithm: digest.hexdigest() for algorithm, digest in digests.items()}


def digest_files(
    root: Path, paths: Sequence[str], algorithm: str, progress: Advance, jobs: int = 2
) -> dict[str, str | OSError]:
    """Returns path -> hex digest, or the error of reading it; `jobs` files at a time."""
    found = digests_of(root, dict.fromkeys(paths, (algorithm,)), progress, jobs)
    return {path: one if isinstance(one, OSError) else one[algorithm] for path, one in found.items()}


def digests_of(
    root: Path, wanted: Mapping[str, Collection[str]], progress: Advance, jobs: int = 2
) -> dict[str, dict[str, str] | OSError]:
    """Returns path -> algorithm -> hex digest for the algorithms wanted of each file, or the error of reading
    it. Each file is read once, `jobs` files at a time."""

    def one(path: str) -> dict[str, str] | OSError:
        try:
            return _digests_of_file(root / path, wanted[path], progress)
        except OSError as error:
            return error

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))
