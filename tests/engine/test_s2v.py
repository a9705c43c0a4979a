"""The S2V denoiser, part by part and as a whole, against its definition spelled out in loops (literal_s2v.py)."""

from dataclasses import replace
from functools import cache
from math import prod

import literal_s2v as literal
import numpy as np
import pytest
import torch
from test_wan import Weights, canonical_shapes
from torch import Tensor

from wanconv.engine.layers import rotate
from wanconv.engine.numerics import PRESETS
from wanconv.engine.recorder import Recorder
from wanconv.engine.wan import run
from wanconv.engine.wan_s2v import HOSTS, S2VSizes, Speech, SpeechState, WanS2V, packed_places, places
from wanconv.errors import InputError
from wanconv.models import targets
from wanconv.models.wan import S2V

# heads of 24: rotary dims 8, 8, 8; injectors after blocks 0 and 4
SIZES = {"d": 48, "ffn": 64, "heads": 2, "n": 5, "text": 12, "freq": 16, "audio": 10, "states": 3, "m": 2}
GRID = (2, 4, 8)  # patches: 16 latents across are what four packed tokens cover
FRAMES = 4 * GRID[0]
INJECTORS = {0: 0, 4: 1}  # block -> injector

Arrays = dict[str, literal.Array]


@cache
def weights() -> Weights:
    made = Weights(S2V, SIZES)
    for tensor in made.values.values():  # convolutions sum over more than the last axis
        tensor /= prod(tensor.shape[1:-1]) ** 0.5 if tensor.dim() in (3, 5) and len(tensor) > 1 else 1
    return made


@cache
def official() -> Arrays:
    """Returns the same numbers under the official names, float64."""
    values = weights().values
    return {target.name: values[target.sources[0]].double().numpy() for target in targets(S2V, "official", SIZES)}


