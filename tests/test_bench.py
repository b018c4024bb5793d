"""Bench on a tiny decoder: counts, stages and ratios make sense. No wall-clock is asserted."""

from pathlib import Path

import pytest

from vla_prune import bench
from vla_prune.errors import ConfigError

TINY = """# x
# y
adapter: bare_decoder
llm: {vocab_size: 8, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 6,
      num_attention_heads: 4}
views: [{name: a, rows: 8, cols: 8}]
text_tokens: 5
decode_steps: 2
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def test_rows_hold_tokens_ideal_and_stages(policy: str) -> None:
    made = bench.run(bench.BenchConfig(policy, ["fastv", "vla_pruner"], [0.25], 2, 1, batch=2))
    dense, fastv, pruner = made["rows"]
    assert [row["recipe"] for row in made["rows"]] == ["dense", "fastv", "vla_pruner"]
    assert (dense["tokens"], fastv["tokens"], pruner["tokens"]) == (64, 16, 16)
    assert dense["speedup"] == dense["ideal"] == 1.0
    assert fastv["ideal"] == pruner["ideal"] > 1.0
    assert {"prefill", "decode", "selection"} <= set(pruner["stages_ms"])
    assert dense["selection_fraction"] == 0.0
    assert made["machine"]["policy"] == "a bare LlamaModel"


def test_history_is_full_before_anything_is_timed(policy: str) -> None:
    made = bench.run(bench.BenchConfig(policy, ["vla_pruner"], [0.25], repeats=1, warmup=0))
    assert made["rows"][1]["tokens"] == 16  # a call that still warmed up would have run dense


def test_an_empty_bench_is_refused(policy: str) -> None:
    with pytest.raises(ConfigError, match="at least one recipe"):
        bench.run(bench.BenchConfig(policy, []))
