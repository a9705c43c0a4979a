"""Globs on canonical names: what they take, and what has no meaning."""

import random
import re
import signal
from types import FrameType

import pytest

from wanconv.models import FAMILIES, vocabulary
from wanconv.types import names as naming
from wanconv.types.names import check, matches, nearest, suggestion

FFN = "expert.high/blocks.7.ffn.up.weight"


# fmt: off
GLOBS = [
    ("dit/head.proj.weight", "dit/head.proj.weight",        True),   # a plain name is itself
    ("dit/head.proj",        "dit/head.proj.weight",        False),  # always the whole name
    ("head.proj.weight",     "dit/head.proj.weight",        False),
    ("dit/head_proj.weight", "dit/head.proj.weight",        False),  # a dot is a dot, not any character
    ("dit/hea[d].*.weight",  "dit/head.proj.weight",        False),  # no character classes
    ("dit/*.proj.weight",    "dit/head.proj.weight",        True),   # * is one segment
    ("dit/*.weight",         "dit/head.proj.weight",        False),
    ("*",                    "dit/head",                    False),  # and ends at a slash, too
    ("expert.*/blocks.*.ffn.up.weight", FFN,                True),
    ("dit/he*.pr*j.weight",  "dit/head.proj.weight",        True),   # or a part of one
    ("dit/head*.proj.weight", "dit/head.proj.weight",       True),   # the part may be empty
    ("dit/head.*.weight",    "dit/head.weight",             False),  # a segment is not
    ("**",                   FFN,                           True),   # any number of segments
    ("expert.high/**",       FFN,                           True),
    ("expert.low/**",        FFN,                           False),
    ("**.weight",            FFN,                           True),
    ("**.bias",              FFN,                           False),
    ("**.blocks.*.**",       FFN,                           True),   # whatever they end in
    ("**/blocks.*.**",       FFN,                           True),
    ("dit/**.modulation",    "dit/blocks.0.modulation",     True),
    ("dit/**.modulation",    "dit/modulation",              True),   # none as well
    ("dit/**.modulation",    "dit/blocks.0.premodulation",  False),  # but whole segments
    ("vae/**",               "vae",                         False),
    ("{dit,expert.*}/**",    FFN,                           True),   # alternatives, with globs in them
    ("{dit,expert.*}/**",    "dit/head.modulation",         True),
    ("{dit,expert.*}/**",    "vae/encoder.conv_in.weight",  False),
    ("dit/blocks.{1,1{0,1}}.modulation", "dit/blocks.11.modulation", True),  # braces inside braces
    ("dit/blocks.{1,1{0,1}}.modulation", "dit/blocks.12.modulation", False),
    ("dit/blocks.1{,0}.modulation",      "dit/blocks.1.modulation",  True),  # an empty alternative
    ("{**,x}",               FFN,                           True),
]
# fmt: on


@pytest.mark.parametrize(("pattern", "name", "expected"), GLOBS)
def test_a_glob_takes_whole_names(pattern: str, name: str, expected: bool) -> None:
    check(pattern)
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "the pattern is empty"),
        ("{dit,vae/**", "a brace is not closed"),
        ("dit}/**", "'}' stands outside of braces"),
        ("dit,vae", "',' stands outside of braces"),
        ("dit/blocks**", "** stands for whole segments"),
        ("**weight", "** stands for whole segments"),
        ("dit/***", "** stands for whole segments"),
    ],
)
def test_a_glob_without_a_meaning_is_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match="^" + reason.replace("*", r"\*")):
        check(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["{*,*}" * 10 + "x", "**." * 30 + "x", "{*,*}." * 40 + "x", "{a*,b*,*c,*d*e*f}" * 16, "*a" * 100, "{,}" * 6000],
)
def test_no_pattern_takes_long_whatever_it_holds(pattern: str) -> None:
    """All of these were exponential, or nearly: a name that does not fit was tried in every way."""

    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail("it goes on and on")

    names = [name for name, _, _ in vocabulary(FAMILIES[0])]
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    try:
        check(pattern)
        assert [name for name in names if matches(pattern, name)] == []
        assert matches(pattern, "dit/" + "a." * 100 + "b") is False
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("*a" * 101, "it has 101 stars, and at most 100 are read"),
        ("a" * 20_001, "it has 20001 characters, and at most 20000 are read"),
    ],
)
def test_a_pattern_without_measure_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        check(pattern)


