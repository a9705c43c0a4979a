"""What `--force` may replace, and what it never touches, whatever is said.

Every home folder of these tests lies below their temporary one, by the environment and by the system's list of users:
code that is wrong finds nothing else to replace.
"""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from command import COMMAND

from wanconv.cli.run import run
from wanconv.commands.convert import convert, convert_remote, preview, preview_remote
from wanconv.conversion import replacing, workspace
from wanconv.conversion.hub_source import streamed
from wanconv.conversion.options import ConvertOptions
from wanconv.downloads.headers import Mirror
from wanconv.errors import NotFinite, UsageError
from wanconv.storage.hubs import Patience, Snapshot, open_hub
from wanconv.storage.local import publish
from wanconv.types.progress import ProgressStep

BY_HAND = "choose another folder for the output, or move it away by hand"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"

Place = Callable[[Path, pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with `source`, and with `out`, converted from it."""
    folder = tmp_path_factory.mktemp("places")
    tiny.make(folder / "source", "wan2.1-t2v-1.3b", "dit")
    convert(folder / "source", ConvertOptions("bf16", layout="diffusers", out=folder / "out"))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives every user a home folder below the test's own one, and the test a current folder there."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    (elsewhere / "deep").mkdir(parents=True)
    (folder / "precious").write_text("precious")
    user = pwd.getpwuid(os.getuid())
    entry = pwd.struct_passwd((*user[:5], str(folder), user[6]))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry)
    monkeypatch.chdir(elsewhere / "deep")
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """Returns a folder that wanconv wrote, beside its source."""
    tiny.copy(made / "source", tmp_path / "source")
    return tiny.copy(made / "out", tmp_path / "out")


def other(out: Path) -> ConvertOptions:
    """Returns another conversion into the same folder, by force."""
    return ConvertOptions("fp16", layout="diffusers", out=out, force=True)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Returns path → kind and content of all below a folder."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def check_refused(out: Path, message: str, options: ConvertOptions | None = None) -> UsageError:
    """Asserts that a forced conversion and its plan are refused, and that nothing changes; returns the refusal."""
    before = state(out.parent)
    options = options or other(out)
    with pytest.raises(UsageError, match=message):
        preview(out.parent / "source", options)
    with pytest.raises(UsageError, match=message) as refused:
        convert(out.parent / "source", options)
    assert state(out.parent) == before
    return refused.value


def test_a_folder_that_wanconv_wrote_is_replaced_and_nothing_of_it_is_left(out: Path) -> None:
    report = convert(out.parent / "source", other(out))
    assert report.exit_code == 0
    assert json.loads((out / "wanconv.json").read_bytes())["recipe"]["name"] == "fp16"
    assert sorted(path.name for path in out.parent.iterdir()) == ["elsewhere", "home", "out", "source"]


def test_an_empty_folder_is_replaced(out: Path) -> None:
    shutil.rmtree(out)
    out.mkdir()
    assert convert(out.parent / "source", other(out)).exit_code == 0
    assert (out / "wanconv.json").is_file()


def linked(path: Path) -> None:
    """Moves what is there to the home folder, and leaves a link to it."""
    path.symlink_to(path.rename(Path.home() / path.name))


# fmt: off
OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {  # what others have put there, and what is said of it
    "a file":           (lambda out: (out / "precious").write_text("precious"),
                         "precious is not listed in wanconv.json"),
    "a hidden file":    (lambda out: (out / ".precious").write_text("precious"),
                         ".precious is not listed in wanconv.json"),
    "a file below":     (lambda out: (out / "transformer" / "notes").write_text("precious"),
                         "transformer/notes is not listed in wanconv.json"),
    "an empty folder":  (lambda out: (out / "precious").mkdir(), "precious is a folder of others"),
    "a FIFO":           (lambda out: os.mkfifo(out / "pipe"), "pipe is a FIFO"),
    "a link":           (lambda out: (out / "link").symlink_to(out.parent / "home"), "link is a link"),
    "a listed link":    (lambda out: linked(out / "README.md"), "README.md is a link"),
    "a linked folder":  (lambda out: linked(out / "transformer"), "transformer is a link"),
}
# fmt: on


@pytest.mark.parametrize("kind", OTHERS)
def test_a_folder_into_which_others_have_put_something_is_refused_and_names_it(out: Path, kind: str) -> None:
    put, said = OTHERS[kind]
    put(out)
    refusal = check_refused(out, "out holds what wanconv did not write, and is not replaced")
    assert (refusal.hint, said in refusal.details) == (BY_HAND, True)


def test_a_models_folder_into_which_an_output_was_copied_is_refused_with_ten_names(out: Path) -> None:
    for number in range(30):
        (out / f"model-{number:02}.safetensors").write_text("precious")
    refusal = check_refused(out, "out holds what wanconv did not write")
    assert len(refusal.details) == 10
    unforced = replace(other(out), force=False)
    with pytest.raises(UsageError, match="holds another conversion") as told:
        convert(out.parent / "source", unforced)
    assert told.value.hint == BY_HAND  # not --force, which would be refused


@pytest.mark.parametrize("content", ["none", "a file", "a file named wanconv.json", "a manifest that is damaged"])
def test_a_folder_that_wanconv_did_not_write_is_never_moved(out: Path, content: str) -> None:
    known = (out / "wanconv.json").read_bytes()
    shutil.rmtree(out)
    out.mkdir()
    (out / "precious").write_text("precious")
    if "named" in content:
        (out / "wanconv.json").write_text("{}")
    elif "damaged" in content:
        (out / "wanconv.json").write_bytes(known[:-9])
    assert check_refused(out, "wanconv did not write .*out, and does not replace it").hint == BY_HAND
    with pytest.raises(UsageError, match="out exists and wanconv did not write it") as told:
        convert(out.parent / "source", replace(other(out), force=False))
    assert told.value.hint == BY_HAND


@pytest.mark.parametrize("path", ["../home/precious", "/home/precious", "out/../../home/precious", "a\\b"])
def test_a_manifest_that_lists_files_elsewhere_is_none(out: Path, path: str) -> None:
    known = json.loads((out / "wanconv.json").read_bytes())
    known["files"].append({"path": path, "nbytes": 8, "sha256": "0" * 64})
    (out / "wanconv.json").write_text(json.dumps(known))
    check_refused(out, "wanconv did not write")


@pytest.mark.parametrize("kind", ["a file", "a link", "a link to nothing", "a FIFO"])
def test_what_is_no_folder_is_never_replaced(out: Path, kind: str) -> None:
    kept = out.rename(out.with_name("kept"))
    if kind == "a file":
        out.write_text("precious")
    elif kind == "a FIFO":
        os.mkfifo(out)
    else:
        out.symlink_to(kept if kind == "a link" else "nowhere")
    kind = kind.removesuffix(" to nothing")
    assert check_refused(out, f"out is {kind}, not a folder, and is not replaced").hint == BY_HAND


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device")
def test_a_device_is_never_replaced(out: Path) -> None:
    shutil.rmtree(out)
    os.mknod(out, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    check_refused(out, "out is a device, not a folder, and is not replaced")


def test_a_file_with_a_second_name_keeps_its_bytes_there(out: Path) -> None:
    (out.parent / "models").mkdir()
    before = (out / WEIGHTS).read_bytes()
    (out.parent / "models" / "model.safetensors").hardlink_to(out / WEIGHTS)
    convert(out.parent / "source", other(out))
    assert (out.parent / "models" / "model.safetensors").read_bytes() == before


# fmt: off
STANDING: dict[str, tuple[Place, str]] = {  # what stands on OUT, or in it, and what is said
    "home":                 (lambda out, patch: patch.setenv("HOME", str(out)), "is the home folder"),
    "home, spelled oddly":  (lambda out, patch: patch.setenv("HOME", f"{out}/../out/"), "is the home folder"),
    "a parent of home":     (lambda out, patch: patch.setenv("HOME", str(out / "transformer")),
                             "holds the home folder"),
    "the system's home":    (lambda out, patch: patch.setattr(pwd, "getpwuid", lambda uid: user_at(out)),
                             "is the home folder"),
    "the current folder":   (lambda out, patch: patch.chdir(out), "is the current folder"),
    "its parent":           (lambda out, patch: patch.chdir(out / "transformer"), "holds the current folder"),
    "Python":               (lambda out, patch: patch.setattr(sys, "prefix", str(out)),
                             "is the folder of the running Python"),
    "above Python":         (lambda out, patch: patch.setattr(sys, "executable", str(out / "transformer" / "python")),
                             "holds the folder of the running Python"),
    "above its library":    (lambda out, patch: patch.setattr(os, "__file__", str(out / "lib" / "python3" / "os.py")),
                             "holds the folder of the running Python"),
    "wanconv":              (lambda out, patch: patch.setattr(replacing, "__file__", str(out / "workshop" / "x.py")),
                             "is the folder of wanconv itself"),
    "above wanconv":        (lambda out, patch: patch.setattr(replacing, "__file__", str(out / "a" / "b" / "x.py")),
                             "holds the folder of wanconv itself"),
    "a mount point":        (lambda out, patch: patch.setattr(os.path, "ismount", lambda path: path == out),
                             "is a mount point"),
    "a bound folder":       (lambda out, patch: mounted(out, patch), "is a mount point"),
}
# fmt: on


def user_at(home: Path) -> pwd.struct_passwd:
    return pwd.struct_passwd(("me", "x", os.getuid(), os.getgid(), "", str(home), "/bin/sh"))


def mounted(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes the system's list of mount points name a path, which it writes with its blanks as octal numbers."""
    named = str(path).replace(" ", r"\040")
    listed = Path("mountinfo").absolute()
    listed.write_text(
        f"22 28 0:21 / /proc rw,nosuid - proc proc rw\n36 22 8:1 /x {named} rw,relatime - ext4 /dev/sda1 rw\n"
    )
    patch.setattr(replacing, "_MOUNTS", listed)


@pytest.mark.parametrize("content", ["wanconv's", "nothing"])
@pytest.mark.parametrize("kind", STANDING)
def test_a_folder_that_something_stands_on_is_refused_whatever_is_said(
    out: Path, monkeypatch: pytest.MonkeyPatch, kind: str, content: str
) -> None:
    """Even a folder that wanconv wrote, and an empty one."""
    if content == "nothing":
        shutil.rmtree(out)
        out.mkdir()
        if kind == "its parent":
            (out / "transformer").mkdir()
    put, said = STANDING[kind]
    put(out, monkeypatch)
    for options in (other(out), replace(other(out), force=False)):
        assert check_refused(out, f"out {said}", options).hint == "name a new folder for the output"


def test_a_partial_that_something_stands_on_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = out.rename(out.with_name("out.partial"))
    monkeypatch.setenv("HOME", str(partial))
    before = state(out.parent)
    with pytest.raises(UsageError, match=r"out\.partial is the home folder"):
        convert(out.parent / "source", other(out))
    assert state(out.parent) == before


def test_a_home_whose_every_file_a_manifest_lists_is_refused(home: Path, made: Path, tmp_path: Path) -> None:
    """Whoever may write there can write such a manifest."""
    tiny.copy(made / "source", tmp_path / "source")
    shutil.copytree(made / "out", home, dirs_exist_ok=True)
    known = json.loads((home / "wanconv.json").read_bytes())
    known["files"].append({"path": "precious", "nbytes": 8, "sha256": "0" * 64})
    (home / "wanconv.json").write_text(json.dumps(known))
    assert replacing.others_in(home) is None
    for spelled in (home, home / ".", home / ".." / "home", tmp_path / "link" / "home"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(UsageError, match="home is the home folder"):
            convert(tmp_path / "source", other(spelled))
    assert (home / "precious").read_text() == "precious"


@pytest.mark.parametrize("spelled", ["/", ".", ".."])
def test_a_repository_is_converted_into_no_such_place_and_no_hub_is_asked(home: Path, spelled: str) -> None:
    for verb in (convert_remote, preview_remote):
        with pytest.raises(UsageError, match=r"holds|is a mount point|is the current folder"):
            verb("hf://owner/name", ConvertOptions("bf16", out=Path(spelled), force=True))


def test_a_kept_source_fills_no_home_folder(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "out.source").symlink_to(home)
    snapshot = Snapshot("hf", "owner/name", "main", None, ())
    mirror = Mirror(tmp_path / "mirror", open_hub("hf"), snapshot, Patience())
    with (
        pytest.raises(UsageError, match=r"out\.source is the home folder"),
        streamed(mirror, tmp_path / "out", keep=True),
    ):
        pass
    assert state(home).keys() == {"precious"}


@pytest.mark.parametrize("path", ["transformer", WEIGHTS])
def test_another_file_system_in_the_folder_is_not_emptied(
    out: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    mounted(out / path, monkeypatch)
    refusal = check_refused(out, "out holds what wanconv did not write")
    assert refusal.details == (f"{path} is a mount point",)


def test_the_system_says_what_is_mounted() -> None:
    assert not os.access("/proc/self/mountinfo", os.R_OK) or "/" in replacing.mount_points()


@pytest.mark.tools
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.parametrize(
    ("place", "said"), [("out", "out is a mount point"), ("out/transformer", "holds what wanconv")]
)
def test_a_real_bind_mount_is_refused(out: Path, place: str, said: str) -> None:
    """In a namespace of its own, where nothing but the test's folder may be written."""
    script = (
        'mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,bind,ro / && cd "$1"/elsewhere && '
        'mount --bind "$1/$2" "$1/$2" && shift 2 && exec "$@"'
    )
    if place == "out":  # from elsewhere, so that what is seen is the mount and not the same folder twice
        script = script.replace('mount --bind "$1/$2" "$1/$2"', 'mount --bind "$1/home" "$1/$2"')
    arguments = ["convert", out.parent / "source", "-r", "fp16", "--layout", "diffusers", "--force", "-o", out]
    before = state(out.parent)
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "-", str(out.parent), place, *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert state(out.parent) == before


# The look and the rename


def test_a_folder_that_others_write_to_during_the_run_is_left_and_the_work_is_not_lost(out: Path) -> None:
    before = tiny.digests(out)

    def put(step: ProgressStep) -> None:
        (out / "precious").write_text("precious")

    with pytest.raises(UsageError, match="out holds what wanconv did not write") as refused:
        convert(out.parent / "source", other(out), put)
    assert (refused.value.hint, refused.value.details) == (BY_HAND, ("precious is not listed in wanconv.json",))
    assert tiny.digests(out).keys() == before.keys() | {"precious"}
    out.rename(out.with_name("moved away by hand"))
    written: list[str] = []
    assert convert(out.parent / "source", other(out), lambda step: written.append(step.what)).exit_code == 0
    assert written == []  # all was there already
    assert not out.with_name("out.partial").exists()


def test_a_folder_that_becomes_the_current_one_during_the_run_is_left(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.digests(out)
    with pytest.raises(UsageError, match="out is the current folder"):
        convert(out.parent / "source", other(out), lambda step: monkeypatch.chdir(out))
    assert tiny.digests(out) == before


def test_a_file_that_appears_between_the_look_and_the_move_brings_the_folder_back(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.digests(out)

    def late(folder: Path, target: Path) -> None:
        if folder == out:
            (out / "precious").write_text("precious")
        publish(folder, target)

    monkeypatch.setattr(workspace, "publish", late)
    with pytest.raises(UsageError, match="out changed while it was about to be replaced") as refused:
        convert(out.parent / "source", other(out))
    assert refused.value.hint == BY_HAND
    assert tiny.digests(out).keys() == before.keys() | {"precious"}
    assert sorted(path.name for path in out.parent.iterdir()) == ["elsewhere", "home", "out", "out.partial", "source"]


def test_what_takes_the_place_of_the_folder_meanwhile_is_left_and_told(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(folder: Path, target: Path) -> None:
        if folder == out:
            (out / "precious").write_text("precious")
        publish(folder, target)
        if folder == out:
            out.mkdir()
            (out / "new").write_text("precious")

    monkeypatch.setattr(workspace, "publish", late)
    with pytest.raises(UsageError, match=r"out changed while it was replaced, and is .*out\.replaced-1 now"):
        convert(out.parent / "source", other(out))
    assert (out / "new").read_text() == (out.with_name("out.replaced-1") / "precious").read_text() == "precious"


def test_a_file_that_appears_while_the_old_folder_is_removed_stays_and_is_told(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = replacing.remove

    def late(folder: Path, listed: set[str], keep_root: bool = False) -> bool:
        if not keep_root:
            (folder / "transformer" / "precious").write_text("precious")
        return remove(folder, listed, keep_root)

    monkeypatch.setattr(replacing, "remove", late)
    report = convert(out.parent / "source", other(out))
    aside = out.with_name("out.replaced-1")
    assert state(aside).keys() == {"transformer", "transformer/precious"}
    (finding,) = (one for one in report.findings if one.severity == "warning")
    assert finding.message.endswith(f"what is left of it is {aside}")


def test_a_folder_that_becomes_a_link_is_not_removed_through(out: Path) -> None:
    precious = out.rename(out.with_name("precious"))
    before = state(precious)
    out.mkdir()
    (out / "wanconv.json").write_bytes((precious / "wanconv.json").read_bytes())
    (out / "transformer").symlink_to(precious / "transformer")
    assert not replacing.remove(out, {"wanconv.json", WEIGHTS})
    assert state(precious) == before


# OUT.partial


def stop(step: ProgressStep) -> None:
    if step.done:
        raise KeyboardInterrupt


@pytest.fixture
def partial(out: Path) -> Path:
    """Returns what a run leaves that was stopped after its first block, and nothing at OUT."""
    shutil.rmtree(out)
    with pytest.raises(KeyboardInterrupt):
        convert(out.parent / "source", replace(other(out), block_nbytes=1 << 16), stop)
    return out.with_name("out.partial")


@pytest.mark.parametrize("name", ["precious", "transformer/precious", ".wanconv/precious", ".wanconv/state.json.bak"])
@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_a_file_of_others_in_a_partial_is_refused_and_stays(partial: Path, name: str, recipe: str) -> None:
    """Whether the run would go on or, by force, start over."""
    options = replace(other(partial.with_name("out")), recipe=recipe, block_nbytes=1 << 16)
    (partial / name).write_text("precious")
    before = state(partial)
    with pytest.raises(UsageError, match=r"out\.partial holds what wanconv did not write") as refused:
        convert(partial.with_name("source"), options)
    assert refused.value.hint == "move it away by hand, and run the same command again"
    assert (refused.value.details, state(partial)) == ((name,), before)
    (partial / name).unlink()
    assert convert(partial.with_name("source"), options).exit_code == 0


def test_a_file_that_others_put_into_a_partial_during_the_run_is_not_published_and_not_removed(partial: Path) -> None:
    options, source = other(partial.with_name("out")), partial.with_name("source")

    def put(step: ProgressStep) -> None:
        (partial / "precious").write_text("precious")

    with pytest.raises(UsageError, match=r"out\.partial holds what wanconv did not write"):
        convert(source, replace(options, recipe="bf16"), put)
    assert (partial / "precious").read_text() == "precious"
    (partial / "precious").unlink()
    assert convert(source, replace(options, recipe="bf16")).exit_code == 0
    assert not partial.exists()


def test_what_others_put_into_a_partial_outlives_a_refusal_of_the_source(partial: Path) -> None:
    source = partial.with_name("source")
    tiny.poke(next(source.rglob("*.safetensors")), "blocks.1.ffn.0.weight", -1, float("nan"))

    def put(step: ProgressStep) -> None:
        (partial / "precious").write_text("precious")

    with pytest.raises(NotFinite):
        convert(source, replace(other(partial.with_name("out")), recipe="bf16", block_nbytes=1 << 12, jobs=1), put)
    assert state(partial).keys() - {"transformer"} == {"precious"}


def test_a_mount_point_in_a_partial_is_not_written_through(partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(partial / "transformer", monkeypatch)
    before = state(partial)
    with pytest.raises(UsageError, match="transformer is a mount point: wanconv does not write through it"):
        convert(partial.with_name("source"), other(partial.with_name("out")))
    assert state(partial) == before


@pytest.mark.parametrize("saved", ["[]", '{"key": 1, "overflowing": [1, "a"], "files": ["b", {}]}', '{"key": "a"}'])
def test_a_state_that_is_no_state_makes_a_partial_nobodys(partial: Path, saved: str) -> None:
    (partial / ".wanconv" / "state.json").write_text(saved)
    before = state(partial)
    with pytest.raises(UsageError, match=r"out\.partial is in the way: wanconv did not make it"):
        convert(partial.with_name("source"), other(partial.with_name("out")))
    assert state(partial) == before


# As it is typed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "~"], "home is the home folder"),
        (["--out", "~root"], "home is the home folder"),
        (["--out=~/"], "home is the home folder"),
        (["--out", ""], "--out: the path is empty"),
        (["-o", " "], "--out: the path is empty"),
        (["-o", "."], "is the current folder"),
        (["-o", "./"], "is the current folder"),
        (["-o", ".."], "holds the current folder"),
        (["-o", "../deep/.."], "holds the current folder"),
        (["-o", "../../home/precious"], "precious is a file, not a folder, and is not replaced"),
    ],
)
def test_an_odd_path_on_the_command_line_replaces_nothing(
    out: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(out.parent)
    with pytest.raises(SystemExit) as ended:
        run(["convert", str(out.parent / "source"), "-r", "fp16", "--force", *arguments])
    error = capsys.readouterr().err
    assert (ended.value.code, error.startswith(("error[usage]: ", "error[occupied]: ")), said in error) == (
        2,
        True,
        True,
    ), error
    assert state(out.parent) == before


def test_a_tilde_behind_a_dot_and_a_slash_is_a_folder_of_that_name(out: Path, home: Path) -> None:
    """`./~root` once replaced the home folder of root."""
    before = state(home)
    for name in ("~root", "~"):
        with pytest.raises(SystemExit) as ended:
            run(["convert", str(out.parent / "source"), "-r", "fp16", "--force", "--out", f"./{name}", "-q"])
        assert ended.value.code == 0
        assert (out.parent / "elsewhere" / "deep" / name / "wanconv.json").is_file()
    assert state(home) == before
