"""HTTP with limits: headers end in time, redirects are followed here, a token stays at its origin.

A socket's timeout bounds a single read: a server that sends a byte now and then resets it for ever. So every response
reads by a clock, which limits the header as a whole and each chunk of the body. HTTP semantics: RFC 9110.
"""

import http.client
import io
import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from wanconv.errors import HubUnreachable, InputError, Interrupted
from wanconv.storage.hubs.patience import Passing, Patience, Unreachable
from wanconv.storage.hubs.types import Address
from wanconv.types.figures import size

AGAIN = "run the same command to go on"
LIES = "the server, or something on the way to it, does not do as HTTP says: try another network, or the other hub"
_CHUNK_NBYTES = 1 << 18
_LEAST_NBYTES = 1 << 14  # within stall_s; less is silence
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_MAX_ADDRESS = 16_000  # characters; signed addresses have some two thousand
_MAX_HOST, _MAX_LABEL = 253, 63  # characters: RFC 1035
_MAX_SHOWN = 200


class Clock:
    """When reading must end: a given time after `start`, and never after the total limit."""

    def __init__(self, total_s: float = math.inf) -> None:
        self._end = self._next = time.monotonic() + total_s

    def start(self, seconds: float) -> None:
        self._next = min(time.monotonic() + seconds, self._end)

    def left(self) -> float:
        return self._next - time.monotonic()

    def left_of_all(self) -> float:
        return self._end - time.monotonic()


class _Timed(io.RawIOBase):
    """A socket's bytes, within a clock's limit."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, clock: Clock) -> None:
        super().__init__()
        self._raw, self._socket, self._clock = raw, sock, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        left = self._clock.left()
        if left <= 0:
            raise TimeoutError("timed out")
        if left < math.inf:
            self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class TimedAdapter(HTTPAdapter):
    """Connections whose responses read by a clock, which starts when a request has been sent."""

    def __init__(self, clock: Clock, header_s: float, max_retries: urllib3.Retry | int = 0) -> None:
        self._response_class = _response_class(clock, header_s)
        self._connections: dict[type, type] = {}
        super().__init__(max_retries=max_retries)

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        pool = super().get_connection_with_tls_context(*arguments, **options)
        bare = type(pool).ConnectionCls
        if bare not in self._connections:
            self._connections[bare] = type(bare.__name__, (bare,), {"response_class": self._response_class})
        pool.ConnectionCls = self._connections[bare]  # of this pool alone
        return pool


def _response_class(clock: Clock, header_s: float) -> type[http.client.HTTPResponse]:
    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
            super().__init__(sock, *arguments, **options)
            clock.start(header_s)
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_Timed(raw, sock, clock))

    return Response


class _Session(requests.Session):
    """Keeps no cookies and does not read redirects: requests would read all of their bodies."""

    def __init__(self, adapter: HTTPAdapter) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self.mount(scheme, adapter)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class Caller:
    """Sends requests, one at a time; one Caller per thread. `stop` ends it at the next chunk, and everything ends
    within `total_s`."""

    def __init__(self, patience: Patience, stop: threading.Event, total_s: float = math.inf) -> None:
        self.patience, self._stop, self._total_s = patience, stop, total_s
        self._clock = Clock(total_s)
        self._session = _Session(TimedAdapter(self._clock, patience.stall_s))
        self._redirected: dict[str, str] = {}  # address → where the last good answer came from

    def open(self, address: Address, headers: Mapping[str, str]) -> tuple[requests.Response, bool]:
        """Returns the answer after redirects, its body unread, and whether it is from the address' own origin."""
        asked = {"Accept-Encoding": "identity", "User-Agent": "wanconv", **headers}
        url, home = self._redirected.pop(address.url, address.url), origin(address.url)
        for _ in range(_MAX_REDIRECTS + 1):
            at_home = origin(url) == home
            response = self._get(url, {**asked, **address.secrets} if at_home else asked)
            if response.status_code not in _REDIRECTS:
                if response.status_code in (200, 206):
                    self._redirected[address.url] = url
                return response, at_home
            response.close()
            url = _redirected(url, response.headers.get("Location", ""))
        raise InputError(f"{plain(address.url)} redirects more than {_MAX_REDIRECTS} times", LIES)

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        self._check_time(plain(url))
        try:
            return self._session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=min(self.patience.stall_s, max(self._clock.left_of_all(), 0.001)),
                auth=_headers_as_they_are,
            )
        except requests.exceptions.SSLError as error:
            hint = "check the clock, the proxy and the certificates"
            raise HubUnreachable(f"{plain(url)}: {str(error)[:_MAX_SHOWN]}", hint) from error
        except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationValueError) as error:
            raise InputError(f"{plain(url)} is not a valid address", LIES) from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            kind = Unreachable if _is_unreachable(error) else Passing
            raise kind(f"no answer from {plain(url)}: {_why(error)}") from error
        except (http.client.HTTPException, ValueError) as error:  # from a header that the libraries do not expect
            raise InputError(f"{plain(url)} answers what is not HTTP: {_why(error)}", LIES) from error

    def chunks(self, response: requests.Response, left: int, whole: bool = True) -> Iterator[bytes]:
        """Yields at most `left` bytes as they come; raises Passing if nearly nothing comes, or, unless `whole` is
        False, fewer than these."""
        since, received = time.monotonic(), 0
        while left:
            if self._stop.is_set():
                raise Interrupted("stopped", AGAIN)
            early = f"the connection ended {size(left)} early" if whole else "the connection ended early"
            self._clock.start(self.patience.stall_s)
            try:
                chunk = response.raw.read1(min(left, _CHUNK_NBYTES), decode_content=False)
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
                raise Passing(f"{early}: {_why(error)}") from error
            if not chunk:
                if not whole:
                    return
                raise Passing(early)
            left -= len(chunk)
            received += len(chunk)
            yield chunk
            now = time.monotonic()
            if now - since > self.patience.stall_s:
                if received < _LEAST_NBYTES and left:
                    raise Passing(f"only {size(received)} came within {now - since:.0f} seconds")
                since, received = now, 0

    def wait(self, problem: Passing, failures: int, what: str) -> None:
        """Waits before the next attempt; raises InputError if patience is at an end."""
        self._check_time(what)
        patience = self.patience
        if failures >= patience.attempts:
            raise HubUnreachable(f"{what}: {problem} ({failures} attempts)", AGAIN) from problem
        if problem.wait_s > patience.longest_wait_s:
            raise HubUnreachable(f"{what}: {problem}; it asks to wait {problem.wait_s:.0f} seconds", AGAIN) from problem
        delay = max(min(patience.delay_s * 2 ** (failures - 1), patience.longest_delay_s), problem.wait_s)
        if self._stop.wait(min(delay, max(self._clock.left_of_all(), 0))):
            raise Interrupted("stopped", AGAIN)
        self._check_time(what)

    def _check_time(self, what: str) -> None:
        if self._clock.left_of_all() <= 0:
            raise HubUnreachable(f"{what}: no whole answer within {self._total_s:g} seconds", AGAIN)


