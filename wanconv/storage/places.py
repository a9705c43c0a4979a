"""Places as people write them: a local path, or an address with a scheme."""

import re

from wanconv.types.registry import Distribution, Plugin, Registry, plugins

OWN_HUBS = ("hf", "ms")
GROUP = "wanconv.storage"  # of entry points: what opens a hub, called with a token and a Patience; named as its scheme
_OWN = [Plugin(name, None, Distribution("wanconv", "")) for name in OWN_HUBS]  # opened by storage/hubs itself
HUBS = Registry("hub", _OWN, lambda: ((plugin, plugin.origin) for plugin in plugins(GROUP)))  # by scheme
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+)://")  # a single letter is a drive of Windows
_FOLDED = re.compile(  # an address as a Path shows it, or with a forgotten slash
    r"\s*(hf|ms|s3[an]?|gs|gcs|r2|b2|oss|cos|swift|azure|az|abfss?|wasbs?|adl|https?|ftps?|sftp|ssh|scp|rsync|hdfs|dbfs|file):/"
    r"(?!/)",
    re.IGNORECASE,
)
_PAGES = (  # addresses that people copy from a browser
    ("hf", re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?", re.ASCII)),
    ("ms", re.compile(r"https?://(?:www\.)?modelscope\.(?:cn|ai)/models/([\w.-]+/[\w.-]+)/?", re.ASCII)),
)


def scheme_of(text: str) -> str | None:
    """Returns the scheme of an address, in lower case; None for a local path."""
    match = _ADDRESS.match(text) or _FOLDED.match(text)
    return match[1].lower() if match else None


def repository_of(text: str) -> str | None:
    """Returns the address of a hub's repository, `hf://…` or `ms://…`; None if the text is not one."""
    match = _ADDRESS.match(text)
    if match is None or match[1].lower() not in HUBS:
        return None
    return f"{match[1].lower()}://{text[match.end() :].rstrip()}"


def unsupported(text: str, hubs: bool = False) -> tuple[str, str] | None:
    """Returns why an address cannot be used, and what to write instead; None for a local path and, with `hubs`, for a
    repository's address."""
    scheme = scheme_of(text)
    if scheme is None or (hubs and repository_of(text) is not None):
        return None
    if scheme not in HUBS:
        return f"{scheme}:// is not supported yet: {text}", _instead(text, scheme, hubs)
    if repository_of(text) is None:
        return f"{text} lacks a slash", f"write it as {scheme}://{text.partition(':')[2].lstrip('/')}"
    return f"{text} is a repository, not a path on this machine", "give a path on this machine"


def _instead(text: str, scheme: str, hubs: bool) -> str:
    for hub, page in _PAGES:
        if hubs and (match := page.fullmatch(text.strip())):
            return f"write it as {hub}://{match[1]}"
    if scheme == "file":
        return f"give the path itself: /{text.partition(':')[2].lstrip('/')}"
    return "give a path on this machine" + (", or a repository as hf://OWNER/NAME or ms://OWNER/NAME" if hubs else "")
