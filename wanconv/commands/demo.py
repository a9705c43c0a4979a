"""demo: the whole way on the small model that ships: verify, convert for four clients, prove, validate, break one, and
compare them all on one page.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from stat import S_ISLNK
from typing import TYPE_CHECKING

import numpy as np

from wanconv.commands import validate, verify
from wanconv.commands.convert import convert
from wanconv.containers import open_checkpoint
from wanconv.conversion.options import ConvertOptions
from wanconv.conversion.replacing import entries
from wanconv.errors import CheckFailed, UsageError
from wanconv.models import identify
from wanconv.provenance import manifest
from wanconv.report import Cell, Finding, Report, Table, Tone
from wanconv.samples import shipped
from wanconv.storage.local import describe_output_error, write_anew
from wanconv.storage.paths import check_target
from wanconv.types.extras import need
from wanconv.types.figures import count, figure
from wanconv.types.progress import Progress, silent

if TYPE_CHECKING:
    from wanconv.evaluation.measure import Clips, Kept
    from wanconv.evaluation.report.comparison import Side

PAGE = "demo.html"
_FOLDERS = ("converted", "broken", "reports")
_FACTOR = 4  # factor of the spoilt scale: as if it were another tensor's
_NUMERICS = "diffusers"  # settings of all, so that all are compared with one run of the source


@dataclass(frozen=True, slots=True)
class Baked:
    """A conversion that the demo makes, for a client that reads it; `spoilt` is the tensor that is damaged in it."""

    name: str
    recipe: str
    layout: str
    spoilt: str = ""

    @property
    def summary(self) -> str:
        return f"{self.recipe}, spoilt" if self.spoilt else f"for {self.layout}"


CONVERSIONS = (
    Baked("experts-bf16-rest-fp16", "experts-bf16-rest-fp16", "diffusers"),
    Baked("fp8-scaled", "fp8-scaled", "comfyui"),
    Baked("int8-row", "int8-row", "lightx2v"),
    Baked("fp8-plain", "fp8-plain", "diffsynth"),
    Baked("broken", "fp8-scaled", "comfyui", "expert.high/blocks.0.self_attn.v.weight"),
)


def demo(folder: Path, progress: Progress = silent) -> Report:
    """Makes the small model in `folder`/source, its conversions, their reports and the page that compares them.

    The exit code is 0 if every conversion passes and the broken one does not.
    """
    need("validate", "the demo")
    from wanconv.evaluation.report.comparison import render  # imports torch

    _refuse_others(folder)
    cover = verify.verify(shipped.make(folder / "source", progress), verify.VerifyOptions(), progress)
    kept: Kept = {}
    sides: list[Side] = []
    clips: Clips = {}
    for baked in CONVERSIONS:
        side, frames = _judged(folder, baked, _made(folder, baked, progress), kept, progress)
        sides.append(side)
        clips |= {"reference": frames["reference"], baked.name: frames["candidate"]}
    title = f"a small {cover.figures['family']}, trained on coloured shapes that move"
    write_anew(folder / PAGE, render(title, sides, clips, _commands(folder)).encode())
    return told(folder, f"a small trained {cover.figures['family']}, official layout; {cover.text('cover')}", sides)


def _refuse_others(folder: Path) -> None:
    """Raises UsageError if the files to be replaced were not made by a demo: a demo's folder has its source, whose
    bytes are checked."""
    check_target(folder)
    there = [folder / name for name in (*_FOLDERS, PAGE) if os.path.lexists(folder / name)]
    if there and not (folder / "source").is_dir():
        raise UsageError(f"{there[0]} was not made by a demo", "name another folder, or move it away by hand")
    below = [
        path / name for path in there if path.is_dir() for name, status in entries(path) if S_ISLNK(status.st_mode)
    ]
    if links := [path for path in (folder / "source", *there) if path.is_symlink()] + below:
        raise UsageError(f"{links[0]} is a link", "name another folder, or move it away by hand")


def told(folder: Path, what: str, sides: "Sequence[Side]") -> Report:
    """Returns the results and their places; the exit code is 1 unless all results are as expected."""
    from wanconv.evaluation.report.comparison import headline

    whole = [side for side in sides if not side.damage]
    first = folder / "converted" / whole[0].name
    figures = {
        "source": f"{folder / 'source'}: {what}",
        "converted": ", ".join(str(folder / "converted" / side.name) for side in whole),
        "verified": "; ".join(f"{side.name}: {side.proof}" for side in whole),
        "validated": ", ".join(f"{side.name} {side.verdict.outcome}" for side in sides),
        "broken": "; ".join(f"{side.damage}: {side.proof}" for side in sides if side.damage),
        "look_at": f"{folder / PAGE}, {first / 'README.md'}, {first / manifest.NAME}",
        "next": " · ".join(_commands(folder)),
    }
    findings = [
        Finding("failure", side.name, _unexpected(side), f"look at {folder / side.link}", CheckFailed.code)
        for side in sides
        if not side.as_expected
    ]
    code = CheckFailed.exit_code if findings else 0
    tone: Tone = "failure" if findings else "success"
    return Report("demo", headline(sides), figures, (_table(sides),), findings, {}, code, tone)


def _made(folder: Path, baked: Baked, progress: Progress) -> Path:
    """Returns the folder of a conversion; a spoilt one is a copy of its weights, as another tool might leave it."""
    source, out = folder / "source", folder / "converted" / baked.name
    if not baked.spoilt:
        convert(source, ConvertOptions(baked.recipe, layout=baked.layout, out=out, force=True), progress)
        return out
    out = folder / baked.name
    whole = next(one for one in CONVERSIONS if (one.recipe, one.layout, one.spoilt) == (baked.recipe, baked.layout, ""))
    own = shutil.ignore_patterns(manifest.NAME, "README.md")
    try:
        shutil.copytree(
            folder / "converted" / whole.name, out, ignore=own, copy_function=_copy_anew, dirs_exist_ok=True
        )
        _spoil_scale(out, baked.spoilt)
    except OSError as error:
        raise describe_output_error(error, out) from error
    return out


def _copy_anew(source: str, target: str) -> None:
    """Copies a file in place of an existing one; hard links to the old one keep their bytes."""
    Path(target).unlink(missing_ok=True)
    shutil.copy2(source, target)


def _spoil_scale(folder: Path, name: str) -> None:
    """Multiplies a tensor's only scale in its file."""
    scale = identify(open_checkpoint(folder)).tensors[name].scales
    assert scale is not None, "the recipe stores scales"
    wrong = np.frombuffer(scale.read(), np.float32) * np.float32(_FACTOR)
    with scale.file.open("r+b") as stream:
        stream.seek(scale.offset)
        stream.write(wrong.tobytes())


