"""A hub's answers in JSON: bounded in number, bytes and time, and checked."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass

import requests

from wanconv.errors import HubUnreachable, InputError
from wanconv.storage.hubs.patience import BUSY, Passing, Patience, Unreachable, retry_after
from wanconv.storage.hubs.rows import is_commit, shown
from wanconv.storage.hubs.transport import Caller, reason
from wanconv.storage.hubs.types import Address, RemoteFile
from wanconv.types.documents import JsonMapping

_MAX_ANSWER_NBYTES = 16_000_000  # a page of 1,000 files has half a megabyte
_MAX_OBJECTS = 200_000  # most brackets in one answer: empty lists take twenty times their bytes in memory
_MAX_ERROR_NBYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """`value` is an answer's JSON, None for an error without any; `reason` is status and text of the header."""

    status: int
    reason: str
    headers: Mapping[str, str]
    value: object


class Questions:
    """All requests for one list: answers in JSON, within bounds that hold for all of them together."""

    def __init__(self, title: str, home: str, repository: str, patience: Patience) -> None:
        self._title, self._home, self._repository, self._patience = title, home, repository, patience
        self._caller = Caller(patience, threading.Event(), patience.list_s)
        self._answers, self._nbytes = 0, 0

    def ask(self, address: Address) -> HubAnswer:
        """Returns an answer of any status; asks again if the hub is busy. Raises InputError."""
        self._answers += 1
        if self._answers > self._patience.list_pages:
            raise self.lie(f"more than {self._patience.list_pages} pages")
        failures = 0
        while True:
            try:
                return self._once(address)
            except Unreachable as problem:
                message = f"{self._title} cannot be reached at {self._home}: {problem}"
                raise HubUnreachable(message, self.later) from problem
            except Passing as problem:
                failures += 1
                self._caller.wait(problem, failures, f"{self._title}, asked about {self._repository}")

    def _once(self, address: Address) -> HubAnswer:
        response, _ = self._caller.open(address, {"Accept": "application/json"})
        with closing(response):
            if response.status_code in BUSY:
                raise Passing(f"it answers {reason(response)}", retry_after(response.headers.get("Retry-After")))
            content = self._content(response)
        value = None
        try:
            value = _parsed(content)
        except (ValueError, RecursionError) as error:
            if response.status_code == 200:
                raise self.lie("what is not JSON, or is nested too deeply") from error
        return HubAnswer(response.status_code, reason(response), response.headers, value)

    def _content(self, response: requests.Response) -> bytes:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise self.lie("encoded JSON, which was not asked for")
        if response.status_code != 200:  # the beginning of an error is enough
            return b"".join(self._caller.chunks(response, _MAX_ERROR_NBYTES, whole=False))
        most = min(_MAX_ANSWER_NBYTES, self._patience.list_nbytes - self._nbytes)
        content = bytearray()
        for chunk in self._caller.chunks(response, most + 1, whole=False):
            content += chunk
        if len(content) > most:
            raise self.lie(f"more than {most} bytes")
        self._nbytes += len(content)
        if content.count(b"[") + content.count(b"{") > _MAX_OBJECTS:
            raise self.lie(f"more than {_MAX_OBJECTS} objects at once")
        return bytes(content)

    @property
    def later(self) -> str:
        other = "ms" if self._title == "Hugging Face" else "hf"
        return f"check the network and try again, or ask the other hub: {other}://{self._repository}"

    def lie(self, what: str) -> InputError:
        """Returns the error for an invalid answer."""
        return InputError(f"{self._title} answers {what} to a question about {self._repository}", self.later)

    def rows(self, value: object, what: str) -> list[JsonMapping]:
        """Returns a list of objects, or raises."""
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise self.lie(f"{shown(value)} where {what} is a list of objects")
        return value

    def files(self, rows: Iterable[JsonMapping], read: Callable[[JsonMapping], RemoteFile]) -> list[RemoteFile]:
        """Returns rows as files; raises InputError that names the hub, the field and its value."""
        try:
            return [read(row) for row in rows]
        except ValueError as error:
            raise self.lie(f"a file whose {error}") from error

    def whole(self, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
        """Returns a complete list in the order of its paths; raises InputError for a path that it holds twice."""
        by_path: dict[str, RemoteFile] = {}
        for file in files:
            if file.path in by_path:
                raise self.lie(f"a list that holds {shown(file.path)} twice")
            by_path[file.path] = file
        return tuple(by_path[path] for path in sorted(by_path))

    def commit(self, value: object) -> str:
        if not isinstance(value, str) or not is_commit(value):
            raise self.lie(f"{shown(value)} as the commit")
        return value


def _parsed(content: bytes) -> object:
    return json.loads(content.decode("utf-8"))
