"""Byte ranges over HTTP without a total time limit: resumes after a lost connection, and checks every answer.

Only silence is limited: a read that brings nothing, or next to nothing, within `stall_s`
counts as a failure, and too many failures without progress end it. HTTP semantics: RFC 9110, sections 13.1.5 and 14.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import closing

import requests

from wanconv.errors import InputError
from wanconv.storage.hubs.patience import BUSY, Passing, Patience, retry_after
from wanconv.storage.hubs.transport import LIES, Caller, plain, reason
from wanconv.storage.hubs.types import Address

_PROGRESS_NBYTES = 1 << 20  # an attempt with this many new bytes counts as progress
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20}|\*)")
_MAX_ETAG = 1000  # characters; longer ones are not remembered
_MAX_SHOWN = 100


class RangeReader:
    """Reads from servers, one request at a time; one Reader per thread. `stop` ends it at the next chunk."""

    def __init__(self, patience: Patience, stop: threading.Event) -> None:
        self._patience, self._caller = patience, Caller(patience, stop)

    def stream(
        self, address: Address, what: str, nbytes: int, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, bytes) of `what`, a file of `nbytes`, from `start` to `end`.

        Offsets go back to 0 if the file must be read again: it changed on the way, or its server ignores ranges.
        Raises InputError for an invalid answer, and when `patience` is exhausted.
        """
        position, best, failures, changes, etag = start, start, 0, 0, ""
        end = nbytes if end is None else end
        while position < end:
            try:
                with closing(self._open(address, (position, end, nbytes), etag)) as response:
                    first = _first_byte(response, what, position, end, nbytes)
                    found = _etag(response)
                    if first and etag and found != etag:
                        position, etag, changes = 0, "", changes + 1
                        if changes >= self._patience.attempts:
                            raise InputError(f"{what} changes again and again while it is read", LIES)
                        continue
                    position, etag = first, found
                    for chunk in self._caller.chunks(response, end - position):
                        yield position, chunk
                        position += len(chunk)
            except Passing as problem:
                failures = 1 if position - best >= _PROGRESS_NBYTES else failures + 1
                best = max(best, position)
                self._caller.wait(problem, failures, what)

    def _open(self, address: Address, span: tuple[int, int, int], etag: str) -> requests.Response:
        """Returns an answer of status 200 or 206, its body unread."""
        start, end, nbytes = span
        headers = {}
        if start or end != nbytes:
            headers["Range"] = f"bytes={start}-{end - 1}"
            if start and etag and not etag.startswith("W/"):
                headers["If-Range"] = etag
        response, at_home = self._caller.open(address, headers)
        _check_status(response, at_home)
        return response


def _etag(response: requests.Response) -> str:
    etag = response.headers.get("ETag", "")
    return etag if len(etag) <= _MAX_ETAG and etag.isascii() and etag.isprintable() else ""


def _first_byte(response: requests.Response, what: str, start: int, end: int, nbytes: int) -> int:
    """Returns the offset at which the body begins; raises InputError if it is not the file's."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise InputError(f"{what} comes encoded as {encoding[:_MAX_SHOWN]}, which was not asked for", LIES)
    length = response.headers.get("Content-Length")
    if response.status_code == 206:
        answer = response.headers.get("Content-Range", "nothing")
        found = _CONTENT_RANGE.fullmatch(answer)
        if not found or int(found[1]) != start or int(found[2]) >= end or found[3] not in (str(nbytes), "*"):
            asked = f"bytes {start}-{end - 1}/{nbytes}"
            raise InputError(f"{what}: {asked} were asked for, the answer is {answer[:_MAX_SHOWN]}", LIES)
        if length is not None and length != str(int(found[2]) - start + 1):
            message = f"{what}: the length of the answer, {length[:_MAX_SHOWN]}, is not that of its range"
            raise InputError(message, LIES)
        return start
    if length != str(nbytes) and "text/html" in response.headers.get("Content-Type", "").lower():
        message = f"{what}: {plain(response.url)} answered with a web page instead of the file"
        raise InputError(message, "log in to the network (a hotel, a proxy), or check the address, and try again")
    if length is not None and length != str(nbytes):
        message = f"{what} has {length[:_MAX_SHOWN]} bytes there, and the hub lists {nbytes}"
        raise InputError(message, "try again, or another hub")
    return 0


def _check_status(response: requests.Response, at_home: bool) -> None:
    """Raises for every status but 200 and 206: Passing if it may be temporary."""
    status, url = response.status_code, plain(response.url)
    if status in (200, 206):
        return
    response.close()
    if status in BUSY or (status == 403 and not at_home):  # an expired signed address is signed again
        raise Passing(f"{url} answers {reason(response)}", retry_after(response.headers.get("Retry-After")))
    if status in (401, 403):
        hint = "accept the model's conditions on its page, and give a token that may read it (`token`)"
        raise InputError(f"{url} answers {status}: not allowed", hint)
    if status == 404:
        raise InputError(f"{url} does not exist", "its revision may have been deleted: run the same command again")
    if status == 416:
        raise InputError(f"{url} ends before the byte that was asked for", "try again, or another hub")
    raise InputError(f"{url} answers {reason(response)}", LIES)
