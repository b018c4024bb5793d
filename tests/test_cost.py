"""Multiply-accumulate counts against the figures in ALGORITHMS.md 1.6."""

import pytest

from vla_prune.cost import DecoderShape, amdahl_ceiling, prefill_macs, tokens_per_layer

LLAMA_7B = DecoderShape(32, 4096, 11008)


@pytest.mark.parametrize(("kept", "tera"), [(256, 1.900), (128, 1.135), (64, 0.756), (32, 0.567)])
def test_openvla_counts_match_the_paper(kept: int, tera: float) -> None:
    lengths = tokens_per_layer(LLAMA_7B, 256, 34, {"decoder.3": kept})
    assert prefill_macs(LLAMA_7B, lengths) / 1e12 == pytest.approx(tera, abs=0.001)


def test_the_bench_decoder_has_an_ideal_of_2_32() -> None:
    shape = DecoderShape(12, 768, 2048)
    dense = prefill_macs(shape, tokens_per_layer(shape, 1024, 41, {}))
    pruned = prefill_macs(shape, tokens_per_layer(shape, 1024, 41, {"decoder.3": 256}))
    assert dense / pruned == pytest.approx(2.32, abs=0.005)


def test_two_cuts_shorten_twice() -> None:
    shape = DecoderShape(6, 8, 16)
    lengths = tokens_per_layer(shape, 100, 10, {"projector": 50, "decoder.3": 20})
    assert lengths == [60, 60, 60, 30, 30, 30]


def test_grouped_keys_and_values_cost_less() -> None:
    full, grouped = DecoderShape(1, 64, 0), DecoderShape(1, 64, 0, kv_ratio=0.25)
    saved = prefill_macs(full, [10]) - prefill_macs(grouped, [10])
    assert saved == 10 * 64 * 64 * 1.5


def test_ceiling_is_what_the_rest_costs() -> None:
    assert amdahl_ceiling(249.0, 67.0) == pytest.approx(1.37, abs=0.005)
