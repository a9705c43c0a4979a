"""Hugging Face and ModelScope behind one small protocol: list files with sizes and digests, open a byte range.

Importing a hub's module imports its client; `open_hub` imports only the requested one.
"""

import re
from dataclasses import dataclass

from wanconv.errors import PluginError, UsageError, WanconvError, argument
from wanconv.storage.hubs.patience import Patience
from wanconv.storage.hubs.types import Address, Hub, RemoteFile, Snapshot, hasher
from wanconv.storage.places import HUBS, OWN_HUBS, unsupported
from wanconv.types.names import suggestion
from wanconv.types.registry import DISABLE, Plugin, reason

__all__ = ["Address", "Hub", "Patience", "Reference", "RemoteFile", "Snapshot", "hasher", "open_hub", "parse"]

_SOURCES = {"hf": "hf", "huggingface": "hf", "ms": "ms", "modelscope": "ms"}
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REFERENCE = re.compile(
    rf"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[^@\s]+))?"
)
_FORM = "write it as Wan-AI/Wan2.2-T2V-A14B, or hf://… or ms://… with @revision where you want one"


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository as a user names it: `hf://owner/name@revision`; only owner/name is required."""

    hub: str
    repository: str
    revision: str | None = None


def parse(text: str, source: str | None = None, revision: str | None = None) -> Reference:
    """Returns the repository that `text` and the arguments name; raises UsageError if they name none, or two."""
    if fault := unsupported(text, hubs=True):
        raise UsageError(fault[0], fault[1] if fault[1].startswith("write it as ") else _FORM)
    match = _REFERENCE.fullmatch(text)
    if match is None or ".." in match["repository"]:
        raise UsageError(f"{text!r} is not a valid repository name", _FORM)
    if source is not None and source not in _SOURCES and source not in HUBS:
        otherwise = 'give `source="hf"` or `source="modelscope"`'
        raise UsageError(f"there is no hub {source!r}", suggestion(source, _SOURCES, otherwise))
    named = None if source is None else _SOURCES.get(source, source)
    hub = match["scheme"] or named or "hf"
    if named is not None and hub != named:
        raise UsageError(f"{text} and {argument('source', str(source))} name two hubs", "leave one of them out")
    if match["revision"] and revision and match["revision"] != revision:
        raise UsageError(f"{text} and {argument('revision', revision)} name two revisions", "leave one of them out")
    return Reference(hub, match["repository"], match["revision"] or revision)


def open_hub(name: str, token: str | None = None, patience: Patience | None = None) -> Hub:
    """Return the hub of a scheme; without a token, with the one its own client has saved.

    Raises:
        PluginError: if a plugin's hub cannot be opened.
    """
    if name not in OWN_HUBS:
        return _opened(HUBS[name], token, patience)
    if name == "ms":
        from wanconv.storage.hubs.modelscope import ModelScope  # a quarter of a second to import

        return ModelScope(token, patience)
    from wanconv.storage.hubs.huggingface import HuggingFace

    return HuggingFace(token, patience)


def _opened(plugin: Plugin, token: str | None, patience: Patience | None) -> Hub:
    make = plugin.value
    if not callable(make):
        raise PluginError(f"the plugin {plugin.origin} ({plugin.name}) holds nothing that opens a hub", DISABLE)
    try:
        hub: Hub = make(token, patience)
    except WanconvError:
        raise
    except Exception as error:
        message = f"the plugin {plugin.origin} cannot open {plugin.name}://: {reason(error)}"
        raise PluginError(message, DISABLE) from error
    return hub
