"""Mutants of a hub's answers: whatever it says, a command ends in a report or a sentence, in time."""

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import huggingface_hub.constants
import pytest
from battery import Scale
from hub.liar import mutant
from hub.server import Hub, Reply, files_below, leading

from wanconv.commands import download as downloading
from wanconv.commands import publish as publishing
from wanconv.commands import verify as verifying
from wanconv.commands.convert import convert, convert_remote
from wanconv.commands.inspect import inspect_remote
from wanconv.conversion.options import ConvertOptions
from wanconv.errors import InputError, WanconvError
from wanconv.report import Report
from wanconv.samples import synthetic
from wanconv.storage.hubs import Patience

PATIENCE = Patience(attempts=2, delay_s=0.001, longest_delay_s=0.002, longest_wait_s=0.02, stall_s=5, list_s=30)
CODES = {0, 1, 2, 3, 4, 7}
SLOWEST_S = 60.0  # of one mutant: a thousand times what one takes here
TOKEN = "hf_secret"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a small model: one of the kinds of file that a hub gives, each."""
    folder = tmp_path_factory.mktemp("lying") / "model"
    return synthetic.make(folder, synthetic.SampleOptions("wan2.1-t2v-1.3b", layout="diffusers", components=("vae",)))


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_memory: Path) -> Iterator[Hub]:
    monkeypatch.setattr(tempfile, "tempdir", str(in_memory))
    with leading(files_below(model) | {"README.md": b"# A model\n"}, monkeypatch, tmp_path / "modelscope") as server:
        yield server


class Liar:
    """Has a hub lie once in a run, in an answer drawn at random of those that `aim` picks."""

    def __init__(self, hub: Hub, seed: int) -> None:
        self._choose = random.Random(seed)
        self._lock, self._left, self.lied = threading.Lock(), self._choose.randrange(6), 0
        self._every = self._choose.randrange(3) == 0
        hub.lie = self.lie

    def lie(self, reply: Reply) -> Iterable[bytes] | None:
        with self._lock:
            self._left -= 1
            if self._left > 0 or (self.lied and not self._every):
                return None
            self.lied += 1
            return mutant(reply, self._choose)


def check_end(run: Callable[[], Report]) -> Report | WanconvError:
    """Runs a command, which may end in a report or an error of ours, whose texts are bounded, and in time."""
    started = time.monotonic()
    end: Report | WanconvError
    try:
        end = run()
    except WanconvError as error:
        end = error
    if isinstance(end, WanconvError):
        assert 0 < len(end.message) < 3000, end.message
        assert max(map(len, end.details), default=0) < 9000
    assert end.exit_code in CODES
    assert time.monotonic() - started < SLOWEST_S
    return end


def tried(
    hub: Hub, seeds: Iterable[int], run: Callable[[str, int], Report], check: Callable[[Report, str], None]
) -> None:
    """Runs a command against a liar of each seed, with both hubs in turn."""
    ends: dict[str, int] = {}
    for seed in seeds:
        name = ("hf", "ms")[seed % 2]
        Liar(hub, seed)
        try:
            end = check_end(lambda name=name, seed=seed: run(name, seed))  # type: ignore[misc]  # mypy loses the types
        except BaseException as error:
            error.add_note(f"seed {seed} of {name}")
            raise
        if isinstance(end, Report):
            check(end, name)
        ends[type(end).__name__] = ends.get(type(end).__name__, 0) + 1
    hub.lie = lambda reply: None
    assert ends.keys() >= {"Report", "InputError"}, ends


@pytest.mark.exhaustive
def test_a_download_from_a_liar_ends_in_the_right_bytes_or_a_sentence(
    hub: Hub, scale: Scale, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    contents = set(hub.files.values())

    def run(name: str, seed: int) -> Report:
        shutil.rmtree(in_memory / "target", ignore_errors=True)
        source = {"hf": "hf", "ms": "modelscope"}[name]
        wanted = downloading.DownloadOptions(
            source, local_dir=in_memory / "target", jobs=1, patience=PATIENCE, token=TOKEN
        )
        return downloading.download("owner/name", wanted)

    def check(report: Report, name: str) -> None:
        found = files_below(in_memory / "target")
        del found[".wanconv-download.json"]
        assert set(found.values()) <= contents

    tried(hub, range(scale.hub_mutants), run, check)
    assert {path.name for path in in_memory.iterdir()} <= {"target"}
    assert not [one for one in hub.payload_requests() if TOKEN in str(one.headers)]
    record_property("cases", scale.hub_mutants)


@pytest.mark.exhaustive
def test_a_liar_is_inspected_or_told_in_a_sentence(
    hub: Hub, scale: Scale, record_property: Callable[[str, object], None]
) -> None:
    number = scale.hub_mutants // 4
    truth = inspect_remote("hf://owner/name", patience=PATIENCE)

    def check(report: Report, name: str) -> None:
        assert report.figures["family"] == truth.figures["family"]

    tried(hub, range(number), lambda name, seed: inspect_remote(f"{name}://owner/name", patience=PATIENCE), check)
    record_property("cases", number)


@pytest.mark.exhaustive
def test_a_folder_is_held_against_a_liars_list_or_told_in_a_sentence(
    hub: Hub, scale: Scale, model: Path, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    number = scale.hub_mutants // 4
    folder = Path(shutil.copytree(model, in_memory / "model"))

    def run(name: str, seed: int) -> Report:
        return verifying.verify(folder, verifying.VerifyOptions(hub=f"{name}://owner/name", patience=PATIENCE, jobs=1))

    tried(hub, range(number), run, lambda report, name: None)
    record_property("cases", number)


@pytest.mark.exhaustive
def test_a_liar_is_converted_to_the_right_bytes_or_told_in_a_sentence(
    hub: Hub, scale: Scale, model: Path, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    number = scale.hub_mutants // 10
    wanted = ConvertOptions("fp16", layout="diffusers", out=in_memory / "out", jobs=1)
    convert(model, ConvertOptions("fp16", layout="diffusers", out=in_memory / "right", jobs=1))
    weights = "vae/diffusion_pytorch_model.safetensors"
    right = (in_memory / "right" / weights).read_bytes()

    def run(name: str, seed: int) -> Report:
        for path in in_memory.glob("out*"):
            shutil.rmtree(path)
        return convert_remote(f"{name}://owner/name", wanted, patience=PATIENCE)

    def check(report: Report, name: str) -> None:
        assert len((in_memory / "out" / weights).read_bytes()) == len(right)

    tried(hub, range(number), run, check)
    record_property("cases", number)


# Uploads


@pytest.fixture
def baked(model: Path, in_memory: Path) -> Path:
    convert(model, ConvertOptions("fp16", layout="diffusers", out=in_memory / "baked", jobs=1))
    return in_memory / "baked"


@pytest.fixture
def store(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Returns the hub as one to publish to."""
    hub.faults.token = TOKEN
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # read once, at import
    return hub


