"""The run-time controller, by property: bounded, calm, quick, never starving."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_prune.errors import ConfigError
from vla_prune.tune.controller import Controller, ControllerConfig, Measurement

BUCKETS = (1.0, 0.5, 0.25, 0.125)
LATENCY = (0.080, 0.050, 0.035, 0.028)
PERIOD = 0.1


def controller(**options) -> Controller:
    ladder = {"buckets": BUCKETS, "latency_s": LATENCY, "period_s": PERIOD}
    return Controller(ControllerConfig(**ladder | options))


def driven(made: Controller, cycles: int, latency, state=None, **measured):
    """Closed loop: ``latency(cycle, rung)`` is what the machine takes."""
    state = state or made.new_state()
    rung, decisions = state.rung, []
    for cycle in range(cycles):
        decisions.append(made.decide(state, Measurement(latency(cycle, rung), **measured)))
        rung = decisions[-1].rung
    return state, decisions


def changes(decisions) -> list[int]:
    return [n for n, (a, b) in enumerate(pairwise(decisions), start=1) if a.rung != b.rung]


latencies = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(latencies, st.floats(), latencies, latencies), max_size=60))
def test_whatever_it_is_told_it_stays_on_the_ladder(told) -> None:
    made = controller(easy=2, entropy=(0.0, 1.0), motion=(0.0, 2.0))
    state = made.new_state()
    for latency, late, entropy, motion in told:
        before = state.rung
        decision = made.decide(state, Measurement(latency, late, entropy=entropy, motion=motion))
        assert 0 <= decision.rung < len(BUCKETS)
        assert decision.keep_ratio == BUCKETS[decision.rung] >= BUCKETS[-1]
        assert decision.rung >= before - 1  # up one rung at a time
        assert not decision.hand_over or decision.rung == len(BUCKETS) - 1
        assert 0.0 <= decision.difficulty <= 1.0
        assert np.isfinite(decision.expected_s)


@settings(max_examples=30, deadline=None)
@given(load=st.floats(0.1, 3.0), noise=st.floats(0.0, 0.04), seed=st.integers(0, 99))
def test_under_constant_load_it_settles(load: float, noise: float, seed: int) -> None:
    spread = 1 + np.random.default_rng(seed).uniform(-noise, noise, 160)
    _, made = driven(controller(), 160, lambda n, rung: load * LATENCY[rung] * spread[n])
    assert len(changes(made[80:])) <= 1
    fits = [load * (1 + noise) * s <= 0.8 * PERIOD for s in LATENCY]
    assert made[-1].rung <= (fits.index(True) if True in fits else 3)  # and not too low


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 0.3), min_size=4, max_size=4))
def test_changes_become_rare_however_wrong_the_expected_latencies_are(real) -> None:
    real = sorted(real, reverse=True)
    made = driven(controller(max_patience=64), 400, lambda n, rung: real[rung])[1][200:]
    assert len(changes(made)) <= 2 * (200 // 64 + 1)  # up and back, once in 64 cycles
    if real[-1] <= 0.5 * PERIOD:
        assert np.mean([real[d.rung] <= PERIOD for d in made]) > 0.9


@settings(max_examples=25, deadline=None)
@given(load=st.floats(1.2, 2.5), at=st.integers(20, 60), length=st.integers(10, 80))
def test_a_load_step_is_followed_at_once_and_recovered_from(
    load: float, at: int, length: int
) -> None:
    factor = lambda n: load if at <= n < at + length else 1.0  # noqa: E731
    _, made = driven(controller(), 220, lambda n, rung: factor(n) * LATENCY[rung])
    assert made[at - 1].rung == 0
    for n in range(at + 2, at + length):  # two cycles later it fits
        assert factor(n) * LATENCY[made[n].rung] <= PERIOD
    assert made[-1].rung == 0


def test_thermal_drift_is_followed_without_a_miss() -> None:
    factor = lambda n: 1.0 + 1.2 * (1 - np.exp(-n / 100))  # noqa: E731
    _, made = driven(controller(), 400, lambda n, rung: factor(n) * LATENCY[rung])
    taken = [factor(n + 1) * LATENCY[d.rung] for n, d in enumerate(made)]
    assert max(taken) <= PERIOD
    assert [d.rung for d in made] == sorted(d.rung for d in made)  # only downwards


def test_one_slow_call_changes_nothing_two_do() -> None:
    slow = {30}
    take = lambda n, rung: LATENCY[rung] * (3.0 if n in slow else 1.0)  # noqa: E731
    _, made = driven(controller(), 60, take)
    assert changes(made) == []
    slow.add(31)
    _, made = driven(controller(), 60, take)
    assert changes(made)[0] == 31


def test_when_the_floor_misses_it_hands_over_and_comes_back() -> None:
    factor = lambda n: 5.0 if 20 <= n < 60 else 1.0  # noqa: E731
    _, made = driven(controller(), 200, lambda n, rung: factor(n) * LATENCY[rung])
    held = [n for n, d in enumerate(made) if d.hand_over]
    assert 20 <= held[0] <= 22
    assert 59 <= held[-1] <= 62
    assert held == list(range(held[0], held[-1] + 1))
    assert {made[n].keep_ratio for n in held} == {0.125}  # the floor goes on being measured
    assert made[held[0]].reason == "floor"
    assert made[-1].rung == 0


@settings(max_examples=30, deadline=None)
@given(floor=st.floats(0.9, 1.0), load=st.floats(1.5, 4.0), at=st.integers(5, 30))
def test_a_floor_that_just_fits_is_taken_back_when_the_load_ends(
    floor: float, load: float, at: int
) -> None:
    latency = (0.15, floor * PERIOD)
    made = controller(buckets=(0.5, 0.25), latency_s=latency)
    factor = lambda n: load if at <= n < at + 6 else 1.0  # noqa: E731
    _, told = driven(made, 80, lambda n, rung: factor(n) * latency[rung])
    held = [n for n, d in enumerate(told) if d.hand_over]
    assert held
    assert held == list(range(held[0], held[-1] + 1))
    assert held[-1] <= at + 9


@pytest.mark.parametrize(
    ("expected", "takes", "noise"), [(0.095, 0.098, 0.05), (0.085, 0.095, 0.1), (0.09, 0.1, 0.03)]
)
def test_a_floor_at_the_edge_does_not_flicker_between_acting_and_holding(
    expected: float, takes: float, noise: float
) -> None:
    latency = (0.15, expected)
    spread = 1 + np.random.default_rng(3).uniform(-noise, noise, 1000)
    made = controller(buckets=(0.5, 0.25), latency_s=latency)
    real = (takes / expected * latency[0], takes)
    state, told = driven(made, 1000, lambda n, rung: real[rung] * spread[n])
    flips = sum(a.hand_over != b.hand_over for a, b in pairwise(told))
    assert 0 < flips <= 20  # it was 144, 98 and more
    _, after = driven(made, 10, lambda n, rung: 0.5 * latency[rung], state)
    assert not after[-1].hand_over


def test_lateness_behind_a_step_up_leaves_no_load_below_zero() -> None:
    made = controller()
    state = made.new_state()
    state.rung = 1
    for late in (0.0, 0.0, 0.3, 0.3, 0.3):
        state.since_up = 0
        told = made.decide(state, Measurement(LATENCY[state.rung], late))
        assert min(state.loads) >= 0
    assert told.expected_s >= 0.3
    assert told.hand_over


def test_a_floor_that_never_fits_may_be_asked_for_and_holds_throughout() -> None:
    made = controller(period_s=0.02, floor_may_miss=True)
    _, told = driven(made, 30, lambda n, rung: LATENCY[rung])
    assert all(d.hand_over and d.rung == 3 for d in told)


def test_calls_that_never_come_back_hand_over() -> None:
    _, made = driven(controller(), 5, lambda n, rung: float("inf"))
    assert made[-1].hand_over
    assert made[-1].slack_s < 0


def test_lateness_is_taken_off_the_period() -> None:
    _, free = driven(controller(), 60, lambda n, rung: LATENCY[rung])
    _, late = driven(controller(), 60, lambda n, rung: LATENCY[rung], lateness_s=0.045)
    assert (free[-1].rung, late[-1].rung) == (0, 2)
    assert late[-1].slack_s == pytest.approx(0.1 - 0.045 - 0.035)


def test_a_clock_that_goes_backwards_says_nothing() -> None:
    _, made = driven(controller(), 20, lambda n, rung: -1.0, lateness_s=-5.0)
    assert {d.rung for d in made} == {0}


def test_easy_scenes_run_at_fewer_tokens_and_hard_ones_get_them_back_at_once() -> None:
    made = controller(easy=2, motion=(0.0, 1.0))
    take = lambda n, rung: LATENCY[rung]  # noqa: E731
    state, calm = driven(made, 40, take, motion=0.0)
    assert calm[-1].rung == 2
    state, moving = driven(made, 6, take, state, motion=5.0)
    assert moving[-1].rung == 0
    assert moving[-1].difficulty == 1.0
    _, unknown = driven(made, 40, take)
    assert unknown[-1].rung == 0  # what is not known is taken for hard


def test_difficulty_that_flickers_does_not_make_the_budget_flicker() -> None:
    made = controller(easy=2, entropy=(0.0, 1.0))
    state, decisions = made.new_state(), []
    for cycle in range(200):
        told = Measurement(LATENCY[state.rung], entropy=float(cycle % 5 == 0))
        decisions.append(made.decide(state, told))
    assert changes(decisions[20:]) == []


def test_it_starts_where_there_is_room_and_takes_load_of_the_rung_that_was_measured() -> None:
    assert controller(period_s=0.07).new_state().rung == 1
    made = controller()
    state = made.new_state()
    for _ in range(3):  # calls that began before the step up
        made.decide(state, Measurement(LATENCY[3], rung=3))
    assert list(state.loads) == [1.0, 1.0, 1.0]


def test_states_do_not_share_anything() -> None:
    made = controller()
    busy, _ = driven(made, 20, lambda n, rung: 1.0)
    fresh = made.new_state()
    assert (busy.hand_over, fresh.hand_over, fresh.rung) == (True, False, 0)


def test_it_runs_without_torch() -> None:
    code = "import sys, vla_prune.tune.controller; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buckets": (), "latency_s": ()}, "buckets"),
        ({"buckets": (0.5, 1.0, 0.25, 0.1)}, "each smaller"),
        ({"buckets": (2.0, 0.5, 0.25, 0.1)}, r"in \(0, 1\]"),
        ({"latency_s": (0.1,)}, "4 buckets"),
        ({"latency_s": (0.1, 0.1, 0.1, 0.0)}, "above 0"),
        ({"period_s": 0.02}, "the fastest bucket"),
        ({"period_s": float("nan")}, "above 0 and finite"),
        ({"margin": 0.3}, "shares of the period"),
        ({"patience": 0}, "patience"),
        ({"easy": 4}, "easy is rung 4"),
        ({"motion": (1.0, 1.0)}, "motion"),
    ],
)
def test_bad_settings_get_one_sentence(options, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        controller(**options)
