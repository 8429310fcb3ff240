"""The README as a package index shows it: its relative links lead into the repository."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)")


class Readme(MetadataHookInterface):
    """Sets the description: an index knows the README alone, not the files beside it."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository, version = metadata["urls"]["Repository"], metadata["version"]

        def absolute(link: re.Match[str]) -> str:
            picture, text, path = link.groups()
            return f"{picture}{text}({repository}/{'raw' if picture else 'blob'}/v{version}/{path})"

        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = RELATIVE_LINK.sub(absolute, readme)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
