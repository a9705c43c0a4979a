"""The layout of DiffSynth-Studio: official files, whose names and shapes it recognises by their fingerprint."""

from dataclasses import replace

from wanconv.layouts.official import OFFICIAL
from wanconv.layouts.types import Layout
from wanconv.models.cogvideox import SETTINGS as COGVIDEOX

DIFFSYNTH: Layout = replace(
    OFFICIAL,
    name="diffsynth",
    summary="DiffSynth-Studio: official files and names, which it knows by their fingerprint",
    loader="modelscope/DiffSynth-Studio diffsynth/core/loader/file.py, diffsynth/configs/model_configs.py",
    overrides=(),  # it casts all tensors to its own dtype
    coarse=None,
    refused=dict.fromkeys(COGVIDEOX, "its list of models knows no CogVideoX"),
    marks=(),
    unscaled="it knows a model by the names of its tensors, and scales would be further ones",
)
