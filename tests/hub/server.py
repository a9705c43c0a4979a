"""The server: what Hugging Face and ModelScope answer to their clients, and what goes wrong on the way.

Two origins, as in the world: the hub lists and redirects, a second port gives out the payload. Every request is logged.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import huggingface_hub.constants
import pytest

LFS_NBYTES = 10_000  # files from this size on are in LFS
_CHUNK_NBYTES = 1 << 16


class Logged(NamedTuple):
    """A request: which origin, method, path with its query, headers (lower case), and how many bytes were sent."""

    origin: str
    method: str
    path: str
    headers: Mapping[str, str]
    sent: list[int]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is sent, and what asked for it."""

    origin: str
    method: str
    path: str
    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")

    def raw(self) -> bytes:
        return self.head() + (b"" if self.method == "HEAD" else self.body)


@dataclass
class Faults:
    """What goes wrong. Numbers of times count down; faults of the payload are those of files in LFS."""

    cut_after: list[int] = field(default_factory=list)  # each answer in turn ends after so many bytes of its body
    chunk_delay_s: float = 0.0
    drip: int = 0  # bytes per second, one at a time
    wrong_bytes: int = 0
    short_by: int = 0
    busy: int = 0  # this many answers are `busy_status`
    busy_status: int = 503
    retry_after: str = ""
    busy_listing: int = 0
    ignore_ranges: bool = False
    content_range: str = ""  # a lie, said to every range request
    wrong_range_body: bool = False  # the header is right, the bytes are the file's first ones
    ranges_of: Mapping[str, bytes] = field(default_factory=dict)  # path → another version, of which ranges are given
    etags: list[str] = field(default_factory=list)  # of each answer in turn; the last stays
    gated: bool = False
    token: str = ""
    html: bool = False
    html_same_size: bool = False
    gzip: bool = False
    redirects: int = 0  # further hops on the hub itself
    redirect_to: str = ""
    page_size: int = 1000
    no_content_length: bool = False
    expired: int = 0  # this many payload answers are 403, as of an address signed too long ago
    missing_payload: bool = False
    full: bool = False  # uploads are answered with 403
    reset: int = 0  # this many connections are closed before any answer


