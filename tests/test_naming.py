"""Globs on canonical names: what they take, and what has no meaning."""

import pytest

from wanconv.naming import check, matches, nearest, suggestion

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
