"""Precision as a value, fp16 on a CPU, and a recorder that names the first operation that goes wrong."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_wan import SIZES, VARIANTS, Weights, canonical_shapes, in_diffusers, inputs, seen
from torch import Tensor, nn

from wanconv.engine.numerics import PRESETS, Imitation
from wanconv.engine.ranges import accumulator, small_shares
from wanconv.engine.recorder import Recorder
from wanconv.engine.wan import Wan, WanCondition, WanSizes
from wanconv.models.wan import T2V

HALF = torch.float16
TIMES = torch.tensor([999, 421])


def build(preset: str, variant: str = "t2v-a14b") -> Wan:
    shapes = canonical_shapes(VARIANTS[variant], SIZES[variant])
    return Wan(WanSizes.of(SIZES[variant], shapes.__getitem__), PRESETS[preset])


def recorded(preset: str, weights: Weights, **options: bool) -> tuple[Recorder, Tensor]:
    latents, context = inputs("t2v-a14b", (1, 3, 2))
    wan, recorder = build(preset), Recorder(**options)
    recorder.watch(wan)
    with recorder:
        recorder.at(step=3, timestep=999, expert="expert.high")
        return recorder, wan.denoise(weights, latents, TIMES, context)


def relative(candidate: Tensor, reference: Tensor) -> float:
    return float((candidate.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("variant", ["t2v-a14b", "ti2v-5b", "i2v-2.1"])
@pytest.mark.parametrize("preset", ["diffusers", "diffusers-fp16"])
def test_the_preset_rounds_where_diffusers_does(preset: str, variant: str) -> None:
    latents, context = inputs(variant, (2, 3, 2))
    weights, dtype = Weights(VARIANTS[variant], SIZES[variant]), PRESETS[preset].linear
    tokens = seen(variant, 2)
    condition = WanCondition(tokens=tokens)
    exact = build("fp32", variant).denoise(weights, latents, TIMES, context, condition)
    model = copy.deepcopy(in_diffusers(variant))
    for name, parameter in model.named_parameters():
        if not set(name.split(".")) & set(model._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Linear):  # of a slice, torch's linear on a CPU rounds twice: without and with its bias
            module.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    padded = F.pad(context, (0, 0, 0, 512 - context.shape[1])).to(dtype)
    with Imitation(), torch.no_grad():
        looked_at = None if tokens is None else tokens.to(dtype)
        theirs = model(latents.to(dtype), TIMES, padded, looked_at, return_dict=False)[0]
        ours = build(preset, variant).denoise(weights, latents, TIMES, context, condition)
    # independent errors of the same size would be 1.4 apart
    assert relative(ours, theirs) < 0.5 * relative(theirs, exact)


def test_the_presets_err_in_the_order_of_their_precision() -> None:
    latents, context = inputs("t2v-a14b", (2, 3, 2))
    weights = Weights(T2V, T2V.tiny)
    with Imitation():
        results = {name: build(name).denoise(weights, latents, TIMES, context) for name in PRESETS}
    errors = {name: relative(result, results["fp32"]) for name, result in results.items()}
    assert errors["fp32"] == 0 < errors["official-fp16"] < errors["comfyui-fp16"] < errors["official"]
    assert errors["official"] < errors["diffusers"] < 1e-2
    assert errors["fp16"] < 2e-3


@pytest.mark.parametrize("preset", PRESETS)
def test_a_timestep_is_never_narrowed(preset: str) -> None:
    latents, context = inputs("t2v-a14b", (1, 2, 2))
    weights = Weights(T2V, T2V.tiny)
    embed = build(preset).embed
    with Imitation():  # 999 and 1000 are the same number in bf16
        whole, wide, other = (
            embed(weights, latents, torch.tensor([time, time], dtype=dtype), context).time
            for time, dtype in ((999, torch.int64), (999, torch.float32), (1000, torch.int64))
        )
    assert torch.equal(whole, wide)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize(
    ("x", "w", "rounded"),
    [
        ((65504.0, 15.0), (1.0, 1.0), 65504.0),
        ((65504.0, 16.0), (1.0, 1.0), float("inf")),
        ((-65504.0, 16.0), (1.0, -1.0), float("-inf")),
        ((2.0**-12, 0.0), (2.0**-12, 0.0), 2.0**-24),  # the smallest subnormal
        ((2.0**-12, 0.0), (2.0**-13, 0.0), 0.0),  # a tie, to even
        ((1.5 * 2.0**-12, 0.0), (2.0**-13, 0.0), 2.0**-24),
        ((256.0, -256.0), (256.0, 256.0), 0.0),  # sums are float32's
    ],
)
def test_an_imitated_product_rounds_once_as_fp16_does(
    x: tuple[float, float], w: tuple[float, float], rounded: float
) -> None:
    with Imitation(), torch.no_grad():
        product = F.linear(torch.tensor([x], dtype=HALF), torch.tensor([w], dtype=HALF))
    assert (product.dtype, product.item()) == (HALF, rounded)


def unary() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "add": lambda x: x + x.flip(0),
        "mul": lambda x: x * x.flip(0),
        "sub": lambda x: x - x.flip(-1),
        "div": lambda x: x / x.flip(0),
        "addcmul": lambda x: torch.addcmul(x, x, x.flip(0)),
        "linear": lambda x: F.linear(x, x),
        "matmul": lambda x: x @ x.T,
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "layer_norm": lambda x: F.layer_norm(x, (64,)),
        "rms_norm": lambda x: F.rms_norm(x, (64,)),
        "softmax": lambda x: x.softmax(-1),
        "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
        "conv": lambda x: F.conv1d(x[None], x[:, :8, None]) if len(x) == 8 else x,
    }


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", unary())
def test_an_imitated_operation_is_the_float32_result_rounded_once(name: str, guard: type) -> None:
    x = 3 * torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x[0, :4] = torch.tensor([60000.0, 2.0**-24, -300.0, 6e-5])
    x = x.half()
    function = unary()[name]
    with Imitation(), guard():
        imitated = function(x)
    expected = function(x.float()).half()
    assert imitated.dtype == HALF
    if name in ("add", "mul", "sub", "div"):  # single roundings of exact operations: bit for bit
        assert torch.equal(imitated, expected)
    torch.testing.assert_close(imitated, expected, rtol=2e-3, atol=1e-6, equal_nan=True)


def test_a_librarys_module_is_imitated_as_it_is() -> None:
    linear = nn.Linear(64, 64).half()
    x = 1000 * torch.randn(4, 64)
    with Imitation(), torch.no_grad():
        imitated = linear(x.half())
    expected = F.linear(x.half().float(), linear.weight.float(), linear.bias.float()).half()
    assert torch.equal(imitated, expected)


def test_a_clean_run_has_no_incident_and_every_operation_has_its_place() -> None:
    recorder, _ = recorded("comfyui-fp16", Weights(T2V, T2V.tiny))
    assert recorder.first_bad is None
    assert not any(each.overflows for each in recorder.inside)
    places = {(each.path, each.op) for each in recorder.ranges}
    assert ("blocks.2.ffn.up", "linear") in places
    assert ("blocks.2.ffn", "gelu") in places
    assert ("blocks.0", "addcmul") in places
    (up,) = (each for each in recorder.ranges if (each.path, each.op) == ("blocks.1.ffn.up", "linear"))
    assert (up.dtype, up.step, up.timestep, up.expert) == ("float16", 3, 999, "expert.high")
    assert up.headroom == 65504 / up.amax
    logits = [each for each in recorder.inside if each.what == "q·kᵀ"]
    assert [each.where.path for each in logits][:2] == ["blocks.0.self_attn", "blocks.0.cross_attn"]


def test_the_norms_and_the_sums_of_a_block_have_names_of_their_own() -> None:
    recorder, _ = recorded("comfyui-fp16", Weights(T2V, T2V.tiny))
    names = [(each.path, each.operation) for each in recorder.ranges]
    assert len(names) == len(set(names))
    for own in (("blocks.0.norm_attn", "addcmul"), ("blocks.0.norm_ffn", "addcmul"), ("blocks.0", "addcmul#2")):
        assert own in names
    norms = [each.where.path for each in recorder.inside if "layer_norm" in each.where.op]
    assert norms[:3] == ["blocks.0.norm_attn", "blocks.0.cross_attn.norm_in", "blocks.0.norm_ffn"]


def test_recording_changes_no_number() -> None:
    weights = Weights(T2V, T2V.tiny)
    latents, context = inputs("t2v-a14b", (1, 3, 2))
    for preset in ("fp32", "official", "comfyui-fp16"):
        with Imitation():
            plain = build(preset).denoise(weights, latents, TIMES, context)
        assert torch.equal(recorded(preset, weights)[1], plain)


def test_an_overflow_in_a_linear_is_named_with_the_20_operations_before_it() -> None:
    weights = Weights(T2V, T2V.tiny)
    weights.values["blocks.1.ffn.up.weight"][0] = 20000
    recorder, velocity = recorded("fp16", weights)
    incident = recorder.first_bad
    assert incident is not None
    assert (incident.bad.path, incident.bad.op, incident.cause) == ("blocks.1.ffn.up", "linear", "overflow")
    assert (incident.bad.step, incident.bad.timestep, incident.bad.expert) == (3, 999, "expert.high")
    assert len(incident.before) == 20
    assert all(each.headroom >= 1 for each in incident.before)
    assert not velocity.isfinite().all()
    strict, velocity = recorded("fp32", weights, strict=True)  # the same place, judged from a float32 run
    assert strict.first_bad is not None
    assert (strict.first_bad.bad.path, strict.first_bad.cause) == ("blocks.1.ffn.up", "overflow")
    assert velocity.isfinite().all()


def test_a_residual_that_overflows_only_in_fp16_is_named_where_it_is_added() -> None:
    weights = Weights(T2V, T2V.tiny)
    for n in (0, 1):
        weights.values[f"blocks.{n}.ffn.down.bias"][5] = 4000
        weights.values[f"blocks.{n}.modulation"][0, 5, 5] = 12  # the gate: each block adds some 48000
    recorder, _ = recorded("comfyui-fp16", weights)
    assert recorder.first_bad is not None
    bad = recorder.first_bad.bad
    assert (bad.path, bad.op, bad.nth, recorder.first_bad.cause) == ("blocks.1", "addcmul", 1, "overflow")
    for roomy in ("official", "official-fp16", "diffusers"):
        kept, velocity = recorded(roomy, weights)
        assert kept.first_bad is None
        assert velocity.isfinite().all()


def test_squares_that_overflow_inside_of_a_norm_are_told_from_activations() -> None:
    weights = Weights(T2V, T2V.tiny)
    weights.values["blocks.1.self_attn.q.bias"][3] = 300
    recorder, velocity = recorded("comfyui-fp16", weights)
    assert recorder.first_bad is None
    assert velocity.isfinite().all()
    bad = [(each.where.path, each.where.op, each.what) for each in recorder.inside if each.overflows]
    assert bad == [("blocks.1.self_attn.norm_q", "rms_norm", "x²")]
    narrow, _ = recorded("fp16", weights)  # a runtime that squares in fp16
    assert narrow.first_bad is not None
    assert (narrow.first_bad.bad.path, narrow.first_bad.bad.op) == ("blocks.1.self_attn.norm_q", "mul")


def test_a_sum_that_overflows_only_on_its_way_is_found_by_its_magnitudes() -> None:
    weights = Weights(T2V, T2V.tiny)
    row = weights.values["blocks.1.cross_attn.v.weight"][7]
    row.copy_(torch.tensor([3000.0, -3000.0]).repeat(len(row) // 2))
    weights.values["text_embedding.out.weight"][:] = weights.values["text_embedding.out.weight"][:1]  # pairs cancel
    weights.values["text_embedding.out.bias"].zero_()
    weights.values["text_embedding.out.weight"] *= 2 / weights.values["text_embedding.out.weight"].abs().max()
    weights.values["blocks.1.cross_attn.v.bias"].zero_()
    recorder, velocity = recorded("fp16", weights, sums=True)
    assert recorder.first_bad is None
    assert velocity.isfinite().all()
    bad = [(each.where.path, each.what) for each in recorder.inside if each.overflows]
    assert bad == [("blocks.1.cross_attn.v", "Σ|x·w|")]


def test_the_bound_of_sums_is_exact_where_the_filter_does_not_suffice() -> None:
    x, weight = torch.zeros(4, 64), torch.zeros(8, 64)
    x[1, 0], weight[5, 1] = 1e4, 1e4  # norms of 1e4 each, but they never meet
    bound = accumulator(x, weight)
    assert (bound.exact, bound.bound, bound.safe) == (True, 0.0, True)
    weight[2, 0] = 6.0
    assert accumulator(x, weight).bound == 60000.0  # by its norm
    weight[2, 0] = 7.0
    assert not accumulator(x, weight).safe
    assert not accumulator(16 * torch.ones(1, 8192), torch.ones(1, 8192)).safe  # 16·8192 - 16·8192 as well
    assert accumulator(torch.ones(1, 8192), torch.ones(1, 8192)).safe
    weight[0, 0] = float("nan")
    assert not accumulator(x, weight).safe


@pytest.mark.parametrize("name", ["blocks.1.ffn.up.weight", "blocks.1.self_attn.norm_k.weight", "blocks.1.modulation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_as_given(name: str, value: float) -> None:
    weights = Weights(T2V, T2V.tiny)
    weights.values[name].view(-1)[0] = value
    recorder, _ = recorded("official-fp16", weights)
    assert recorder.first_bad is not None
    assert recorder.first_bad.cause == "given"
    assert f"{name}.".startswith(f"{recorder.first_bad.bad.path}.")


def test_a_weight_beyond_fp16_is_named_where_it_is_cast() -> None:
    weights = Weights(T2V, T2V.tiny)
    weights.values["blocks.2.self_attn.o.weight"][0, 0] = 7e4
    recorder, _ = recorded("fp16", weights)
    assert recorder.first_bad is not None
    bad = recorder.first_bad.bad
    assert (bad.path, bad.op, recorder.first_bad.cause) == ("blocks.2.self_attn.o", "to", "overflow")


def test_an_attention_mask_of_minus_infinity_is_no_incident() -> None:
    recorder = Recorder()
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    with recorder:
        weights = (torch.randn(4, 4) + mask).softmax(-1)
    assert weights.isfinite().all()
    assert recorder.first_bad is None


def test_a_row_masked_whole_is_an_incident_of_its_softmax() -> None:
    recorder = Recorder()
    with recorder:
        torch.full((2,), float("-inf")).softmax(-1)
    assert recorder.first_bad is not None
    assert (recorder.first_bad.bad.op, recorder.first_bad.cause) == ("softmax", "given")


def test_an_operation_on_nothing_but_finite_numbers_that_gives_nan_is_invalid() -> None:
    recorder = Recorder()
    with recorder, recorder.scope("sampler"):
        torch.zeros(3) / torch.zeros(3)
    assert recorder.first_bad is not None
    assert (recorder.first_bad.bad.path, recorder.first_bad.bad.op, recorder.first_bad.cause) == (
        "sampler",
        "div",
        "invalid",
    )


def test_the_largest_magnitude_is_kept_over_steps() -> None:
    recorder = Recorder()
    with recorder:
        for step, factor in enumerate((1.0, 5.0, -7.0, 2.0)):
            recorder.at(step=step, timestep=1000.0 - step)
            with recorder.scope("sampler"):
                torch.ones(2) * factor
    (found,) = recorder.ranges
    assert (found.path, found.op, found.amax, found.step, found.timestep) == ("sampler", "mul", 7.0, 2, 998.0)


def test_modules_of_libraries_are_watched_and_left_when_they_raise() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    model = nn.ModuleDict({"fails": Fails(), "fine": nn.Linear(2, 2)})
    recorder = Recorder()
    recorder.watch(model, "text_encoder")
    with recorder:
        with pytest.raises(ZeroDivisionError):
            model["fails"](torch.ones(2))
        model["fine"](torch.ones(2))
    assert [(each.path, each.op) for each in recorder.ranges] == [("text_encoder.fine", "linear")]


def test_small_numbers_are_counted_as_fp16_loses_them() -> None:
    wide = torch.tensor([0.0, 1.0, 2.0**-25, 2.0**-24, -(2.0**-15), 2.0**-14, 1e-9, 3e-8])
    assert small_shares(wide) == (2 / 8, 3 / 8)  # 3e-8 rounds up to 2^-24
    assert small_shares(wide, wide.half()) == small_shares(wide)


def test_shares_of_small_numbers_are_seen_before_rounding() -> None:
    recorder, x = Recorder(shares=True), torch.full((4,), 2.0**-13, dtype=HALF)
    with recorder:
        _ = x * x  # 2^-26: all lost
        _ = x * 0.25
    lost, kept = recorder.ranges
    assert (lost.amax, lost.flushed, lost.subnormal) == (0.0, 1.0, 0.0)
    assert (kept.flushed, kept.subnormal) == (0.0, 1.0)
