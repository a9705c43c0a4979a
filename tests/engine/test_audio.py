"""Sound to hidden states: read by PyAV, encoded as transformers does it, and laid out as the official code does it."""

import math
import runpy
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from engine_weights import FolderWeights
from torch import Tensor

from wanconv.engine import audio
from wanconv.errors import InputError

SPEECH = Path(audio.__file__).parents[1] / "generation" / "speech.wav"


def written(path: Path, samples: Tensor, rate: int) -> Path:
    """Writes 16-bit WAV.  # samples (channels, n) in -1 … 1"""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(len(samples))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples.T * 32767).round().to(torch.int16).numpy().tobytes())
    return path


def tone(rate: int, seconds: float, hz: float) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(round(rate * seconds)) / rate)


def source(tiny: Callable[..., Path]) -> FolderWeights:
    return FolderWeights(tiny("wan2.2-s2v-14b"))


def encoder(weights: FolderWeights) -> audio.AudioEncoder:
    return audio.AudioEncoder(weights, weights.names("audio_encoder"), weights.components["audio_encoder"].dims)


def test_hidden_states_are_those_of_transformers(tiny: Callable[..., Path]) -> None:
    weights = source(tiny)
    ours = encoder(weights)
    samples = audio.read(SPEECH, 0.5)
    states = ours.encode(samples)
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    theirs: Any = Wav2Vec2ForCTC(ours.module.config).eval()
    renamed = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    state = {
        ".".join(renamed.get(part, part) for part in name.split(".")): weights._read(
            "audio_encoder", f"audio_encoder/{own}"
        )
        for own, name in weights.names("audio_encoder").items()
    }
    del state["wav2vec2.masked_spec_embed"]  # of training
    theirs.load_state_dict(state)
    extract: Any = Wav2Vec2FeatureExtractor(do_normalize=True)
    values = extract(samples.numpy(), sampling_rate=audio.RATE, return_tensors="pt").input_values
    with torch.no_grad():
        expected = theirs.wav2vec2(values, output_hidden_states=True)
    assert len(states) == weights.components["audio_encoder"].dims["n"] + 1
    for own, other in zip(states[:-1], expected.hidden_states, strict=False):
        torch.testing.assert_close(own, other[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(states[-1], expected.last_hidden_state[0], rtol=0, atol=1e-5)
    assert {parameter.device.type for parameter in ours.module.parameters()} == {"meta"}
    assert [name.partition("/")[2] for name in weights.asked] == [
        "feature_extractor", "feature_projection", "position_embedding", "blocks.0", "blocks.1", "norm_out",
    ]  # fmt: skip


def literal_clips(features: Tensor, frames: int, fps: int) -> list[list[Tensor]]:
    """Returns what each frame of each clip hears, one after the other, as the official code's loop finds it."""
    count = features.shape[1]
    number = int(count / (frames * 30 / fps)) + 1
    found = []
    for n in range(number * frames):
        at = round(n / fps * 30)  # of two as near, the even one: Python's round and NumPy's alike
        found.append(features[:, at] if at < count else torch.zeros_like(features[:, 0]))
    return [found[n * frames : (n + 1) * frames] for n in range(number)]


@pytest.mark.parametrize(
    ("count", "frames", "fps"), [(59, 16, 16), (14, 4, 16), (151, 80, 16), (30, 16, 16), (1, 4, 16)]
)
def test_each_frame_hears_the_feature_that_is_nearest_in_time(count: int, frames: int, fps: int) -> None:
    features = torch.randn(3, count, 5, generator=torch.Generator().manual_seed(0))
    found = audio.clips(features, frames, fps)
    expected = literal_clips(features, frames, fps)
    assert found.shape == (len(expected), 3, 5, frames)
    for clip, wanted in zip(found, expected, strict=True):
        for n in range(frames):
            assert torch.equal(clip[:, :, n], wanted[n])


def test_features_are_states_between_which_a_line_is_drawn() -> None:
    states = torch.randn(2, 49, 4, generator=torch.Generator().manual_seed(0))
    found = audio.features(states)
    assert found.shape == (2, 29, 4)  # int(49 / 50 · 30)
    for n in range(29):
        at = n * 48 / 28  # both ends are kept
        low = min(int(at), 47)
        torch.testing.assert_close(
            found[:, n], torch.lerp(states[:, low], states[:, low + 1], at - low), atol=1e-5, rtol=0
        )


def test_a_file_at_16_khz_is_read_as_it_is(tmp_path: Path) -> None:
    samples = tone(16000, 0.3, 440)
    read = audio.read(written(tmp_path / "a.wav", samples[None], 16000), 10)
    torch.testing.assert_close(read, samples, rtol=0, atol=4e-5)
    assert len(audio.read(tmp_path / "a.wav", 0.2)) == 3200


def test_other_rates_and_channels_become_16_khz_mono(tmp_path: Path) -> None:
    left = tone(44100, 1.0, 440)
    read = audio.read(written(tmp_path / "a.wav", torch.stack((left, torch.zeros_like(left))), 44100), 10)
    middle = slice(2000, 14000)
    assert abs(len(read) - 16000) <= 32
    assert (read[middle] - tone(16000, 1.0, 440)[: len(read)][middle] / 2).abs().max() < 1e-2


@pytest.mark.parametrize("name", ["absent.wav", "text.wav", "silent.mp4", "short.wav"])
def test_what_holds_no_sound_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.wav").write_text("not sound")
    written(tmp_path / "short.wav", tone(16000, 0.05, 440)[None], 16000)
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode())
    messages = {
        "absent.wav": "absent.wav cannot be read as sound: ",
        "text.wav": "text.wav cannot be read as sound: ",
        "silent.mp4": r"silent.mp4 holds no sound",
        "short.wav": r"short.wav holds 0.05 s of sound",
    }
    with pytest.raises(InputError, match=messages[name]):
        audio.read(tmp_path / name, 1)


def test_the_speech_that_ships_is_two_seconds_and_small() -> None:
    samples = audio.read(SPEECH, 60)
    assert len(samples) == 2 * audio.RATE
    assert 0.05 < float(samples.std()) < 0.5
    assert SPEECH.stat().st_size < 100_000


def test_the_speech_that_ships_is_what_its_script_makes() -> None:
    made = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "make_speech"))["speech"]()
    with wave.open(str(SPEECH)) as shipped:
        samples = np.frombuffer(shipped.readframes(shipped.getnframes()), "<i2")
    assert np.abs(made.astype(int) - samples).max() <= 1  # C libraries' sines differ in the last place
