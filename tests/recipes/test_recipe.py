"""Recipes: the schema, which rule decides, and the recipes that ship with wanconv on every family."""

from pathlib import Path
from typing import get_args

import pytest
from covering import covering
from documents import SMALL

from wanconv.errors import Refused, UsageError
from wanconv.models import FAMILIES, vocabulary
from wanconv.quantization import FORMATS, ROUNDINGS
from wanconv.recipe import Rule, assign, load, names, parse
from wanconv.types.architecture import Family, Kind
from wanconv.types.dtypes import DTYPES
from wanconv.types.names import matches

ROOT = Path(__file__).resolve().parents[2]
HEAD = 'schema = 1\nsummary = "a test"\n'
ANY = '[[rule]]\nmatch = "**"\nformat = "bf16"\n'


def rule(**keys: object) -> str:
    """Returns a [[rule]] as TOML; `match` and `format` have defaults, None leaves one out."""
    values = {"match": "**", "format": "bf16"} | keys
    written = {True: "true", False: "false"}
    lines = [
        f"{key} = {written[value] if isinstance(value, bool) else repr(value)}"
        for key, value in values.items()
        if value is not None
    ]
    return "\n".join(["[[rule]]", *lines, ""])


# fmt: off
BREAKS = [
    (HEAD + 'sumary = "x"\n' + ANY,            "the recipe: unknown key 'sumary' – summary?"),
    (HEAD + "zzz = 1\n" + ANY,                 "the recipe: unknown key 'zzz'; known: schema, summary, "),
    ('schema = 2\nsummary = "x"\n' + ANY,      "schema must be 1, not 2"),
    ('summary = "x"\n' + ANY,                  "schema must be 1, not None"),
    ("schema = 1\n" + ANY,                     "summary must be one sentence"),
    ("schema = 1\nsummary = ' '\n" + ANY,      "summary must be one sentence"),
    (HEAD + 'families = "wan*"\n' + ANY,       "families must be a list of globs"),
    (HEAD + "families = []\n" + ANY,           "families must be a list of globs"),
    (HEAD + 'families = ["wan{"]\n' + ANY,     "families: 'wan{': a brace is not closed"),
    (HEAD + 'families = ["wan2.2-*-14"]\n' + ANY, "families: no family is called 'wan2.2-*-14'; known: "),
    (HEAD,                                     "there must be at least one [[rule]]"),
    (HEAD + "rule = []\n",                     "there must be at least one [[rule]]"),
    (HEAD + "rule = [1]\n",                    "there must be at least one [[rule]]"),
    (HEAD + rule(mach="x"),                    "rule 1: unknown key 'mach' – match?"),
    (HEAD + rule(match=None),                  "rule 1: match must be a glob on canonical names"),
    (HEAD + rule(match=["a"]),                 "rule 1: match must be a glob on canonical names"),
    (HEAD + rule(match="{a"),                  "rule 1: match '{a': a brace is not closed"),
    (HEAD + rule(format=None),                 "rule 1: format must be of fp32, "),
    (HEAD + rule(format="bf61"),               "keep, not 'bf61' – bf16?"),
    (HEAD + rule(format="fp8_e4m3"),           " – fp8_e4m3fn?"),
    (HEAD + rule(format=["bf16"]),             "rule 1: format must be of fp32, "),
    (HEAD + ANY + rule(fallback="bf61"),       "rule 2: fallback must be of fp32, "),
    (HEAD + rule(fallback="bf16"),             "rule 1: the fallback is the format itself"),
    (HEAD + rule(kind="lineal"),               "not 'lineal' – linear?"),
    (HEAD + rule(kind=["linear", "nrm"]),      "not 'nrm' – norm?"),
    (HEAD + rule(kind=[]),                     "rule 1: kind must be one or a list of linear, conv, "),
    (HEAD + rule(kind=3),                      "rule 1: kind must be one or a list of linear, conv, "),
    (HEAD + rule(blocks=3),                    "rule 1: blocks must be a list of whole numbers"),
    (HEAD + rule(blocks=[]),                   "rule 1: blocks must be a list of whole numbers"),
    (HEAD + rule(blocks=[0.5]),                "rule 1: blocks must be a list of whole numbers"),
    (HEAD + rule(scale="row"),                 "rule 1: bf16 takes scale none, not 'row'"),
    (HEAD + rule(scale=["none"]),              "rule 1: bf16 takes scale none, not ['none']"),
    (HEAD + rule(rounding="mse"),              "rule 1: rounding mse searches a scale, and there is none"),
    (HEAD + rule(format="mxfp8", rounding="mse"), "rule 1: rounding mse searches scales of rows and tensors, not of b"),
    (HEAD + rule(format="mxfp8", scale="none"), "rule 1: mxfp8 takes scale block, not 'none'"),
    (HEAD + rule(rounding="mes"),              "rule 1: rounding must be of nearest, mse, not 'mes' – mse?"),
    (HEAD + rule(rounding=["mse"]),            "rule 1: rounding must be of nearest, mse, not ['mse']"),
    (HEAD + rule(optional="yes"),              "rule 1: optional must be true or false"),
]
# fmt: on


