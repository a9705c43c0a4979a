"""Globs on canonical names: what they take, and what has no meaning."""

import pytest

from wanconv.naming import check, matches, nearest

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


def test_the_nearest_name_is_found_and_a_strange_one_is_not() -> None:
    assert nearest("fromat", ("match", "format", "fallback")) == "format"
    assert nearest("zzzz", ("match", "format", "fallback")) is None
