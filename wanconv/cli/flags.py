"""Maps the library's arguments to options of commands: the one place that knows both names."""

import json
from collections.abc import Mapping
from dataclasses import replace
from re import Match

from wanconv.cli.text import quoted
from wanconv.errors import NAMED, WanconvError
from wanconv.report import Finding, Report

# Names that differ; any other argument `some_name` is the option `--some-name`.
FLAGS: Mapping[str, str] = {
    "checksums": "--sums",
    "loras": "--lora",
    "overwrite": "--force",
    "shard_nbytes": "--shard-size",
}
SAME = frozenset(
    {
        "against", "allow_unsafe_fp16", "audio", "base_model", "comfyui_generation", "device", "exclude",
        "expert", "frames", "hub", "image", "include", "last_image", "layout", "local_dir", "lora_allow_unmatched",
        "lpips", "numerics", "only", "out", "profile", "prompt", "recipe", "report", "revision", "seed", "size",
        "source", "steps", "token",
    }
)  # fmt: skip
# Calls in messages, and the equivalent commands.
COMMANDS: Mapping[str, str] = {
    '`validate(SRC, numerics="fp16").write_report(DIR)`': "validate SRC --numerics fp16 -o DIR",
    "`Validation.write_report`": "validate -o",
    "`verify(out, against=source)`": "verify --against",
    "`plan(MODEL, recipe, loras=[FILE])`": "convert MODEL --lora FILE",
    "`recipe.schema_page()`": "recipes --schema",
}


def as_flags(text: str) -> str:
    """Return a message with options of the command line in place of arguments of the library."""
    for call, command in COMMANDS.items():
        text = text.replace(call, command)
    return NAMED.sub(_flag, text)


def _flag(match: "Match[str]") -> str:
    name, value = match["name"], match["value"]
    if name not in SAME and name not in FLAGS:
        return match[0]  # `git lfs pull` stays, and so does text from a file
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    if value in (None, "True"):
        return flag
    try:
        given = json.loads(value)
    except ValueError:  # from a file, not from `argument`
        return match[0]
    return " ".join(f"{flag} {quoted(one)}" for one in ([given] if isinstance(given, str) else given))


def flags_in_report(report: Report) -> Report:
    """Return a report whose findings name options."""
    return replace(report, findings=[flags_in_finding(finding) for finding in report.findings])


def flags_in_finding(finding: Finding) -> Finding:
    """Return a finding that names options."""
    return replace(finding, message=as_flags(finding.message), fix=as_flags(finding.fix))


def flags_in_error(error: WanconvError) -> WanconvError:
    """Return an error of the same kind that names options, in message, hint and details."""
    if type(error).__init__ is not WanconvError.__init__:
        return error
    return type(error)(as_flags(error.message), as_flags(error.hint), [as_flags(line) for line in error.details])
