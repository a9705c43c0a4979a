"""Whether verdicts mean something: limits that one half of the clips sets, and verdicts that the other half judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from tiny_model.conversions import Row
from tiny_model.measured import Clips

DROP = 2.0  # points of captions that a PASS may cost
NEAR_DB = 1.0  # that a clip may be below the control's and still at its level
AMOUNTS = (0.02, 0.1, 0.4)  # how far scales are moved
WHOLE = (("bf16", "diffusers"), ("int8-row", "lightx2v"), ("fp8-scaled", "comfyui"))


@dataclass(frozen=True, slots=True)
class Measured:
    """A conversion, and the clips that its numbers make."""

    row: Row
    clips: Clips


@dataclass(frozen=True, slots=True)
class Limit:
    """Of one format: the largest error of a conversion that cost no captions, the least that did, and the limit.

    `lost` is what the latter cost, in points, and the standard error of that.
    """

    format: str
    harmless: float | None
    harmful: float | None
    lost: tuple[float, float] | None
    limit: float

    @property
    def fits(self) -> bool:
        above = self.harmless is None or self.harmless <= self.limit
        return above and (self.harmful is None or self.limit < self.harmful)

    @property
    def near(self) -> bool:
        """True where the loss is within a standard error of what a PASS may cost."""
        return self.lost is not None and self.lost[0] - self.lost[1] <= DROP


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict beside what the other half of the clips shows. `drop` is in points, `near` at the control's level."""

    row: Row
    drop: float
    psnr_db: float
    near: bool

    @property
    def wrong(self) -> str:
        if self.row.verdict == "PASS" and self.drop > DROP:
            return "passed, and captions were lost"
        if self.row.verdict == "FAIL" and self.drop <= 0 and self.near:
            return "failed, and nothing moved"
        return ""


def limits(found: Sequence[Measured], reference: Clips, gates: Mapping[str, float]) -> list[Limit]:
    """Returns what the even parts say about each format's limit on the error of a predicted noise."""
    made = []
    for name in dict.fromkeys(one.row.format for one in found):
        own = [(one, _drop(one.clips, reference, 0)) for one in found if one.row.format == name]
        harmless = max((one.row.error for one, drop in own if not one.row.spoilt and drop <= DROP), default=None)
        harmful, lost = None, None
        if harming := [(one, drop) for one, drop in own if drop > DROP]:
            first, drop = min(harming, key=lambda pair: pair[0].row.error)
            harmful, lost = first.row.error, (drop, _spread(first.clips, reference, 0))
        made.append(Limit(name, harmless, harmful, lost, gates[name]))
    return made


def judged(found: Sequence[Measured], reference: Clips, control: Clips) -> list[Judged]:
    """Returns every verdict beside the odd parts."""
    level = control.middle_psnr_db - NEAR_DB
    return [
        Judged(one.row, _drop(one.clips, reference, 1), one.clips.middle_psnr_db, one.clips.middle_psnr_db >= level)
        for one in found
    ]


def _drop(clips: Clips, reference: Clips, half: int) -> float:
    """Returns the captions lost, in points, over the clips that both have."""
    ours, theirs = clips.hits(half), reference.hits(half)
    return 100 * (sum(theirs[: len(ours)]) - sum(ours)) / len(ours)


def _spread(clips: Clips, reference: Clips, half: int) -> float:
    """Returns the standard error of `_drop`, from the pairs of clips of which one shows its caption."""
    ours = clips.hits(half)
    differ = sum(one != other for one, other in zip(ours, reference.hits(half), strict=False))
    return 100 * sqrt(differ) / len(ours)
