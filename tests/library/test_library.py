"""`import wanconv`: what it offers, typed and documented, and what a call leaves as it was."""

import _thread
import ast
import doctest
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import copy

import wanconv as wc
from wanconv.commands.convert import convert as command
from wanconv.conversion.options import ConvertOptions
from wanconv.samples import shipped
from wanconv.weights.reader import Reader, Sources

ROOT = Path(__file__).resolve().parents[2]
T2V = "wan2.1-t2v-1.3b"
FUNCTIONS = [name for name in wc.__all__ if name.islower()]


@pytest.fixture
def source(tiny: Callable[..., Path]) -> Path:
    return tiny(T2V)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# names, types, documentation


def test_every_public_name_is_there_and_what_a_type_checker_sees() -> None:
    assert sorted(set(wc.__all__)) == sorted(wc.__all__)
    seen = {
        (f"{node.module}", alias.name)
        for block in ast.parse((ROOT / "wanconv" / "__init__.py").read_text()).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(f"wanconv.{wc._HOME[name]}", name) for name in wc.__all__}
    assert [name for name in wc.__all__ if getattr(wc, name) is None] == []
    assert set(wc.__all__) <= set(dir(wc))
    with pytest.raises(AttributeError, match="has no attribute 'calibrate'"):
        wc.calibrate  # noqa: B018


def test_no_room_is_called_as_a_function_is() -> None:
    rooms = {path.stem for path in (ROOT / "wanconv").iterdir()}
    assert rooms & set(wc.__all__) == set()


def test_a_name_is_loaded_when_it_is_used_and_torch_with_what_needs_it() -> None:
    probe = (
        "import sys, wanconv as wc; assert 'wanconv.errors' not in sys.modules; wc.UsageError; wc.list_recipes();"
        "wc.plan; wc.open_model; wc.verify; wc.validate; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_returns_and_raises(name: str) -> None:
    text = getattr(wc, name).__doc__ or ""
    takes = () if name.startswith("list_") else ("Args:",)
    raises = () if name in ("list_formats", "list_recipes") else ("Raises:",)
    assert [part for part in (*takes, "Returns:", *raises, "Examples:", ">>> ") if part not in text] == []
    arguments = set(getattr(wc, name).__annotations__) - {"return"}
    assert [argument for argument in arguments if f"\n        {argument}: " not in text] == []


@pytest.mark.parametrize("name", wc.__all__)
def test_the_example_of_a_public_name_does_what_it_says(name: str, tmp_path: Path) -> None:
    value = getattr(wc, name)
    with shipped.packaged() as checkpoint:
        known = {"checkpoint": checkpoint, "folder": tmp_path}
        tests = doctest.DocTestFinder(recurse=False).find(value, name, globs=known) if value.__doc__ else []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
        for test in tests:
            runner.run(test)
    assert runner.failures == 0
    assert runner.tries > 0 or name not in FUNCTIONS


@pytest.mark.exhaustive  # mypy reads the whole package: a minute
def test_a_type_checker_sees_the_real_types(tmp_path: Path) -> None:
    script = """\
import wanconv as wc
from wanconv import Plan, UsageError

model = wc.open_model("model", expert="high")
made: Plan = wc.plan(model, wc.Recipe(rules=(wc.Rule(match="**", format="bf16"),)), "comfyui")
done = wc.convert(made, "out", overwrite=True)
both = wc.convert([made, made], ["a", "b"])
reveal_type((model, done, both, UsageError("a").arguments))
reveal_type((wc.tensors(model)["dit/a"].shape, wc.tensors(model)["dit/a"].stored_as))
reveal_type((wc.verify("out").ok, wc.validate("out").outcome))
wc.open_model("model", expert="middle")
"""
    (tmp_path / "mine.py").write_text(script)
    # libraries' own sources take minutes; what torch is in our signatures, the last line says
    libraries = ("torch", "numpy", "safetensors", "huggingface_hub", "modelscope_hub", "requests", "urllib3", "xxhash")
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in libraries)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\n{skipped}")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "mine.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("mine.py")]
    assert len(said) == 4, done.stdout
    for type_ in ("wanconv.types.model.Model", "wanconv.commands.convert.Conversion, ...]", "tuple[str, ...]"):
        assert type_ in said[0]
    assert said[1].endswith('Revealed type is "tuple[tuple[int, ...], str]"')
    assert "bool" in said[2]
    assert "CANNOT JUDGE" in said[2]
    assert "has incompatible type \"Literal['middle']\"" in said[3]
    assert get_type_hints(wc.LazyTensor.read)["return"] is torch.Tensor


