"""Recipes: precision policy as data. A TOML file of rules; the first rule that matches a tensor decides its format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import get_args

from wanconv.errors import Refused, UsageError
from wanconv.models import FAMILIES
from wanconv.quantization import FORMATS, ROUNDINGS
from wanconv.storage.reading import brief, parsed_toml, small_text
from wanconv.types.architecture import Kind
from wanconv.types.names import alternatives, check, matches, nearest, suggestion

SCHEMA = 1
_SCHEMA = "wanconv `recipe.schema_page()` prints it"
_LAST_BLOCK = 1000  # far above any network's
_MOST_RULES = 2000  # one for each linear weight of the largest family
_RECIPE_KEYS = ("schema", "summary", "families", "rule")
_RULE_KEYS = ("match", "kind", "blocks", "format", "scale", "rounding", "fallback", "optional")


@dataclass(frozen=True, slots=True)
class Rule:
    """Which tensors get which format. The first rule of a recipe that takes a tensor decides.

    Args:
        match: A glob on canonical names, such as "dit/**" or "**".
        format: The format's name, one of `list_formats()`.
        kinds: The kinds of tensors that it takes, such as ("linear",); empty for all.
        blocks: The numbers of the transformer blocks that it takes, negative from the last; empty for all.
        scale: What a scale covers: "row", "tensor" or "block"; "none" stands for the format's only choice.
        fallback: The format of a tensor whose values exceed `format`; None to raise Overflow instead.
        optional: True for a rule that may decide nothing.
        rounding: "nearest", or the search that finds a scale, such as "mse".

    Examples:
        >>> import wanconv as wc
        >>> print(wc.Rule(match="dit/**", format="bf16", kinds=("linear",)))
        dit/** (linear)
    """

    match: str
    format: str
    kinds: tuple[Kind, ...] = ()
    blocks: tuple[int, ...] = ()
    scale: str = "none"
    fallback: str | None = None
    optional: bool = False
    rounding: str = "nearest"

    def takes(self, name: str, kind: Kind, block: int | None, block_count: int) -> bool:
        if self.kinds and kind not in self.kinds:
            return False
        if self.blocks and (block is None or not {block, block - block_count} & set(self.blocks)):
            return False
        return matches(self.match, name)

    def __str__(self) -> str:
        filters = [*self.kinds, *(["blocks " + ",".join(map(str, self.blocks))] if self.blocks else [])]
        return self.match + (f" ({'; '.join(filters)})" if filters else "")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Precision policy: rules, of which the first that takes a tensor decides its format.

    Args:
        name: Its name in reports and the manifest.
        summary: One sentence about it.
        families: Globs on the names of the families that it is for.
        rules: The rules, in their order; at least one.
        text: The TOML file that it was read from, which the manifest carries; left out, it is written from the rest.

    Raises:
        UsageError: If the rules break the schema, with all of their errors.

    Examples:
        >>> import wanconv as wc
        >>> recipe = wc.Recipe(rules=(wc.Rule(match="dit/**", format="fp16"), wc.Rule(match="**", format="keep")))
        >>> [rule.format for rule in recipe.rules]
        ['fp16', 'keep']
    """

    name: str = "custom"
    summary: str = "Rules that were made in Python."
    families: tuple[str, ...] = ("**",)
    rules: tuple[Rule, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        """Writes the text of a recipe that was made in Python, and reads it: values that a file cannot hold are
        refused."""
        if not self.text:
            text = _written(self)
            object.__setattr__(self, "rules", parse(self.name, text).rules)
            object.__setattr__(self, "text", text)


def names() -> tuple[str, ...]:
    """Returns the names of the recipes that ship with wanconv, sorted."""
    folder = resources.files("wanconv") / "recipes"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")))


def schema_page() -> str:
    """Returns the Markdown page about the format of recipes."""
    return (resources.files("wanconv") / "recipes" / "README.md").read_text(encoding="utf-8")


def load(name: str) -> Recipe:
    """Returns a recipe by its name, or by the path of a TOML file. Raises UsageError if it breaks the schema."""
    path = Path(name)
    if path.suffix == ".toml":
        try:
            text = small_text(path)
        except OSError as error:
            message = f"recipe {name} cannot be read: {error.strerror}"
            raise UsageError(message, "check the path; wanconv recipes lists those that need none") from None
        except UnicodeDecodeError:
            raise UsageError(f"recipe {name} is not valid UTF-8", _SCHEMA) from None
        return parse(path.stem, text)
    if name not in names():
        otherwise = f"known: {', '.join(names())}; a file of your own ends in .toml"
        raise UsageError(f"there is no recipe {name!r}", suggestion(name, names(), otherwise))
    return parse(name, (resources.files("wanconv") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Recipe:
    """Returns the recipe that `text` holds, or raises UsageError with all of its errors."""
    try:
        table = parsed_toml(text)
    except ValueError as error:
        raise UsageError(f"recipe {name} is not valid TOML: {error}", _SCHEMA) from None
    problems = _unknown(table, _RECIPE_KEYS, "the recipe")
    if table.get("schema") != SCHEMA:
        problems.append(f"schema must be {SCHEMA}, not {brief(table.get('schema'))}")
    if not isinstance(table.get("summary"), str) or not table["summary"].strip():
        problems.append("summary must be one sentence")
    families = table.get("families", ["**"])
    problems += _family_problems(families)
    tables = table.get("rule", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(rule, dict) for rule in tables):
        problems.append("there must be at least one [[rule]]")
        tables = []
    if len(tables) > _MOST_RULES:
        problems.append(f"there are {len(tables)} rules; at most {_MOST_RULES} are read")
        tables = []
    rules = [_rule(position, rule, problems) for position, rule in enumerate(tables, 1)]
    if problems:
        raise UsageError(f"recipe {name} breaks the schema", _SCHEMA, problems)
    return Recipe(name, table["summary"], tuple(families), tuple(rule for rule in rules if rule), text)


def _written(recipe: Recipe) -> str:
    """Returns a recipe as a TOML file; a rule's defaults are left out."""
    lines = [f"schema = {SCHEMA}", f"summary = {_toml(recipe.summary)}", f"families = {_toml(recipe.families)}"]
    for rule in recipe.rules:
        lines += ["", "[[rule]]", f"match = {_toml(rule.match)}"]
        if rule.kinds:
            lines.append(f"kind = {_toml(rule.kinds)}")
        if rule.blocks:
            lines.append(f"blocks = {list(rule.blocks)}")
        lines.append(f"format = {_toml(rule.format)}")
        stated = {"scale": rule.scale != "none", "rounding": rule.rounding != "nearest", "fallback": rule.fallback}
        lines += [f"{key} = {_toml(getattr(rule, key))}" for key, given in stated.items() if given]
        if rule.optional:
            lines.append("optional = true")
    return "\n".join(lines) + "\n"


def _toml(value: str | Sequence[str]) -> str:
    """Returns a text, or a list of them, as TOML: its basic strings have the escapes of JSON, and more."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _rule(position: int, table: Mapping[str, object], problems: list[str]) -> Rule | None:
    where = f"rule {position}"
    found = _unknown(table, _RULE_KEYS, where)
    match, kind, blocks = table.get("match"), table.get("kind", []), table.get("blocks", [])
    target = FORMATS.get(str(table.get("format")))
    only = target.scales[0] if target is not None and len(target.scales) == 1 else "none"
    scale, fallback, optional = table.get("scale", only), table.get("fallback"), table.get("optional", False)
    rounding = table.get("rounding", "nearest")
    if not isinstance(match, str):
        found.append(f"{where}: match must be a glob on canonical names")
    elif reason := _bad_glob(match):
        found.append(f"{where}: match {brief(match)}: {reason}")
    kinds = [kind] if isinstance(kind, str) else kind
    if not isinstance(kinds, list) or ("kind" in table and not kinds):
        found.append(f"{where}: kind must be one or a list of {', '.join(get_args(Kind))}")
    else:
        found += [_not_one_of(f"{where}: kind", one, get_args(Kind)) for one in kinds if one not in get_args(Kind)]
    if not isinstance(blocks, list) or (not blocks and "blocks" in table) or not all(map(_is_block, blocks)):
        found.append(f"{where}: blocks must be a list of whole numbers, such as [0, 1, -1]")
    for key, value in (("format", table.get("format")), ("fallback", fallback)):
        if value not in tuple(FORMATS) and not (key == "fallback" and value is None):
            found.append(_not_one_of(f"{where}: {key}", value, tuple(FORMATS)))
    if target is not None and scale not in target.scales:
        found.append(f"{where}: {target.name} takes scale {' or '.join(target.scales)}, not {brief(scale)}")
    if rounding not in ROUNDINGS:
        found.append(_not_one_of(f"{where}: rounding", rounding, ROUNDINGS))
    elif rounding != "nearest" and scale == "none":
        found.append(f"{where}: rounding {rounding} searches a scale, and there is none")
    elif rounding != "nearest" and scale == "block":
        found.append(f"{where}: rounding {rounding} searches scales of rows and tensors, not of blocks")
    if fallback is not None and fallback == table.get("format"):
        found.append(f"{where}: the fallback is the format itself")
    if not isinstance(optional, bool):
        found.append(f"{where}: optional must be true or false")
    problems += found
    if found:
        return None
    return Rule(
        match=str(match),
        format=str(table["format"]),
        kinds=tuple(kinds),  # type: ignore[arg-type]  # checked against get_args(Kind) above
        blocks=tuple(blocks),  # type: ignore[arg-type]  # checked to be a list of int above
        scale=str(scale),
        rounding=str(rounding),
        fallback=None if fallback is None else str(fallback),
        optional=bool(optional),
    )


def _is_block(number: object) -> bool:
    return type(number) is int and abs(number) <= _LAST_BLOCK


def _unknown(table: Mapping[str, object], known: Sequence[str], where: str) -> list[str]:
    out = []
    for key in table:
        if key not in known:
            guess = nearest(key, known)
            meant = f" – {alternatives(guess)}?" if guess else f"; known: {', '.join(known)}"
            out.append(f"{where}: unknown key {brief(key)}{meant}")
    return out


def _not_one_of(what: str, value: object, known: Sequence[str]) -> str:
    guess = nearest(value, known) if isinstance(value, str) else ()
    meant = f" – {alternatives(guess)}?" if guess else ""
    return f"{what} must be of {', '.join(known)}, not {brief(value)}{meant}"


def _bad_glob(pattern: str) -> str | None:
    try:
        check(pattern)
    except ValueError as error:
        return str(error)
    return None


def _family_problems(globs: object) -> list[str]:
    if not isinstance(globs, list) or not globs or not all(isinstance(glob, str) for glob in globs):
        return ["families must be a list of globs"]
    problems = []
    for glob in globs:
        if reason := _bad_glob(glob):
            problems.append(f"families: {brief(glob)}: {reason}")
        elif not any(matches(glob, family.name) for family in FAMILIES):
            known = ", ".join(family.name for family in FAMILIES)
            problems.append(f"families: no family is called {brief(glob)}; known: {known}")
    return problems


def assign(recipe: Recipe, family: str, vocabulary: Sequence[tuple[str, Kind, int | None]]) -> Mapping[str, int]:
    """Returns canonical name -> index of the rule that decides it.

    `vocabulary` is (canonical name, kind, block number) of the whole family, also of tensors that the source lacks.

    Raises Refused for a family that the recipe is not for, a name that no rule covers and a rule that decides nothing.
    """
    if not any(matches(glob, family) for glob in recipe.families):
        raise Refused(
            f"recipe {recipe.name} is for {', '.join(recipe.families)}, and this model is {family}",
            "choose another recipe: wanconv recipes",
        )
    block_counts: dict[str, int] = {}
    for name, _, block in vocabulary:
        if block is not None:
            component = name.partition("/")[0]
            block_counts[component] = max(block_counts.get(component, 0), block + 1)
    decided: dict[str, int] = {}
    uncovered = []
    for name, kind, block in vocabulary:
        block_count = block_counts.get(name.partition("/")[0], 0)
        for index, rule in enumerate(recipe.rules):
            if rule.takes(name, kind, block, block_count):
                decided[name] = index
                break
        else:
            uncovered.append(name)
    used = set(decided.values())
    problems = [f"no rule covers {name}" for name in uncovered]
    problems += [
        f"rule {index + 1}, {rule}, decides nothing in {family}"
        for index, rule in enumerate(recipe.rules)
        if index not in used and not rule.optional
    ]
    if problems:
        raise Refused(
            f"recipe {recipe.name} does not fit {family}",
            'end with a rule for "**"; mark a rule that may match nothing with optional = true',
            problems,
        )
    return decided
