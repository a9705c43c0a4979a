"""Mutants of what people and programs save: results, recipes and profiles that are broken in one or two places."""

import json
import random
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from battery import Scale
from documents import GOOD, SMALL

import wanconv
from wanconv import recipe as recipes
from wanconv.commands.validate import recheck
from wanconv.errors import InputError, Refused, UsageError, WanconvError
from wanconv.models import FAMILIES
from wanconv.verdict import judge, load_profile

pytestmark = pytest.mark.exhaustive
Slot = tuple[Any, Any]  # a container, and where in it
Record = Callable[[str, object], None]

# fmt: off
RAW = {  # what json.dumps does not write, by what stands for it
    "@long@": "9" * 5000, "@large@": "9" * 300, "@nan@": "NaN", "@inf@": "-Infinity", "@over@": "1e999", "@zero@": "-0",
    "@deep@": "[" * 40 + "]" * 40, "@abyss@": "[" * 100_000 + "]" * 100_000, "@twice@": '{"path": 1, "path": 2}',
    "@half@": '"\\ud800"', "@digits@": "1" * 19,
}
VALUES: list[object] = [
    None, True, False, 0, -1, 1, 2**63 - 1, 0.0, -1.5, 1e308, 5e-324, "", "x", "fp16", "bf16", "\x1b[31m\n", "a" * 5000,
    [], {}, [[]], [{}], [None], ["x"], [1], {"path": "x"}, {"relative_l2": None}, *RAW,
]
TOML = [
    "0x" + "f" * 5000, "9" * 5000, "9" * 400, "nan", "-inf", "1e400", "-1", "0", "1.5", "true", '""', '"x"', "'**'",
    "[]", "[[]]", "{}", "{a = 1}", "[1, 'x']", "1979-05-27", "07:32:00", '"""\n"""', "[" * 5000,
    "[" * 5000 + "]" * 5000,
    "{a=" * 2000 + "1" + "}" * 2000, "a" + ".a" * 20_000, '"' + "{*,*}" * 10 + 'x"', '"' + "**." * 30 + 'x"',
    '"' + "{" * 3000 + "}" * 3000 + '"', '"' + "*" * 300 + '"', '"' + "a" * 30_000 + '"', "[" + "0," * 5000 + "]",
    '"fp16"', '"row"', '"linear"', "[0x" + "f" * 5000 + "]", "\x00", "'''\ud800'''", "#", "",
]
KEYS = [
    "a.b.c = 1", "schema = 1", "rule = 1", "[[rule]]", "[rule]", "[run]", "x" + ".x" * 5000 + " = 1", "summary = 1",
    "[a" + ".a" * 5000 + "]", '"" = 1', "=", "[[", "]", "\x1b = 1", '"' + "k" * 5000 + '" = 1',
]
# fmt: on
_INNER = [{"path": "blocks.0.norm", "value": 7e4, "limit": 65504.0, "why": "its square"}]
RICH: dict[str, Any] = deepcopy(GOOD)
RICH["settings"] = {"numerics": "diffusers", "profile": "quick"}
RICH["notes"] = ["stale: model.safetensors has another digest"]
RICH["safety"][0] |= {"op_internal": _INNER}
RICH["steps"][0]["blocks"] = [{"block": "blocks.0", "forced_relative_l2": 0.001, "running_relative_l2": 0.002}]
RICH["video"] = {
    "frames": 5,
    "control": {"psnr": {"identical": True, "psnr_db": None}, "lpips": {"reason": "no network"}, "ssim": 0.99},
    "candidate": {
        "psnr": {"identical": False, "psnr_db": 38.4, "frames_db": [38.4]},
        "ssim": 0.97,
        "lpips": None,
        "black_frames": [],
        "reference_black_frames": [],
        "frozen_frames": [1],
        "reference_frozen_frames": [1],
    },
}


def slots(value: object) -> Iterator[Slot]:
    """Yields every place of a JSON value that another one can be put in."""
    if isinstance(value, MutableMapping):
        places = list(value)
    elif isinstance(value, MutableSequence):
        places = list(range(len(value)))
    else:
        return
    for place in places:
        yield value, place
        yield from slots(value[place])