# plans


def test_a_plan_in_memory_writes_what_the_command_writes(source: Path, tmp_path: Path) -> None:
    made = wc.plan(wc.open_model(source, exclude=["*.txt"]), "fp8-scaled", "comfyui")
    done = wc.convert(made, tmp_path / "library", jobs=2)
    command(source, ConvertOptions("fp8-scaled", layout="comfyui", out=tmp_path / "command", exclude=("*.txt",)))
    assert (done.out, done.written) == (tmp_path / "library", True)
    assert done.plan.identity == made.identity
    assert files(tmp_path / "library") == files(tmp_path / "command")
    again = wc.convert(made, tmp_path / "command")
    assert (again.written, again.findings[0].severity) == (False, "note")


def test_a_recipe_made_in_python_is_a_file_s_recipe(source: Path, tmp_path: Path) -> None:
    rules = (
        wc.Rule(match="dit/**", format="int8", kinds=("linear",), blocks=(0, -1), scale="row", rounding="mse"),
        wc.Rule(match="dit/**", format="mxfp8", kinds=("linear",), optional=True),
        wc.Rule(match="**", format="bf16"),
    )
    recipe = wc.Recipe(name="mine", summary='With "quotes".', rules=rules)
    (tmp_path / "mine.toml").write_text(recipe.text)
    model = wc.open_model(source)
    assert wc.plan(model, recipe, "comfyui").identity == wc.plan(model, tmp_path / "mine.toml", "comfyui").identity
    assert [rule.scale for rule in recipe.rules] == ["row", "block", "none"]


def test_a_recipe_made_in_python_is_refused_with_everything_that_is_wrong() -> None:
    with pytest.raises(wc.UsageError, match="recipe mine breaks the schema") as raised:
        wc.Recipe(name="mine", rules=(wc.Rule("**", "fp88"), wc.Rule("a//b", "bf16", scale="row")))
    assert len(raised.value.details) == 2
    with pytest.raises(wc.UsageError) as empty:
        wc.Recipe()
    assert empty.value.details == ("there must be at least one [[rule]]",)


def test_a_plan_is_refused_with_all_reasons(source: Path) -> None:
    model = wc.open_model(source)
    with pytest.raises(wc.Refused) as raised:
        wc.plan(model, wc.Recipe(rules=(wc.Rule("dit/**", "bf16"), wc.Rule("nothing/**", "bf16"))))
    assert any("rule 2" in line for line in raised.value.details)
    assert len(raised.value.details) > 2
    with pytest.raises(wc.UsageError, match="there is no layout 'comfy'"):
        wc.plan(model, "bf16", "comfy")


def test_several_plans_are_carried_out_one_after_the_other(source: Path, tmp_path: Path) -> None:
    model = wc.open_model(source)
    plans = [wc.plan(model, "bf16", layout) for layout in ("comfyui", "diffusers")]
    done = wc.convert(plans, [tmp_path / "a", tmp_path / "b"])
    assert [one.plan.layout.name for one in done] == ["comfyui", "diffusers"]
    assert all(wc.verify(one.out, against=source).ok for one in done)
    with pytest.raises(wc.UsageError, match="2 plans cannot go to 1 folders"):
        wc.convert(plans, [tmp_path / "a"])


