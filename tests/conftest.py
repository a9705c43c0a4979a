"""Every test runs offline: a connection that leaves this machine is an error, here and in the libraries we call."""

import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from battery import SCALES, Scale

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; child processes inherit it
# Tests compute little at a time: torch's threads would mostly wait for each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in a shell's background; child processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in [name for name in os.environ if name.startswith("WANCONV_")]:
    del os.environ[name]  # the developer's own settings are not what is tested


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--battery", choices=SCALES, default="sample", help="how much the tests of the battery try")


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> Scale:
    """How much to try: see scripts/battery."""
    return SCALES[pytestconfig.getoption("--battery")]


_connect = socket.socket.connect


def _connect_here(self: socket.socket, address: Any) -> None:
    host = address[0] if isinstance(address, tuple) else ""
    if self.family != socket.AF_UNIX and host not in ("localhost", "127.0.0.1", "::1"):
        raise OSError(f"tests run offline: refused to connect to {address}")
    _connect(self, address)


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Python's sockets reach this machine only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _connect_here)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns tiny(release, layout=None): a tiny checkpoint, made once for all tests and not to be changed.

    Without a layout it is in the one that the release came in.
    """
    from wanconv.samples import synthetic  # brings torch, which tests without checkpoints need not wait for

    made: dict[tuple[str, str], Path] = {}
    families = {name: family for name, (family, _) in synthetic.releases().items()}

    def get(release: str, layout: str | None = None) -> Path:
        layout = layout or synthetic.home(families[release])
        if (release, layout) not in made:
            folder = tmp_path_factory.mktemp("tiny") / f"{release}-{layout}"
            made[release, layout] = synthetic.make(folder, synthetic.SampleOptions(release, layout=layout))
        return made[release, layout]

    return get


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """Returns a folder in memory, where there is some: what thousands of cases write and sync is there at once."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the small trained model that ships, in the official layout, made once and not to be changed."""
    from wanconv.samples import shipped

    return shipped.make(tmp_path_factory.mktemp("trained") / "source")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one thread, whatever the environment or an earlier test said."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