def check_sentences(said: Sequence[WanconvError], name: str) -> None:
    """Asserts that refusals name the file, and quote what is in it at no length."""
    assert [error.message for error in said if name not in error.message] == []
    assert max(len(line) for error in said for line in (error.message, *error.details)) < 2000


def broken_results(chance: random.Random) -> str:
    results = deepcopy(chance.choice((GOOD, RICH)))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        container, place = chance.choice(list(slots(results)) or [(results, "schema")])
        match chance.randrange(8):
            case 0:
                del container[place]
            case 1 if isinstance(container, list):
                container.append(deepcopy(container[place]))
            case 2 if isinstance(container, dict):
                container[chance.choice(("first_bad", "blocks", "op_internal", "video", "not_finite"))] = container[
                    place
                ]
            case _:
                container[place] = deepcopy(chance.choice(VALUES))
    text = json.dumps(results)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text if chance.randrange(50) else text[: chance.randrange(len(text))]


def test_results_are_judged_or_refused_whatever_they_hold(
    in_memory: Path, scale: Scale, record_property: Record
) -> None:
    chance, path, said = random.Random(13), in_memory / "results.json", list[WanconvError]()
    for sound in (GOOD, RICH):
        path.write_text(json.dumps(sound))
        assert recheck(path, "quick").exit_code == 0
    for _ in range(scale.saved_mutants):
        path.write_text(broken_results(chance))
        try:
            report = recheck(path, "quick")
        except InputError as error:
            said.append(error)
        else:
            json.dumps(report.to_json(), allow_nan=False)
            assert report.exit_code in (0, 1, 5, 6)
    assert scale.saved_mutants // 4 < len(said) < scale.saved_mutants
    check_sentences(said, path.stem)
    record_property("cases", scale.saved_mutants)


def broken_toml(text: str, chance: random.Random) -> bytes:
    lines = text.splitlines()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not lines:
            break
        place = chance.randrange(len(lines))
        key, equals, value = lines[place].partition(" = ")
        match chance.randrange(8):
            case 0:
                del lines[place]
            case 1:
                lines.insert(place, lines[chance.randrange(len(lines))])
            case 2:
                lines.insert(place, chance.choice(KEYS))
            case 3 if value:
                at = chance.randrange(len(value))
                lines[place] = key + equals + value[:at] + chance.choice("\"'[]{}#*,.x0\\") + value[at + 1 :]
            case _ if equals:
                lines[place] = f"{key} = {chance.choice(TOML)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(wanconv.__file__).parent


def test_a_recipe_is_read_or_refused_whatever_it_holds(
    in_memory: Path, folder: Path, scale: Scale, record_property: Record
) -> None:
    chance, path, said = random.Random(14), in_memory / "mine.toml", list[WanconvError]()
    texts = [file.read_text() for file in sorted((folder / "recipes").glob("*.toml"))]
    for _ in range(scale.saved_mutants):
        path.write_bytes(broken_toml(chance.choice(texts), chance))
        try:
            recipe = recipes.load(str(path))
        except UsageError as error:
            said.append(error)
            continue
        try:
            assert [str(rule) for rule in recipe.rules]
            recipes.assign(recipe, chance.choice(FAMILIES).name, SMALL)
        except Refused:
            pass
    assert scale.saved_mutants // 4 < len(said) < scale.saved_mutants
    check_sentences(said, path.stem)
    record_property("cases", scale.saved_mutants)


def test_a_profile_is_read_or_refused_whatever_it_holds(
    in_memory: Path, folder: Path, scale: Scale, record_property: Record
) -> None:
    chance, path, said = random.Random(15), in_memory / "mine.toml", list[WanconvError]()
    texts = [file.read_text() for file in sorted((folder / "verdict" / "profiles").glob("*.toml"))]
    for _ in range(scale.saved_mutants):
        path.write_bytes(broken_toml(chance.choice(texts), chance))
        try:
            profile = load_profile(str(path))
        except UsageError as error:
            said.append(error)
        else:
            assert judge(GOOD, profile).outcome in ("PASS", "FAIL", "CANNOT JUDGE", "NOT FINITE")
    assert scale.saved_mutants // 4 < len(said) < scale.saved_mutants
    check_sentences(said, path.stem)
    record_property("cases", scale.saved_mutants)