@pytest.mark.parametrize(("text", "problem"), BREAKS)
def test_what_breaks_the_schema_is_named(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=r"^recipe mine breaks the schema$") as raised:
        parse("mine", text)
    assert [line for line in raised.value.details if problem in line] == list(raised.value.details)
    assert raised.value.hint == "wanconv `recipe.schema_page()` prints it"


def test_everything_that_breaks_the_schema_is_named_at_once() -> None:
    with pytest.raises(UsageError) as raised:
        parse("mine", "schema = 7\n" + rule(format="f16", blocks="all") + rule(kind="bais"))
    assert len(raised.value.details) == 5


@pytest.mark.parametrize("text", ["schema = 1\nsummary =\n", HEAD + HEAD + ANY, HEAD + ANY + 'match = "*"\n'])
def test_a_file_that_is_no_toml_says_where(text: str) -> None:
    with pytest.raises(UsageError, match=r"^recipe mine is not valid TOML: .*line \d+"):
        parse("mine", text)


def test_a_rule_keeps_what_its_table_says() -> None:
    text = HEAD + rule(match="dit/**", kind="linear", blocks=[0, -1], format="fp16", fallback="bf16", optional=True)
    recipe = parse("mine", text)
    assert recipe.rules == (Rule("dit/**", "fp16", ("linear",), (0, -1), "none", "bf16", True),)
    assert str(recipe.rules[0]) == "dit/** (linear; blocks 0,-1)"
    assert (recipe.name, recipe.summary, recipe.families, recipe.text) == ("mine", "a test", ("**",), text)


def test_a_format_with_one_kind_of_scale_needs_no_word_of_it() -> None:
    rules = parse("mine", HEAD + rule(format="mxfp8") + rule(format="nvfp4", scale="block") + rule()).rules
    assert [one.scale for one in rules] == ["block", "block", "none"]


def test_the_first_rule_that_matches_decides() -> None:
    text = HEAD + rule(match="dit/**", kind="linear", blocks=[0, -1]) + rule(match="dit/**") + rule()
    decided = assign(parse("mine", text), "wan2.1-t2v", SMALL)
    assert [decided[name] for name, _, _ in SMALL] == [1, 0, 1, 1, 0, 2, 2]


def test_negative_blocks_count_from_the_last_of_each_component() -> None:
    decided = assign(parse("mine", HEAD + rule(blocks=[-1]) + rule()), "wan2.1-t2v", SMALL)
    assert [name for name, index in decided.items() if index == 0] == [
        "dit/blocks.3.ffn.up.weight",
        "text_encoder/blocks.1.attn.q.weight",
    ]


def test_a_rule_that_decides_nothing_is_refused() -> None:
    with pytest.raises(Refused, match=r"^recipe mine does not fit wan2\.1-t2v$") as raised:
        assign(parse("mine", HEAD + rule() + rule(match="vae/**")), "wan2.1-t2v", SMALL)
    assert raised.value.details == ("rule 2, vae/**, decides nothing in wan2.1-t2v",)


def test_a_rule_hidden_behind_an_equal_one_is_refused() -> None:
    with pytest.raises(Refused) as raised:
        assign(parse("mine", HEAD + rule(match="dit/**") * 2 + rule()), "wan2.1-t2v", SMALL)
    assert raised.value.details == ("rule 2, dit/**, decides nothing in wan2.1-t2v",)


