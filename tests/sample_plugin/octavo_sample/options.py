"""What may be set, in a launch file or in Python. Octavo checks these before anything is built."""

from __future__ import annotations

from pydantic import Field

from octavo.config.schema import Section


class ShortestFirstOptions(Section):
    """Options of the policy `shortest-first`."""

    ageing: float = Field(
        50.0,
        ge=0,
        description="Tokens by which a request seems shorter for each second of its age; 0 lets long ones starve.",
    )
    prompt_weight: float = Field(
        0.1, ge=0, description="What a token of the prompt costs; one of the answer costs 1, for it takes a step."
    )


class NudgeOptions(Section):
    """Options of the logits processor `nudge`."""

    ban: list[int] = Field([], description="Token ids that no request may produce.")
    max_tokens: int = Field(256, ge=1, description="Most token ids that one request may name.")


class SampleApiOptions(Section):
    """Options of the API surface `sample`: where it listens. On one address, surfaces share a server."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
