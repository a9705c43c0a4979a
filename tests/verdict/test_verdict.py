"""Verdicts on results that nobody measured: every outcome, what outweighs what, and profiles as data."""

import json
from copy import deepcopy
from importlib import resources
from pathlib import Path

import pytest
from documents import GOOD

from wanconv.errors import InputError, UsageError
from wanconv.quantization import FORMATS
from wanconv.verdict import Check, Verdict, coarsest, judge, load_profile, profiles
from wanconv.verdict.saved import SCHEMA, faults, read_results

QUICK = load_profile("quick")


def judged(section: str, **changes: object) -> Verdict:
    """Returns the verdict on good results with changes in the first row of a section."""
    results = deepcopy(GOOD)
    results[section][0] |= changes
    return judge(results, QUICK)


def not_passed(found: Verdict) -> list[Check]:
    return [check for check in found.checks if check.outcome != "PASS"]


def test_good_results_pass() -> None:
    found = judge(GOOD, QUICK)
    assert (found.outcome, found.exit_code, not_passed(found)) == ("PASS", 0, [])
    assert {check.name for check in found.checks} == {"storage", "activations", "noise prediction", "decoded video"}


@pytest.mark.parametrize(
    ("section", "changes", "outcome", "name", "where"),
    [
        ("storage", {"first_not_finite": "NaN at 7"}, "NOT FINITE", "storage", "expert.high/blocks.0.ffn.up.weight"),
        ("storage", {"relative_l2": 0.006}, "FAIL", "storage", "expert.high/blocks.0.ffn.up.weight"),
        ("storage", {"relative_l2": None}, "FAIL", "storage", "expert.high/blocks.0.ffn.up.weight"),
        ("storage", {"format": "exact"}, "FAIL", "storage", "expert.high/blocks.0.ffn.up.weight"),
        (
            "storage",
            {"kind": "norm", "format": "fp8_e4m3fn", "relative_l2": 0.02},
            "FAIL",
            "storage",
            "expert.high/blocks.0.ffn.up.weight",
        ),
        ("storage", {"format": "int4"}, "CANNOT JUDGE", "storage", "expert.high/blocks.0.ffn.up.weight"),
        (
            "safety",
            {"first_bad": {"path": "blocks.2.ffn.up", "op": "linear"}},
            "NOT FINITE",
            "activations",
            "expert.high/blocks.2.ffn.up",
        ),
        ("safety", {"headroom": 0.5}, "NOT FINITE", "activations", "expert.high/blocks.0.ffn.up:linear"),
        ("safety", {"headroom": None}, "CANNOT JUDGE", "activations", "expert.high"),
        (
            "safety",
            {"accumulators": [{"path": "blocks.1.ffn.down", "value": 7e4, "limit": 6e4}]},
            "NOT FINITE",
            "accumulator",
            "expert.high/blocks.1.ffn.down",
        ),
        ("steps", {"relative_l2": 0.011}, "FAIL", "noise prediction", "expert.high at t=999"),
        ("steps", {"relative_l2": None}, "NOT FINITE", "noise prediction", "expert.high at t=999"),
        ("steps", {"format": "int4"}, "CANNOT JUDGE", "noise prediction", "expert.high at t=999"),
        ("components", {"relative_l2": 0.003}, "FAIL", "decoded video", "vae"),
    ],
)
def test_one_bad_row_decides(section: str, changes: dict[str, object], outcome: str, name: str, where: str) -> None:
    found = judged(section, **changes)
    (check,) = not_passed(found)
    assert (found.outcome, check.outcome, check.name, check.where) == (outcome, outcome, name, where)
    assert found.exit_code == {"NOT FINITE": 5, "FAIL": 6, "CANNOT JUDGE": 1}[outcome]


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ("storage", {"flushed_share": 0.04}, "4.0% of its numbers became zero"),
        ("safety", {"headroom": 2.0}, "little room for longer clips"),
        ("safety", {"largest": 7e4}, "too large for clients that run in fp16"),
        ("safety", {"op_internal": [{"path": "norm_q", "value": 300, "limit": 256, "why": "x²"}]}, "x² overflows"),
    ],
)  # fmt: skip
def test_a_warning_leaves_the_verdict_as_it_is(section: str, changes: dict[str, object], says: str) -> None:
    found = judged(section, **changes)
    (check,) = not_passed(found)
    assert (found.outcome, check.outcome, says in check.message) == ("PASS", "WARNING", True)


def test_a_block_is_held_to_the_limit_by_itself() -> None:
    results = deepcopy(GOOD)
    row = results["steps"][0]
    errors = {"blocks.0": 0.002, "blocks.1": 0.02, "blocks.2": 0.001}
    row["blocks"] = [{"block": name, "forced_relative_l2": error} for name, error in errors.items()]
    results["steps"].append({**row, "blocks": [{"block": "blocks.0", "forced_relative_l2": 0.003}]})
    found = [check for check in judge(results, QUICK).checks if check.name == "block"]
    assert [(check.outcome, check.where, check.value) for check in found] == [
        ("FAIL", "expert.high/blocks.1", 0.02),
        ("PASS", "expert.high/blocks.0", 0.003),
    ]
    row["blocks"][1]["forced_relative_l2"] = None
    assert judge(results, QUICK).outcome == "NOT FINITE"


