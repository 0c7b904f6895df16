"""The figures at /metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from octavo.contracts.api import EngineStats
from octavo.testing.client import ScriptedClient

ROOT = Path(__file__).parents[3]
PER_POSITION = "spec_decode_num_accepted_tokens_per_pos"


def figures(api):
    response = api.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {
        (
            sample.name,
            *(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "model_name"),
        ): sample
        for family in families
        for sample in family.samples
    }


def value(found, name, *labels):
    return found[(f"octavo:{name}", *labels)].value


def test_engine_figures(make_api):
    stats = EngineStats(
        running=2,
        waiting=3,
        total_blocks=200,
        used_blocks=50,
        prefix_queries=1000,
        prefix_hits=400,
        preemptions=1,
        prompt_tokens=1100,
        generated_tokens=77,
        steps=9,
        drafts=10,
        drafted=40,
        accepted=25,
        accepted_at=(9, 8, 5, 3),
        speculation_off="proposer 'x' was switched off: it crashed",
    )
    found = figures(make_api(ScriptedClient(figures=stats)))
    expected = {
        "num_requests_running": 2,
        "num_requests_waiting": 3,
        "kv_cache_usage_perc": 0.25,
        "prefix_cache_queries_total": 1000,
        "prefix_cache_hits_total": 400,
        "num_preemptions_total": 1,
        "prompt_tokens_total": 1100,
        "generation_tokens_total": 77,
        "engine_steps_total": 9,
        "spec_decode_num_drafts_total": 10,
        "spec_decode_num_draft_tokens_total": 40,
        "spec_decode_num_accepted_tokens_total": 25,
        "spec_decode_off": 1,
        "engine_heartbeat_age_seconds": 0.01,
    }
    assert {name: value(found, name) for name in expected} == expected
    per_position = [value(found, f"{PER_POSITION}_total", f"position={position}") for position in range(4)]
    assert per_position == [9, 8, 5, 3]
    octavos = [
        sample for sample in found.values() if sample.name.startswith("octavo:") and "http_" not in sample.name
    ]
    assert all(sample.labels["model_name"] == "scripted" for sample in octavos)


def test_requests_are_measured(make_api):
    api = make_api(ScriptedClient(delay=0.01))
    api.chat(max_tokens=6, n=2)
    api.chat(stream=True)
    api.chat(temperature=-1)
    api.complete([9999])
    found = figures(api)
    assert value(found, "request_success_total", "finished_reason=length") == 2
    assert value(found, "request_success_total", "finished_reason=stop") == 1
    assert ("octavo:request_success_total", "finished_reason=abort") not in found
    assert value(found, "time_to_first_token_seconds_count") == 2
    assert 0.01 < value(found, "time_to_first_token_seconds_sum") < 1
    assert value(found, "e2e_request_latency_seconds_count") == 3
    assert value(found, "inter_token_latency_seconds_count") > 3
    assert value(found, "request_prompt_tokens_count") == 2
    assert value(found, "request_generation_tokens_count") == 3
    assert value(found, "request_params_n_sum") == 3
    route = "route=/v1/chat/completions"
    assert value(found, "http_requests_total", route, "status=200") == 2
    assert value(found, "http_requests_total", route, "status=400") == 1


def test_aborts_are_counted(make_api):
    api = make_api(ScriptedClient(failure=RuntimeError("x"), fail_after=1))
    api.chat(stream=True)
    assert value(figures(api), "request_success_total", "finished_reason=abort") == 1


def test_openmetrics_where_asked_for(api):
    response = api.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_metrics_may_be_off(make_api):
    assert make_api(metrics=False).get("/metrics").status_code == 404


def test_two_surfaces_have_registries_of_their_own(make_api):
    first, second = make_api(), make_api()
    first.chat()
    assert ("octavo:request_success_total", "finished_reason=stop") not in figures(second)


def test_the_dashboard_names_what_there_is(api):
    """Every figure that the Grafana dashboard asks for, with the labels that it asks by."""
    api.chat()
    served = {sample.name: sample for sample in figures(api).values()}
    board = json.loads((ROOT / "examples" / "grafana" / "octavo.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = set(re.findall(r"octavo:\w+", " ".join(asked)))
    assert len(names) >= 15
    assert names <= set(served)
    for expression in asked:
        for labels in re.findall(r"by \((\w+)\)", expression):
            (name,) = set(re.findall(r"octavo:\w+", expression))
            assert labels in served[name].labels
