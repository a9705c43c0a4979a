"""A hub that lies: every field of a list and every header is checked, in bounds of pages, bytes and time."""

import json
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hub.server import Hub, Reply, leading

from wanconv.downloads.selection import Wish, select
from wanconv.errors import InputError, UsageError, WanconvError
from wanconv.storage.hubs import Patience, RemoteFile, open_hub
from wanconv.storage.hubs.huggingface import HuggingFace
from wanconv.storage.hubs.modelscope import ModelScope
from wanconv.storage.hubs.names import check_names
from wanconv.storage.hubs.patience import retry_after
from wanconv.storage.hubs.ranges import RangeReader
from wanconv.storage.hubs.types import Address, Snapshot

FILES = {"README.md": b"# A model\n", "vae/weights.safetensors": bytes(20_000)}
PATIENCE = Patience(attempts=2, delay_s=0.001, longest_delay_s=0.002, longest_wait_s=0.5, stall_s=20, list_s=60)
SHORT = replace(PATIENCE, stall_s=0.2)
HUBS = ("hf", "ms")
Row = dict[str, Any]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with leading(FILES, monkeypatch, tmp_path / "modelscope") as server:
        yield server


def listed(name: str, patience: Patience = PATIENCE, token: str | None = None) -> Snapshot:
    return open_hub(name, token, patience).snapshot("owner/name", None)


def refused(name: str, match: str, patience: Patience = PATIENCE) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        listed(name, patience)
    assert len(caught.value.message) < 700
    assert caught.value.hint
    return caught.value


