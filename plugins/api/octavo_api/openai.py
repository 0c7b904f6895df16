"""Plugin entry: the OpenAI-compatible HTTP surface. Light to import; FastAPI is imported by ``build``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from octavo.hookspecs import hookimpl
from octavo.records import ApiRecord
from octavo_api.batch_command import configure, run
from octavo_api.options import OpenAIOptions

if TYPE_CHECKING:
    from octavo.contracts.api import ApiSurface, EngineClient

OCTAVO_API = (1, 0)


def build(client: EngineClient, options: OpenAIOptions) -> ApiSurface:
    """The surface, ready to be mounted. Reads the key file; raises ``ConfigError`` if it can't."""
    from octavo_api.surface import OpenAISurface

    return OpenAISurface(client, options)


@hookimpl
def octavo_commands(app: Any) -> None:
    """Contribute ``run-batch``."""
    app.add("run-batch", "Answer a file of requests in OpenAI's batch format.", configure, run)


@hookimpl
def octavo_api_surfaces() -> Iterable[ApiRecord]:
    """Contribute ``openai``."""
    yield ApiRecord(
        name="openai",
        summary="Chat completions and completions as OpenAI's HTTP API has them, with health and metrics.",
        options=OpenAIOptions,
        build=build,
    )
