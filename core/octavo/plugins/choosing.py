"""Which plugins are to be loaded: the configuration's wishes against what is installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from octavo.config.schema import PluginsSection
from octavo.errors import PluginError, nearest
from octavo.plugins import sources
from octavo.plugins.sources import Source


@dataclass(frozen=True, slots=True)
class Wish:
    """A plugin and what is to be done with it. ``skip`` is the reason not to load it; ``asked``: by name."""

    source: Source
    asked: bool
    skip: str = ""


def wishes(section: PluginsSection, objects: Sequence[object]) -> list[Wish]:
    """Every known plugin in loading order: built-in, entry points by name, ``load``, Python objects.

    Raises :class:`PluginError` when two plugins of one name would be loaded, or the section names one that
    does not exist.
    """
    found = [sources.builtin(), *sources.installed()]
    _check_names(section, found)
    listed = [_wish(section, source) for source in found]
    listed += [Wish(sources.named(item), asked=True) for item in section.load]
    listed += [Wish(source, asked=True) for source in sources.given(objects)]
    _check_duplicates([wish.source for wish in listed if not wish.skip])
    return listed


def _wish(section: PluginsSection, source: Source) -> Wish:
    enabled = source.name in section.enable
    if source.name in section.disable:
        return Wish(source, False, "named in plugins.disable")
    if source.kind == "entry point" and not section.autoload and not enabled:
        return Wish(source, False, "plugins.autoload is false and plugins.enable does not name it")
    return Wish(source, asked=enabled or source.kind == "builtin")


def _check_names(section: PluginsSection, found: Iterable[Source]) -> None:
    names = list(dict.fromkeys(source.name for source in found))
    for key in ("enable", "disable"):
        for name in getattr(section, key):
            if name not in names:
                raise PluginError(
                    f"plugins.{key}: no plugin named {name!r} is installed.{nearest(name, names)} "
                    f"Installed: {', '.join(names)}."
                )
    for name in section.enable:
        if name in section.disable:
            raise PluginError(f"plugins: {name!r} is in both enable and disable; name it in one of them.")


def _check_duplicates(selected: Iterable[Source]) -> None:
    seen: dict[str, Source] = {}
    for source in selected:
        other = seen.setdefault(source.name, source)
        if other is not source:
            where = " and ".join(_origin(item) for item in (other, source))
            raise PluginError(
                f"two plugins are named {source.name!r}, from {where}: uninstall or rename one, "
                f"or switch both off with plugins.disable."
            )


def _origin(source: Source) -> str:
    return f"{source.distribution} {source.version}" if source.distribution else f"{source.kind} {source.value}"
