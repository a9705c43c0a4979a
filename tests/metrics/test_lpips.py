"""LPIPS: against its own package where that is installed, against a literal one always; of files that are known alone.

pip install --no-deps --target /tmp/lpips lpips==0.1.4     # it asks for torchvision, which the test stands in for
PYTHONPATH=/tmp/lpips scripts/test tests/metrics/test_lpips.py
"""

import hashlib
import json
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from command import call_all
from numpy.typing import NDArray
from torch import Tensor, nn

from wanconv.commands.validate import ValidateOptions, judged, recheck
from wanconv.errors import InputError, UsageError
from wanconv.evaluation.backbone import ALEXNET, HEADS, Backbone
from wanconv.evaluation.report.html import render
from wanconv.metrics import video
from wanconv.metrics.perceptual import LAYERS, SMALLEST, Perceptual, distance

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float64]


class AlexNet(nn.Module):
    """torchvision's alexnet up to its last pool, and one of the linears behind it, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, kernel_size=5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, kernel_size=3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 256, kernel_size=3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(9216, 4))


@pytest.fixture(scope="module")
def alexnet() -> AlexNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AlexNet().requires_grad_(False)


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    widths = enumerate((64, 192, 384, 256, 256))
    return {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) / width for i, width in widths}


@pytest.fixture(scope="module")
def network(alexnet: AlexNet, heads: dict[str, Tensor]) -> Perceptual:
    return Perceptual.of(alexnet.state_dict(), heads)


@pytest.fixture(scope="module")
def backbone(alexnet: AlexNet, heads: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Returns a folder of random weights, with the digests that these have."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(OrderedDict(alexnet.named_parameters()), folder / ALEXNET.file)  # old torchvision saved parameters
    torch.save(heads, folder / HEADS.file)
    pins = (
        replace(pin, sha256=hashlib.sha256((folder / pin.file).read_bytes()).hexdigest()) for pin in (ALEXNET, HEADS)
    )
    return Backbone(folder, *pins)


def frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def checked(values: Tensor) -> video.Clip:
    clip = video.clip(values)
    assert isinstance(clip, video.Clip)
    return clip


# --- the number


def literal(state: dict[str, Tensor], heads: dict[str, Tensor], one: Tensor, other: Tensor) -> float:
    """Returns the LPIPS of two frames (3, H, W) place by place, in float64."""

    def padded(x: Array, by: int) -> Array:
        return np.pad(x, ((0, 0), (by, by), (by, by)))

    def convolved(x: Array, name: str, stride: int, padding: int) -> Array:
        weight, bias = (state[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
        x, side = padded(x, padding), weight.shape[2]
        rows, columns = ((size - side) // stride + 1 for size in x.shape[1:])
        out = np.empty((len(weight), rows, columns))
        for i in range(rows):
            for j in range(columns):
                window = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
                out[:, i, j] = np.maximum(weight.reshape(len(weight), -1) @ window.reshape(-1) + bias, 0)
        return out

    def pooled(x: Array) -> Array:
        rows, columns = ((size - 3) // 2 + 1 for size in x.shape[1:])
        window = [
            [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2)) for j in range(columns)] for i in range(rows)
        ]
        return np.stack([np.stack(row, axis=-1) for row in window], axis=-2)

    def features(frame: Tensor) -> list[Array]:
        mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        x = (frame.double().numpy() * 2 - 1 - mean[:, None, None]) / deviation[:, None, None]
        first = convolved(x, "features.0", 4, 2)
        second = convolved(pooled(first), "features.3", 1, 2)
        third = convolved(pooled(second), "features.6", 1, 1)
        fourth = convolved(third, "features.8", 1, 1)
        return [first, second, third, fourth, convolved(fourth, "features.10", 1, 1)]

    total = 0.0
    for index, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        weight = heads[f"lin{index}.model.1.weight"].double().numpy().reshape(-1)
        places = []
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                x, y = (part[:, i, j] / (math.sqrt((part[:, i, j] ** 2).sum()) + 1e-10) for part in (a, b))
                places.append((weight * (x - y) ** 2).sum())
        total += sum(places) / len(places)
    return total


@pytest.mark.parametrize("size", [(31, 31), (40, 61), (64, 48)], ids=str)
def test_the_distance_is_that_of_a_literal_transcription(
    size: tuple[int, int], network: Perceptual, alexnet: AlexNet, heads: dict[str, Tensor]
) -> None:
    one, other = frames(2, *size).permute(0, 3, 1, 2)
    expected = literal(alexnet.state_dict(), heads, one, other)
    assert expected > 0.01
    assert distance(network, one, other) == pytest.approx(expected, rel=1e-5)


def test_the_distance_is_that_of_the_package_lpips(
    monkeypatch: pytest.MonkeyPatch, alexnet: AlexNet, tmp_path: Path
) -> None:
    models = ModuleType("torchvision.models")
    models.alexnet = lambda pretrained: alexnet  # type: ignore[attr-defined]  # a module made here
    torchvision = ModuleType("torchvision")
    torchvision.models = models  # type: ignore[attr-defined]  # likewise
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    lpips: Any = pytest.importorskip("lpips", reason="lpips is not installed: it would bring torchvision")
    theirs = Path(lpips.__file__).parent / "weights" / "v0.1" / HEADS.file
    assert hashlib.sha256(theirs.read_bytes()).hexdigest() == HEADS.sha256
    network = Perceptual.of(alexnet.state_dict(), torch.load(theirs, map_location="cpu", weights_only=True))
    oracle = lpips.LPIPS(net="alex", version="0.1", verbose=False)
    for size in ((31, 31), (64, 64), (96, 130)):
        one, other = frames(2, *size).permute(0, 3, 1, 2)
        for second in (other, (one + 0.02 * other).clamp(0, 1)):
            with torch.no_grad():
                expected = float(oracle(one[None], second[None], normalize=True))
            assert distance(network, one, second) == pytest.approx(expected, rel=1e-5)


def test_lpips_is_the_mean_of_frames_and_the_worst_of_them(network: Perceptual) -> None:
    one, other = frames(3, 40, 48), frames(3, 40, 48)
    other[2] = frames(1, 40, 48, seed=2)[0]
    found = video.lpips(checked(one), checked(other), network)
    assert isinstance(found, video.Lpips)
    assert found.frames_lpips[:2] == (0.0, 0.0)
    assert found.lpips_max == found.frames_lpips[2] > 0.01
    assert found.lpips == pytest.approx(found.lpips_max / 3)


def test_frames_below_what_alexnet_takes_have_no_lpips_and_a_reason(network: Perceptual) -> None:
    for size in ((SMALLEST - 1, 64), (64, SMALLEST - 1)):
        small = checked(frames(1, *size))
        reason = "not computed: AlexNet takes 31 x 31 pixels or more"
        assert video.lpips(small, small, network) == video.NotComputed("lpips", reason)
        with pytest.raises(
            RuntimeError, match="Output size is too small"
        ):  # so the bound is no smaller than it must be
            distance(network, *small, *small)
    just = checked(frames(1, SMALLEST, SMALLEST))
    assert isinstance(video.lpips(just, just, network), video.Lpips)


def test_the_table_of_layers_has_the_shapes_of_alexnet(alexnet: AlexNet) -> None:
    shapes = {name: tuple(value.shape) for name, value in alexnet.features.named_parameters(prefix="features")}
    assert {f"{layer.name}.weight": layer.shape for layer in LAYERS}.items() <= shapes.items()


# --- the files


def test_known_bytes_are_read(backbone: Backbone, network: Perceptual) -> None:
    found = backbone.read()
    for ours, theirs in (
        (found.weights, network.weights),
        (found.biases, network.biases),
        (found.heads, network.heads),
    ):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [ALEXNET.file, HEADS.file])
def test_a_file_with_other_bytes_is_refused(name: str, backbone: Backbone, tmp_path: Path) -> None:
    for pin in (ALEXNET, HEADS):
        (tmp_path / pin.file).write_bytes((backbone.folder / pin.file).read_bytes())
    with (tmp_path / name).open("ab") as file:
        file.write(b"\0")
    message = rf"^{re.escape(str(tmp_path / name))} is not LPIPS' {name}: its SHA-256 is \w{{16}}…, not \w{{16}}…$"
    with pytest.raises(InputError, match=message) as caught:
        replace(backbone, folder=tmp_path).read()
    assert caught.value.hint.startswith("get it again: ")


def test_a_file_that_is_absent_is_told_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^`lpips` needs .*\.pth, which cannot be read: No such file") as caught:
        Backbone(tmp_path).read()
    assert caught.value.hint == "get it: https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


def test_the_name_of_the_backbone_holds_the_first_digits_of_its_digest() -> None:
    assert ALEXNET.file == f"alexnet-owt-{ALEXNET.sha256[:8]}.pth"


# --- validate


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Path:
    return tiny("wan2.1-t2v-1.3b")


@pytest.fixture
def options(model: Path) -> ValidateOptions:
    return ValidateOptions(against=model, size=(32, 32), frames=5, steps=1)


def test_the_results_and_the_page_hold_lpips_and_are_judged_again(
    model: Path, options: ValidateOptions, backbone: Backbone, tmp_path: Path
) -> None:
    found = judged(model, replace(options, lpips=backbone, out=tmp_path))
    saved = json.loads((tmp_path / "results.json").read_bytes())
    candidate, control = (saved["video"][name]["lpips"] for name in ("candidate", "control"))
    assert candidate == {"lpips": 0.0, "lpips_max": 0.0, "frames_lpips": [0.0] * 5}
    assert control["lpips_max"] == max(control["frames_lpips"]) >= 0
    for page in ((tmp_path / "validation.html").read_text(), render(saved, found.verdict, found.profile, None)):
        assert "<td>LPIPS</td>" in page
        assert "<td>LPIPS of the worst frame</td>" in page
    assert recheck(tmp_path / "results.json", "standard").exit_code == found.verdict.exit_code == 0


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"against": None}, "`lpips` compares clips, and without `against` there are none", "name a reference"),
        (
            {"profile": "quick"},
            "`lpips` compares clips, and under profile quick there are none",
            'use `profile="standard"`',
        ),
    ],
)
def test_lpips_of_no_clips_is_refused(
    changes: dict[str, Any], message: str, hint: str, model: Path, options: ValidateOptions, backbone: Backbone
) -> None:
    with pytest.raises(UsageError) as caught:
        judged(model, replace(options, lpips=backbone, **changes))
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_the_command_takes_the_published_files_alone(model: Path, backbone: Backbone, tmp_path: Path) -> None:
    command = ("validate", str(model), "--against", str(model), "--lpips")
    absent, other = call_all([(*command, "nowhere"), (*command, str(backbone.folder))], tmp_path)
    assert (absent.exit_code, other.exit_code) == (3, 3)
    assert absent.errors.startswith("error[unreadable]: --lpips needs nowhere/alexnet-owt-7be5be79.pth, which cannot")
    assert "is not LPIPS' alexnet-owt-7be5be79.pth: its SHA-256 is " in other.errors
