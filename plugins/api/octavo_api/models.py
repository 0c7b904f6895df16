"""The names that are served: the base model under one or several, adapters under their own."""

from __future__ import annotations

from typing import Any

from octavo.contracts.api import EngineClient, ServedModel
from octavo.errors import ConfigError, NotFoundError, nearest
from octavo_api.options import OpenAIOptions


class Names:
    """Looks up what a request's ``model`` means."""

    def __init__(self, client: EngineClient, options: OpenAIOptions) -> None:
        self._client = client
        self._served = options.served_names
        if any(not 0 < len(name) <= 256 for name in self._served) or len(set(self._served)) < len(self._served):
            raise ConfigError(
                "names must be different from each other and 1 to 256 characters long.", "served_names"
            )

    def resolve(self, name: str | None) -> tuple[str, str | None]:
        """The name to show and the adapter to use. Raises :class:`NotFoundError`."""
        if name is None:
            return self._bases[0], None
        if name in self._bases:
            return name, None
        if name in self._adapters() or self._client.resolves(name):
            return name, name
        raise self._unknown(name)

    def _unknown(self, name: str) -> NotFoundError:
        adapters = self._adapters()
        served = [*self._bases, *adapters]
        listed = ", ".join(served[:8]) + (", …" if len(served) > 8 else "")
        return NotFoundError(
            f"The model {name[:100]!r} is not served here; served: {listed}.{nearest(name, served)}",
            param="model",
            code="model_not_found",
        )

    def listing(self) -> list[dict[str, Any]]:
        """All models as OpenAI's model objects, with vLLM's additions."""
        found = []
        for model in self._client.models():
            for name in self._bases if model.parent is None else [model.id]:
                found.append(_model_object(model, name, self._bases[0]))
        return found

    def find(self, name: str) -> dict[str, Any]:
        """One of them. Raises :class:`NotFoundError`."""
        for entry in self.listing():
            if entry["id"] == name:
                return entry
        raise self._unknown(name)

    @property
    def _bases(self) -> list[str]:
        """Asked each time: a surface may be built before the engine knows its model."""
        return self._served or [self._client.model_name]

    def _adapters(self) -> list[str]:
        return [model.id for model in self._client.models() if model.parent is not None]


def _model_object(model: ServedModel, name: str, base: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "octavo",
        "root": model.root,
        "parent": None if model.parent is None else base,
        "max_model_len": model.max_length,
    }
