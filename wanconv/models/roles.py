"""How names identify Wan 2.2's two experts: which words are evidence, and the weight of each.

A name is split into words at every character that is neither letter nor digit, between a small letter and a capital,
and between letters and digits: `wan22_I2VHighV9` is wan, 22, I, 2, V, High, V, 9. Only whole words are
compared.

    words                                                     weight
    high noise, HighNoise, highnoise, high expert             NOISE   nothing else is called so
    high and nothing behind it, a number or a word of _AFTER  LONE    a name as people shorten it: …_HIGH_fp16
    high and any other word: high light                       OPEN    may mean anything: the user is asked
    high next to a word of _QUALITIES: high vram, cfg high     none    high of something else

and the same for low. A name with both says nothing about either.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

Expert = Literal["high", "low"]


class Weight(IntEnum):
    OPEN = 1
    LONE = 2
    NOISE = 3


# HIGH and LOW end where small letters begin: the p of HIGHfp16 does not belong to a word Hfp.
_WORD = re.compile(r"(?:HIGH|LOW)(?![A-Z])|[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+|\d+")
_EXPERTS: Mapping[str, Expert] = {"high": "high", "low": "low"}
_WITH_NOISE: Mapping[str, Expert] = {"highnoise": "high", "lownoise": "low"}
_NOISE = ("noise", "expert")

# fmt: off
# Words after a lone high or low in names of experts' checkpoints and LoRAs: formats, parts, makers, versions.
_AFTER = frozenset((
    *("model", "models", "dit", "unet", "transformer", "diffusion", "pytorch", "lora", "loras", "only"),
    *("fp", "bf", "f", "int", "nf", "mxfp", "nvfp", "q", "iq", "gguf", "e"),  # fp16, Q8_0, e4m3fn
    *("scaled", "quant", "quantized", "convrot", "comfy", "comfyui", "kj", "pruned", "ema"),
    *("wan", "t", "i", "ti", "a", "v", "ver", "version", "final", "epoch", "merge", "merged"),  # wan22, I2V, A14B, v2
    *("distill", "distilled", "lightning", "lightx", "seko", "rcm", "turbo"),
    *("safetensors", "pth", "pt", "ckpt", "bin"),
))
_QUALITIES = frozenset((
    *("vram", "ram", "mem", "memory", "gpu", "cpu", "power", "spec", "specs", "end", "cost", "budget", "latency"),
    *("cfg", "guidance", "shift", "strength", "alpha", "lr", "dim", "batch", "dose"),
    *("quality", "res", "resolution", "rez", "def", "definition", "fidelity", "detail", "details", "detailed"),
    *("precision", "bitrate", "fps", "framerate", "rate", "speed", "motion", "level"),
    *("light", "key", "contrast", "poly", "angle", "shot", "pass", "frequency", "freq"),
    *("step", "steps", "rank", "bit", "bits"),
))
_MEASURES = frozenset(("step", "steps", "rank", "bit", "bits"))  # followed by a number they say nothing here
_DEGREES = frozenset(("very", "ultra", "super", "extra", "too", "not", "no", "non", "without"))

_OF_A_PAIR = (("wan", "2", "2"), ("wan", "22"), ("a", "14", "b"))
_OF_NO_PAIR = (("wan", "2", "1"), ("wan", "21"), ("1", "3", "b"))
# fmt: on

# Fields of headers (Kijai's, trainers', GGUF's) and of config.json that name what a file holds.
FIELDS = ("model_type", "modelspec.title", "ss_output_name", "general.name")
_SHOWN = 80
_READ = 1000  # most letters of a name: files have no longer ones, but a header may hold anything


@dataclass(frozen=True, slots=True)
class Said:
    """What a name says: its weight for each expert, the words, and whether it names a kind of model that comes in pairs
    (Wan 2.2, A14B) or one that does not (Wan 2.1, 1.3B)."""

    weights: Mapping[Expert, Weight] = field(default_factory=dict)
    words: Mapping[Expert, str] = field(default_factory=dict)
    of_a_pair: bool = False
    of_no_pair: bool = False
    a14b: bool = False

    @property
    def clear(self) -> Expert | None:
        """The expert that it names, if it is one, in words of one meaning."""
        found = list(self.weights)
        return found[0] if len(found) == 1 and self.weights[found[0]] > Weight.OPEN else None


def said(name: str) -> Said:
    """Returns what the words of a name say."""
    words = words_of(name)
    weights: dict[Expert, Weight] = {}
    quoted: dict[Expert, str] = {}
    for expert, weight, quote in _found(words):
        if weight > weights.get(expert, 0):
            weights[expert], quoted[expert] = weight, quote
    pair, no_pair = _holds(words, _OF_A_PAIR), _holds(words, _OF_NO_PAIR)
    return Said(weights, quoted, pair, no_pair and not pair, _holds(words, _OF_A_PAIR[-1:]))


def words_of(name: str) -> list[str]:
    """Returns the words of a name, in small letters."""
    return [word.lower() for word in _WORD.findall(name[:_READ])]


def twin_of(name: str) -> tuple[str, ...]:
    """Returns a name's words with `*` for those that speak of an expert: the same for both names of a pair."""
    return tuple("*" if word in (*_EXPERTS, *_WITH_NOISE) else word for word in words_of(name))


def shown(text: str) -> str:
    """Returns a stranger's text as one short line."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text[: _SHOWN + 1])
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"


def _found(words: Sequence[str]) -> Iterator[tuple[Expert, Weight, str]]:
    for place, word in enumerate(words):
        if word in _WITH_NOISE:
            yield _WITH_NOISE[word], Weight.NOISE, word
        elif word in _EXPERTS and (weight := _weight(words, place)) is not None:
            yield _EXPERTS[word], weight, " ".join(words[place : place + 2])


def _weight(words: Sequence[str], place: int) -> Weight | None:
    """Returns the weight of a lone high or low; None if it belongs to another word."""
    before, after = words[max(0, place - 2) : place][::-1], words[place + 1 : place + 3]
    if after and after[0] in _NOISE:
        return Weight.NOISE
    if (before and before[0] in _DEGREES) or _is_quality(before) or _is_quality(after):
        return None
    if not after or after[0].isdigit() or after[0] in _AFTER or after[0] in _MEASURES:
        return Weight.LONE
    return Weight.OPEN


def _is_quality(following: Sequence[str]) -> bool:
    if not following or following[0] not in _QUALITIES:
        return False
    return following[0] not in _MEASURES or not (len(following) > 1 and following[1].isdigit())


def _holds(words: Sequence[str], runs: Sequence[Sequence[str]]) -> bool:
    return any(tuple(words[at : at + len(run)]) == run for run in runs for at in range(len(words)))