def test_warnings_and_passes_about_storage_are_told_once_per_component() -> None:
    results = deepcopy(GOOD)
    row = results["storage"][0]
    results["storage"] = [
        {**row, "tensor": f"expert.high/{n}", "flushed_share": 0.02, "relative_l2": n / 1e3} for n in range(4)
    ]
    (check,) = [check for check in judge(results, QUICK).checks if check.name == "storage"]
    assert (check.outcome, check.where, "; 3 more" in check.message) == ("WARNING", "expert.high/3", True)


def test_what_is_worse_outweighs() -> None:
    results = deepcopy(GOOD)
    for spoil, outcome in (
        (lambda: results.update(experts_exercised=["expert.high"]), "CANNOT JUDGE"),
        (lambda: results["steps"][0].update(relative_l2=0.5), "FAIL"),
        (lambda: results["storage"][0].update(first_not_finite="NaN at 7"), "NOT FINITE"),
    ):
        spoil()
        assert judge(results, QUICK).outcome == outcome


def test_an_expert_that_did_not_run_and_a_reason_cannot_be_judged() -> None:
    missing = judge({**GOOD, "experts_exercised": ["expert.high"]}, QUICK)
    assert [(check.outcome, check.where) for check in not_passed(missing)] == [("CANNOT JUDGE", "expert.low")]
    told = judge({**GOOD, "cannot_judge": ["the candidate holds no denoiser"]}, QUICK)
    assert [check.message for check in not_passed(told)] == ["the candidate holds no denoiser"]
    assert judge({"schema": SCHEMA}, QUICK).outcome == "CANNOT JUDGE"


def test_a_free_run_is_judged_only_where_it_is_no_video() -> None:
    good = {"black_frames": [], "reference_black_frames": [], "psnr": {"psnr_db": 9.0}}
    assert judge({**GOOD, "video": {"candidate": good}}, QUICK).outcome == "PASS"
    black = judge({**GOOD, "video": {"candidate": {**good, "black_frames": [0, 1]}}}, QUICK)
    assert (black.outcome, [check.outcome for check in not_passed(black)]) == ("PASS", ["WARNING"])
    lost = judge({**GOOD, "video": {"candidate": {"not_finite": ["candidate"]}}}, QUICK)
    assert (lost.outcome, [check.where for check in not_passed(lost)]) == ("NOT FINITE", ["candidate"])


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("fp32", "fp32"), ("bf16", "fp32")], "exact"),
        ([("fp32", "bf16"), ("fp32", "fp16"), ("fp32", "fp32")], "bf16"),
        ([("bf16", "fp16")], "fp16"),
        ([("bf16", "fp8_e4m3fn"), ("bf16", "fp16")], "fp8_e4m3fn"),
        ([("fp32", "fp8_e5m2"), ("fp32", "fp8_e4m3fn")], "fp8_e5m2"),
        ([("fp8_e4m3fn", "fp8_e4m3fn")], "exact"),
        ([], "exact"),
    ],
)
def test_the_coarsest_lossy_format_sets_the_limit(pairs: list[tuple[str, str]], expected: str) -> None:
    assert coarsest(pairs) == expected


@pytest.mark.parametrize("name", profiles())
def test_every_profile_has_a_limit_for_every_format(name: str) -> None:
    profile = load_profile(name)
    for limits in (
        profile.noise_relative_l2,
        profile.block_relative_l2,
        profile.weight_relative_l2,
        profile.component_relative_l2,
    ):
        assert set(limits) >= {"exact", *FORMATS} - {"keep", "fp32"}
        assert all(limits["exact"] <= limit for limit in limits.values())
    assert (profile.name, profile.headroom_fail < profile.headroom_warn) == (name, True)


def test_the_profiles_are_three_from_quick_to_full() -> None:
    assert profiles() == ("quick", "standard", "full")


LIMITS = """
[noise_relative_l2]
fp16 = 1e-3
bf16 = 1e-2

[weight_relative_l2]
exact = 0.0
"""
TEXT = (resources.files("wanconv.verdict") / "profiles" / "quick.toml").read_text(encoding="utf-8") + LIMITS


def test_a_limit_that_a_profile_does_not_state_is_the_formats_own(tmp_path: Path) -> None:
    path = tmp_path / "strict.toml"
    path.write_text(TEXT.replace("bf16 = 1e-2", "bf16 = 1e-4"))
    ours, shipped = load_profile(str(path)), load_profile("quick")
    assert ours.noise_relative_l2 == {**shipped.noise_relative_l2, "bf16": 1e-4}
    assert ours.block_relative_l2 == shipped.block_relative_l2
    assert (shipped.noise_relative_l2["nvfp4"], shipped.block_relative_l2["nvfp4"]) == (0.15, 0.3)
    assert (shipped.weight_relative_l2["exact"], shipped.component_relative_l2["q8_0"]) == (0.0, 0.04)


