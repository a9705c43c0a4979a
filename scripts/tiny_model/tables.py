"""docs/quality.md: the rows as Markdown, and what may be read out of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from tiny_model import calibration
from tiny_model.calibration import AMOUNTS, DROP, NEAR_DB, Judged, Limit, Measured
from tiny_model.conversions import PROFILE, Row, digest_of
from tiny_model.measured import CONTROL, PART, REFERENCE, Clips, Place, clips_of

from wanconv.types.model import Model
from wanconv.verdict import load_profile

_INTRODUCTION = """# What each conversion does to pictures

The small model that ships with wanconv (`wanconv/samples/tiny/`, numbers {digest}), converted by every recipe for
every client that reads the result, as `{command}` measured it: {seeds} clips of each model, with the same seeds and
captions for all, {steps} steps, computed in float32. What differs is what the files hold; a client's own arithmetic
comes on top.

It is a model of {megabytes:.1f} MB that knows coloured shapes. How formats rank here says something about how they rank
elsewhere; how much a large model loses has to be measured on that model: `wanconv validate`.
"""
_LEGEND = """
- **noise error**: the largest relative L2 error of a noise prediction over all probes of `wanconv validate`, both
  models fed the same inputs; **block**: the largest of what a single block adds.
- **PSNR**: of a clip against that of the source with the same seed, the median of all; **SSIM**: of luma, the mean over
  the first {ssim} clips. ∞: every clip is the source's.
- **captions**: clips in which a classifier that knows no model reads the whole caption; in brackets
  the change in points, and the clips lost and won.
- Layouts that decode to the same numbers share a row, and rows with the same numbers share verdict and clips: they are
  told by a digest of all weights as a client reads them. Sizes are the smallest of a row's layouts.
- **control**: the source once more, its start noise one unit in the last place away: what is as far off as that is not
  the conversion's doing.
"""
_CALIBRATION = """
## Do verdicts mean something?

Even rounds of the clips set what a limit has to lie between, odd rounds judge the verdicts. Beside the conversions of
the table stand damaged ones: every scale of the block weights (in bf16, every row) is off by {amounts} on average,
{damaged} clips each. *Harmful* is the least error at which the even rounds lost more than {drop:g} points of captions;
what was lost stands next to it, with its standard error.

| format | harmless conversions, up to | limit of the profile | harmful from | |
|---|---|---|---|---|
"""
_TOO_FEW = """
Verdicts are held against clips where there are two rounds of them; this page was written after one.
"""
_VERDICTS = """
The verdicts on conversions and damaged models: {outcomes}. Wrong would be a PASS that lost more than {drop:g} points of
the odd rounds' captions, and a FAIL that lost none with clips as near to the source's as the control's (within
{near:g} dB; {control} are): **{wrong}**.

| model | verdict | noise error | captions, odd rounds | PSNR (dB) |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that was measured; `clips` by digest, and `reference` and `control`; `digest` is the source's."""

    rows: Sequence[Row]
    clips: Mapping[str, Clips]
    damaged: Sequence[Measured]
    source_nbytes: int
    digest: str

    @property
    def whole(self) -> list[Measured]:
        return [Measured(row, self.clips[row.digest]) for row in self.rows]


def found(place: Place, rows: Sequence[Row], spoilt: Sequence[Row], rounds: int, damaged: int, source: Model) -> Found:
    """Returns what so many whole rounds of clips say."""
    names = [REFERENCE, CONTROL, *dict.fromkeys(row.digest for row in rows)]
    clips = {name: clips_of(place, name, rounds) for name in names}
    both = [Measured(row, clips_of(place, row.digest, damaged)) for row in spoilt]
    return Found(rows, clips, both, sum(tensor.nbytes for tensor in source.tensors.values()), digest_of(source))


