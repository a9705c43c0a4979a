"""Byte ranges over HTTP, for as long as it takes: goes on where a connection ended, and believes no answer unchecked.

There is no limit on the whole, only on silence: a read that brings nothing, or next to nothing, within `stall_s`
counts as a failure, and so many failures without progress end it. Redirects are followed here, so that a token goes to
the origin it is for and to no other (a payload server is another). HTTP semantics: RFC 9110, sections 13.1.5, 14, 15.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from wanconv.errors import InputError, Interrupted
from wanconv.figures import size
from wanconv.hubs.types import Address

_CHUNK_NBYTES = 1 << 18
_PROGRESS_NBYTES = 1 << 20  # as much beyond what was there before makes an attempt count as progress
_LEAST_NBYTES = 1 << 14  # within stall_s; less is silence
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
BUSY = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_AGAIN = "run the same command to go on"
_LIES = "the server, or something on the way to it, does not do as HTTP says: try another network, or the other hub"


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to try without progress, how long between attempts (doubled each time), how long to bear silence.

    A server that asks to wait longer than `longest_wait_s` is told no.
    """

    attempts: int = 6
    delay_s: float = 1.0
    longest_delay_s: float = 60.0
    longest_wait_s: float = 300.0
    stall_s: float = 30.0


class Passing(Exception):
    """A failure that may be over soon; `wait_s` is what the server asks for."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Reader:
    """Reads from one server after the other, each thread with a Reader of its own; `stop` ends it at the next chunk."""

    def __init__(self, patience: Patience, stop: threading.Event) -> None:
        self._patience, self._stop = patience, stop
        self._redirected: dict[str, str] = {}  # address → where the last good answer came from
        self._session = requests.Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def stream(
        self, address: Address, what: str, nbytes: int, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, bytes) of `what`, a file of `nbytes`, from `start` to `end`.

        Offsets go back to 0 where the file must be begun again: it changed on the way, or its server ignores ranges.
        Raises InputError for an answer that is wrong, and when patience is at an end.
        """
        position, best, failures, etag = start, start, 0, ""
        end = nbytes if end is None else end
        while position < end:
            try:
                with closing(self._open(address, (position, end, nbytes), etag)) as response:
                    first = _first_byte(response, what, position, end, nbytes)
                    found = response.headers.get("ETag", "")
                    if first and etag and found != etag:
                        position, etag = 0, ""
                        continue
                    position, etag = first, found
                    for chunk in self._chunks(response, end - position):
                        yield position, chunk
                        position += len(chunk)
            except Passing as problem:
                failures = 1 if position - best >= _PROGRESS_NBYTES else failures + 1
                best = max(best, position)
                self._wait(problem, failures, what)

    def _wait(self, problem: Passing, failures: int, what: str) -> None:
        patience = self._patience
        if failures >= patience.attempts:
            raise InputError(f"{what}: {problem} ({failures} attempts)", _AGAIN) from problem
        if problem.wait_s > patience.longest_wait_s:
            raise InputError(f"{what}: {problem}; it asks to wait {problem.wait_s:.0f} seconds", _AGAIN) from problem
        delay = min(patience.delay_s * 2 ** (failures - 1), patience.longest_delay_s)
        if self._stop.wait(max(delay, problem.wait_s)):
            raise Interrupted("stopped", _AGAIN)

    def _open(self, address: Address, span: tuple[int, int, int], etag: str) -> requests.Response:
        """Returns an answer of status 200 or 206, its body unread."""
        start, end, nbytes = span
        headers = {"Accept-Encoding": "identity", "User-Agent": "wanconv"}
        if start or end != nbytes:
            headers["Range"] = f"bytes={start}-{end - 1}"
            if start and etag and not etag.startswith("W/"):
                headers["If-Range"] = etag
        url, home = self._redirected.pop(address.url, address.url), _origin(address.url)
        for _ in range(_MAX_REDIRECTS + 1):
            secrets = address.secrets if _origin(url) == home else {}
            response = self._get(url, {**headers, **secrets})
            if response.status_code not in _REDIRECTS:
                _check_status(response, _origin(url) == home)
                self._redirected[address.url] = url
                return response
            response.close()
            target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise InputError(f"{_plain(url)} redirects to {_plain(target)}, which is not safe", _LIES)
            url = target
        raise InputError(f"{_plain(address.url)} redirects more than {_MAX_REDIRECTS} times", _LIES)

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        try:
            return self._session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=self._patience.stall_s,
                auth=_headers_as_they_are,
            )
        except requests.exceptions.InvalidURL as error:
            raise InputError(f"{_plain(url)} is no address", _LIES) from error
        except requests.exceptions.SSLError as error:
            raise InputError(f"{_plain(url)}: {error}", "check the clock, the proxy and the certificates") from error
        except requests.exceptions.RequestException as error:
            raise Passing(f"no answer from {_plain(url)}: {_why(error)}") from error

    def _chunks(self, response: requests.Response, left: int) -> Iterator[bytes]:
        """Yields what comes; raises Passing where it ends early or nearly nothing comes."""
        since, received = time.monotonic(), 0
        while left:
            if self._stop.is_set():
                raise Interrupted("stopped", _AGAIN)
            try:
                chunk = response.raw.read1(min(left, _CHUNK_NBYTES), decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Passing(f"the connection ended {size(left)} early: {_why(error)}") from error
            if not chunk:
                raise Passing(f"the connection ended {size(left)} early")
            left -= len(chunk)
            received += len(chunk)
            yield chunk
            now = time.monotonic()
            if now - since > self._patience.stall_s:
                if received < _LEAST_NBYTES and left:
                    raise Passing(f"only {size(received)} came within {now - since:.0f} seconds")
                since, received = now, 0


def _headers_as_they_are(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # without an `auth` of its own, requests would put one from ~/.netrc in place of ours


def _first_byte(response: requests.Response, what: str, start: int, end: int, nbytes: int) -> int:
    """Returns the offset at which the body begins; raises InputError where it is not the file's."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise InputError(f"{what} comes encoded as {encoding}, which was not asked for", _LIES)
    length = response.headers.get("Content-Length")
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start or int(found[2]) >= end or found[3] not in (str(nbytes), "*"):
            answer = response.headers.get("Content-Range", "nothing")
            raise InputError(f"{what}: bytes {start}-{end - 1}/{nbytes} were asked for, the answer is {answer}", _LIES)
        if length is not None and length != str(int(found[2]) - start + 1):
            raise InputError(f"{what}: the length of the answer, {length}, is not that of its range", _LIES)
        return start
    if length != str(nbytes) and "text/html" in response.headers.get("Content-Type", "").lower():
        message = f"{what}: {_plain(response.url)} answered with a web page instead of the file"
        raise InputError(message, "log in to the network (a hotel, a proxy), or check the address, and try again")
    if length is not None and length != str(nbytes):
        raise InputError(f"{what} has {length} bytes there, and the hub lists {nbytes}", "try again, or another hub")
    return 0


def _check_status(response: requests.Response, at_home: bool) -> None:
    """Raises for every status but 200 and 206: Passing where it may be over soon."""
    status, url = response.status_code, _plain(response.url)
    if status in (200, 206):
        return
    response.close()
    if status in BUSY or (status == 403 and not at_home):  # a signed address that has run out is signed anew
        raise Passing(f"{url} answers {status} {response.reason}", retry_after(response.headers.get("Retry-After")))
    if status in (401, 403):
        hint = "accept the model's conditions on its page, and give a token that may read it (--token)"
        raise InputError(f"{url} answers {status}: not allowed", hint)
    if status == 404:
        raise InputError(f"{url} does not exist", "its revision may be gone: run the same command again")
    if status == 416:
        raise InputError(f"{url} ends before the byte that was asked for", "try again, or another hub")
    raise InputError(f"{url} answers {status} {response.reason}", _LIES)


def retry_after(value: str | None) -> float:
    """Returns the seconds that a Retry-After header asks for, given as a number or a date; 0 for anything else."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _plain(url: str) -> str:
    """Returns an address without its query and credentials: signatures are secrets, too."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _why(error: BaseException) -> str:
    """Returns the innermost reason in a chain of library errors; their own texts repeat the address, signed."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
