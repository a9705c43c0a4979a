"""demo: the whole way on a tiny model: make a checkpoint, plan, convert, verify against the source, validate."""

import shutil
from pathlib import Path

from wanconv.report import Report
from wanconv.verbs import validate, verify
from wanconv.verbs.convert import convert, preview
from wanconv.workshop import synthetic
from wanconv.workshop.job import Options
from wanconv.workshop.progress import Progress

_RECIPE = "experts-bf16-rest-fp16"


def demo(folder: Path, progress: Progress = lambda what, done, total: None) -> Report:
    """Makes a tiny Wan 2.2 A14B in `folder`/source and its conversion in `folder`/converted; proves and judges it."""
    source, converted, report = folder / "source", folder / "converted", folder / "report"
    if not source.exists():
        _make(source, progress)
    options = Options(_RECIPE, layout="diffusers", out=converted, force=True)  # the folder is the demo's own
    planned = preview(source, options)
    written = convert(source, options, progress)
    proof = verify.verify(converted, verify.Options(against=source), progress)
    if proof.exit_code:
        return proof
    command = ("wanconv", "validate", str(converted), "--against", str(source), "--size", "128x128", "-o", str(report))
    asked = validate.Options(against=source, size=(128, 128), out=report, command=command)
    judged = validate.validate(converted, asked, progress)
    figures = {
        "source": f"{source}: a tiny {planned.figures['family']} with made-up numbers, official layout",
        "converted": f"{converted}: {written.figures['recipe']}",
        "verified": f"{proof.figures['cover']}; digests of {proof.figures['digests']}; every element within its bound",
        "validated": f"{judged.figures['verdict']} by the profile {judged.figures['profile']}",
        "look_at": f"{report / 'validation.html'}, {converted / 'README.md'}, {converted / 'wanconv.json'}",
        "next": f"wanconv inspect {converted} --tensors · wanconv convert {source} -r fp8-plain -n · wanconv recipes",
    }
    tables = (*planned.tables, *proof.tables, *judged.tables)
    findings = (*written.findings, *judged.findings)
    return Report("demo", "from a checkpoint to a proof", figures, tables, findings, exit_code=judged.exit_code)


def _make(source: Path, progress: Progress) -> None:
    """Makes the tiny model beside its place and moves it there: a run that is stopped leaves no half of it."""
    unfinished = source.with_name("source.partial")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    synthetic.make(unfinished, synthetic.Options("wan2.2-t2v-a14b"), progress)
    unfinished.rename(source)
