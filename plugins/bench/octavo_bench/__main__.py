"""``python -m octavo_bench``: the same as ``octavo bench``, where there is no ``octavo`` command on the path."""

from __future__ import annotations

import sys

from octavo.errors import OctavoError
from octavo_bench.command import bench

if __name__ == "__main__":
    try:
        sys.exit(bench(sys.argv[1:]))
    except OctavoError as error:
        sys.exit(f"octavo bench: error: {error}")