def build(preset: str = "fp32") -> WanS2V:
    return WanS2V(S2VSizes.of(SIZES, canonical_shapes(S2V, SIZES).__getitem__), PRESETS[preset])


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def speech(motion: bool = True) -> Speech:
    frames, height, width = GRID[0], 2 * GRID[1], 2 * GRID[2]
    return Speech(
        reference=random(2, 16, 1, height, width, seed=2),
        motion=random(2, 16, 19, height, width, seed=3) if motion else None,
        pose=random(2, 16, frames, height, width, seed=4),
        audio=random(2, SIZES["states"], SIZES["audio"], FRAMES, seed=5),
    )


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Returns latents, timesteps and contexts of two samples."""
    context = random(2, 20, SIZES["text"], seed=6)
    context[1, 7:] = 0
    return random(2, 16, GRID[0], 2 * GRID[1], 2 * GRID[2]), torch.tensor([999, 421]), context


def apart(ours: Tensor, wanted: literal.Array) -> float:
    """Returns the largest difference, and makes sure that there is something to differ."""
    assert ours.shape == wanted.shape
    assert wanted.std() > 0.05
    return float(np.abs(ours.double().numpy() - wanted).max())


def test_the_audio_encoder_is_its_definition() -> None:
    states = random(2, SIZES["states"], SIZES["audio"], 73 + FRAMES)
    heard = run(build(), "causal_audio_encoder", weights(), states)
    assert heard.shape == (2, 19 + GRID[0], 6, SIZES["d"])  # 81 frames are 21 latent ones
    for sample in range(2):
        local, pooled = literal.audio_encoder(official(), states[sample].double().numpy())
        assert apart(heard[sample, :, :5], local) <= 1e-5
        assert apart(heard[sample, :, 5], pooled) <= 1e-5


def test_sound_changes_nothing_that_is_shown_before_it() -> None:
    states = random(1, SIZES["states"], SIZES["audio"], 32)
    later = states.clone()
    later[..., 17:] = 0
    one, other = (run(build(), "causal_audio_encoder", weights(), each) for each in (states, later))
    same = (one == other).all(dim=(0, 2, 3)).tolist()
    assert same == [True] * 5 + [False] * 3  # a latent frame hears up to its first frame


@pytest.mark.parametrize("frames", [19, 25, 4])
def test_the_frame_packer_is_its_definition(frames: int) -> None:
    motion = random(2, 16, frames, 2 * GRID[1], 2 * GRID[2])
    packed = run(build(), "motion_embedding", weights(), motion)
    for sample in range(2):
        tokens, positions = literal.frame_packer(official(), motion[sample].double().numpy())
        assert apart(packed[sample], tokens) <= 1e-5
    assert positions == [
        (time, row, column)
        for times, rows, columns in (map(Tensor.tolist, part) for part in packed_places(GRID))
        for time in times
        for row in rows
        for column in columns
    ]


def test_tokens_lie_where_the_released_size_puts_them() -> None:
    _, (reference, *_) = places((20, 44, 64))
    (near, *_), (middle, rows, _), (far, _, columns) = packed_places((20, 44, 64))
    assert (reference.tolist(), near.tolist(), middle.tolist(), far.tolist()) == ([30], [-1], [-3], [-19, -14, -9, -4])
    assert rows.tolist()[:4] == [0, 2, 4, 6]
    assert rows.tolist()[-4:] == [36, 38, 40, 43]  # 22 places from 0 to 43
    assert columns.tolist() == [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]


def state_of(motion: bool = True) -> SpeechState:
    return build().embed(weights(), *inputs(), speech(motion))


def test_rotations_have_the_start_offsets_of_reference_and_motion() -> None:
    state, heads = state_of(), SIZES["heads"]
    noisy = [(t, y, x) for t in range(GRID[0]) for y in range(GRID[1]) for x in range(GRID[2])]
    reference = [(30, y, x) for y in range(GRID[1]) for x in range(GRID[2])]
    _, motion = literal.frame_packer(official(), np.zeros((16, 19, 2 * GRID[1], 2 * GRID[2])))
    positions = noisy + reference + motion
    x = random(1, len(positions), SIZES["d"])
    turned = rotate(x.view(1, len(positions), heads, -1), state.rotation).flatten(2)
    assert apart(turned[0], literal.turned(x[0].double().numpy(), positions, heads)) <= 1e-5


@pytest.mark.parametrize("number", [0, 1])
def test_an_injector_is_its_definition(number: int) -> None:
    state = state_of()
    after = build().block(f"audio_injector.{number}", weights(), state).x
    noisy = GRID[0] * GRID[1] * GRID[2]
    for sample in range(2):
        x, audio, pooled = (one[sample].double().numpy() for one in (state.x, state.audio, state.pooled))
        expected = literal.injector(official(), number, x, audio, pooled, noisy, SIZES["heads"])
        assert apart(after[sample], expected) <= 1e-5
    assert torch.equal(after[:, noisy:], state.x[:, noisy:])
    assert not torch.equal(after[:, :noisy], state.x[:, :noisy])


def test_a_block_with_two_segments_is_its_definition() -> None:
    state = state_of()
    after = build().block("blocks.1", weights(), state).x
    noisy = [(t, y, x) for t in range(GRID[0]) for y in range(GRID[1]) for x in range(GRID[2])]
    reference = [(30, y, x) for y in range(GRID[1]) for x in range(GRID[2])]
    _, motion = literal.frame_packer(official(), np.zeros((16, 19, 2 * GRID[1], 2 * GRID[2])))
    _, still = literal.modulation(official(), 0.0, SIZES["freq"])
    for sample, timestep in enumerate(inputs()[1].tolist()):
        _, rows = literal.modulation(official(), float(timestep), SIZES["freq"])
        expected = literal.block(
            official(), 1, state.x[sample].double().numpy(), (rows, still), len(noisy), noisy + reference + motion,
            state.context[sample].double().numpy(), SIZES["heads"],
        )  # fmt: skip
        assert apart(after[sample], expected) <= 1e-5


@pytest.mark.parametrize("motion", [True, False])
def test_the_whole_denoiser_is_its_definition(motion: bool) -> None:
    latents, timesteps, context = inputs()
    given = speech(motion)
    velocity = build().denoise(weights(), latents, timesteps, context, given)
    padded = torch.nn.functional.pad(context, (0, 0, 0, 492))
    for sample in range(2):
        x, text, reference, pose, audio = (
            one[sample].double().numpy() for one in (latents, padded, given.reference, given.pose, given.audio)
        )
        before = None if given.motion is None else given.motion[sample].double().numpy()
        expected = literal.forward(
            official(), x, float(timesteps[sample]), text, reference, before, pose, audio, SIZES["heads"], INJECTORS
        )
        assert apart(velocity[sample], expected) <= 1e-5


def without(one: Speech, name: str) -> Speech:
    return replace(one, **{name: torch.zeros_like(getattr(one, name))})


@pytest.mark.parametrize("name", ["reference", "motion", "pose", "audio"])
def test_everything_that_a_clip_is_given_matters(name: str) -> None:
    wan = build()
    one, other = (wan.denoise(weights(), *inputs(), given) for given in (speech(), without(speech(), name)))
    assert (one - other).abs().max() > 1e-3


def test_samples_of_a_condition_are_repeated_in_turn() -> None:
    four = speech().of(4)
    assert torch.equal(four.audio[2:], four.audio[:2])
    assert four.motion is not None
    assert (len(four.reference), len(four.motion), len(four.pose)) == (4, 4, 4)
    assert not torch.equal(four.audio[0], four.audio[1])


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_the_state_dict_has_the_canonical_names_and_shapes(size: str) -> None:
    dims = S2V.tiny if size == "tiny" else S2V.full
    wan = WanS2V(S2VSizes.of(dims, canonical_shapes(S2V, dims).__getitem__))
    assert {name: tuple(value.shape) for name, value in wan.state_dict().items()} == canonical_shapes(S2V, dims)
    assert {value.device.type for value in wan.state_dict().values()} == {"meta"}


def test_an_injector_s_weights_come_after_its_host_s_and_go() -> None:
    wan, fetch = build(), Weights(S2V, SIZES)
    wan.denoise(fetch, *inputs(), speech())
    assert fetch.fetched == [
        "patch_embedding", "pose_embedding", "motion_embedding", "source_embedding", "time_embedding",
        "time_projection", "causal_audio_encoder", "text_embedding",
        "blocks.0", "audio_injector.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "audio_injector.1", "head",
    ]  # fmt: skip
    assert {value.device.type for value in wan.parameters()} == {"meta"}
    full = WanS2V(S2VSizes.of(S2V.full, canonical_shapes(S2V, S2V.full).__getitem__))
    places_of = {name: place for place, name in enumerate(full.stack)}
    assert [full.stack[places_of[f"audio_injector.{m}"] - 1] for m in range(12)] == [f"blocks.{n}" for n in HOSTS]


def test_a_recorder_sees_what_is_s2v_s_own_under_every_numerics() -> None:
    seen: dict[str, set[str]] = {}
    for preset in PRESETS:
        wan, recorder = build(preset), Recorder()
        recorder.watch(wan)
        with recorder:
            velocity = wan.denoise(weights(), *inputs(), speech())
        assert velocity.dtype == torch.float32
        assert recorder.first_bad is None
        seen[preset] = {f"{one.path}:{one.op} {one.dtype}" for one in recorder.ranges}
    for name in (
        "causal_audio_encoder.conv_mid",
        "motion_embedding.x4",
        "pose_embedding",
        "audio_injector.1.cross_attn.o",
    ):
        assert any(one.startswith(f"{name}:") for one in seen["official"]), name
    assert "causal_audio_encoder.conv_mid:conv1d float32" in seen["official"]
    assert "causal_audio_encoder.conv_mid:conv1d float16" in seen["comfyui-fp16"]
    assert "audio_injector.1.cross_attn.o:linear bfloat16" in seen["official"]


def test_rounding_to_bf16_stays_near_the_definition() -> None:
    exact, rounded = (build(preset).denoise(weights(), *inputs(), speech()) for preset in ("fp32", "official"))
    relative = (exact - rounded).norm() / exact.norm()
    assert 1e-4 < relative < 2e-2


def test_a_checkpoint_whose_injectors_fit_no_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="3 blocks of S2V have 1 audio injectors, and this checkpoint has 2"):
        S2VSizes.of({**SIZES, "n": 3}, canonical_shapes(S2V, SIZES).__getitem__)
