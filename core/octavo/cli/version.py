"""``octavo version``: what a bug report should say."""

from __future__ import annotations

import argparse
import platform
from typing import Final

import importlib_metadata

from octavo import __version__
from octavo.cli.arguments import print_json

_BESIDE: Final = ("torch", "triton", "transformers", "tokenizers", "pluggy", "pydantic")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the versions of Octavo, Python and the packages that matter. Imports none of them."""
    versions = {"octavo": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in _BESIDE:
        try:
            versions[name] = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            versions[name] = "not installed"
    if args.json:
        print_json(versions)
    else:
        print("\n".join(f"{name:12}  {version}" for name, version in versions.items()))
    return 0
