"""Hold rules stop machines, limits let nothing wrong through, the monitor counts as it says."""

import numpy as np
import pytest

from vla_prune.errors import ActionError, ConfigError
from vla_prune.runtime import Brake, ContinueChunk, DeadlineMonitor, Hold, Limits, make_hold

NONE = np.zeros((0, 2))


def test_hold_repeats_or_stands_still_and_keeps_the_gripper() -> None:
    last = np.array([0.3, 1.0], np.float32)
    assert Hold().after(last, NONE, 0, 0.1).tolist() == [last.tolist()]
    assert Hold().after(None, NONE, 0, 0.1) is None
    assert Hold((0.0, -1.0), keep=(1,)).after(last, NONE, 0, 0.1).tolist() == [[0.0, 1.0]]
    assert Hold((0.0, -1.0), keep=(1,)).after(None, NONE, 0, 0.1).tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize(
    ("speed", "brake", "dt"), [(10.0, 3.0, 0.5), (4.2, 6.0, 0.1), (0.3, 3.0, 0.5)]
)
def test_brake_stops_within_the_physical_distance(speed: float, brake: float, dt: float) -> None:
    last = np.array([0.6, 0.8]) * speed * dt
    rows = Brake(brake).after(last, NONE, 0, dt)
    assert rows[-1].tolist() == [0.0, 0.0]
    lengths = np.linalg.norm(rows, axis=1)
    assert (np.diff(lengths) <= 1e-9).all()
    assert lengths.sum() == pytest.approx(speed**2 / (2 * brake), abs=0.13 * brake * dt**2)
    assert rows == pytest.approx(lengths[:, None] * [0.6, 0.8])


def test_brake_stays_on_the_plans_way_and_never_passes_a_plan_that_stops_sooner() -> None:
    corner = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    path = np.cumsum(Brake(0.5).after(np.array([1.0, 0.0]), corner, 0, 1.0), axis=0)
    on_first, on_second = np.abs(path[:, 1]) < 1e-9, np.abs(path[:, 0] - 1.0) < 1e-9
    assert (on_first | on_second).all()
    assert on_second.any()
    stopping = np.array([[0.5, 0.0], [0.1, 0.0], [0.0, 0.0]])
    rows = Brake(0.01).after(np.array([1.0, 0.0]), stopping, 0, 1.0)
    assert rows.sum(axis=0) == pytest.approx([0.6, 0.0])


def test_a_plan_that_no_machine_drives_stops_in_a_bounded_number_of_rows() -> None:
    rows = Brake().after(np.array([3e38, 0.0], np.float32), NONE, 0, 1e-3)
    assert len(rows) <= 10_002
    assert rows[-1].tolist() == [0.0, 0.0]


def test_a_standing_vehicle_stands() -> None:
    assert Brake().after(None, NONE, 0, 0.5).tolist() == [[0.0, 0.0]]
    assert Brake().after(np.zeros(2), NONE, 0, 0.5).sum() == 0.0


def test_continue_chunk_plays_what_may_be_played() -> None:
    ahead = np.array([[1.0, 0.0], [2.0, 0.0]])
    rule = ContinueChunk(Hold((0.0, 0.0)))
    assert rule.after(None, ahead, 1, 0.1).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert rule.after(None, ahead, 0, 0.1).tolist() == [[0.0, 0.0]]


def test_rules_are_made_by_name() -> None:
    assert make_hold("brake") == Brake()
    nested = {"name": "continue_chunk", "then": {"name": "hold", "action": [0, 1], "keep": [1]}}
    assert make_hold(nested) == ContinueChunk(Hold((0.0, 1.0), (1,)))
    with pytest.raises(ConfigError, match="did you mean 'brake'"):
        make_hold("brakes")
    for wrong in (None, 3):
        with pytest.raises(ConfigError, match="is no rule; give one of continue_chunk"):
            make_hold(wrong)
    with pytest.raises(ConfigError, match="action is 'stop'; it takes a list of numbers or null"):
        make_hold({"name": "hold", "action": "stop"})
    with pytest.raises(ConfigError, match="deceleration is 'hard'; it takes a number"):
        make_hold({"name": "brake", "deceleration": "hard"})
    with pytest.raises(ConfigError, match="field 'decel' is unknown"):
        make_hold({"name": "brake", "decel": 2.0})
    with pytest.raises(ConfigError, match="deceleration 0"):
        make_hold({"name": "brake", "deceleration": 0.0})
    with pytest.raises(ConfigError, match="keep names dimension 2"):
        Hold((0.0, 0.0), keep=(2,))