def test_a_profile_of_ones_own_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "strict.toml"
    path.write_text(TEXT.replace("bf16 = 1e-2", "bf16 = 1e-4"))
    assert judge(GOOD, load_profile(str(path))).outcome == "FAIL"


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        ("schema = 1", "schema = 2", "schema must be 1, and summary one sentence"),
        ("schema = 1", "schema = 1\nkind = 3", "unknown key kind"),
        ("steps = 2", "stepps = 2", "unknown key run.stepps – run.steps?"),
        ("steps = 2", "", "run.steps is missing or wrong"),
        ("video = false", 'video = "no"', "run.video is missing or wrong"),
        ("warn = 4.0", "", "headroom.warn is missing or wrong"),
        ('size = "128x128"', 'size = "128"', "run.size must be as 128x128"),
        ('"first", ', '"last", ', "run.probes must be timesteps, 1 to 999, or first, boundary, below_boundary"),
        ('"first", ', "1000, ", "run.probes must be timesteps, 1 to 999, or first, boundary, below_boundary"),
        ("fp16 = 1e-3", 'fp16 = "small"', "noise_relative_l2 must hold numbers by format, finite and not negative"),
        ("fp16 = 1e-3", "fp16 = nan", "noise_relative_l2 must hold numbers by format, finite and not negative"),
        ("exact = 0.0", "exact = inf", "weight_relative_l2 must hold numbers by format, finite and not negative"),
        ("exact = 0.0", "exact = -1.0", "weight_relative_l2 must hold numbers by format, finite and not negative"),
        ("fail = 1.0", "fail = nan", "headroom.fail is missing or wrong"),
        ("fail = 1.0", "fail = true", "headroom.fail is missing or wrong"),
        ("warn = 4.0", "warn = -4.0", "headroom.warn is missing or wrong"),
        ("steps = 2", "steps = -2", "run.steps is missing or wrong"),
        ("frames = 5", "frames = 0", "run.frames must be 1 or more"),
        ("steps = 2", "steps = true", "run.steps is missing or wrong"),
        ("fp16 = 1e-3", "fp17 = 1e-3", "noise_relative_l2: there is no format fp17"),
    ],
)
def test_a_profile_that_breaks_the_schema_is_refused(old: str, new: str, detail: str, tmp_path: Path) -> None:
    assert old in TEXT
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(UsageError, match="profile mine breaks the schema") as caught:
        load_profile(str(path))
    assert detail in caught.value.details


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quik", "there is no profile 'quik'"),
        ("nowhere.toml", "profile nowhere.toml cannot be read"),
        ("half.toml", "profile half is not valid TOML"),
    ],
)
def test_a_profile_that_is_none_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.toml").write_text("[run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_profile(name)


def test_every_key_of_a_profile_is_used(tmp_path: Path) -> None:
    """Each key that is left out is missed, so none is dead."""
    for number, line in enumerate(TEXT.splitlines()):
        key, _, value = line.partition(" = ")
        if not value or line.startswith("#") or key in ("exact", *FORMATS, "int8"):
            continue
        path = tmp_path / f"{number}.toml"
        path.write_text(TEXT.replace(line, "", 1))
        with pytest.raises(UsageError, match="breaks the schema"):
            load_profile(str(path))


def test_results_that_can_be_judged_have_no_faults() -> None:
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"schema": "wanconv.validation/0"}, f"schema is not {SCHEMA}"),
        ({"candidate": None}, "candidate is not an object"),
        ({"candidate": {"path": "out", "family": "wan2.1-t2v"}}, "candidate lacks one of path, family, layout"),
        ({"reference": {}}, "reference lacks its path"),
        ({"notes": "none"}, "notes is not a list of texts"),
        ({"steps": [{"component": "dit"}]}, "steps[0] lacks one of component, timestep, format"),
        ({"storage": ["NaN"]}, "storage[0] lacks one of tensor, format"),
        (
            {"safety": [{"component": "dit", "numerics": "fp16", "accumulators": [{"path": "head"}]}]},
            "safety[0].accumulators[0] lacks one of path, value, limit",
        ),
    ],
)
def test_results_that_cannot_be_judged_are_told_apart(changes: dict[str, object], fault: str) -> None:
    assert faults({**GOOD, **changes}) == [fault]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_results_with_a_number_that_json_has_not_are_refused(number: str, tmp_path: Path) -> None:
    """NaN is beyond no limit."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(GOOD).replace("0.0017", number))
    with pytest.raises(InputError, match=r"results\.json cannot be read as results: it holds") as caught:
        read_results(path)
    assert caught.value.hint == "give the results.json that `Validation.write_report` wrote"


def test_what_is_no_object_is_no_result() -> None:
    assert faults([GOOD]) == [f"schema is not {SCHEMA}"]