def page(found: Found, command: str, steps: int) -> str:
    """Returns the whole page."""
    both, control = [*found.whole, *found.damaged], found.clips[CONTROL]
    reference = found.clips[REFERENCE]
    head = _INTRODUCTION.format(
        command=command,
        seeds=len(reference.seen),
        steps=steps,
        megabytes=found.source_nbytes / 1e6,
        digest=found.digest,
    )
    lines = [
        "| recipe | layouts | size | noise error | block | verdict | PSNR (dB) | SSIM | captions |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| *source* | | 100 % | | | | | | {_share(reference, reference)} |",
        f"| *control* | | | | | | {_figures(found.clips['control'])} | {_share(found.clips['control'], reference)} |",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found.rows:
        groups.setdefault((row.recipe, row.digest), []).append(row)
    for (name, digest), rows in groups.items():
        clips, size = found.clips[digest], min(row.nbytes for row in rows) / found.source_nbytes
        layouts = ", ".join(f"`{row.layout}`" for row in rows)
        verdicts = ", ".join(dict.fromkeys(row.verdict for row in rows))
        lines.append(
            f"| `{name}` | {layouts} | {size:.0%} | {_error(rows[0].error)} | {_error(rows[0].block)} | {verdicts} "
            f"| {_figures(clips)} | {_share(clips, reference)} |"
        )
    words = ", ".join(
        f"{what} {reference.word(place):.1f} %" for place, what in enumerate(("colour", "shape", "motion"))
    )
    ends = [
        _LEGEND.format(ssim=len(reference.ssim)),
        f"\nOf the source's clips, the classifier reads right: {words}.\n",
    ]
    text = head + "\n" + "\n".join(lines) + "\n" + "".join(ends)
    if len(reference.seen) < 2 * PART:
        return text + _TOO_FEW
    limits = calibration.limits(both, reference, load_profile(PROFILE).noise_relative_l2)
    return text + _calibration(found, limits, calibration.judged(both, reference, control))


def _calibration(found: Found, limits: Sequence[Limit], judged: Sequence[Judged]) -> str:
    text = _CALIBRATION.format(
        amounts=", ".join(f"{amount:.0%}" for amount in AMOUNTS),
        damaged=len(found.damaged[0].clips.seen),
        drop=DROP,
    )
    for one in limits:
        harmless = "none was" if one.harmless is None else _error(one.harmless)
        harmful = "none was" if one.harmful is None else _error(one.harmful)
        if one.lost is not None:
            harmful += f" ({one.lost[0]:.1f} ± {one.lost[1]:.1f} points)"
        says = "between them" if one.fits else "within the error of the loss" if one.near else "**not between them**"
        text += f"| {one.format} | {harmless} | {_error(one.limit)} | {harmful} | {says} |\n"
    outcomes = Counter(one.row.verdict for one in judged)
    wrong = [f"{one.row.name} {one.wrong}" for one in judged if one.wrong]
    text += _VERDICTS.format(
        outcomes=", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()),
        control=sum(one.near for one in judged),
        drop=DROP,
        near=NEAR_DB,
        wrong="; ".join(wrong) or "there is none",
    )
    shown = {(one.row.digest, one.row.verdict, one.row.spoilt): one for one in reversed(judged)}
    for one in reversed(shown.values()):
        damage = f", scales off by {one.row.spoilt:.0%}" if one.row.spoilt else ""
        text += (
            f"| `{one.row.recipe}` ({one.row.layout}){damage} | {one.row.verdict} | {_error(one.row.error)} "
            f"| {0.0 - one.drop:+.1f} points | {_decibel(one.psnr_db)} |\n"
        )
    return text


def _figures(clips: Clips) -> str:
    return f"{_decibel(clips.middle_psnr_db)} | {clips.mean_ssim:.4f}"


def _decibel(value: float) -> str:
    return f"{value:.1f}" if isfinite(value) else "∞"


def _error(value: float) -> str:
    return f"{value:.2g}"


def _share(clips: Clips, reference: Clips) -> str:
    """Returns the captions that are shown, and how they moved, clip by clip."""
    ours, theirs = clips.hits(), reference.hits()
    text = f"{clips.share():.1f} %"
    if clips is reference:
        return text
    lost = sum(one and not other for one, other in zip(theirs, ours, strict=True))
    won = sum(other and not one for one, other in zip(theirs, ours, strict=True))
    return f"{text} ({clips.share() - reference.share():+.1f}; −{lost} +{won})"
