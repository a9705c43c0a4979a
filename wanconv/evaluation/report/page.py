"""How every page is made: its template, its one style, its one script, and a policy that allows nothing else.

Every string that a page is given is escaped by the template engine.
"""

from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib import resources

import jinja2

from wanconv.evaluation.report.wording import capital, figure, size
from wanconv.types.figures import count


def render(template: str, styles: tuple[str, ...], values: Mapping[str, object]) -> str:
    """Returns a page that stands alone; the styles follow one another."""
    style, script = "".join(map(_asset, styles)), _asset("validation.js")
    values = {**values, "policy": _policy(style, script), "style": style, "script": script}
    return _environment().get_template(template).render(values).lstrip()  # what macros leave before the first line


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "size": size, "capital": capital, "count": count}
    environment.tests["mapping_"] = lambda value: isinstance(value, Mapping)
    return environment


@cache
def _asset(name: str) -> str:
    return (resources.files("wanconv.evaluation.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