def telling(reply: Reply, value: object, headers: Mapping[str, str] | None = None) -> list[bytes]:
    """Returns what is sent to tell `value` as JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    told = {**dict(reply.headers), "Content-Length": str(len(body)), **(headers or {})}
    return [replace(reply, headers=tuple(told.items()), body=body).raw()]


def is_list(reply: Reply) -> bool:
    return "/tree/" in reply.path or "/repo/files" in reply.path


def spoiling(spoil: Callable[[Row], object]) -> Callable[[Reply], list[bytes] | None]:
    """Returns a lie that spoils the row of the weights in a list."""

    def lie(reply: Reply) -> list[bytes] | None:
        if not is_list(reply):
            return None
        value = json.loads(reply.body)
        rows = value if isinstance(value, list) else value["Data"]["Files"]
        spoil(next(row for row in rows if "weights" in row.get("path", row.get("Path"))))
        return telling(reply, value)

    return lie


# fmt: off
NOT_DIGESTS = (
    "../" + "0" * 61, "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\0", "٣" * 64, "", "f" * 10**5, 5, None,
    True, ["0" * 64],
)
NOT_SIZES: tuple[object, ...] = (-1, 1.5, True, None, "20000", 1 << 60, 10**400, [1], {})
NOT_PATHS = (None, 7, True, ["a"], {"a": 1}, "a/" * 5000, "a/" * 1500 + "weights")
FIELDS = {"path": ("path", NOT_PATHS), "size": ("size", NOT_SIZES), "digest": ("sha256", NOT_DIGESTS)}
KEYS: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "hf": {"path": ((), "path"), "size": (("lfs",), "size"), "digest": (("lfs",), "oid")},
    "ms": {"path": ((), "Path"), "size": ((), "Size"), "digest": ((), "Sha256")},
}
# fmt: on


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", HUBS)
def test_a_row_with_a_field_that_is_not_valid_is_refused_by_hub_and_field(hub: Hub, name: str, field: str) -> None:
    said, values = FIELDS[field]
    for value in (*values, KeyError):

        def spoil(row: Row, value: object = value) -> None:
            within, key = KEYS[name][field]
            holder = row[within[0]] if within else row
            if value is KeyError:
                del holder[key]
            else:
                holder[key] = value

        hub.lie = spoiling(spoil)
        title = "Hugging Face" if name == "hf" else "ModelScope"
        refused(name, f"^{title} answers a file whose {said} is .* to a question about owner/name$")


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize("value", [None, 7, "x", {"a": 1}, [1], [None], [[]], {"Data": 5}, {"Data": {"Files": {}}}])
def test_a_list_of_another_form_is_refused(hub: Hub, name: str, value: object) -> None:
    hub.lie = lambda reply: telling(reply, value) if is_list(reply) else None
    refused(name, r"^(Hugging Face|ModelScope) answers .* to a question about owner/name$")


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"[" + b"9" * 5000 + b"]", b"[1", b"[NaN]"],
    ids=["empty", "page", "not UTF-8", "nested", "nested objects", "digits", "cut", "NaN"],
)
def test_what_is_not_json_of_a_hub_is_refused(hub: Hub, name: str, body: bytes) -> None:
    hub.lie = lambda reply: telling(reply, body)
    refused(name, "answers")


@pytest.mark.parametrize("name", HUBS)
def test_a_path_that_is_listed_twice_is_refused(hub: Hub, name: str) -> None:
    def lie(reply: Reply) -> list[bytes] | None:
        if not is_list(reply):
            return None
        value = json.loads(reply.body)
        rows = value if isinstance(value, list) else value["Data"]["Files"]
        rows.append(rows[0])
        return telling(reply, value)

    hub.lie = lie
    refused(name, "answers a list that holds 'README.md' twice")


@pytest.mark.parametrize("commit", ["a" * 100_000, "main", "../" * 13 + "a", "A" * 40, None, 5, ["a" * 40], ""])
def test_a_commit_that_is_none_is_refused(hub: Hub, commit: object) -> None:
    hub.lie = lambda reply: None if is_list(reply) else telling(reply, {"id": "owner/name", "sha": commit})
    refused("hf", "^Hugging Face answers .* as the commit to a question about owner/name$")


def test_another_commit_than_the_one_that_was_asked_for_is_refused(hub: Hub) -> None:
    hub.lie = lambda reply: telling(reply, {"sha": "b" * 40})
    with pytest.raises(InputError, match=f"answers commit {'b' * 40} for commit {hub.head}"):
        open_hub("hf", None, PATIENCE).snapshot("owner/name", hub.head)


# Headers


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("²", 0), ("٣", 0), ("-1", 0), ("", 0), (None, 0), ("1.5", 0), ("nan", 0), (" 7 ", 7), ("9" * 5000, 1e9),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("Thu, 01 Jan 99999 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1e9),
        ("Thu, " + "9" * 30 + " Jan 2030 00:00:00 GMT", 0), ("Thu, 01 Jan " + "9" * 30 + " 00:00:00 GMT", 0),
        ("Thu, 01 Jan 2030 00:00:00 +" + "9" * 20, 0), ("x" * 100_000, 0),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_a_date_or_nothing(value: str | None, seconds: float) -> None:
    assert retry_after(value) == seconds


@pytest.mark.parametrize("name", HUBS)
def test_a_wait_that_no_number_tells_is_none(hub: Hub, name: str) -> None:
    busy = iter([True])
    hub.lie = lambda reply: (
        [replace(reply, status="503 Busy", headers=(("Retry-After", "\xb2"), ("Content-Length", "0")), body=b"").raw()]
        if next(busy, False)
        else None
    )
    assert [file.path for file in listed(name).files] == sorted(FILES)


@pytest.mark.parametrize("name", HUBS)
def test_a_hub_that_asks_for_too_long_a_wait_is_told_no(hub: Hub, name: str) -> None:
    headers = (("Retry-After", "9" * 5000), ("Content-Length", "0"))
    hub.lie = lambda reply: [replace(reply, status="503 Busy", headers=headers, body=b"").raw()]
    refused(name, "it asks to wait 1000000000 seconds")


def read_at(hub: Hub, patience: Patience = PATIENCE, nbytes: int = 20_000) -> bytes:
    """Returns bytes 1,000 and on of the weights, read by a range."""
    reader = RangeReader(patience, threading.Event())
    address = Address(f"{hub.payload}/{hub.head}/vae/weights.safetensors")
    return b"".join(chunk for _, chunk in reader.stream(address, "weights", nbytes, 1000))


@pytest.mark.parametrize(
    "answer",
    [
        "bytes " + "9" * 5000 + "-1/2",
        "bytes 1000-" + "9" * 5000 + "/20000",
        "bytes ١٠٠٠-19999/20000",
        "bytes 1000-19999/²",
    ],
)
def test_a_content_range_that_is_none_is_refused(hub: Hub, answer: str) -> None:
    hub.faults.content_range = answer.encode().decode("latin-1")
    with pytest.raises(InputError, match=r"^weights: bytes 1000-19999/20000 were asked for, the answer is ") as caught:
        read_at(hub)
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:99999/x", "http://127.0.0.1:x/", "http://127.0.0.1:-1/", "http://[::1/x", "http://[zz]/x",
        "http://" + "a" * 300 + ".com/", "http://" + "a." * 200 + "com/x", "http:///x", "http://", "//", "\xff\xfe://x",
        "",
        "http://127.0.0.1/" + "x" * 20_000, "http:x", "http://a..b/", "http://\xc3\xa9" + "\xc3\xa9" * 80 + ".com/",
    ],
)  # fmt: skip
def test_a_redirect_to_no_address_is_refused(hub: Hub, location: str) -> None:
    headers = (("Location", location), ("Content-Length", "0"))
    hub.lie = lambda reply: [replace(reply, status="302 Found", headers=headers, body=b"").raw()]
    for ask in (lambda: listed("hf"), lambda: listed("ms"), lambda: read_at(hub)):
        with pytest.raises(InputError, match=r"valid address|cannot be reached|no answer from|redirects") as caught:
            ask()
        assert len(caught.value.message) < 700


def test_the_body_of_a_redirect_is_not_read(hub: Hub) -> None:
    sent = [0]

    def lie(reply: Reply) -> Iterable[bytes] | None:
        if not is_list(reply) or "again" in reply.path:
            return None
        return endless(f"HTTP/1.1 302 Found\r\nLocation: {reply.path}&again\r\n\r\n".encode(), bytes(1 << 16), sent)

    hub.lie = lie
    assert len(listed("hf").files) == len(FILES)
    assert sent[0] < 20_000_000  # what the system buffers


def endless(head: bytes, piece: bytes, sent: list[int], pause_s: float = 0.0) -> Iterator[bytes]:
    yield head
    for _ in range(100_000):
        sent[0] += len(piece)
        if sent[0] > 2_000_000_000:
            return
        yield piece
        if pause_s:
            time.sleep(pause_s)


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n"])
def test_a_list_without_end_is_refused_and_costs_its_bound(hub: Hub, name: str, head: bytes) -> None:
    sent = [0]
    hub.lie = lambda reply: endless(head, b"[" * (1 << 16), sent)
    tracemalloc.start()
    try:
        refused(name, "answers more than 2000000 bytes", replace(PATIENCE, list_nbytes=2_000_000))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HUBS)
def test_small_bytes_that_are_many_objects_are_refused_unparsed(hub: Hub, name: str) -> None:
    hub.lie = lambda reply: telling(reply, b"[" + b"[]," * 1_000_000 + b"[]]")
    refused(name, "answers more than 200000 objects at once")


@pytest.mark.parametrize("name", HUBS)
def test_a_list_that_is_packed_is_refused_unpacked_by_nobody(hub: Hub, name: str) -> None:
    hub.lie = lambda reply: telling(reply, b"\x1f\x8b" + bytes(100), {"Content-Encoding": "gzip"})
    refused(name, "answers encoded JSON, which was not asked for")
    assert {one.headers["accept-encoding"] for one in hub.log} == {"identity"}


# Time


def dripping(text: bytes) -> Iterator[bytes]:
    """Yields a byte now and then, for longer than any test lasts."""
    yield text
    for _ in range(1500):
        yield b"x"
        time.sleep(0.02)


DRIPS = {
    "status": b"HTTP/1.1 200 ",
    "header": b"HTTP/1.1 200 OK\r\nA: ",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;",
    "trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n",
    "body of an error": b"HTTP/1.1 404 No\r\n\r\n",
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_a_byte_now_and_then_is_silence(hub: Hub, drip: bytes) -> None:
    hub.lie = lambda reply: dripping(drip)
    started = time.monotonic()
    refused("hf", "", SHORT)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("drip", [DRIPS["status"], DRIPS["header"]], ids=["status", "header"])
def test_a_header_of_a_payload_ends_in_time_too(hub: Hub, drip: bytes) -> None:
    hub.lie = lambda reply: dripping(drip)
    with pytest.raises(InputError, match=r"no answer from .*\(2 attempts\)"):
        read_at(hub, SHORT)


def test_answers_that_another_will_follow_end_in_time(hub: Hub) -> None:
    """A client skips `100 Continue`, as many as there are."""
    hub.lie = lambda reply: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", [0], 0.001)
    refused("hf", r"no answer from .*\(2 attempts\)", SHORT)


def test_a_list_ends_in_time_though_each_page_does(hub: Hub) -> None:
    def lie(reply: Reply) -> Iterable[bytes] | None:
        if not is_list(reply):
            return None
        time.sleep(0.1)
        link = f'<{reply.path.split("?")[0]}?cursor={time.monotonic_ns()}>; rel="next"'
        return telling(reply, [], {"Link": link})

    hub.lie = lie
    refused("hf", r"no whole answer within 0\.45 seconds", replace(PATIENCE, list_s=0.45))


# Pages


def test_pages_without_end_are_refused(hub: Hub) -> None:
    numbers = iter(range(10**9))

    def lie(reply: Reply) -> Iterable[bytes] | None:
        return telling(reply, [], {"Link": f'<?cursor={next(numbers)}>; rel="next"'}) if is_list(reply) else None

    hub.lie = lie
    refused("hf", "answers more than 20 pages", replace(PATIENCE, list_pages=20))
    assert len(hub.log) == 20


def test_the_same_page_again_is_refused(hub: Hub) -> None:
    hub.lie = lambda reply: telling(reply, [], {"Link": '<?cursor=7>; rel="next"'}) if is_list(reply) else None
    refused("hf", "answers the same page of a list again")
    assert len(hub.log) == 3


@pytest.mark.parametrize(
    "link", ["<", '<http://[::1>; rel="next"', '<>; rel="next"', "x" * 60_000, 'a=b; rel="next"', "\xff"]
)
def test_a_link_that_is_none_is_refused_or_none(hub: Hub, link: str) -> None:
    hub.lie = lambda reply: telling(reply, json.loads(reply.body), {"Link": link}) if is_list(reply) else None
    with suppress(InputError):
        assert len(listed("hf").files) == len(FILES)
    assert {one.origin for one in hub.log} == {"hub"}


def test_a_folder_that_modelscope_cuts_is_asked_for_by_itself(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanconv.storage.hubs.modelscope._MOST_AT_ONCE", 4)
    rows = [
        {"Path": f"{folder}/{number}", "Size": 1, "Sha256": "0" * 64, "Type": "blob"}
        for folder in "ab"
        for number in range(3)
    ]
    folders = [{"Path": folder, "Type": "tree"} for folder in "ab"]

    def lie(reply: Reply) -> Iterable[bytes]:
        below = [row for row in rows if f"Root={str(row['Path'])[0]}" in reply.path] if "Root=" in reply.path else rows
        found = below[:4] if "Recursive=True" in reply.path else folders
        return telling(reply, {"Code": 200, "Data": {"Files": found}, "Success": True})

    hub.lie = lie
    assert [file.path for file in listed("ms").files] == [row["Path"] for row in rows]
    monkeypatch.setattr("wanconv.storage.hubs.modelscope._MOST_AT_ONCE", 2)
    refused("ms", "answers at most 2 files of a folder that has more")


def test_what_modelscope_says_of_a_failure_is_told(hub: Hub) -> None:
    hub.lie = lambda reply: telling(reply, {"Code": 5, "Message": "no\x1b[2J" + "o" * 1000, "Success": False})
    assert r"(\x1b" not in refused("ms", r"answers 200 X \('no\\x1b\[2Joo").message


# The token


@pytest.mark.parametrize("status", ["302 Found", "307 Again", "301 Moved"])
@pytest.mark.parametrize("name", HUBS)
def test_the_token_follows_no_redirect_of_a_list_to_another_host(hub: Hub, name: str, status: str) -> None:
    for home in (hub.payload, hub.endpoint.replace("127.0.0.1", "localhost")):
        hub.log.clear()

        def lie(reply: Reply, home: str = home) -> Iterable[bytes] | None:
            if "moved" in reply.path:
                return telling(replace(reply, status="200 OK"), [])
            headers = (("Location", f"{home}{reply.path}&moved=1?moved"), ("Content-Length", "0"))
            return [replace(reply, status=status, headers=headers, body=b"").raw()]

        hub.lie = lie
        with pytest.raises(WanconvError):
            listed(name, token="hf_secret")
        assert any("moved" in one.path for one in hub.log)
        for one in hub.log:
            assert ("hf_secret" in str(one.headers)) == ("moved" not in one.path)


def test_the_token_and_the_list_follow_no_link_to_another_host(hub: Hub) -> None:
    hub.faults.page_size = 1

    def lie(reply: Reply) -> Iterable[bytes] | None:
        headers = {name: value.replace(hub.endpoint, hub.payload) for name, value in reply.headers}
        return telling(reply, json.loads(reply.body), headers) if is_list(reply) else None

    hub.lie = lie
    hub.faults.token = "hf_secret"
    assert len(listed("hf", token="hf_secret").files) == len(FILES)
    assert {one.origin for one in hub.log} == {"hub"}


def test_the_token_stays_at_home_when_a_file_lies_on_another_host(hub: Hub) -> None:
    headers = (("Location", f"{hub.endpoint.replace('127.0.0.1', 'localhost')}/elsewhere"), ("Content-Length", "0"))

    def lie(reply: Reply) -> Iterable[bytes]:
        moved = replace(reply, status="302 Found", headers=headers, body=b"")
        return telling(replace(reply, status="200 OK"), b"x" * 100) if "elsewhere" in reply.path else [moved.raw()]

    hub.lie = lie
    source = open_hub("hf", "hf_secret", PATIENCE)
    address = source.address(Snapshot("hf", "owner/name", "main", hub.head, ()), "a")
    assert (
        b"".join(chunk for _, chunk in RangeReader(PATIENCE, threading.Event()).stream(address, "a", 100)) == b"x" * 100
    )
    assert ["hf_secret" in str(one.headers) for one in hub.log] == [True, False]


def test_from_https_nothing_leads_to_http() -> None:
    from wanconv.storage.hubs.transport import _redirected

    with pytest.raises(InputError, match="which is not safe"):
        _redirected("https://hub.invalid/a?sig=secret", "http://hub.invalid/a")


@pytest.mark.parametrize("token", ["hf_a\nb", "hf_é", "hf_a b", "hf_\0"])
def test_a_token_that_fits_into_no_header_is_a_usage_error(hub: Hub, token: str) -> None:
    for name in HUBS:
        with pytest.raises(UsageError, match="the token holds characters that no token has") as caught:
            open_hub(name, token)
        assert token not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "value", ["http://[::1", "huggingface.co", "https://", "ftp://x", "http://x:99999", "http://x:y"]
)
def test_an_endpoint_that_is_no_address_is_a_usage_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in (("hf", "HF_ENDPOINT"), ("ms", "MODELSCOPE_ENDPOINT")):
        monkeypatch.setenv(variable, value)
        with pytest.raises(UsageError, match=f"{variable} is .*, which is not a valid address"):
            open_hub(name)


# What the clients raise


def errors_of(*modules: str) -> list[type[BaseException]]:
    found = [one for module in modules for one in vars(__import__(module, fromlist=["_"])).values()]
    return [one for one in found if isinstance(one, type) and issubclass(one, Exception)]


def made(kind: type[BaseException]) -> BaseException:
    """Returns an error of a class, whatever that is made from."""
    with suppress(TypeError, AttributeError):
        return kind("x" * 10_000)
    error = kind.__new__(kind)
    error.args = ("x" * 10_000,)
    return error


def test_every_error_of_the_clients_is_a_sentence(hub: Hub) -> None:
    foreign = errors_of(
        "builtins", "huggingface_hub.errors", "modelscope_hub.errors", "requests.exceptions", "urllib3.exceptions"
    )
    kinds = [kind for kind in foreign if not issubclass(kind, MemoryError)]
    assert len(kinds) > 120
    hugging_face, modelscope = HuggingFace("t"), ModelScope("t")
    for kind in kinds:

        def fail(kind: type[BaseException] = kind) -> None:
            raise made(kind)

        with pytest.raises(InputError) as caught:
            hugging_face._explained("owner/name", fail)
        assert len(caught.value.message) < 700
        with pytest.raises(InputError) as caught, modelscope._explained("owner/name"):
            fail()
        assert len(caught.value.message) < 700


# How much it costs


def calls_of(function: Callable[[], object]) -> int:
    """Returns how many calls, of Python and of C, a function makes."""
    count = [0]

    def see(frame: FrameType, event: str, argument: object) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count[0]


def checkpoints(number: int) -> list[RemoteFile]:
    """Returns a list as of a training run: every one of them pickled, many of them in one folder."""
    paths = [f"run-{place // 500}/pytorch_model-{place % 500 + 1:05}-of-00500.bin" for place in range(number)]
    return [RemoteFile(path, 1, "sha256", "0" * 64) for path in paths]


@pytest.mark.parametrize(
    "use",
    [
        lambda files: select(files, Wish()),
        lambda files: select(files, Wish(exclude=("*.png", "a*b*c*d*"), only=())),
        lambda files: check_names([file.path for file in files], "the hub"),
        lambda files: check_names([f"{'/'.join('abcdefgh')}/{file.path}" for file in files], "the hub"),
    ],
    ids=["select", "globs", "names", "deep names"],
)
def test_four_times_the_files_cost_four_times_the_calls(use: Callable[[Sequence[RemoteFile]], object]) -> None:
    use(checkpoints(10))  # what is made once
    small, large = (calls_of(lambda number=number: use(checkpoints(number))) for number in (250, 1000))  # type: ignore[misc]
    assert large < 5 * small