def test_a_pickled_plan_is_carried_out_in_another_process(source: Path, tmp_path: Path) -> None:
    made = wc.plan(wc.open_model(source), "bf16", "comfyui")
    (tmp_path / "plan").write_bytes(pickle.dumps(made))
    there = "import pickle, sys, wanconv as wc; wc.convert(pickle.load(open(sys.argv[1], 'rb')), sys.argv[2])"
    subprocess.run([sys.executable, "-c", there, str(tmp_path / "plan"), str(tmp_path / "there")], check=True)
    wc.convert(made, tmp_path / "here")
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_what_is_in_the_way_is_replaced_when_it_is_said_so(source: Path, tmp_path: Path) -> None:
    model, out = wc.open_model(source), tmp_path / "out"
    wc.convert(wc.plan(model, "bf16", "comfyui"), out)
    other = wc.plan(model, "fp16", "comfyui", allow_unsafe_fp16=True)
    with pytest.raises(wc.UsageError, match="holds another conversion") as raised:
        wc.convert(other, out)
    assert raised.value.arguments == ("base_model", "loras", "out", "overwrite")
    assert raised.value.hint == "choose another `out`, or `overwrite=True` to replace it"
    assert wc.convert(other, out, overwrite=True).written


def planned(source: Path) -> wc.Plan:
    return wc.plan(wc.open_model(source), "bf16")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda source: wc.open_model("s3://bucket/model"), "`source`: s3:// is not supported yet: s3://bucket/model"),
        (lambda source: wc.open_model(""), "`source`: the path is empty"),
        (lambda source: wc.convert(planned(source), "s3://bucket/out"), "`out`: s3:// is not supported yet"),
        (lambda source: wc.convert(planned(source), source), "is, holds or lies in the source"),
        (
            lambda source: wc.convert(planned(source), "out", base_model="x"),
            "`base_model` 'x' is not a valid repository name",
        ),
    ],
)
def test_a_wrong_argument_is_named_as_python_names_it(
    call: Callable[[Path], object], message: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(wc.UsageError) as raised:
        call(source)
    assert message in raised.value.message
    assert list(tmp_path.iterdir()) == []


# tensors


@pytest.mark.parametrize(("recipe", "layout"), [("bf16", "official"), ("int8-row", "diffusers"), ("gguf-q8_0", "gguf")])
def test_a_tensor_is_read_by_rows_as_the_model_s_numbers(
    recipe: str, layout: str, source: Path, tmp_path: Path
) -> None:
    done = wc.convert(wc.plan(wc.open_model(source), recipe, layout), tmp_path / "out")
    model = wc.open_model(done.out)
    lazy = wc.tensors(model)
    assert lazy.keys() == model.tensors.keys()
    for name, tensor in lazy.items():
        sources = Sources()
        expected = Reader(sources).values(model.tensors[name], 0, model.tensors[name].numel).clone().view(tensor.shape)
        sources.close()
        whole = tensor.read()
        assert (whole.dtype, whole.shape) == (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
        assert torch.equal(whole.float(), expected.float())
        if tensor.shape:
            assert torch.equal(tensor.read(rows=slice(-1, None)).float(), whole[-1:].float())
            assert tensor.read(rows=slice(1, 1)).shape == (0, *tensor.shape[1:])


def test_a_tensor_has_the_model_s_loras_in_it(source: Path, tmp_path: Path) -> None:
    name = "dit/blocks.0.self_attn.q.weight"
    plain = wc.tensors(wc.open_model(source))[name].read().float()
    low, high = torch.randn(2, plain.shape[1]), torch.randn(plain.shape[0], 2)
    keys = {"A": low, "B": high}
    path = "blocks.0.self_attn.q.lora_{}.weight"
    save_file({path.format(side): values for side, values in keys.items()}, tmp_path / "style.safetensors")
    made = wc.plan(wc.open_model(source), "bf16", loras=[f"{tmp_path}/style.safetensors:0.5"])
    merged = wc.tensors(made.model)[name]
    expected = (plain.double() + 0.5 * high.double() @ low.double()).float()
    assert torch.equal(merged.read(rows=slice(1, 3)), merged.read()[1:3])
    torch.testing.assert_close(merged.read(), expected, rtol=1e-6, atol=1e-6)


def test_a_tensor_of_a_file_that_changed_is_refused(source: Path, tmp_path: Path) -> None:
    folder = copy(source, tmp_path / "model")
    tensor = wc.tensors(wc.open_model(folder))["dit/blocks.0.self_attn.q.weight"]
    file = tensor.tensor.pieces[0].ref.file
    save_file({"other": load_file(file)[tensor.tensor.pieces[0].ref.name]}, file)
    with pytest.raises(wc.InputError, match="cannot be read"):
        tensor.read()
    with pytest.raises(wc.UsageError, match="steps of 1"):
        tensor.read(rows=slice(0, 4, 2))


# what a call leaves as it was


@contextmanager
def left_as_found() -> Iterator[None]:
    """Holds that what belongs to the process is the same afterwards, whatever is raised."""

    def state() -> object:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        return torch.get_num_threads(), torch.get_num_interop_threads(), handlers, dict(os.environ), Path.cwd()

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    before = state()
    try:
        yield
    finally:
        after = state()
        torch.set_num_threads(threads)
        assert after == before


def test_a_conversion_and_a_proof_leave_the_process_as_it_was(source: Path, tmp_path: Path) -> None:
    with left_as_found():
        made = wc.plan(wc.open_model(source), "int8-row", "comfyui")
        wc.convert(made, tmp_path / "out")
        assert wc.verify(tmp_path / "out", against=source).ok


def test_a_validation_leaves_the_process_as_it_was(source: Path, tmp_path: Path) -> None:
    settings = wc.RunSettings(size=(64, 64))
    with left_as_found():
        done = wc.validate(wc.open_model(source), reference=source, profile="quick", settings=settings)
    assert done.outcome == "PASS"
    assert done.report.exit_code == 0
    done.write_report(tmp_path / "report")
    assert {"results.json", "validation.html"} <= files(tmp_path / "report").keys()


@pytest.mark.parametrize("call", ["convert", "verify", "validate"])
def test_an_interrupted_call_leaves_the_process_as_it_was(call: str, source: Path, tmp_path: Path) -> None:
    made = wc.plan(wc.open_model(source), "int8-row", "comfyui")
    stopped: list[str] = []
    if call == "verify":
        wc.convert(made, tmp_path / "out")

    def stop(step: wc.ProgressStep) -> None:
        if not stopped and step.done:
            stopped.append(step.what)
            _thread.interrupt_main()

    settings = wc.RunSettings(size=(64, 64))
    calls: dict[str, Callable[[], object]] = {
        "convert": lambda: wc.convert(made, tmp_path / "out", progress=stop),
        "verify": lambda: wc.verify(tmp_path / "out", against=source, progress=stop),
        "validate": lambda: wc.validate(source, profile="quick", settings=settings, progress=stop),
    }
    with left_as_found(), pytest.raises(wc.Interrupted if call == "convert" else KeyboardInterrupt):
        calls[call]()
    assert len(stopped) == 1
    if call == "convert":
        assert not (tmp_path / "out").exists()
        assert wc.convert(made, tmp_path / "out").written


def test_a_conversion_that_fails_leaves_the_process_as_it_was(source: Path, tmp_path: Path) -> None:
    folder = copy(source, tmp_path / "model")
    name = "dit/blocks.0.self_attn.q.weight"
    file = wc.tensors(wc.open_model(folder))[name].tensor.pieces[0].ref.file
    values = load_file(file)
    values[wc.open_model(folder).tensors[name].pieces[0].ref.name][0] = float("nan")
    save_file(values, file)
    with left_as_found(), pytest.raises(wc.NotFinite):
        wc.convert(wc.plan(wc.open_model(folder), "int8-row", "comfyui"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
