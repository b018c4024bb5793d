"""Bench on a tiny decoder: counts, stages and ratios make sense. No wall-clock is asserted."""

from pathlib import Path

import pytest

from tests.models.tiny import POLICY
from vla_prune import bench, build
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


def test_the_foreground_network_counts_among_the_cost(tmp_path: Path) -> None:
    from vla_prune.recon.bind import load_network
    from vla_prune.recon.model import recon_macs

    (tmp_path / "pocket.yaml").write_text(POLICY.replace("image_size: 16", "image_size: 32"))
    recipe = "cuts: [{site: projector, scorers: [%s], selector: topk, budget: constant}]\n"
    (tmp_path / "norm.yaml").write_text(recipe % "norm")
    (tmp_path / "ours.yaml").write_text(recipe % "{name: foreground, weights: random}")
    recipes = [str(tmp_path / "norm.yaml"), str(tmp_path / "ours.yaml")]
    config = bench.BenchConfig(str(tmp_path / "pocket.yaml"), recipes, [1.0, 0.25], 1, 0)
    made = {(Path(r["recipe"]).stem, r["keep_ratio"]): r for r in bench.run(config)["rows"]}
    network = load_network("random", build.build_adapter(config.policy))
    scoring = recon_macs(network.config, 64)
    norm, ours = made["norm", 0.25], made["ours", 0.25]
    assert ours["macs"] - norm["macs"] == pytest.approx(scoring)
    assert ours["ideal"] == pytest.approx(made["dense", 1.0]["macs"] / ours["macs"])
    assert made["ours", 1.0]["macs"] == made["dense", 1.0]["macs"]  # nothing is scored
