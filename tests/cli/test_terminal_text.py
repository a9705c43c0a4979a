"""Nothing that data says is obeyed by a terminal: not in a report, an error, a hint, JSON, or a library's warning."""

import json
import logging
import os
import shutil
import socketserver
import struct
import subprocess
import sys
import threading
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Done, run_all
from rich.text import Text
from validation_samples import as_json, cannot_judge

from wanconv.cli.console import show
from wanconv.cli.streams import guarded
from wanconv.cli.text import is_safe, json_text, quoted, safe, safe_lines, safe_report
from wanconv.containers.safetensors import read_header
from wanconv.report import Finding, Report, Table

# Colours, a title, bells; a forged line; bidi; line separators; a C1 sequence; a tag, zero width; markup.
EVIL = (
    "a\x1b[31mred\x1b]0;title\x07\r\nerror[forged]: b\u202ec\u2066\u2028\u2029\x85\x9b2J\x7f\u200b\U000e0041"
    "[bold][link=x]d"
)
SEEN = (
    r"a\x1b[31mred\x1b]0;title\x07\r\nerror[forged]: b\u202ec\u2066\u2028\u2029\x85\x9b2J\x7f\u200b\U000e0041"
    "[bold][link=x]d"
)
NAME = EVIL.replace("/", "")  # of a file


def test_every_control_format_surrogate_and_separator_of_unicode_is_escaped() -> None:
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    wrong = [
        number
        for number in range(sys.maxunicode + 1)
        if unicodedata.category(chr(number)) in kinds and is_safe(chr(number))
    ]
    assert wrong == []
    assert not any(map(is_safe, "\u034f\u115f\u3164\ufe0f\uffa0\U000e0fff"))  # drawn as nothing, too


def test_what_is_plain_stays_as_it_is() -> None:
    text = "Größe 模型 модель 🎬 x₁ [red] C:\\new “a – b” ≤ 10 000"
    assert safe(text) == text
    assert safe(EVIL) == SEEN


def test_text_of_other_programs_keeps_its_lines_and_only_the_sequences_that_are_wanted() -> None:
    assert safe_lines("one\n\ttwo\x1b[1m\r\n") == "one\n\ttwo\\x1b[1m\\r\n"
    assert safe_lines("\x1b[1mone\x1b[0m\x1b[2J", r"\x1b\[[\d;]*m") == "\x1b[1mone\x1b[0m\\x1b[2J"


def test_a_flood_is_cut_and_a_command_to_copy_is_not() -> None:
    assert safe("x" * 100_000) == "x" * 4096 + "… and 95904 characters more"
    report = Report("verify", "t", {}, (), [Finding("note", "w", "m" * 9000, "f" * 9000)])
    (finding,) = safe_report(report).findings
    assert (len(finding.message) < 5000, finding.fix) == (True, "f" * 9000)


def test_json_is_exact_and_ascii_without_a_control_character() -> None:
    text = json_text({EVIL: [EVIL, "\udcff"]})
    assert json.loads(text) == {EVIL: [EVIL, "\udcff"]}
    assert text.isascii()
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("argument", ["plain", "a b", "it's", EVIL, "\udcff\\'"])
def test_an_argument_to_copy_is_what_bash_reads(argument: str) -> None:
    assert is_safe(quoted(argument))
    raw = os.fsencode(argument) if "\udcff" in argument else argument.encode()
    done = subprocess.run(["bash", "-c", f"printf %s {quoted(argument)}"], capture_output=True, check=True)
    assert done.stdout == raw


def test_every_text_of_a_report_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(EVIL, (EVIL, "path"), ((EVIL, Path(NAME)), (1, None)))
    findings = [Finding(severity, EVIL, EVIL, EVIL) for severity in ("failure", "warning", "note")]
    report = Report("verify", EVIL, {EVIL: EVIL, "list": [EVIL, {EVIL: EVIL}], "ok": True}, [table], findings)
    with pytest.raises(SystemExit), guarded():
        show(report)
    shown = capsys.readouterr()
    check(shown.out + shown.err)
    assert shown.out.count(r"\x1b[31mred") >= 8
    assert shown.err.count(r"\x1b[31mred") == 9


