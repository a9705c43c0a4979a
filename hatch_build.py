"""What the build makes of README.md: its links, which lead to files of the clone, lead to the repository's instead."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?<=\]\()(?!#|//|[a-z][a-z0-9+.-]*:)(?:\./)?(?P<target>[^)\s]+)", re.IGNORECASE)


class AbsoluteLinks(MetadataHookInterface):
    """The package index shows the page, and has no files beside it."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata["urls"]["Repository"]
        absolute = _LINK.sub(lambda link: f"{repository}/blob/main/{link['target']}", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute}
