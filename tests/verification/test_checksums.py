"""Lists of digests: every way to write one, and no bit of one that can change unseen."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from wanconv.errors import InputError
from wanconv.verification import checksums
from wanconv.verification.checksums import DigestList, Listed

NAMES = ("model.safetensors", "vae/model.pth")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model" / "vae").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "model" / name).write_text(name)
    return tmp_path / "model"


def digest(name: str, kind: str = "sha256") -> str:
    return hashlib.new(kind, name.encode()).hexdigest()


GNU = "".join(f"{digest(name)}  {name}\n" for name in NAMES)
# fmt: off
LISTS = {
    "GNU":            GNU,
    "binary":         GNU.replace("  ", " *"),
    "md5":            "".join(f"{digest(name, 'md5')}  {name}\n" for name in NAMES),
    "BSD":            "".join(f"SHA256 ({name}) = {digest(name)}\n" for name in NAMES),
    "OpenSSL":        "".join(f"SHA2-256({name})= {digest(name)}\n" for name in NAMES),
    "one space":      GNU.replace("  ", " "),
    "tab":            GNU.replace("  ", "\t"),
    "capitals":       "".join(f"{digest(name).upper()}  {name}\n" for name in NAMES),
    "CRLF":           GNU.replace("\n", "\r\n"),
    "no last end":    GNU.removesuffix("\n"),
    "byte order mark": "\ufeff" + GNU,
    "comments":       f"# made by hand\n\n#{'0' * 64}  left.out\n{GNU}",
    "dots":           GNU.replace("  ", "  ./"),
    "escaped":        "".join(f"\\{digest(name)}  {name}\n" for name in NAMES),
    "from further up": GNU.replace("  ", "  checkpoints/model/"),
    "from the root":  GNU.replace("  ", "  /srv/models/"),
    "from beside":    GNU.replace("  ", "  ../model/"),
    "bare":           "".join(f"{digest(name)}\n" for name in NAMES),
    "standard input": "".join(f"{digest(name)}  -\n" for name in NAMES),
}
# fmt: on


def verdict(text: bytes, folder: Path) -> tuple[bool, set[str]]:
    """Returns whether a list is as it should be and what it says is so, and the files that it covers."""
    path = folder.parent / "LIST"
    path.write_bytes(text)
    try:
        read = checksums.placed(checksums.read_list(path), folder)
    except InputError:
        return False, set()
    findings, compared = checksums.check(folder, read.lines, lambda step: None, 1)
    return not any(finding.severity == "failure" for finding in [*read.findings, *findings]), compared


@pytest.mark.parametrize("style", LISTS)
def test_every_style_of_list_is_read(style: str, folder: Path) -> None:
    text = LISTS[style].encode()
    assert verdict(text, folder) == (True, set(NAMES))
    (folder / NAMES[1]).write_text("another")
    assert verdict(text, folder)[0] is False


MD5 = LISTS["md5"]  # short ones: each bit of a list is flipped
FLIPPED = {
    "GNU": MD5,
    "BSD": "".join(f"MD5 ({name}) = {digest(name, 'md5')}\n" for name in NAMES),
    "CRLF": MD5.replace("\n", "\r\n"),
    "comments": f"# by hand\n{MD5}",
    "bare": "".join(f"{digest(name, 'md5')}\n" for name in NAMES),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("style", FLIPPED)
def test_no_bit_of_a_list_can_flip_unseen(
    style: str, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    """A flipped bit is a failure, or the list still says the same of every file."""
    text = FLIPPED[style].encode()
    unseen = []
    for place, bit in product(range(len(text)), range(8)):
        flipped = bytearray(text)
        flipped[place] ^= 1 << bit
        is_sound, covered = verdict(bytes(flipped), folder)
        if is_sound and covered != set(NAMES):
            unseen.append((place, bit))
    assert unseen == []
    record_property("cases", 8 * len(text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"#{'0' * 63}  model.safetensors", "is a comment that was a digest"),
        (f"# by hand*{'0' * 64}  model.safetensors", "is a comment that holds more than a comment"),
        (f"# by hand\v{'0' * 64}  model.safetensors", "is a comment that holds more than a comment"),
        ("model.safetensors", "is not a digest and a file name: 'model.safetensors'"),
        ("x" * 200, f"is not a digest and a file name: '{'x' * 99}…"),
        (f"SHA3-256 (model.safetensors) = {'0' * 64}", "has a digest of an unknown kind, with 64 digits"),
        ("0" * 65, "has a digest of an unknown kind, with 65 digits"),
    ],
)
def test_a_line_that_is_damaged_is_told_by_its_number(line: str, message: str, folder: Path) -> None:
    path = folder.parent / "LIST"
    path.write_text(f"{GNU}{line}\n")
    read = checksums.read_list(path)
    assert [one.path for one in read.lines] == list(NAMES)
    (finding,) = read.findings
    assert (finding.severity, finding.where, finding.code) == ("failure", str(path), InputError.code)
    assert finding.message.startswith(f"line 3 {message}")


def test_lines_about_other_folders_are_counted_and_not_missed(folder: Path) -> None:
    path = folder.parent / "LIST"
    path.write_text(GNU.replace("  ", "  all/model/") + f"{'0' * 64}  all/other/file\n{'0' * 64}  all/file\n")
    read = checksums.placed(checksums.read_list(path), folder)
    assert [line.path for line in read.lines] == list(NAMES)
    assert [(one.severity, one.message) for one in read.findings] == [
        ("note", "2 of its lines are about files elsewhere")
    ]


def test_a_list_whose_files_are_here_is_not_looked_for_elsewhere(folder: Path) -> None:
    lines = [Listed(name, "sha256", "0" * 64, "LIST") for name in (NAMES[0], f"gone/{NAMES[1]}")]
    assert checksums.placed(DigestList(lines), folder).lines == lines


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("SHA256SUMS", True),
        ("sha256sums.txt", True),
        ("sha512-sums", True),
        ("MD5SUMS", True),
        ("model.safetensors.sha256", True),
        ("model.safetensors.SHA1", True),
        ("weights.md5", True),
        ("SHA256SUMS.asc", False),
        ("SHA256SUMS.sig", False),
        ("md5sum_all.py", False),
        ("sha256sum.md", False),
        ("README.md", False),
        ("md5", False),
    ],
)
def test_lists_are_known_by_their_names(name: str, is_one: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    assert bool(checksums.lists_in(tmp_path)) is is_one


def test_a_folder_is_looked_through_once_for_all_digests_without_a_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def looking(root: Path) -> Iterator[str]:
        looks.append(root)
        yield from NAMES

    monkeypatch.setattr(checksums, "_files", looking)
    assert verdict(LISTS["bare"].encode() * 50, folder) == (True, set(NAMES))
    assert looks == [folder]
