"""The engine on a GPU: the same numbers as on a CPU, and real fp16 where a CPU imitates it. `pytest -m gpu`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wanconv.commands.validate import ValidateOptions, validate
from wanconv.containers import open_checkpoint
from wanconv.engine.numerics import PRESETS, Imitation
from wanconv.engine.recorder import Recorder
from wanconv.generation.tasks import denoiser
from wanconv.models import identify
from wanconv.types.model import Model
from wanconv.weights.model import ModelWeights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: real fp16 and CUDA are unproven"),
]

MEMORY = 1 << 30


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Model:
    return identify(open_checkpoint(tiny("wan2.1-t2v-1.3b")))


def inputs(model: Model, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 2, 16, 16, generator=generator)
    context = torch.randn(2, 512, model.components["dit"].dims["text"], generator=generator)
    return latents.to(device), torch.tensor([999, 500], device=device), context.to(device)


def velocity(model: Model, device: str, numerics: str, scale: float = 1.0) -> Tensor:
    with ModelWeights(model, MEMORY, torch.device(device)) as weights:

        def fetch(prefix: str) -> dict[str, Tensor]:
            found = dict(weights.tensors("dit", prefix))
            return {
                name: tensor * scale if name.endswith("ffn.up.weight") else tensor for name, tensor in found.items()
            }

        wan = denoiser(model, "dit", PRESETS[numerics])
        if device == "cpu":
            with Imitation():
                return wan.denoise(fetch, *inputs(model, device))
        return wan.denoise(fetch, *inputs(model, device)).cpu()


def relative_l2(reference: Tensor, candidate: Tensor) -> float:
    return float((candidate.double() - reference.double()).norm() / reference.double().norm())


def test_a_gpu_computes_in_float32_what_a_cpu_does(model: Model) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # on by default for convolutions alone
        assert relative_l2(velocity(model, "cpu", "fp32"), velocity(model, "cuda", "fp32")) < 1e-4


@pytest.mark.parametrize("numerics", ["official-fp16", "diffusers-fp16", "comfyui-fp16", "fp16"])
def test_imitated_fp16_is_as_near_to_real_fp16_as_rounding_lets_it(model: Model, numerics: str) -> None:
    imitated, real = velocity(model, "cpu", numerics), velocity(model, "cuda", numerics)
    exact = velocity(model, "cpu", "fp32")
    assert relative_l2(imitated, real) < 2 * relative_l2(exact, real)


@pytest.mark.parametrize("scale", [1.0, 3e6])
def test_imitation_and_a_gpu_agree_on_whether_fp16_overflows(model: Model, scale: float) -> None:
    finite = [bool(torch.isfinite(velocity(model, device, "fp16", scale)).all()) for device in ("cpu", "cuda")]
    assert finite == [scale == 1.0] * 2


def test_a_recorder_sees_on_a_gpu_what_it_sees_on_a_cpu(model: Model) -> None:
    seen = []
    for device in ("cpu", "cuda"):
        with ModelWeights(model, MEMORY, torch.device(device)) as weights:
            wan = denoiser(model, "dit", PRESETS["fp16"])
            assert isinstance(wan, nn.Module)
            recorder = Recorder()
            assert isinstance(wan, torch.nn.Module)
            recorder.watch(wan)
            with recorder:
                wan.denoise(partial(weights.tensors, "dit"), *inputs(model, device))
        seen.append({(one.path, one.op, one.nth): one.amax for one in recorder.ranges if one.path})
    assert seen[0].keys() == seen[1].keys()
    assert all(seen[1][key] == pytest.approx(seen[0][key], rel=0.05, abs=1e-3) for key in seen[0])


def test_a_validation_runs_on_a_gpu(tiny: Callable[..., Path]) -> None:
    folder = tiny("wan2.2-t2v-a14b")
    options = ValidateOptions(against=folder, profile="quick", size=(64, 64), device="cuda")
    assert validate(folder, options).figures["verdict"] == "PASS"
