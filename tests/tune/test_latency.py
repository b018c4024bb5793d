"""The latency model on timings whose truth is known."""

from pathlib import Path

import numpy as np
import pytest

from tests.tune.synthetic import RATIOS, TOKENS, profile, truth
from vla_prune.errors import ConfigError
from vla_prune.tune.latency import fit, least_squares
from vla_prune.tune.profile import Profile

MEASURED = sorted((Path(__file__).parents[2] / "results" / "profiles").glob("*.json"))


def test_without_noise_curves_are_found_exactly() -> None:
    model = fit(profile(rounds=3, noise=0.0))
    for tokens in (10, 50, 100, 200):
        for stage, ms in truth(tokens).items():
            assert model.stage(stage, tokens) == pytest.approx(ms, rel=1e-6), stage
    assert model.stages["prefill"].curve == pytest.approx((5.0, 0.05, 1e-4), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("percentile", [50, 95, 99])
def test_unmeasured_budgets_are_predicted_within_ten_percent(seed: int, percentile: int) -> None:
    model = fit(profile(seed=seed))
    unseen = profile(rounds=20_000, seed=100 + seed, ratios=(0.6, 0.375, 0.2, 0.09))
    for bucket in unseen.ladder:
        seen = np.percentile(bucket.total_ms(), percentile)
        assert model.predict(bucket.tokens, percentile) == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize("file", MEASURED, ids=lambda file: file.stem)
def test_what_was_measured_is_predicted_within_ten_percent_from_the_other_budgets(
    file: Path,
) -> None:
    model = fit(Profile.load(file))
    assert len(model.errors[95]) == 3  # each budget between the largest and the smallest
    assert abs(model.worst_error(95)) <= 0.1
    assert abs(model.worst_error(50)) <= 0.05


def test_the_error_is_told_from_buckets_that_were_left_out() -> None:
    model = fit(profile())
    assert set(model.errors) == {50, 95, 99}
    assert set(model.errors[95]) == {round(TOKENS * r) for r in RATIOS[1:-1]}
    assert 0 < model.worst_error(95) < 0.1
    assert set(model.stage_errors_ms) == set(truth(TOKENS))
    assert set(model.stage_errors_ms["prefill"]) == set(model.errors[95])
    assert max(map(abs, model.stage_errors_ms["prefill"].values())) < 1.0


def test_a_law_that_does_not_hold_shows_as_error() -> None:
    made = profile(noise=0.01)
    bent = made.bucket(0.25)
    bent.samples_ms["prefill"][:] *= 2.0  # a bucket that hits a slow kernel
    model = fit(made)
    assert model.worst_error(50) > 0.2
    tokens = bent.tokens
    assert abs(model.stage_errors_ms["prefill"][tokens]) > 5.0
    assert abs(model.stage_errors_ms["head"][tokens]) < 0.1  # the stage at fault is told


def test_no_coefficient_is_negative_and_more_tokens_never_cost_less() -> None:
    for seed in range(4):
        model = fit(profile(rounds=5, noise=0.5, seed=seed))
        assert min(x for m in model.stages.values() for x in m.curve) >= 0
        times = [model.predict(tokens, 95) for tokens in range(0, TOKENS, 16)]
        assert (np.diff(times) >= 0).all()


def test_percentiles_are_in_order() -> None:
    model = fit(profile())
    assert model.predict(72, 50) < model.predict(72, 95) < model.predict(72, 99)


def test_uncut_calls_are_as_measured() -> None:
    made = profile(noise=0.0, rounds=3)
    model = fit(made)
    assert model.stage("selection", TOKENS) == pytest.approx(0.1)
    assert model.predict(TOKENS) == pytest.approx(made.bucket(1.0).total_ms()[0])


def test_a_slower_device_is_slower_by_one_constant_everywhere() -> None:
    model = fit(profile())
    by_profile = fit(profile().scaled(2.5))
    for tokens in (20, 100, TOKENS):
        for percentile in (50, 95, 99):
            ours = 2.5 * model.predict(tokens, percentile)
            assert by_profile.predict(tokens, percentile) == pytest.approx(ours)
    assert by_profile.ceiling == pytest.approx(model.ceiling)


def test_fewer_calls_of_a_stage_take_less() -> None:
    model = fit(profile(noise=0.0, rounds=3))
    half = model.predict(72, calls={"head": 0.5})
    assert model.predict(72) - half == pytest.approx(0.5)


def test_the_ceiling_is_amdahls() -> None:
    model = fit(profile(noise=0.0, rounds=3))
    parts = truth(TOKENS)
    whole = sum(parts.values())
    assert model.ceiling == pytest.approx(whole / (whole - parts["prefill"]))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.predict(72, 90), "percentile 90 is not fitted"),
        (lambda m: m.predict(TOKENS + 1), "289 tokens"),
        (lambda m: m.predict(72, calls={"denoise": 0.5}), "stage 'denoise' was not measured"),
    ],
)
def test_bad_questions_get_one_sentence(ask, said: str) -> None:
    model = fit(profile(rounds=3))
    with pytest.raises(ConfigError, match=said):
        ask(model)


def test_too_few_buckets_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        fit(profile(ratios=(1.0, 0.5)))
    assert np.isnan(fit(profile(ratios=(1.0, 0.5, 0.25))).worst_error(95))


def test_least_squares_equals_an_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    design, values = rng.random((8, 2)), rng.random(8) + 0.5
    found = least_squares(design, values, np.ones(8))
    grid = np.linspace(0, 2, 81)
    best = min(np.sum((design @ [a, b] - values) ** 2) for a in grid for b in grid)
    assert np.sum((design @ found - values) ** 2) <= best + 1e-9
    assert least_squares(-design, values) == [0.0, 0.0]


def test_a_costly_selection_that_ends_where_nothing_is_cut_does_not_bend_the_curve() -> None:
    made = profile(rounds=3, noise=0.0)
    for bucket in made.ladder[1:]:
        bucket.samples_ms["selection"][:] += 10.0
    model = fit(made)
    assert model.worst_error(50) < 1e-6
    assert model.predict(TOKENS) < model.predict(TOKENS - 1) - 9.0
