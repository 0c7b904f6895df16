"""Schemathesis over the served openapi.json: no 5xx, no undocumented status, no wrong content type.

python tests/e2e/clients/fuzz.py http://127.0.0.1:8000 [cases for each operation]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def fuzz(url: str, cases: int) -> subprocess.CompletedProcess[str]:
    """Run it. Schemathesis stands beside the interpreter."""
    command = str(Path(sys.executable).parent / "schemathesis")
    options = ["--checks", CHECKS, "--max-examples", str(cases), "--phases", "examples,coverage,fuzzing"]
    more = ["--request-timeout", "60", "--continue-on-failure", "--no-color"]
    words = [command, "run", f"{url}/openapi.json", *options, *more]
    return subprocess.run(words, capture_output=True, text=True)


if __name__ == "__main__":
    done = fuzz(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
    print(done.stdout + done.stderr)
    sys.exit(done.returncode)
