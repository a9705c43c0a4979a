"""Limits for the hubs' own clients during an upload: the token stays at the hub, and answers are bounded."""

import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

import requests
from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http  # no public function returns the current factory
from modelscope_hub import HubApi

from wanconv.errors import InputError
from wanconv.storage.hubs.patience import Passing, Patience
from wanconv.storage.hubs.transport import LIES, Caller, Clock, TimedAdapter, origin, plain

_MAX_ANSWER_NBYTES = 16_000_000
_CONNECT_S, _ANSWER_S = 30.0, 600.0  # a commit of many files takes a hub minutes
_SECRETS = ("authorization", "cookie")


def _leave_secrets(url: str, home: str, headers: MutableMapping[str, Any]) -> None:
    """Removes the token from a request to another host; raises InputError for an invalid address."""
    headers["Accept-Encoding"] = "identity"  # no compressed answers, which could unpack to gigabytes
    try:
        at_home = _is_home(origin(url), origin(home))
    except ValueError as error:
        raise InputError(f"{plain(url)}, where an upload is to go, is not a valid address", LIES) from error
    if not at_home:
        for name in _SECRETS:
            headers.pop(name, None)


def _is_home(there: tuple[str, str, int], home: tuple[str, str, int]) -> bool:
    """True for a hub's own origin, and for the other hosts of `www.` one: ModelScope's blobs have a host of their own,
    which needs the token."""
    site = home[1].removeprefix("www.")
    return there == home or (site != home[1] and there[0] == home[0] == "https" and there[1].endswith(f".{site}"))


def _check_encoding(url: str, encoding: str) -> None:
    if encoding.lower() != "identity":
        raise InputError(f"{plain(url)} answers an upload in an encoding that was not asked for", LIES)


def _too_long(url: str) -> InputError:
    return InputError(f"{plain(url)} answers an upload with more than {_MAX_ANSWER_NBYTES} bytes", LIES)


@contextmanager
def guarded_hugging_face(home: str, patience: Patience) -> Iterator[None]:
    """Makes Hugging Face's client, whose connections belong to the process, keep these rules within the block."""
    before: Callable[[], Any] = _http._GLOBAL_CLIENT_FACTORY

    def leave(request: Any) -> None:
        _leave_secrets(str(request.url), home, request.headers)

    def bound(response: Any) -> None:
        url = str(response.request.url)
        _check_encoding(url, response.headers.get("Content-Encoding", "identity"))
        pieces = response.iter_raw

        def bounded(chunk_size: int | None = None) -> Iterator[bytes]:
            nbytes = 0
            for chunk in pieces(chunk_size):
                nbytes += len(chunk)
                if nbytes > _MAX_ANSWER_NBYTES:
                    raise _too_long(url)
                yield chunk

        response.iter_raw = bounded

    def made() -> Any:
        client = before()
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], leave], "response": [*hooks["response"], bound]}
        answer_s = min(_ANSWER_S, patience.stall_s * 20)
        client.timeout = (_CONNECT_S, answer_s, answer_s, None)  # connect, read, write, pool
        return client

    set_client_factory(made)
    try:
        yield
    finally:
        set_client_factory(before)


class _Guard(TimedAdapter):
    """Connections of ModelScope's client."""

    def __init__(self, home: str, patience: Patience, max_retries: Any) -> None:
        self._home, self._patience = home, patience
        self._caller = Caller(patience, threading.Event())
        super().__init__(Clock(), min(_ANSWER_S, patience.stall_s * 20), max_retries)

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        _leave_secrets(str(request.url), self._home, cast(MutableMapping[str, Any], request.headers))
        response = super().send(request, *arguments, **options)
        url = str(request.url)
        _check_encoding(url, response.headers.get("Content-Encoding", "identity"))
        content = bytearray()
        try:
            for chunk in self._caller.chunks(response, _MAX_ANSWER_NBYTES + 1, whole=False):
                content += chunk
        except Passing as error:
            raise requests.exceptions.ConnectionError(str(error)) from error
        if len(content) > _MAX_ANSWER_NBYTES:
            response.close()
            raise _too_long(url)
        response._content, response._content_consumed = bytes(content), True  # as requests reads it itself
        response.raw.release_conn()
        return response


def guarded_modelscope(client: HubApi, home: str, patience: Patience) -> None:
    """Makes ModelScope's client keep these rules."""
    for session in (client.legacy._session, client.legacy._read_session):  # it does not accept a session
        for scheme in ("https://", "http://"):
            retries = getattr(session.get_adapter(scheme), "max_retries", 0)
            session.mount(scheme, _Guard(home, patience, retries))
