"""Installed distributions for tests, made on the spot: what ``pip install`` leaves behind, without pip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

_GROUP = "octavo.plugins"


def write_distribution(
    site: Path, name: str, plugins: Mapping[str, str], modules: Mapping[str, str], version: str = "1.0"
) -> None:
    """Write a distribution into ``site``, a folder that is (or will be) on ``sys.path``.

    ``plugins`` are its ``octavo.plugins`` entry points, name to ``module`` or ``module:attribute``; ``modules``
    are top-level modules, name to source text.
    """
    for module, source in modules.items():
        (site / f"{module}.py").write_text(dedent(source), encoding="utf-8")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"[{_GROUP}]", *(f"{key} = {value}" for key, value in plugins.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
