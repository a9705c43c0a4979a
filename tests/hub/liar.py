"""Lies of a hub, drawn at random: rows and forms of its JSON, headers, status lines and bodies."""

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hub.server import Reply

_LONG = 70_000
# fmt: off
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 1e308, 1 << 63, 10**400, "", "/", ".", "..", "../x", "a/b", "\0", "²", "٣",
    "\ud800", "é",
    "\x1b[2J", "\u202e", "C:\\x", "null", "0" * 40, "0" * 64, "f" * 65, "x" * _LONG, [], {}, [None], [[]],
    {"a": None}, ["a"] * 100,
)
_TEXTS = (
    "", "²", "0", "-1", "1", "9" * 5000, "nan", "\xff\xfe", "\xa0", "x" * 60_000, "gzip", "br, gzip", "chunked",
    "identity", "text/html",
    "bytes 0-0/1", "bytes 0-9/²", "bytes */*", "bytes " + "9" * 5000 + "-1/1", "items 0-1/2", '"', 'W/"a"',
    '"' + "e" * 5000 + '"',
    "http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://" + "h" * 300 + "/", "http://", "//",
    "ftp://127.0.0.1/",
    "/", "?", "http://127.0.0.1:1/", '<', '<?cursor=1>; rel="next"', '<http://[::1>; rel="next"',
    '<http://127.0.0.1:1/?cursor=1>; rel="next"',
    "Thu, 01 Jan 99999 00:00:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", "a=b; Max-Age=" + "9" * 5000, "GatedRepo",
    "RevisionNotFound",
    "application/json; charset=\xff", "0, 5", "5, 5", "close", "keep-alive", "h2c",
)
_NAMES = (
    "Content-Length", "Content-Range", "Content-Encoding", "Content-Type", "Transfer-Encoding", "ETag", "Location",
    "Link", "Retry-After",
    "Set-Cookie", "X-Error-Code", "X-Error-Message", "X-Linked-Size", "X-Linked-Etag", "X-Repo-Commit", "Connection",
    "Upgrade",
    "Date", "Age", "WWW-Authenticate", "RateLimit", "X-Request-Id", "X-HF-Warning",
)
_STATUSES = (
    "200 OK", "200", "200 " + "r" * 60_000, "200 \xff\x1b[2J", "206 Partial", "204 None", "301 Moved", "302 Found",
    "304 Same", "307 Again",
    "400 Bad", "401 Who", "403 No", "404 Gone", "408 Late", "409 Twice", "410 Gone", "416 Range", "418 Tea",
    "429 Busy", "500 Oh", "503 Busy",
    "100 Continue", "101 Switch", "999 X", "99 X", "²00 OK", "-1 X", "", "OK 200", "9" * 5000,
)
# fmt: on


def mutant(reply: Reply, choose: random.Random) -> Iterable[bytes]:
    """Returns what is sent in place of an answer."""
    kind = choose.randrange(10)
    if kind < 5 and reply.body[:1] in (b"{", b"["):
        return [_json(reply, choose).raw()]
    if kind < 8:
        return [_headers(reply, choose).raw()]
    if kind < 9:
        return [replace(reply, status=choose.choice(_STATUSES)).raw()]
    return [_bytes(reply.raw(), choose)]


def _json(reply: Reply, choose: random.Random) -> Reply:
    """Returns an answer with a value of its JSON replaced, removed, or there twice."""
    value = json.loads(reply.body)
    places = list(_places(value))
    if choose.randrange(8) == 0 or not places:
        value = choose.choice(_VALUES)
    else:
        holder, key = choose.choice(places)
        match choose.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(holder[key])
            case _:
                holder[key] = choose.choice(_VALUES)
    body = json.dumps(value).encode()
    if choose.randrange(12) == 0:
        body = choose.choice(
            (b"", b"[" * _LONG, b'{"a":' * _LONG, b"\xff", b"[" + b"9" * 5000 + b"]", body[:-1], b"NaN")
        )
    headers = [(name, str(len(body)) if name == "Content-Length" else text) for name, text in reply.headers]
    return replace(reply, headers=tuple(headers), body=body)


def _places(value: object) -> Iterable[tuple[Any, Any]]:
    """Yields each (container, key) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def _headers(reply: Reply, choose: random.Random) -> Reply:
    """Returns an answer with a header replaced, or one more."""
    headers = list(reply.headers)
    text = choose.choice(_TEXTS)
    if headers and choose.randrange(2):
        place = choose.randrange(len(headers))
        headers[place] = headers[place][0], text
    else:
        headers.append((choose.choice(_NAMES), text))
    if choose.randrange(20) == 0:
        headers += [(f"X-{number}", "") for number in range(200)]
    status = choose.choice(("302 Found", "429 Busy", "503 Busy")) if choose.randrange(6) == 0 else reply.status
    return replace(reply, headers=tuple(headers), status=status)


def _bytes(raw: bytes, choose: random.Random) -> bytes:
    """Returns an answer cut, or with bytes of its beginning changed."""
    if choose.randrange(2) or not raw:
        return raw[: choose.randrange(len(raw) + 1)]
    changed = bytearray(raw)
    for _ in range(choose.randrange(1, 4)):
        changed[choose.randrange(min(len(raw), 300))] = choose.choice((0, 10, 13, 32, 58, 127, 178, 255))
    return bytes(changed)