def test_what_is_remembered_of_a_pattern_stays_small_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, _, _ in vocabulary(FAMILIES[0])]
    pattern = "{dit,*}/**.{*a*,*b}.{q,k,weight}"
    expected = [matches(pattern, name) for name in names]
    assert any(expected)
    monkeypatch.setattr(naming, "_MOST_REMEMBERED", 3)
    naming._compiled.cache_clear()
    assert [matches(pattern, name) for name in names] == expected
    assert len(naming._compiled(pattern)._sets) <= 3
    naming._compiled.cache_clear()


def test_a_pattern_matches_as_the_regular_expression_of_its_definition_does() -> None:
    """Random patterns on random names; `re` tries and goes back, which is well as long as both are short."""
    chance, compared = random.Random(7), 0
    words = {
        "*": "[^./]*",
        "**": ".*",
        "**.": "(?:[^./]+[./])*",
        "**/": "(?:[^./]+[./])*",
        "{": "(?:",
        "}": ")",
        ",": "|",
    }
    for _ in range(5000):
        tokens = chance.choices((*words, "a", "b", ".", "/"), k=chance.randint(1, 7))
        try:
            check("".join(tokens))
        except ValueError:
            continue
        if tokens != naming._TOKEN.findall("".join(tokens)):  # two of them became one
            continue
        expression = re.compile("".join(words.get(token, re.escape(token)) for token in tokens))
        for _ in range(8):
            name = "".join(chance.choices("ab./", k=chance.randint(0, 6)))
            assert matches("".join(tokens), name) == bool(expression.fullmatch(name)), (tokens, name)
            compared += 1
    assert compared > 3000


RECIPES = ("bf16", "cogvideox-int8", "fp16", "fp8-blocks-rest-bf16", "fp8-plain", "fp8-scaled", "gguf-q8_0", "mxfp8")


# fmt: off
NAMES = [
    ("fromat",       ("match", "format", "fallback"), ("format",)),
    ("zzzz",         ("match", "format", "fallback"), ()),
    ("",             ("match", "format", "fallback"), ()),
    ("FP8-Plain",    RECIPES, ("fp8-plain",)),  # case is no difference
    ("fp8_plain",    RECIPES, ("fp8-plain",)),  # nor is the kind of dash
    ("fp8",          RECIPES, ("fp8-plain", "fp8-scaled", "fp8-blocks-rest-bf16")),  # all that begin with it
    ("Q8_0",         RECIPES, ("gguf-q8_0",)),  # all of its words
    ("scaled-fp8",   RECIPES, ("fp8-scaled",)),
    ("fp8-scaled-2", RECIPES, ("fp8-scaled",)),  # all of the known one's words
    ("fp8-plane",    RECIPES, ("fp8-plain",)),  # typing errors
    ("pf16",         RECIPES, ("bf16", "fp16")),  # a swap is one, as another letter is
    ("q4_k",         RECIPES, ()),
    ("bf16",         ("official", "comfyui-fp16", "fp16", "fp32"), ()),  # two of four letters are no typing error
    ("float16",      ("bf16", "fp16", "fp32"), ("fp16",)),  # torch's names
    ("bfloat16",     ("bf16", "fp16", "fp32"), ("bf16",)),
    ("expert_high",  ("dit", "expert.high", "expert.low"), ("expert.high",)),
    ("a",            tuple(f"a{number}" for number in range(9)), ()),  # what all begin with says nothing
    ("x" * 100_000,  RECIPES, ()),
]
# fmt: on


@pytest.mark.parametrize(("name", "known", "expected"), NAMES)
def test_a_name_is_taken_for_what_it_most_likely_means(
    name: str, known: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert nearest(name, known) == expected


def test_a_suggestion_names_the_likely_ones_and_else_all_there_are() -> None:
    assert suggestion("fp8", RECIPES) == "did you mean fp8-plain, fp8-scaled or fp8-blocks-rest-bf16?"
    assert suggestion("fp8-plane", RECIPES) == "did you mean fp8-plain?"
    assert suggestion("q4_k", ("a", "b")) == "known: a, b"
    assert suggestion("q4_k", ("a", "b"), "run it with --help") == "run it with --help"
