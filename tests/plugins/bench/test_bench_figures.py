"""Percentiles, latencies and goodput; arrivals; the picture."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import ConfigError
from octavo_bench.figures import LATENCIES, Seen, collected, figures, parse_goals, percentile
from octavo_bench.load import arrivals
from octavo_bench.plot import write
from octavo_bench.table import number, render


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 1000])
def test_percentiles_are_numpys(count: int) -> None:
    dice = random.Random(count)
    values = sorted(dice.expovariate(1.0) for _ in range(count))
    for percent in (0, 1, 25, 50, 90, 95, 99, 99.9, 100):
        assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12)


def seen(sent: float, *pieces: float, tokens: int, error: str | None = None) -> Seen:
    return Seen(sent, list(pieces), pieces[-1] + 0.5 if pieces else 0.0, 10, tokens, error)


def test_latencies_of_a_request() -> None:
    found = seen(1.0, 1.5, 1.75, 2.25, tokens=4).latencies()
    assert found["ttft"] == [500.0]
    assert found["tpot"] == [250.0]  # 0.75 s for the three tokens after the first
    assert found["itl"] == [250.0, 500.0]
    assert found["e2el"] == [1750.0]
    one = seen(0.0, 0.25, tokens=1).latencies()
    assert (one["tpot"], one["itl"]) == ([], [])


def test_figures_leave_failures_out_and_count_them() -> None:
    runs = [
        seen(0.0, 0.1, 0.2, tokens=2),
        seen(0.0, 0.3, 0.4, tokens=2),
        seen(0.0, tokens=0, error="no"),
    ]
    found = figures(runs, 2.0, {"ttft": 200.0, "e2el": 5000.0})
    assert (found["requests_s"], found["output_tok_s"], found["input_tok_s"]) == (1.0, 2.0, 10.0)
    assert found["failed_requests"] == 1
    assert found["goodput_requests_s"] == 0.5
    assert found["ttft_ms_mean"] == pytest.approx(200.0)
    assert found["ttft_ms_p50"] == pytest.approx(200.0)
    assert found["ttft_ms_p90"] == pytest.approx(280.0)
    assert "goodput_requests_s" not in figures(runs, 2.0, {})


def test_goals_are_limits_on_every_gap() -> None:
    steady, halting = seen(0.0, 0.1, 0.2, 0.3, tokens=3), seen(0.0, 0.1, 0.11, 0.3, tokens=3)
    assert figures([steady, halting], 1.0, {"itl": 150.0})["goodput_requests_s"] == 1.0
    assert figures([steady, halting], 1.0, {"tpot": 150.0})["goodput_requests_s"] == 2.0


def test_goals_are_read() -> None:
    assert parse_goals(["ttft:200", "e2el:1.5"]) == {"ttft": 200.0, "e2el": 1.5}
    for wrong in ("ttft", "ttft:", "speed:3", "itl:-1", "itl:0", "itl:nan"):
        with pytest.raises(ConfigError, match="goodput"):
            parse_goals([wrong])


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_spread_asked_for(burstiness: float) -> None:
    times = arrivals(20_001, 10.0, burstiness, seed=3)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.05)
    # A gamma distribution's spread over its mean is one over the root of its shape.
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)
    assert arrivals(20_001, 10.0, burstiness, seed=3) == times


def test_all_at_once() -> None:
    assert arrivals(3, math.inf, 1.0, 0) == [0.0, 0.0, 0.0]
    assert arrivals(1, 5.0, 1.0, 0) == [0.0]


def test_the_picture_is_xml_with_a_panel_a_latency(tmp_path: Path) -> None:
    runs = [seen(0.0, 0.1 * i, 0.1 * i + 0.02 * i, tokens=2) for i in range(1, 9)]
    path = tmp_path / "plot.svg"
    write(str(path), "a < b", collected(runs), {"ttft": 300.0})
    root = ET.fromstring(path.read_text())
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert "a < b" in texts
    assert all(f"{name}, ms" in texts for name in LATENCIES.values())
    assert len(list(root.iter(f"{space}polyline"))) == 4
    assert sum(element.get("class") == "goal" for element in root.iter(f"{space}line")) == 1
    write(str(path), "one token each", collected([seen(0.0, 0.1, tokens=1)]), {})
    assert len(list(ET.fromstring(path.read_text()).iter(f"{space}polyline"))) == 2


def test_tables() -> None:
    assert render(["a", "b"], [["xx", "1"], ["y", "100"]]) == "a     b\nxx    1\ny   100"
    assert [number(value) for value in (0, 1234.5, 123.45, 12.345, 1.2345)] == [
        "0",
        "1,234",
        "123.5",
        "12.35",
        "1.234",
    ]
