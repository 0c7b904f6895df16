"""``octavo chat``: a conversation in the terminal, with a model loaded here or with a server."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from octavo.cli.arguments import add_config
from octavo.errors import OctavoError, RequestError

if TYPE_CHECKING:
    from octavo.cli.talkers import Talker

_HELP: Final = """\
/reset          begin a new conversation
/system TEXT    set the system message; without TEXT there is none
/quit           leave (also: end of input)
Ctrl-C stops an answer."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the launch file, the server's address and the sampling settings."""
    add_config(parser)
    parser.add_argument("--model", help="same as --set model.path=…; with --url the name of the model there")
    parser.add_argument(
        "--url", help="talk to this server, such as http://127.0.0.1:8000, instead of loading a model"
    )
    parser.add_argument("--api-key-file", metavar="FILE", help="file with the server's API key")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--temperature", type=float, help="0 is deterministic; default: the model's own")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest answer; default: what the context allows"
    )
    parser.add_argument("--seed", type=int, help="makes answers repeatable")


def run(args: argparse.Namespace) -> int:
    """Talk until the end of input."""
    with _talker(args) as talker:
        interactive = sys.stdin.isatty()
        if interactive:
            print(f"Talking with {talker.name}. /help lists commands.")
        Conversation(talker, args.system, interactive).run()
    return 0


class Conversation:
    """Reads lines and prints answers. Not interactive: plain lines in, plain answers out."""

    def __init__(self, talker: Talker, system: str | None, interactive: bool) -> None:
        self._talker = talker
        self._interactive = interactive
        self._system = system
        self._messages: list[dict[str, str]] = []

    def run(self) -> None:
        """Until the end of input or ``/quit``. Raises :class:`EngineDeadError` when nobody answers any more."""
        for line in self._lines():
            text = line.strip()
            if text == "/quit":
                return
            if text.startswith("/"):
                self._command(*text.partition(" ")[::2])
            elif text:
                self._say(text)

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                yield input("> ") if self._interactive else input()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print("\n(/quit leaves)")

    def _command(self, name: str, rest: str) -> None:
        if name == "/reset":
            self._messages.clear()
        elif name == "/system":
            self._system = rest.strip() or None
        elif name == "/help":
            print(_HELP)
        else:
            print(f"There is no command {name}.\n{_HELP}", file=sys.stderr)

    def _say(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        system = [{"role": "system", "content": self._system}] if self._system else []
        pieces: list[str] = []
        try:
            with contextlib.closing(self._talker.answer([*system, *self._messages])) as answer:
                for piece in answer:
                    pieces.append(piece)
                    print(_printable(piece), end="", flush=True)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            pieces.append("…")
            print("…", end="")
        except RequestError as error:
            print(f"octavo: {error}", file=sys.stderr)
            del self._messages[-1]
            return
        print("\n" if self._interactive else "")
        self._messages.append({"role": "assistant", "content": "".join(pieces)})


def _printable(text: str) -> str:
    """Without the control characters by which a text could steer the terminal."""
    return "".join(char for char in text if char in "\n\t" or (char >= " " and not "\x7f" <= char <= "\x9f"))


@contextlib.contextmanager
def _talker(args: argparse.Namespace) -> Iterator[Talker]:
    settings = {"temperature": args.temperature, "max_tokens": args.max_tokens, "seed": args.seed}
    given = {name: value for name, value in settings.items() if value is not None}
    if args.url is None:
        with _loaded(args, given) as talker:
            yield talker
        return
    from octavo.cli.talkers import ServerTalker

    if args.config is not None or args.overrides:
        raise OctavoError("with --url no model is loaded here: leave the launch file and --set out.")
    yield ServerTalker(args.url, args.model, _key(args.api_key_file), given)


@contextlib.contextmanager
def _loaded(args: argparse.Namespace, given: dict[str, Any]) -> Iterator[Talker]:
    if args.api_key_file is not None:
        raise OctavoError("--api-key-file belongs to --url.")
    from octavo.cli.talkers import EngineTalker
    from octavo.config.compose import load_launch

    overrides = [f"model.path={json.dumps(args.model)}"] if args.model is not None else []
    config, host = load_launch(args.config, [*args.overrides, *overrides])
    print(f"Loading {config.model.path} …", file=sys.stderr, flush=True)
    with contextlib.closing(EngineTalker(config, host, given)) as talker:
        yield talker


def _key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError as error:
        raise OctavoError(f"can't read {path!r}: {error.strerror}.") from error
