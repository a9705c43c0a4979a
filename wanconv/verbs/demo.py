"""demo: the whole way on a tiny model: make a checkpoint, plan, convert, verify against the source."""

from pathlib import Path

from wanconv.report import Report
from wanconv.verbs import verify
from wanconv.verbs.convert import convert, preview
from wanconv.workshop import synthetic
from wanconv.workshop.job import Options
from wanconv.workshop.progress import Progress

_RECIPE = "experts-bf16-rest-fp16"


def demo(folder: Path, progress: Progress = lambda what, done, total: None) -> Report:
    """Makes a tiny Wan 2.2 A14B in `folder`/source and its conversion in `folder`/converted; returns the proof."""
    source, converted = folder / "source", folder / "converted"
    if not source.exists():
        synthetic.make(source, synthetic.Options("wan2.2-t2v-a14b"), progress)
    options = Options(_RECIPE, layout="diffusers", out=converted)
    planned = preview(source, options)
    written = convert(source, options, progress)
    proof = verify.verify(converted, verify.Options(against=source), progress)
    if proof.exit_code:
        return proof
    figures = {
        "source": f"{source}: a tiny {planned.figures['family']} with made-up numbers, official layout",
        "converted": f"{converted}: {written.figures['recipe']}",
        "verified": f"{proof.figures['cover']}; {proof.figures['manifest']}; every element within its bound",
        "look_at": f"{converted / 'README.md'}, {converted / 'wanconv.json'}",
        "next": f"wanconv inspect {converted} --tensors · wanconv convert {source} -r fp8-plain -n · wanconv recipes",
    }
    return Report("demo", "from a checkpoint to a proof", figures, (*planned.tables, *proof.tables), written.findings)
