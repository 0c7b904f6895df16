"""Settings of the whole suite."""

from __future__ import annotations

import os

# Tests share a small machine with the processes they start: threads should sleep while they wait, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
