import json
from typing import Any

import pytest


@pytest.mark.slow
def test_attention_is_timed_and_its_memory_told(workplace: Any, inside: Any) -> None:
    done = inside("bench.py", "attention", "--shrink", "128", "--rounds", "1", "--out", "results.json")
    assert done.code == 0, done.err
    results = json.loads((workplace / "results.json").read_text())
    assert {"command", "machine", "jax"} <= set(results)
    rows = results["attention"]
    assert rows.pop("dtype") == "float32"
    assert [line.partition(":")[0] for line in done.out.splitlines()] == list(rows)
    causal = rows["causal [8, 6, 2, 64]"]
    assert causal["times_the_first"]["jax.nn"] == causal["jax.nn"]["median_ms"] / causal["pallas_kernels"]["median_ms"]
    assert set(rows["window [1, 8, 64, 64]"]) == {"causal", "window 4", "times_the_first"}
    assert rows["T5 table [1, 4, 128, 64]"]["temporary_bytes"] > rows["T5 table [1, 4, 64, 64]"]["temporary_bytes"] > 0


@pytest.mark.slow
def test_devices_are_timed_beside_peers_who_may_refuse(workplace: Any, inside: Any) -> None:
    done = inside("bench.py", "attention", "--device", "--shrink", "256", "--rounds", "1", "--calls", "2", "--out", "results.json")
    assert done.code == 0, done.err
    rows = json.loads((workplace / "results.json").read_text())["attention"]
    causal = rows["causal [2, 16, 32, 128]"]
    assert causal["blockwise"]["forward"]["tflops"] > 0 and causal["blockwise"]["backward"]["median_ms"] > 0
    assert "cudnn" in causal  # refused, where there is no GPU, in its own words
    assert {name.partition(" [")[0] for name in rows if name != "dtype"} == {"full", "causal", "window 4", "documents", "T5 table", "softcap"}
