"""What an operator can do to a running server, with a key of their own."""

from __future__ import annotations

import pytest

KEY = {"authorization": "Bearer boss"}


@pytest.fixture
def admin(make_api):
    return make_api(admin_key="boss")


def test_adapters_come_and_go(admin):
    body = {"lora_name": "wit", "lora_path": "/adapters/wit", "pinned": True}
    answer = admin.call("POST", "/v1/load_lora_adapter", json=body, headers=KEY).json()
    assert (answer["status"], answer["name"], answer["rank"], answer["pinned"]) == ("loaded", "wit", 8, True)
    assert "wit" in [model["id"] for model in admin.get("/v1/models").json()["data"]]
    answer = admin.call("POST", "/v1/unload_lora_adapter", json={"lora_name": "wit"}, headers=KEY)
    assert answer.json() == {"status": "unloaded", "name": "wit"}
    assert admin.call("POST", "/v1/unload_lora_adapter", json={"lora_name": "wit"}, headers=KEY).status_code == 404


@pytest.mark.parametrize("body", [{}, {"lora_name": "a"}, {"lora_name": "", "lora_path": "x"}, {"lora": 1}])
def test_bad_requests(admin, body):
    assert admin.call("POST", "/v1/load_lora_adapter", json=body, headers=KEY).status_code == 400


def test_operators_are_read_strictly(make_api):
    api = make_api(admin_key="boss", unknown_fields="ignore")
    body = {"lora_name": "a", "lora_path": "x", "pined": True}
    error = api.call("POST", "/v1/load_lora_adapter", json=body, headers=KEY).json()["error"]
    assert "'pinned'" in error["message"]


def test_prefix_cache(admin):
    assert admin.call("POST", "/reset_prefix_cache", headers=KEY).json() == {"status": "reset"}
    assert admin.client.resets == 1


def test_draining_and_back(admin):
    assert admin.call("POST", "/drain", headers=KEY).json() == {"status": "draining", "running": 0}
    assert (admin.get("/ready").status_code, admin.get("/health").status_code) == (503, 200)
    refused = admin.chat()
    assert refused.status_code == 503
    assert "draining" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"] == "5"
    assert admin.call("POST", "/resume", headers=KEY).json() == {"status": "ready"}
    assert admin.chat().status_code == 200


def test_no_page_of_another_origin_may(make_api):
    api = make_api(admin_key="boss", allowed_origins=["*"])
    answer = api.call("POST", "/drain", headers={**KEY, "origin": "https://a.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert api.call("OPTIONS", "/drain", headers={"origin": "https://a.example"}).status_code == 405
