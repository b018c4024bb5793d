"""Intervals and tables against numbers worked out by hand."""

import numpy as np

from vla_prune import report


def test_paired_interval_of_equal_outcomes_is_zero() -> None:
    difference, interval = report.paired_interval([1, 0, 1], [1, 0, 1])
    assert difference == 0.0
    assert interval == (0.0, 0.0)


def test_paired_interval_covers_the_true_difference_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        reference = rng.random(100) < 0.8
        ours = np.where(rng.random(100) < 0.1, False, reference)  # true difference -0.08
        _, (low, high) = report.paired_interval(ours, reference, seed=trial, draws=1000)
        inside += low <= -0.08 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    reference = rng.random(200) < 0.5
    paired = reference.copy()
    paired[:4] = ~paired[:4]
    _, (low, high) = report.paired_interval(paired, reference)
    _, (wide_low, wide_high) = report.paired_interval(rng.permutation(paired), reference)
    assert high - low < 0.5 * (wide_high - wide_low)


def test_no_episodes_give_no_number() -> None:
    difference, _ = report.paired_interval([], [])
    assert np.isnan(difference)


def test_cells_read_well() -> None:
    assert report.cell(None) == "-"
    assert report.cell(0.12345) == "0.123"
    assert report.cell([-0.05, 0.01]) == "-0.05 to 0.01"
    assert report.cell(1234.5) == "1234"
