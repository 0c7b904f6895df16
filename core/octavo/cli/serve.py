"""``octavo serve``: a model behind the API surfaces that the launch file names."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from octavo.cli.arguments import add_config

if TYPE_CHECKING:
    from fastapi import FastAPI

    from octavo.cli.listen import Served
    from octavo.cli.serving import Listeners
    from octavo.config.launch import LaunchConfig
    from octavo.engine.async_engine import AsyncEngine
    from octavo.plugins.host import PluginHost

_CHAT: Final = "/v1/chat/completions"
_log = logging.getLogger("octavo.serve")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the launch file and the most frequent overrides."""
    add_config(parser)
    parser.add_argument("--model", metavar="PATH", help="same as --set model.path=PATH")
    parser.add_argument("--host", help="address that the first surface listens on")
    parser.add_argument("--port", type=int, help="port that the first surface listens on; 0 takes a free one")
    parser.add_argument(
        "--drain",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="how long requests may go on after SIGTERM or Ctrl-C (default: 20)",
    )
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    began = time.monotonic()
    _set_up_logging(args.log_level)
    from octavo.cli.listen import by_address, certificate_of, open_socket

    config, host, surfaces = _launch(args)
    groups = by_address(surfaces)
    secure = [certificate_of(group) is not None for group in groups.values()]
    listeners: Listeners = [(open_socket(*address), group) for address, group in groups.items()]

    from octavo.cli.serving import serve

    def announce(engine: AsyncEngine, apps: Sequence[FastAPI]) -> None:
        for (listener, group), app, safe in zip(listeners, apps, secure, strict=True):
            _announce(engine, _url(listener, safe), group, app, time.monotonic() - began)

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(config, host, listeners, drain=args.drain, announce=announce))
    finally:
        for listener, _ in listeners:
            listener.close()


def _launch(args: argparse.Namespace) -> tuple[LaunchConfig, PluginHost, list[Served]]:
    """``--host`` and ``--port`` come last: only where there is a surface can they be said of the first one."""
    from octavo.cli.listen import served
    from octavo.config.compose import compose, load_plugins
    from octavo.config.overrides import parse_overrides

    data, host, rest = load_plugins(args.config, [*args.overrides, *_override("model.path", args.model)])
    config = compose(data, host, rest)
    surfaces = served(config, host)
    listen = [*_override("api.0.options.host", args.host), *_override("api.0.options.port", args.port)]
    if listen:
        config = compose(data, host, [*rest, *parse_overrides(listen)])
        surfaces = served(config, host)
    return config, host, surfaces


def _override(path: str, value: object) -> list[str]:
    """JSON is YAML, so any text can be given."""
    return [] if value is None else [f"{path}={json.dumps(value)}"]


def _set_up_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop where it is installed (the extra ``speed``), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _announce(engine: AsyncEngine, url: str, group: Sequence[Served], app: FastAPI, seconds: float) -> None:
    from octavo.cli.listen import routes_of

    names = ", ".join(each.record.name for each in group)
    _log.info("%s is ready at %s (%s) after %.1f s", engine.model_name, url, names, seconds)
    if engine.has_chat_template and any(path == _CHAT for path, _ in routes_of(app.router, "")):
        _log.info(
            "try: curl %s%s -H 'Content-Type: application/json' "
            """-d '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'""",
            url,
            _CHAT,
        )


def _url(listener: socket.socket, secure: bool) -> str:
    """Where this machine reaches ``listener``."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