def origin(url: str) -> tuple[str, str, int]:
    """Returns scheme, host and port; raises ValueError for what is not an address of HTTP."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = parts.port if parts.port is not None else {"http": 80, "https": 443}.get(parts.scheme, 0)
    if not host or len(host) > _MAX_HOST or any(len(label) > _MAX_LABEL for label in host.split(".")):
        raise ValueError("the host is not valid")
    return parts.scheme, host, port


def plain(url: str) -> str:
    """Returns an address without its query and credentials: signatures are secrets, too. It may be shortened."""
    head = url[:_MAX_ADDRESS].partition("?")[0].partition("#")[0]
    scheme, separator, rest = head.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"[:_MAX_SHOWN] if separator else head[:_MAX_SHOWN]


def reason(response: requests.Response) -> str:
    """Returns status and reason of an answer, for a message."""
    return f"{response.status_code} {(response.reason or '')[:_MAX_SHOWN]}".rstrip()


def _redirected(url: str, location: str) -> str:
    """Returns a redirect's target; raises InputError for an address that is invalid or less safe."""
    try:
        if not location or len(location) > _MAX_ADDRESS:
            raise ValueError("no address, or one of more than 16,000 characters")
        target = urljoin(url, location.encode("latin-1").decode("utf-8"))  # as other clients read bytes beyond ASCII
        scheme = urlsplit(target).scheme
        if scheme in ("http", "https"):
            origin(target)
    except ValueError as error:
        message = f"{plain(url)} redirects to {plain(location)!r}, which is not a valid address"
        raise InputError(message, LIES) from error
    if scheme not in ("https", urlsplit(url).scheme):
        raise InputError(f"{plain(url)} redirects to {plain(target)}, which is not safe", LIES)
    return target


def _headers_as_they_are(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # without an `auth` of its own, requests would put one from ~/.netrc in place of ours


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes, down to the innermost."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        inner = inner.__cause__ or inner.__context__


def _why(error: BaseException) -> str:
    """Returns the innermost reason in a chain of library errors; their own texts repeat the address, signed."""
    *_, error = _chain(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _is_unreachable(error: BaseException) -> bool:
    kinds = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return any(isinstance(one, kinds) for one in _chain(error))
