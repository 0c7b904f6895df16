"""Adapters that a client may ask for before they were loaded: folders inside one that the operator names.

A client chooses a name and never a path: only plain names are looked up, nothing is followed through a link, and
what is found lies directly in the operator's folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from octavo.errors import ConfigError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CONFIG: Final = "adapter_config.json"


class FolderResolver:
    """Raises :class:`ConfigError` when ``folder`` is none."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser().resolve()
        if not self._folder.is_dir():
            raise ConfigError(f"{folder!r} is no folder.", "lora.resolver.folder")

    def find(self, name: str) -> Path | None:
        """The adapter's folder, if there is one of that name."""
        if not _NAME.fullmatch(name):
            return None
        found = self._folder / name
        if found.is_symlink() or not (found / _CONFIG).is_file():
            return None
        return None if any(entry.is_symlink() for entry in found.iterdir()) else found