def test_what_libraries_print_and_warn_of_is_made_safe(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        logger = logging.getLogger("wanconv.test")
        logger.addHandler(handler := logging.StreamHandler())
        logger.warning(EVIL)
        logger.removeHandler(handler)
        logging.getLogger("wanconv.unhandled").warning(EVIL)
        for stream in (sys.stdout, sys.stderr):
            stream.write(f"{EVIL}\n")
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert r"\x1b]0;title\x07\r" in text
        assert all(is_safe(line) for line in Text.from_ansi(text).plain.splitlines())
    assert "\x1b" not in shown.err


def test_a_bug_is_told_safely_too() -> None:
    script = (
        "import wanconv.cli.run as run; from wanconv.cli import main\n"
        f"def bug(arguments): raise ValueError({EVIL!r})\n"
        "run.run = bug\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 1
    text = done.stderr.decode()
    assert "ValueError" in text
    assert r"\x1b[31mred" in text
    assert all(is_safe(line) for line in text.split("\n"))


def check(text: str) -> None:
    """Raises where a text holds what a terminal would obey, or a line that data made."""
    lines = text.split("\n")
    assert [line for line in lines if not is_safe(line)] == []
    assert [line for line in lines if line.lstrip().startswith("error[forged]")] == []


# What commands print of data


def _pth(data: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")


ASCII = b"a\x1b[31mred\x1b]0;title\x07\r\x7f[bold][link=x]d"  # what names of classes may hold


def _unicode(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


WITHOUT_LINES = EVIL.replace("\r\n", "")


def pth_global(folder: Path) -> None:
    _pth(b"\x80\x02c" + ASCII + b"\n" + ASCII + b"\n.", folder / "Wan2.1_VAE.pth")


def pth_class(folder: Path) -> None:
    """An object whose class has the name, in a dict beside tensors."""
    data = b"\x80\x02}q\x00" + _unicode("a") + b"ctorch._utils\n" + ASCII + b"\n)Rs."
    _pth(data, folder / "Wan2.1_VAE.pth")


def pth_key(folder: Path) -> None:
    import torch

    torch.save({EVIL: torch.zeros(2)}, folder / "Wan2.1_VAE.pth")


DIT = "diffusion_pytorch_model.safetensors"


def weight_map(folder: Path) -> None:
    (folder / f"{DIT}.index.json").write_text(json.dumps({"weight_map": {EVIL: DIT, "x": EVIL}}))


def weight_map_key(folder: Path) -> None:
    known = read_header(folder / DIT).tensors
    (folder / f"{DIT}.index.json").write_text(json.dumps({"weight_map": {**dict.fromkeys(known, DIT), EVIL: DIT}}))


def tensor_name(folder: Path) -> None:
    data = (folder / DIT).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + size])
    entries[EVIL] = entries.pop("blocks.0.ffn.0.weight")
    text = json.dumps(entries).encode()
    (folder / DIT).unlink()
    (folder / DIT).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": EVIL, "dim": EVIL, "_class_name": EVIL}))


def file_name(folder: Path) -> None:
    (folder / f"{NAME}.safetensors").write_bytes(b"Entry not found")


SOURCES = (pth_global, pth_class, pth_key, weight_map, weight_map_key, tensor_name, config, file_name)


def _manifest(folder: Path, change: Callable[[Any], object]) -> None:
    known = json.loads((folder / "wanconv.json").read_bytes())
    change(known)
    (folder / "wanconv.json").write_text(json.dumps(known))


def manifest_tensor(known: Any) -> None:
    """The tensors' bytes are not those of the list, too: they are named."""
    for file in known["files"]:
        file["sha256"] = "0" * 64
    entries = known["tensors"].values()
    known["tensors"] = {f"{EVIL}{number}": {**entry, "xxh3_128": "0" * 32} for number, entry in enumerate(entries)}


def manifest_lora(known: Any) -> None:
    known["loras"] = [{"file": EVIL, "sha256": "0" * 64, "component": EVIL, "strength": 1.0, "tensors": 1, "keys": 1}]


def manifest_texts(known: Any) -> None:
    known["layout"] = known["recipe"]["name"] = EVIL
    known["plan"] = "0" * 64


def manifest_path(known: Any) -> None:
    known["files"][0]["path"] = EVIL


TOML = '"' + "".join(f"\\U{ord(character):08x}" for character in EVIL) + '"'
RECIPE = f"""schema = 1
summary = {TOML}
[[rule]]
match = "**"
format = "bf16"
"""


HEADERS = (b"X-HF-Warning", b"X-Error-Message", b"X-Error-Code", b"X-Repo-Commit")


class _Answers(socketserver.StreamRequestHandler):
    """Answers by the repository's name, in bytes that no library for servers would send."""

    def handle(self) -> None:
        request = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        evil = WITHOUT_LINES.encode()
        listing = [
            {"type": "file", "path": name, "size": 3, "oid": "0" * 40} for name in ("config.json", EVIL, "a/" + EVIL)
        ]
        status, headers, body = b"200 OK", b"", json.dumps({"id": "owner/x", "sha": "0" * 40}).encode()
        if b"warned" in request:
            headers = b"".join(b"%s: topic; %s\r\n" % (name, evil) for name in HEADERS)
        if b"reason" in request:
            status, body = b"418 " + evil, b"{}"
        elif b"/api/v1/" in request:
            answer = {"Code": 1, "Message": EVIL, "Success": False, "RequestId": EVIL}
            status, body = b"400 " + evil, json.dumps(answer).encode()
        elif b"/tree/" in request:
            body = json.dumps(listing).encode()
        elif b"commit" in request:
            body = json.dumps({"id": "owner/x", "sha": EVIL * 100}).encode()
        self.wfile.write(b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n" + headers)
        self.wfile.write(b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _commands(root: Path, source: Path, converted: Path) -> dict[str, list[str]]:
    """Makes the data below `root`; returns a command for each source of text."""
    commands: dict[str, list[str]] = {}
    for damage in SOURCES:
        folder = Path(shutil.copytree(source, root / damage.__name__, copy_function=os.link))
        if (folder / "Wan2.1_VAE.pth").exists() and damage.__name__.startswith("pth"):
            (folder / "Wan2.1_VAE.pth").unlink()
        damage(folder)
        commands[damage.__name__] = ["inspect", str(folder), "--tensors", "-v"]
    for change in (manifest_tensor, manifest_lora, manifest_texts, manifest_path):
        folder = Path(shutil.copytree(converted, root / change.__name__))
        _manifest(folder, change)
        against = ["--against", str(source)] if change is manifest_lora else []
        commands[change.__name__] = ["verify", str(folder), "-v", *against]
    commands["manifest_texts"] = ["convert", str(source), "-r", "bf16", "-o", str(root / "manifest_texts")]
    for name, text in {
        "sums_line": f"{WITHOUT_LINES}\n",
        "sums_path": f"{'0' * 64}  {WITHOUT_LINES}\n",
        "sums_escaped": f"\\{'0' * 64}  a\\nerror[forged]: {WITHOUT_LINES}\n",
    }.items():
        (root / f"{name}.sha256").write_text(text)
        commands[name] = ["verify", str(source), "--sums", str(root / f"{name}.sha256"), "-v"]
    (root / "recipe.toml").write_text(RECIPE)
    (root / "key.toml").write_text(f"schema = 1\n{TOML} = 1\n")
    (root / f"{NAME}.toml").write_text("schema = [")
    results = as_json(cannot_judge()[0])
    results["notes"] = results["cannot_judge"] = [EVIL]
    results["settings"]["prompt"] = EVIL
    for rows in ("storage", "safety", "steps", "components"):
        for row in results[rows]:
            row.update({key: EVIL for key, value in row.items() if isinstance(value, str)})
    (root / "results.json").write_text(json.dumps(results))
    return commands | {
        "recipe_summary": ["recipes", str(root / "recipe.toml")],
        "recipe_on": ["convert", str(source), "-r", str(root / "recipe.toml"), "-n", "-o", str(root / NAME)],
        "recipe_key": ["recipes", str(root / "key.toml")],
        "recipe_name": ["recipes", str(root / f"{NAME}.toml")],
        "profile_key": ["validate", str(source), "--profile", str(root / "key.toml")],
        "results_texts": ["validate", "--recheck", str(root / "results.json")],
        "out": ["convert", str(source), "-r", "keep", "-o", str(root / NAME)],
        "out_again": ["verify", str(root / NAME)],
        "path": ["inspect", str(root / f"none{NAME}")],
        "option": [f"--{NAME}"],
        "value": ["inspect", "--expert", EVIL],
        "verb": [EVIL],
        "hub_listing": ["download", "hf://owner/listing", "--dry-run"],
        "hub_skipped": ["download", "hf://owner/listing", "--dry-run", "--include", "config.json"],
        "hub_reason": ["download", "hf://owner/reason", "--dry-run"],
        "hub_commit": ["download", "hf://owner/commit", "--dry-run"],
        "hub_warning": ["download", "hf://owner/warned", "--dry-run"],
        "modelscope": ["download", "ms://owner/message", "--dry-run"],
        "repository": ["download", f"hf://owner/{NAME}", "--dry-run"],
    }


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path], endpoint: str
) -> tuple[dict[str, Done], dict[str, Done]]:
    """Returns what each command printed for people, and as JSON."""
    root, source = tmp_path_factory.mktemp("text"), tiny("wan2.1-t2v-1.3b")
    from wanconv.commands.convert import convert
    from wanconv.conversion.options import ConvertOptions

    convert(source, ConvertOptions("keep", out=root / "converted", jobs=1))
    commands = _commands(root, source, root / "converted")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            patch.setenv(name, endpoint)
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setenv("COLUMNS", "200")
        done = run_all([*commands.values(), *([*words, "--json"] for words in commands.values())], root)
    names = list(commands)
    return dict(zip(names, done, strict=False)), dict(zip(names, done[len(names) :], strict=True))


# What data of these kinds is not shown at all: a form that is refused without quoting it.
UNQUOTED = {"sums_line", "hub_commit"}


@pytest.mark.exhaustive
def test_no_command_prints_what_a_terminal_obeys(
    shown: tuple[dict[str, Done], dict[str, Done]], record_property: Callable[[str, object], None]
) -> None:
    for name, done in shown[0].items():
        check(done.output + done.errors)
        assert "Traceback" not in done.errors, name
    record_property("cases", len(shown[0]))


@pytest.mark.exhaustive
def test_what_data_says_is_shown(shown: tuple[dict[str, Done], dict[str, Done]]) -> None:
    """Else the test above would prove nothing: each source's text is on the screen, as escapes."""
    escapes = ("x1b", "\\033")  # of text, and in what is there to be copied into a shell
    texts = {name: done.output + done.errors for name, done in shown[0].items()}
    hidden = {name for name, text in texts.items() if "red" not in text or not any(one in text for one in escapes)}
    assert hidden <= UNQUOTED


@pytest.mark.exhaustive
def test_json_of_every_command_is_one_document_without_a_control_character(
    shown: tuple[dict[str, Done], dict[str, Done]], record_property: Callable[[str, object], None]
) -> None:
    for name, done in shown[1].items():
        assert done.output.isascii(), name
        check(done.output + done.errors)
        json.loads(done.output)
    record_property("cases", len(shown[1]))
