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