def _judged(folder: Path, baked: Baked, made: Path, kept: "Kept", progress: Progress) -> "tuple[Side, Clips]":
    """Returns the results of verify and validate for a conversion, and the frames of the source and of the
    conversion."""
    from wanconv.evaluation.report.comparison import Side

    source, report = folder / "source", folder / "reports" / baked.name
    proof = verify.verify(made, verify.VerifyOptions(against=source), progress)
    settings = {"--size": "x".join(map(str, shipped.SIZE)), "--frames": shipped.FRAMES, "--steps": shipped.STEPS}
    words = [
        str(word) for pair in {**settings, "--prompt": shipped.PROMPT, "--numerics": _NUMERICS}.items() for word in pair
    ]
    asked = validate.ValidateOptions(
        against=source,
        numerics=_NUMERICS,
        steps=shipped.STEPS,
        size=shipped.SIZE,
        frames=shipped.FRAMES,
        prompt=shipped.PROMPT,
        out=report,
        command=("wanconv", "validate", str(made), "--against", str(source), *words, "-o", str(report)),
        kept=kept,
    )
    found = validate.judged(made, asked, progress)
    side = Side(
        baked.name,
        baked.summary,
        found.results,
        found.verdict,
        found.profile,
        _proof(proof),
        _failures(proof),
        f"reports/{baked.name}/validation.html",
        f"{baked.spoilt} has {_FACTOR} times its scale" if baked.spoilt else "",
    )
    return side, found.clips


def _failures(proof: Report) -> list[str]:
    return [f"{finding.where} {finding.message}" for finding in proof.findings if finding.severity == "failure"]


def _proof(report: Report) -> str:
    """Returns the result of verify in a few words."""
    if wrong := len(_failures(report)):
        return f"{count(wrong, 'tensor')} out of bounds"
    (table,) = (table for table in report.tables if "tensors" in table.columns)
    tensors = sum(int(str(row[table.columns.index("tensors")])) for row in table.rows)
    return f"all {count(tensors, 'tensor')} within their bounds"


def _unexpected(side: "Side") -> str:
    if side.damage:
        return f"{side.damage}, and verify and validate do not both say so"
    return f"{side.verdict.outcome}; {side.proof}"


def _table(sides: "Sequence[Side]") -> Table:
    from wanconv.evaluation.report.comparison import figures

    rows = []
    for side in sides:
        of = figures(side, None)
        error, psnr = (Cell(value, "" if value is None else figure(value)) for value in (of.error, of.psnr_db))
        proof = Cell(side.proven, *(("within bounds", "success") if side.proven else ("out of bounds", "failure")))
        share = Cell(of.share, f"{of.share:.0%}")
        rows.append((side.name, side.summary, of.nbytes, share, proof, side.verdict.outcome, error, psnr))
    columns = ("conversion", "what", "size_nbytes", "of the source", "verify", "validate", "largest error", "PSNR dB")
    return Table("conversions", columns, tuple(rows))


def _commands(folder: Path) -> list[str]:
    source, first = folder / "source", folder / "converted" / CONVERSIONS[0].name
    return [
        f"wanconv inspect {quote(str(first))} --tensors",
        f"wanconv convert {quote(str(source))} -r fp8-plain -n",
        "wanconv recipes",
    ]
