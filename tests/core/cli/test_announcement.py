"""What ``octavo serve`` suggests when it is ready: only what will work."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from fastapi import FastAPI

from octavo.cli.serve import _announce


@pytest.mark.parametrize(("template", "route"), [(True, True), (False, True), (True, False)])
def test_chat_is_suggested_where_it_works(caplog, template, route):
    app = FastAPI()
    if route:
        app.add_api_route("/v1/chat/completions", lambda: None, methods=["POST"])
    engine = SimpleNamespace(model_name="m", has_chat_template=template)
    with caplog.at_level(logging.INFO):
        _announce(engine, "https://127.0.0.1:1", [], app, 0.1)
    assert "m is ready at https://127.0.0.1:1" in caplog.text
    assert ("try: curl https://127.0.0.1:1/v1/chat" in caplog.text) is (template and route)