def test_limits_bound_magnitude_and_rate() -> None:
    limits = Limits(low=(-1.0, -1.0), high=(1.0, 1.0), rate=(2.0, 100.0))
    made = limits.limit(np.array([5.0, -0.5]), np.array([0.0, 0.0]), dt_s=0.1)
    assert made.action == pytest.approx([0.2, -0.5])
    assert made.changed.tolist() == [True, False]
    assert limits.limit(np.array([5.0, -7.0])).action.tolist() == [1.0, -1.0]


def test_without_bounds_an_action_passes_bit_for_bit() -> None:
    action = np.array([0.1, 0.7], np.float32)
    made = Limits().limit(action, action, 0.1)
    assert np.array_equal(made.action, action)
    assert made.action.dtype == np.float32


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [0.0, np.inf]])
def test_what_is_not_finite_is_refused_and_raises_only_if_told_to(bad) -> None:
    limits = Limits(low=(-1.0, -1.0))
    made = limits.limit(np.array(bad))
    assert made.action is None
    assert "not finite" in made.refused
    with pytest.raises(ActionError, match="not finite"):
        limits.limit(np.array(bad), strict=True)


def test_an_action_of_another_size_is_refused() -> None:
    assert "2 numbers can be sent" in Limits(high=(1.0, 1.0)).limit(np.zeros(3)).refused


@pytest.mark.parametrize(
    "options",
    [
        {"low": (1.0,), "high": (0.0,)},
        {"low": (0.0,), "high": (1.0, 1.0)},
        {"rate": (0.0,)},
        {"low": (float("nan"),)},
    ],
)
def test_impossible_limits_are_refused(options) -> None:
    with pytest.raises(ConfigError, match="limits"):
        Limits(**options)


def test_lateness_counts_as_well_as_execution() -> None:
    monitor = DeadlineMonitor(0.1)
    assert not monitor.cycle(0.0, 0.0, 0.09).missed
    late = monitor.cycle(0.1, 0.15, 0.24)  # it ran for 90 ms, but began 50 ms late
    assert late.missed
    assert (late.lateness_s, late.execution_s, late.slack_s) == pytest.approx((0.05, 0.09, -0.04))
    assert not monitor.cycle(0.3, 0.3, 0.1 + 0.3).missed  # rounding is no miss


def test_misses_in_all_and_in_a_row_skipped_releases_included() -> None:
    monitor = DeadlineMonitor(1.0)
    for end in (0.5, 1.5, 1.5, 0.5, 1.5):
        monitor.cycle(0.0, 0.0, end)
    report = monitor.report()
    assert (report.misses, report.longest_run, report.run) == (3, 2, 1)
    monitor.skip(2)
    report = monitor.report()
    assert (report.misses, report.longest_run, report.skipped) == (5, 3, 2)
    assert report.miss_rate == pytest.approx(5 / 7)


def test_ages_rate_and_stale_ratio() -> None:
    monitor = DeadlineMonitor(0.1)
    for tick in range(100):
        monitor.command(tick * 0.05, age_s=tick / 1000, stale=tick % 4 == 0)
    report = monitor.report()
    assert report.stale_ratio == 0.25
    assert report.rate_hz == pytest.approx(15.0)  # 20 commands a second, three of four fresh
    assert report.age_p50_s == pytest.approx(0.0495)
    assert report.age_p99_s == pytest.approx(0.09801)


def test_nothing_measured_is_nan_and_no_error() -> None:
    report = DeadlineMonitor(0.1).report()
    assert report.cycles == report.misses == 0
    assert np.isnan([report.age_p99_s, report.rate_hz, report.miss_rate]).all()
    with pytest.raises(ConfigError, match="period"):
        DeadlineMonitor(0.0)
