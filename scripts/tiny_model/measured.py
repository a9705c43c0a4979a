"""What the clips of a model are: the captions that a classifier sees, and how far they are from the source's clips.

Kept by parts of one clip per caption, so that a run that was stopped goes on.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_model.conversions import keep
from tiny_model.paired import Generator, decoded, latents, noise
from torch import Tensor

from wanconv.engine.sampling import Grid
from wanconv.evaluation.captions import captions, classify
from wanconv.evaluation.report.clips import pixels
from wanconv.metrics import video

PART = len(captions())
REFERENCE, CONTROL = "reference", "control"
_SSIM_PARTS = 1  # it takes a fifth of a clip's time


@dataclass(frozen=True, slots=True)
class Clips:
    """Figures of clips in the order of their seeds: `seen` is what the classifier says, empty for nothing.

    `psnr_db` is infinite where a clip is the source's; `ssim` is of the first clips only.
    """

    seen: tuple[str, ...]
    psnr_db: tuple[float, ...]
    ssim: tuple[float, ...]

    def hits(self, half: int | None = None) -> tuple[bool, ...]:
        """Returns which clips show their caption: all, or those of even (0) or odd (1) parts."""
        right = (words == wanted for words, wanted in self._words())
        return tuple(hit for index, hit in enumerate(right) if half is None or index // PART % 2 == half)

    def share(self, half: int | None = None) -> float:
        """Returns the captions that are shown, in percent."""
        return 100 * fmean(self.hits(half))

    def word(self, place: int) -> float:
        """Returns how often colour (0), shape (1) or motion (2) is right, in percent."""
        return 100 * fmean(words[place] == wanted[place] for words, wanted in self._words())

    def _words(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yields colour, shape and motion as they are seen in each clip, and as its caption says."""
        for index, seen in enumerate(self.seen):
            wanted = captions()[index % PART]
            yield seen.split(maxsplit=3)[1:] or ["", "", ""], [wanted.colour, wanted.shape, wanted.motion]

    @property
    def middle_psnr_db(self) -> float:
        return median(self.psnr_db)

    @property
    def mean_ssim(self) -> float:
        return fmean(self.ssim) if self.ssim else 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where clips are kept, how they are sampled, and what gives the generator of a name."""

    folder: Path
    grid: Grid
    load: Callable[[str], Generator]
    tell: Callable[[str], None]


def measure(place: Place, name: str, number: int) -> None:
    """Measures one part of a model's clips, unless it is kept: REFERENCE's own frames stay for all others.

    CONTROL is the reference with its noise one unit in the last place away.
    """
    file = place.folder / name / f"{number}.json"
    if file.exists():
        return
    begin = time.monotonic()
    start = noise(range(number * PART, (number + 1) * PART))
    if name == CONTROL:
        start = torch.nextafter(start, torch.full_like(start, torch.inf))
    made = place.load(name)
    frames = list(decoded(made, latents(made, range(PART), start, place.grid)))
    kept = place.folder / REFERENCE / f"{number}.npy"
    if name == REFERENCE:
        content = BytesIO()
        np.save(content, torch.stack(frames).numpy())
        keep(content.getvalue(), kept)
    with ThreadPoolExecutor() as pool:
        figures = partial(_figures, ssim=number < _SSIM_PARTS)
        rows = list(pool.map(figures, np.load(kept), frames))
    columns = dict(zip(("seen", "psnr_db", "ssim"), zip(*rows, strict=True), strict=True))
    keep(json.dumps(columns).encode() + b"\n", file)
    place.tell(f"{name}: part {number}, {(time.monotonic() - begin) / PART:.3f} s per clip")


def clips_of(place: Place, name: str, parts: int) -> Clips:
    """Returns the figures of the first parts, which have been measured."""
    read = [json.loads((place.folder / name / f"{number}.json").read_bytes()) for number in range(parts)]
    seen, psnr, ssim = ([value for part in read for value in part[key]] for key in ("seen", "psnr_db", "ssim"))
    exact = tuple(float("inf") if one is None else one for one in psnr)
    return Clips(tuple(seen), exact, tuple(one for one in ssim if one is not None))


def _figures(theirs: NDArray[np.float32], clip: Tensor, ssim: bool) -> tuple[str, float | None, float | None]:
    """Returns what is seen in a clip, its PSNR against the source's (None: infinite), and SSIM where asked for."""
    found = classify(pixels(clip.numpy()))
    first, second = video.clip(theirs), video.clip(clip)
    seen = "" if found is None else str(found)
    if isinstance(first, video.NonFiniteFrames) or isinstance(second, video.NonFiniteFrames):
        return seen, 0.0, 0.0 if ssim else None
    return seen, video.psnr(first, second).psnr_db, video.ssim(first, second).ssim_luma if ssim else None
