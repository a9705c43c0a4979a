"""Sound to wav2vec2's hidden states at a video's frame rate, with one block in memory at a time.

wav2vec2 is transformers' own, built on the meta device; each part gets its weights just before it runs and loses them
after. It runs in fp32, as officially. A hidden state is the input of a block, and finally the result of the last norm.
Newer versions of transformers return the last block's result before that norm, unlike those that S2V was made with.

States come at 50 a second. The official code brings them to 30 a second, linearly and with both ends kept, and takes
for each video frame the state that is nearest in time; frames after the sound's end get zeros.

Definition: Wan-Video/Wan2.2 wan/modules/s2v/audio_encoder.py; huggingface/transformers
models/wav2vec2/{modeling,feature_extraction}_wav2vec2.py.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanconv.engine.libraries import assigned, quiet
from wanconv.engine.weights import WeightSource
from wanconv.errors import InputError
from wanconv.storage.reading import stream

RATE = 16000  # samples a second
STATES, _FEATURES = 50, 30  # a second
_COMPONENT = "audio_encoder"
_HEAD_DIM = 64  # in the released model: 16 heads in 1024 channels
_ALONE = {"protocol_whitelist": "none"}  # a playlist would name other files, local or remote
_SHORTEST = 1600  # samples: a tenth of a second
# torch's names for the two parameters of weight normalisation; files and the table have older names
_NORMALISED = {
    "position_embedding.gain": "parametrizations.weight.original0",
    "position_embedding.direction": "parametrizations.weight.original1",
    "position_embedding.bias": "bias",
}


def read(path: Path, seconds: float) -> Tensor:
    """Returns the beginning of a sound file, mono at 16 kHz, float32 (samples,); raises InputError if it is invalid."""
    hint = "give a file with sound that FFmpeg can decode: WAV, FLAC, MP3, M4A …"
    wanted, parts = ceil(seconds * RATE), []
    try:
        with stream(path) as opened, av.open(opened, "r", options=_ALONE) as container:
            if not container.streams.audio:
                raise InputError(f"{path} holds no sound", hint)
            resampler = av.AudioResampler(format="fltp", rate=RATE)
            for frame in container.decode(container.streams.audio[0]):
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
                if sum(part.shape[1] for part in parts) >= wanted:
                    break
            else:
                parts += [part.to_ndarray() for part in resampler.resample(None)]
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as sound: {error.strerror or error}", hint) from error
    samples = np.concatenate(parts, axis=1).mean(axis=0)[:wanted] if parts else np.zeros(0)
    if len(samples) < _SHORTEST:
        raise InputError(f"{path} holds {len(samples) / RATE:.2g} s of sound", "give at least a tenth of a second")
    return torch.from_numpy(samples.astype(np.float32))


class AudioEncoder:
    """wav2vec2 on streamed weights.

    `names`: canonical name -> transformers' name, of every tensor. `module` is for a recorder to watch; its parameters
    are loaded and dropped.
    """

    def __init__(self, source: WeightSource, names: Mapping[str, str], dims: Mapping[str, int]) -> None:
        self._source, self._names = source, names
        with quiet(), torch.device("meta"):
            from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

            config = Wav2Vec2Config(
                hidden_size=dims["d"],
                intermediate_size=dims["ffn"],
                num_hidden_layers=dims["n"],
                num_attention_heads=dims.get("heads", max(dims["d"] // _HEAD_DIM, 1)),
                vocab_size=dims["vocab"],
                conv_dim=(dims["conv"],) * 7,
                conv_bias=True,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                mask_time_prob=0.0,  # masks are for training only
                attn_implementation="sdpa",  # avoids a matrix of all scores for long sounds
            )
            self._wav2vec2: Any = Wav2Vec2ForCTC(config)
        self.module: nn.Module = self._wav2vec2.eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, samples: Tensor) -> Tensor:
        """Returns the hidden states (blocks + 1, T, d) of mono sound at 16 kHz, float32."""
        wav2vec2 = self._wav2vec2.wav2vec2
        x = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        with self._held(wav2vec2.feature_extractor, "feature_extractor") as extract:
            x = extract(x.unsqueeze(0)).transpose(1, 2)
        with self._held(wav2vec2.feature_projection, "feature_projection") as project:
            x = project(x)[0]
        with self._held(wav2vec2.encoder.pos_conv_embed.conv, "position_embedding"):
            x = x + wav2vec2.encoder.pos_conv_embed(x)
        states = [x]
        for number, layer in enumerate(wav2vec2.encoder.layers):
            with self._held(layer, f"blocks.{number}") as block:
                states.append(block(states[-1]))
        with self._held(wav2vec2.encoder.layer_norm, "norm_out") as norm:
            states[-1] = norm(states[-1])
        return torch.cat(states)

    def _held(self, module: nn.Module, prefix: str) -> AbstractContextManager[nn.Module]:
        """Gives a part the weights below a canonical prefix, in fp32, within the block."""
        own = next(path for path, part in self.module.named_modules() if part is module)
        weights = {
            _NORMALISED.get(name) or self._names[name].removeprefix(f"{own}."): tensor.float()
            for name, tensor in self._source.tensors(_COMPONENT, prefix).items()
        }
        return assigned(module, weights, "audio encoder")


def features(states: Tensor) -> Tensor:
    """Returns hidden states (states, T, d) at 30 a second instead of 50: (states, int(T / 50 · 30), d)."""
    count = int(states.shape[1] / STATES * _FEATURES)
    return F.interpolate(states.transpose(1, 2), size=count, align_corners=True, mode="linear").transpose(1, 2)


def clips(features: Tensor, frames: int, fps: int) -> Tensor:
    """Returns the states of each frame: (states, T, d) -> (clips, states, d, frames), zeros after the sound's end.

    There is always one clip that reaches beyond the end, as officially: floor(T / (frames · 30 / fps)) + 1.
    """
    states, count, width = features.shape
    number = int(count / (frames * (_FEATURES / fps))) + 1
    # as officially: times in float64, rounded half to even
    times = np.linspace(0, number * frames / fps, number * frames, endpoint=False)
    nearest = torch.from_numpy(np.round(times * _FEATURES).astype(np.int64))
    heard = features.new_zeros(states, number * frames, width)
    within = nearest < count
    heard[:, within] = features[:, nearest[within]]
    return heard.view(states, number, frames, width).permute(1, 0, 3, 2)
