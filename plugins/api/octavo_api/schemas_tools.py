"""Tools that a chat request offers, and which of them the answer may, must or may not call."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from octavo_api.schemas import Body

MAX_TOOLS: Final = 128
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ToolFunction(Body):
    """A function. ``strict`` is what forced calls are anyway: held to ``parameters``, a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: ToolFunction

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


class NamedFunction(Body):
    """The function that must be called."""

    name: str


class NamedChoice(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ToolFields(Body):
    """The fields of a chat request that are about tools."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        None, description="Functions that the model may call."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = Field(
        None,
        description="Default auto where there are tools. Forced calls are held to the schema.",
    )
    parallel_tool_calls: bool | None = Field(None, description="Default true; false: one call at most.")