class Hub:
    """A running hub with one repository, `owner/name`: commits are snapshots of `files`, `main` is the latest."""

    def __init__(self, files: Mapping[str, bytes], repository: str = "owner/name") -> None:
        self.repository, self.faults, self.log = repository, Faults(), list[Logged]()
        self.commits: dict[str, dict[str, bytes]] = {}
        self._digests: dict[tuple[str, int], str] = {}
        self.uploads: dict[str, bytes] = {}  # by the name that the client gives: the sha256
        self.visibility = 0  # of a repository that a client has made, in ModelScope's numbers
        self.head = self.commit(files)
        self.after_listing: Callable[[], object] = lambda: None
        self.after_chunk: Callable[[int], object] = lambda sent: None  # of a payload: how much of it has been sent
        self.lie: Callable[[Reply], Iterable[bytes] | None] = lambda reply: None  # None: the truth; else what is sent
        self.lock = threading.Lock()
        self._servers = [_serve(self, origin) for origin in ("hub", "payload")]
        self.endpoint, self.payload = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def commit(self, files: Mapping[str, bytes]) -> str:
        names = json.dumps([[path, sha256(content)] for path, content in files.items()])
        self.head = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[self.head] = dict(files)
        return self.head

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]

    def sha256(self, content: bytes) -> str:
        return self._digest("sha256", sha256, content)

    def git_sha1(self, content: bytes) -> str:
        return self._digest("git-sha1", git_sha1, content)

    def _digest(self, name: str, digest: Callable[[bytes], str], content: bytes) -> str:
        """Returns the digest of a file of this hub, taken once: a real one knows it, too."""
        key = name, id(content)  # commits keep their files for as long as the hub lives
        if key not in self._digests:
            self._digests[key] = digest(content)
        return self._digests[key]

    def environment(self) -> dict[str, str]:
        """Returns what leads the real clients here."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MODELSCOPE_ENDPOINT": self.endpoint,
        }

    def payload_requests(self) -> list[Logged]:
        return [one for one in self.log if one.origin == "payload"]

    def sent_nbytes(self) -> int:
        """Returns the payload's bytes that went out."""
        return sum(sum(one.sent) for one in self.log if one.origin == "payload")

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextmanager
def leading(files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """Yields a running hub that the clients in this process are led to, with no login of theirs."""
    with running(files) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MODELSCOPE_HOME", str(home))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read once, at import
        yield hub


@contextmanager
def running(files: Mapping[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)
    try:
        yield hub
    finally:
        hub.close()


def files_below(root: Path) -> dict[str, bytes]:
    """Returns path -> bytes of a folder, to be given to a hub or compared with what one gave."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients that hang up are what is tested."""


def _serve(hub: Hub, origin: str) -> _Server:
    handler = type("Handler", (_Handler,), {"hub": hub, "origin": origin})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    origin: str
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing; the log is the hub's."""

    logged = Logged("", "", "", {}, [])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._log()
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self._count("reset"):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.origin == "payload":
            self._payload(path)
        elif path.startswith("/api/v1/"):
            self._modelscope(path, query)
        else:
            self._hugging_face(path, query)

    def _log(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.logged = Logged(self.origin, self.command, self.path, headers, [])
        with self.hub.lock:
            self.hub.log.append(self.logged)

    def _count(self, fault: str) -> bool:
        """True as often as the fault's number says."""
        with self.hub.lock:
            left = getattr(self.hub.faults, fault)
            setattr(self.hub.faults, fault, max(0, left - 1))
        return bool(left)

    # Hugging Face

    def _hugging_face(self, path: str, query: dict[str, str]) -> None:
        hub, repository = self.hub, re.escape(self.hub.repository)
        if not self._may(f"Bearer {hub.faults.token}"):
            return self._error(401, "RepoNotFound")
        if match := re.fullmatch(rf"/api/models/{repository}(?:/revision/(.+))?", path):
            if self._count("busy_listing"):
                return self._busy()
            commit = self._resolve(match[1] or "main")
            return self._json({"id": hub.repository, "sha": commit}) if commit else self._error(404, "RevisionNotFound")
        if match := re.fullmatch(rf"/api/models/{repository}/tree/(.+)", path):
            commit = self._resolve(match[1])
            return self._tree(commit, int(query.get("cursor", 0))) if commit else self._error(404, "RevisionNotFound")
        if match := re.fullmatch(rf"/{repository}/resolve/([^/]+)/(.+)", path):
            return self._resolved(match[1], match[2])
        return self._error(404, "RepoNotFound")

    def _resolve(self, revision: str) -> str | None:
        return self.hub.head if revision == "main" else revision if revision in self.hub.commits else None

    def _tree(self, commit: str, start: int) -> None:
        entries: list[dict[str, object]] = []
        for path, content in self.hub.commits[commit].items():
            entry: dict[str, object] = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": self.hub.git_sha1(content),
            }
            if len(content) >= LFS_NBYTES:
                entry["lfs"] = {"oid": self.hub.sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        end = start + self.hub.faults.page_size
        following = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={end}"
        headers = {"Link": f'<{following}>; rel="next"'} if end < len(entries) else {}
        self._json(entries[start:end], headers)
        if end >= len(entries):
            self.hub.after_listing()

    def _resolved(self, revision: str, path: str) -> None:
        hub, commit = self.hub, self._resolve(revision)
        content = hub.commits[commit].get(path) if commit else None
        if content is None or commit is None:
            return self._error(404, "EntryNotFound" if commit else "RevisionNotFound")
        if hub.faults.gated:
            return self._error(403, "GatedRepo")
        common = {"X-Repo-Commit": commit}
        if len(content) < LFS_NBYTES:
            return self._body(content, self.hub.git_sha1(content), common)
        linked = {"X-Linked-Etag": f'"{hub.sha256(content)}"', "X-Linked-Size": str(len(content))}
        location = hub.faults.redirect_to or f"{hub.payload}/{commit}/{quote(path)}?signature=secret"
        if self._count("redirects"):
            location = self.path
        return self._send(302, b"", common | linked | {"Location": location, "ETag": f'"{hub.sha256(content)}"'})

    # Hugging Face: uploads

    def do_POST(self) -> None:
        self._log()
        body = self._request_body()
        path, hub = unquote(urlsplit(self.path).path), self.hub
        if not hub.faults.token or not self._may(f"Bearer {hub.faults.token}"):
            return self._error(401, "RepoNotFound")
        if path.startswith("/api/v1/"):
            return self._modelscope_upload(path, json.loads(body))
        if path == "/api/repos/create":
            return self._json({"url": f"{hub.endpoint}/{hub.repository}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LFS_NBYTES else "regular"}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{hub.payload}/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if path == "/verified":  # where `lie` leads the client after an upload
            return self._json({})
        if path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            commit = hub.commit(hub.files | {line["value"]["path"]: self._uploaded(line) for line in lines[1:]})
            return self._json({"commitOid": commit, "commitUrl": f"{hub.endpoint}/{hub.repository}/commit/{commit}"})
        return self._error(404, "RepoNotFound")

    def do_PUT(self) -> None:
        self._log()
        content = self._request_body()
        if self.hub.faults.full:
            return self._send(403, b"no room", {})
        if self._count("wrong_bytes"):
            content = bytes([content[0] ^ 1]) + content[1:]
        self.hub.uploads[self.path.removeprefix("/")] = content
        return self._send(200, b"", {"ETag": '"put"'})

    def _request_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _uploaded(self, line: dict[str, dict[str, str]]) -> bytes:
        value = line["value"]
        return self.hub.uploads[value["oid"]] if "oid" in value else base64.b64decode(value["content"])

    # ModelScope

    def _modelscope_upload(self, path: str, asked: dict[str, Any]) -> None:
        hub, home = self.hub, f"/api/v1/repos/models/{self.hub.repository}"
        if path == "/api/v1/models":
            if hub.visibility:
                return self._json({"Code": 400, "Message": "the name already exists", "Success": False}, status=400)
            hub.visibility = asked["Visibility"]
            return self._json({"Code": 200, "Data": {"Path": asked["Path"], "Name": asked["Name"]}, "Success": True})
        if path == f"{home}/info/lfs/objects/batch":
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{hub.payload}/{wanted['oid']}"}}}
                for wanted in asked["objects"]
            ]
            return self._json({"Code": 200, "Data": {"objects": objects}, "Success": True})
        if path == f"{home}/commit/master":
            files = {
                one["path"]: hub.uploads[one["sha256"]] if one["type"] == "lfs" else base64.b64decode(one["content"])
                for one in asked["actions"]
            }
            return self._json({"Code": 200, "Data": {"oid": hub.commit(hub.files | files)}, "Success": True})
        return self._json({"Code": 10010205001, "Message": "not found", "Success": False}, status=404)

    def _modelscope(self, path: str, query: dict[str, str]) -> None:
        hub, repository = self.hub, re.escape(self.hub.repository)
        if not self._may(f"Bearer {hub.faults.token}"):
            return self._json({"Code": 10010205001, "Message": "not allowed", "Success": False}, status=401)
        if query.get("Revision") not in ("master", *hub.commits):
            return self._json({"Code": 10010205001, "Message": "not found", "Success": False}, status=404)
        files = hub.commits.get(query["Revision"], hub.files)
        if re.fullmatch(rf"/api/v1/models/{repository}/repo/files", path):
            if self._count("busy_listing"):
                return self._busy()
            listed = [
                {"Path": name, "Name": name.split("/")[-1], "Size": len(content), "Sha256": hub.sha256(content),
                 "Type": "blob", "IsLFS": len(content) >= LFS_NBYTES, "Revision": hub.head}
                for name, content in files.items()
            ]  # fmt: skip
            self._json({"Code": 200, "Data": {"Files": listed}, "Success": True})
            hub.after_listing()
            return None
        if re.fullmatch(rf"/api/v1/models/{repository}/repo", path) and query.get("FilePath") in files:
            content = files[query["FilePath"]]
            if len(content) < LFS_NBYTES:
                return self._body(content, hub.sha256(content), {})
            commit = query["Revision"] if query["Revision"] in hub.commits else hub.head
            location = f"{hub.payload}/{commit}/{quote(query['FilePath'])}?signature=secret"
            return self._send(302, b"", {"Location": location})
        return self._json({"Code": 10010205001, "Message": "not found", "Success": False}, status=404)

    # Payload

    def _payload(self, path: str) -> None:
        _, commit, name = path.split("/", 2)
        content, faults = self.hub.commits[commit][name], self.hub.faults
        if faults.missing_payload:
            return self._send(404, b"gone", {})
        if self._count("expired"):
            return self._send(403, b"<Error>expired</Error>", {"Content-Type": "application/xml"})
        if self._count("busy"):
            return self._busy()
        if faults.html:
            return self._send(200, b"<!doctype html><p>Please log in", {"Content-Type": "text/html; charset=utf-8"})
        if faults.html_same_size:
            page = b"<!doctype html>".ljust(len(content))
            return self._send(200, page, {"Content-Type": "text/html"})
        if self._count("wrong_bytes"):
            content = bytes([content[0] ^ 1]) + content[1:]
        if faults.short_by:
            content = content[: -faults.short_by]
        if self.headers.get("Range"):
            content = faults.ranges_of.get(name, content)
        etag = faults.etags[0] if faults.etags else f"payload-{len(content)}-{content[:8].hex()}"
        if len(faults.etags) > 1:
            faults.etags.pop(0)
        return self._body(content, etag, {"Content-Encoding": "gzip"} if faults.gzip else {})

    def _body(self, content: bytes, etag: str, headers: dict[str, str]) -> None:
        """Sends a file or the range of it that is asked for."""
        faults = self.hub.faults
        headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **headers}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range") in (None, f'"{etag}"')
        if asked is None or faults.ignore_ranges or not unchanged:
            return self._send(200, content, headers)
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        if start >= len(content):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        end = min(end, len(content) - 1)
        said = faults.content_range or f"bytes {start}-{end}/{len(content)}"
        part = content[: end - start + 1] if faults.wrong_range_body else content[start : end + 1]
        return self._send(206, part, headers | {"Content-Range": said})

    # Answers

    def _may(self, authorization: str) -> bool:
        return not self.hub.faults.token or self.headers.get("Authorization") == authorization

    def _busy(self) -> None:
        wait = self.hub.faults.retry_after
        self._send(self.hub.faults.busy_status, b"busy", {"Retry-After": wait} if wait else {})

    def _json(self, value: object, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        faults = self.hub.faults
        told = (*headers.items(), ("Content-Length", str(len(body))))
        if (lie := self.hub.lie(Reply(self.origin, self.command, self.path, f"{status} X", told, body))) is not None:
            self.close_connection = True
            for piece in lie:
                self.wfile.write(piece)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if faults.no_content_length and self.origin == "payload":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        is_payload = self.origin == "payload" and status in (200, 206)
        with self.hub.lock:
            cut = faults.cut_after.pop(0) if is_payload and faults.cut_after else None
        if cut is not None:
            body = body[:cut]
            self.close_connection = True
        self._write(body, is_payload)

    def _write(self, body: bytes, is_payload: bool) -> None:
        faults = self.hub.faults
        step = 1 if is_payload and faults.drip else _CHUNK_NBYTES
        for start in range(0, len(body), step):
            chunk = body[start : start + step]
            self.wfile.write(chunk)
            self.logged.sent.append(len(chunk))
            if is_payload:
                self.hub.after_chunk(start + len(chunk))
            if is_payload and (delay := 1 / faults.drip if faults.drip else faults.chunk_delay_s):
                self.wfile.flush()
                time.sleep(delay)
