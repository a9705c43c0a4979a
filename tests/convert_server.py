"""Runs conversions and downloads in processes of their own, to be killed or to have a system call fail.

A server imports torch once and forks for each request, a JSON line on stdin: {"verb", "source", "out", "options",
"fault"}. It answers with the child's pid, then with how it ended. `fault` is [call, number, what]: of the calls of one
kind that touch the folder of OUT, the numbered one fails with an errno's name, once, or kills the process.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanconv.report import Report

CALLS = ("mkdir", "open", "ftruncate", "pwrite", "fsync", "rename", "unlink", "rmdir")


@dataclass(frozen=True)
class End:
    """How a conversion ended: its exit code (negative: the signal), its error, whether the fault came to pass."""

    code: int
    message: str
    fired: bool


class Server:
    """Use as a context; one request at a time. `environment` leads the hubs' clients."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(
        self,
        source: Path | str,
        out: Path,
        options: dict[str, Any],
        fault: list[Any] | None = None,
        verb: str = "convert",
    ) -> int:
        """Starts a conversion, of a repository where the source is text, or a download; returns its process."""
        assert self._process.stdin
        request = {"verb": verb, "source": str(source), "out": str(out), "options": options, "fault": fault}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._answer()["pid"])

    def end(self) -> End:
        return End(**self._answer())

    def convert(self, source: Path | str, out: Path, options: dict[str, Any], fault: list[Any] | None = None) -> End:
        self.start(source, out, options, fault)
        return self.end()

    def start_download(self, repository: str, folder: Path, jobs: int = 1, include: Sequence[str] = ()) -> int:
        return self.start(repository, folder, {"jobs": jobs, "include": include}, verb="download")

    def download(
        self, repository: str, folder: Path, include: Sequence[str] = (), fault: list[Any] | None = None
    ) -> End:
        self.start(repository, folder, {"jobs": 1, "include": include}, fault, "download")
        return self.end()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def inject(call: str, number: int, what: str, home: Path, report: int) -> None:
    """Makes the numbered call of a kind that touches what is below `home` fail."""
    original: Callable[..., Any] = getattr(os, call)
    left = number

    def failing(target: Any, *rest: Any, **named: Any) -> Any:
        nonlocal left
        path = str(Path(f"/proc/self/fd/{target}").readlink()) if isinstance(target, int) else os.fspath(target)
        if path.startswith(str(home)) or "dir_fd" in named:
            left -= 1
            if left == 0:
                os.write(report, b"fired\n")
                if what == "SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                code = getattr(errno, what)
                raise OSError(code, os.strerror(code), path)
        return original(target, *rest, **named)

    setattr(os, call, failing)


def _child(request: dict[str, Any], report: int) -> int:
    from wanconv.errors import WanconvError

    out = Path(request["out"])
    if request["fault"]:
        call, number, what = request["fault"]
        inject(call, number, what, out.parent, report)
    try:
        return _done(request, out).exit_code
    except WanconvError as error:
        os.write(report, f"{error.message}\n".encode())
        return error.exit_code


def _done(request: dict[str, Any], out: Path) -> "Report":
    from wanconv.commands.convert import convert, convert_remote
    from wanconv.commands.download import DownloadOptions, download
    from wanconv.conversion.options import ConvertOptions
    from wanconv.downloads.selection import Wish

    source, options = request["source"], request["options"]
    if request["verb"] == "download":
        return download(
            source, DownloadOptions(local_dir=out, jobs=options["jobs"], wish=Wish(tuple(options["include"])))
        )
    if source.startswith("hf://"):
        return convert_remote(source, ConvertOptions(**options, out=out))
    return convert(Path(source), ConvertOptions(**options, out=out))


SHARED = (  # torch above all, for the children to share
    "wanconv.commands.convert",
    "wanconv.commands.download",
    "wanconv.conversion.encode",
    "wanconv.storage.hubs.huggingface",
)


def _serve() -> None:
    for module in SHARED:
        import_module(module)
    assert "torch" in sys.modules
    for line in sys.stdin:
        read, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 70  # a traceback
            try:
                code = _child(json.loads(line), report)
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(report)
        print(json.dumps({"pid": pid}), flush=True)  # noqa: T201  # the server's answer
        with os.fdopen(read) as stream:
            said = stream.read().splitlines()
        _, status = os.waitpid(pid, 0)
        message = " ".join(one for one in said if one != "fired")
        print(json.dumps(asdict(End(os.waitstatus_to_exitcode(status), message, "fired" in said))), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
