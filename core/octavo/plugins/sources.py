"""Where plugins come from: installed entry points, modules, files, and objects given in Python."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import importlib_metadata

from octavo import __version__
from octavo.errors import PluginError
from octavo.plugins.report import Kind, LockedPlugin, describe

GROUP: Final = "octavo.plugins"
BUILTIN_NAME: Final = "builtin"


@dataclass(frozen=True, slots=True)
class Source:
    """A plugin that may be loaded. ``instance`` is set for objects given in Python only."""

    name: str
    value: str
    distribution: str
    version: str
    kind: Kind
    instance: Any = None

    @property
    def label(self) -> str:
        """How messages name it."""
        return describe(self.name, self.kind, self.value, self.distribution, self.version)


def builtin() -> Source:
    """The plugin that ships inside the core."""
    return Source(BUILTIN_NAME, "octavo.builtin.plugin", "octavo", __version__, "builtin")


def installed() -> list[Source]:
    """Every ``octavo.plugins`` entry point of the installed distributions, by name. Imports none of them."""
    found = [
        Source(point.name, point.value, *_distribution(point), kind="entry point")
        for point in importlib_metadata.entry_points(group=GROUP)
    ]
    return sorted(found, key=lambda source: (source.name, source.distribution))


def _distribution(point: Any) -> tuple[str, str]:
    try:
        metadata = point.dist.metadata
        name, version = metadata.get("Name"), metadata.get("Version")
    except (AttributeError, OSError):  # damaged metadata; such a plugin is still listed
        name = version = None
    return name or "unknown distribution", version or "unknown version"


def named(item: str) -> Source:
    """An entry of ``plugins.load``: a dotted module, or a path that ends in ``.py`` or holds a slash."""
    if item.endswith(".py") or "/" in item or "\\" in item:
        path = Path(item).expanduser().resolve()
        return Source(path.stem, str(path), "", "", "file")
    return Source(item, item, "", "", "module")


def given(objects: Iterable[object]) -> list[Source]:
    """Plugins given in Python. A module is taken by its name, so that it can travel to child processes."""
    sources: list[Source] = []
    for item in objects:
        if isinstance(item, types.ModuleType) and item.__spec__ is not None:
            sources.append(Source(item.__name__, item.__name__, "", "", "module"))
            continue
        name = type(item).__name__
        taken = sum(source.name.split("#")[0] == name for source in sources)
        sources.append(Source(f"{name}#{taken + 1}" if taken else name, name, "", "", "object", item))
    return sources


def locked(entry: LockedPlugin) -> Source:
    """The plugin that a lock names, if the same version of it is installed here."""
    if entry.kind in ("builtin", "entry point"):
        version = __version__ if entry.kind == "builtin" else _installed_version(entry.distribution)
        if version != entry.version:
            raise PluginError(
                f"plugin {entry.name!r} was locked at {entry.distribution} {entry.version}, but this process "
                f"finds {version or 'none'}: start all processes from one environment."
            )
    return Source(entry.name, entry.value, entry.distribution, entry.version, entry.kind)


def _installed_version(distribution: str) -> str | None:
    try:
        return str(importlib_metadata.version(distribution))
    except importlib_metadata.PackageNotFoundError:
        return None


def import_plugin(source: Source) -> tuple[Any, Sequence[Any]]:
    """The plugin's object, and the places where it may state ``OCTAVO_API``. Raises what its import raises."""
    if source.kind == "object":
        return source.instance, (source.instance,)
    if source.kind == "file":
        module = _import_file(Path(source.value))
        return module, (module,)
    name, _, attributes = source.value.partition(":")
    module = importlib.import_module(name.strip())
    target: Any = module
    for attribute in filter(None, attributes.partition("[")[0].strip().split(".")):
        target = getattr(target, attribute)
    return target, (target, module)


def _import_file(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # The path is in the module's name, so that two files of one name don't meet in sys.modules.
    name = f"octavo_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