def test_an_optional_rule_may_decide_nothing() -> None:
    recipe = parse("mine", HEAD + rule(match="vae/**", optional=True) + rule())
    assert set(assign(recipe, "wan2.1-t2v", SMALL).values()) == {1}


def test_a_tensor_that_no_rule_covers_is_refused_by_name() -> None:
    with pytest.raises(Refused) as raised:
        assign(parse("mine", HEAD + rule(match="dit/**")), "wan2.1-t2v", SMALL)
    assert raised.value.details == (
        "no rule covers text_encoder/blocks.0.attn.q.weight",
        "no rule covers text_encoder/blocks.1.attn.q.weight",
    )
    assert raised.value.hint.startswith('end with a rule for "**"')


def test_a_recipe_for_other_families_is_refused() -> None:
    recipe = parse("mine", HEAD + 'families = ["wan2.2-*"]\n' + ANY)
    assert assign(recipe, "wan2.2-ti2v-5b", SMALL)
    with pytest.raises(Refused, match=r"^recipe mine is for wan2\.2-\*, and this model is wan2\.1-t2v$"):
        assign(recipe, "wan2.1-t2v", SMALL)


def test_components_that_a_source_lacks_do_not_make_a_rule_dead() -> None:
    family = next(family for family in FAMILIES if "expert.high" in family.components)
    only_low = {"expert.low": family.components["expert.low"].tiny}
    assert assign(load("high-bf16-low-fp32"), family.name, vocabulary(family, only_low))


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + ANY)
    assert load(str(path)).name == "mine"
    assert load("keep").rules == (Rule("**", "keep"),)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("fp8-plane", "there is no recipe 'fp8-plane'", "did you mean fp8-plain?"),
        ("zzzz", "there is no recipe 'zzzz'", f"known: {', '.join(names())}; a file of your own ends in .toml"),
        (
            "nowhere/mine.toml",
            "recipe nowhere/mine.toml cannot be read: No such file or directory",
            "check the path; wanconv recipes lists those that need none",
        ),
    ],
)
def test_a_recipe_that_is_not_there_is_a_sentence(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(name)
    assert raised.value.message.startswith(message)
    assert raised.value.hint == hint


def test_a_recipe_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"mine\.toml is not valid UTF-8$"):
        load(str(path))


def test_every_recipe_in_the_folder_ships() -> None:
    assert names() == tuple(sorted(path.stem for path in (ROOT / "recipes").glob("*.toml")))
    assert len(names()) >= 8


@covering(("name", "family"), names(), FAMILIES, strength=1)
def test_a_shipped_recipe_decides_every_tensor_or_names_its_families(name: str, family: Family) -> None:
    recipe, tensors = load(name), vocabulary(family)
    if any(matches(glob, family.name) for glob in recipe.families):
        assert set(assign(recipe, family.name, tensors)) == {tensor for tensor, _, _ in tensors}
    else:
        with pytest.raises(Refused, match=r"^recipe .* is for .*, and this model is "):
            assign(recipe, family.name, tensors)


@covering(("name", "family"), names(), FAMILIES, strength=1)
def test_no_shipped_recipe_stores_less_than_16_bits_outside_of_block_weights(name: str, family: Family) -> None:
    recipe = load(name)
    if not any(matches(glob, family.name) for glob in recipe.families):
        return
    decided = assign(recipe, family.name, vocabulary(family))
    narrow = {index for index, rule in enumerate(recipe.rules) if _is_narrow(rule)}
    taken = {(kind, block is None) for tensor, kind, block in vocabulary(family) if decided[tensor] in narrow}
    assert taken <= {("linear", False)}


def _is_narrow(rule: Rule) -> bool:
    stored = {FORMATS[name].stored("fp32") for name in (rule.format, rule.fallback or rule.format)}
    return any(DTYPES[name].itemsize < 2 * DTYPES[name].block for name in stored)


def test_the_schema_page_names_every_key_kind_and_format() -> None:
    page = (ROOT / "recipes" / "README.md").read_text()
    keys = (
        "schema",
        "summary",
        "families",
        "match",
        "kind",
        "blocks",
        "format",
        "scale",
        "rounding",
        "fallback",
        "optional",
    )
    assert [word for word in (*keys, *ROUNDINGS, *get_args(Kind), *FORMATS) if f"`{word}`" not in page] == []
    assert parse("example", page.split("```toml\n")[1].split("```")[0]).rules