def published(folder: Path, name: str) -> Report:
    return publishing.publish(
        folder, f"{name}://owner/name", publishing.PublishOptions(TOKEN, jobs=1, patience=PATIENCE)
    )


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_the_token_is_not_uploaded_to_another_host(store: Hub, baked: Path, name: str) -> None:
    """Hugging Face's client sends it where LFS' verify action says, ModelScope's with each blob."""

    def lie(reply: Reply) -> Iterable[bytes] | None:
        if "objects/batch" not in reply.path or name == "ms":
            return None
        verify = f'"verify": {{"href": "{store.payload}/verified"}}, "upload"'.encode()
        body = reply.body.replace(b'"upload"', verify)
        headers = {**dict(reply.headers), "Content-Length": str(len(body))}
        return [Reply(reply.origin, reply.method, reply.path, "200 OK", tuple(headers.items()), body).raw()]

    store.lie = lie
    with suppress(InputError):  # without the token Hugging Face's upload is not verified
        published(baked, name)
    seen = store.payload_requests()
    assert {one.method for one in seen} == ({"PUT"} if name == "ms" else {"PUT", "POST"})
    assert not [one for one in seen if TOKEN in str(one.headers)]
    assert [one for one in store.log if one.origin == "hub" and TOKEN in str(one.headers)]


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_an_answer_to_an_upload_is_bounded(store: Hub, baked: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanconv.storage.hubs.uploads._MAX_ANSWER_NBYTES", 1000)
    store.lie = lambda reply: (
        [b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 5000] if "/api/v1/" in reply.path or "create" in reply.path else None
    )
    with pytest.raises(InputError, match="answers an upload with more than 1000 bytes"):
        published(baked, name)


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_an_answer_to_an_upload_that_is_packed_is_refused(store: Hub, baked: Path, name: str) -> None:
    packed = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"
    store.lie = lambda reply: [packed]
    with pytest.raises(InputError, match="in an encoding that was not asked for"):
        published(baked, name)


@pytest.mark.exhaustive
def test_a_liar_is_published_to_or_told_in_a_sentence(
    store: Hub,
    scale: Scale,
    baked: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    number = scale.hub_mutants // 10
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the clients wait between attempts
    before = files_below(baked)
    tried(store, range(number), lambda name, seed: published(baked, name), lambda report, name: None)
    assert files_below(baked) == before
    assert not [one for one in store.payload_requests() if TOKEN in str(one.headers)]
    record_property("cases", number)


def test_what_an_upload_changes_of_a_client_is_undone(store: Hub, baked: Path) -> None:
    from huggingface_hub.utils import _http

    before = _http._GLOBAL_CLIENT_FACTORY
    store.faults.full = True
    with pytest.raises(InputError):
        published(baked, "hf")
    assert _http._GLOBAL_CLIENT_FACTORY is before
