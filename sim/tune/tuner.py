"""From a deadline to a budget: forecast, successive halving in real time, a config to run.

Candidates are the budgets of one recipe that meet the deadline by the latency model. They play the
same scenes with the same seeds and the same rounds of the profile, few at first; the better share
goes on to more scenes (successive halving, Jamieson and Talwalkar 2016, with dense beside it as
the reference of every pair). Episodes are durable as in any run, so that a broken-off tuning goes
on where it stopped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from vla_prune_sim.realtime.table import rows as realtime_rows
from vla_prune_sim.rollout import RunConfig
from vla_prune_sim.tune.advice import Forecast, what_would
from vla_prune_sim.tune.config import Request, TuneConfig, check_candidates

from vla_prune import config as configs
from vla_prune.build import build_adapter, build_recipe
from vla_prune.errors import ConfigError
from vla_prune.tune import latency
from vla_prune.tune.controller import Controller, ControllerConfig
from vla_prune.tune.profile import Profile

SETTING = "tuned_for"
Play = Callable[[RunConfig], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Subject:
    """What is tuned.

    Attributes:
        profile: of the device that is tuned for.
        model: fitted to it.
        recipe: by the name that the profile has.
        views: keep ratio -> camera view -> tokens.
        dt_s: between two actions of a chunk.
    """

    profile: Profile
    model: latency.LatencyModel
    recipe: str
    views: Mapping[float, Mapping[str, int]]
    dt_s: float


def tune(
    config: TuneConfig,
    request: Request,
    folder: Path,
    play: Play,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """The recommendation, with its files written to ``folder``.

    Args:
        config: world, rungs and embodiment.
        request: deadline and bounds.
        folder: for episodes, configs and the document.
        play: runs a table and gives its episodes: `rollout.run`.
        say: told what is going on.

    Raises:
        ConfigError: the profile is of something else, no budget meets the deadline (and what
            would), or none that does reaches the bounds.
    """
    _check_camera(config, request)
    profile = Profile.load(request.profile)
    config = _by_profile(config, profile, request)
    subject = _subject(config, profile, request, say)
    forecasts = _forecasts(subject, config, request)
    for said in _told(forecasts, request):
        say(said)
    meeting = [forecast for forecast in forecasts if forecast.meets]
    if not meeting:
        others = _left_out(subject, forecasts, config, request)
        fastest = min(forecasts, key=lambda forecast: forecast.predicted_ms)
        raise ConfigError(
            what_would(
                subject.profile,
                subject.model,
                fastest,
                1e3 * request.deadline,
                request.percentile,
                1e3 * subject.dt_s,
                others,
            )
        )
    played, dense = _halve(config, request, subject, meeting, folder, play, say)
    curve = _curve(played, meeting)
    best = _best(curve, request)
    ladder = _ladder(played, curve, best, config.floor)
    controller = _controller(subject, ladder, request)
    for note in _notes(subject, dense, best, controller, config, request):
        say(note)
    return _document(config, request, subject, forecasts, curve, dense, best, controller, folder)


def _check_camera(config: TuneConfig, request: Request) -> None:
    """Refuse a period in which there is no picture."""
    camera = config.realtime.get("camera_s")
    if camera is not None and request.period_s < camera:
        raise ConfigError(
            f"tune: --period is {1e3 * request.period_s:g} ms, and there are {1e3 * camera:g} ms "
            "between two pictures (camera_s of the tune config); give at least that, or a faster "
            "camera with --set realtime.camera_s=SECONDS."
        )


def _by_profile(config: TuneConfig, profile: Profile, request: Request) -> TuneConfig:
    """What the config leaves open. Times come from the profile, so a core plays a worker."""
    measured = profile.subject
    cut = measured.cut_layer if config.cut_layer is None else config.cut_layer
    cores = os.cpu_count() or 1
    if measured.threads > cores and not request.other_device:
        raise ConfigError(
            f"tune: {request.profile} was measured with {measured.threads} CPU threads, and this "
            f"machine has {cores}; profile it here, or give --other-device if it speaks for "
            "another."
        )
    threads = config.threads or 1
    workers = config.workers or max(1, cores // threads)
    return replace(config, cut_layer=cut, threads=threads, workers=workers)


def _subject(
    config: TuneConfig, profile: Profile, request: Request, say: Callable[[str], None]
) -> Subject:
    import torch

    from vla_prune.tune.measure import ProfileConfig, subject_of

    recipe = profile.subject.recipe
    usual, measured = torch.get_num_threads(), profile.subject.threads
    if usual != measured and not request.other_device:
        say(
            f"profile: it was measured with {measured} CPU threads, and torch takes {usual} "
            f"here: run the policy with {measured}, or profile again."
        )
        torch.set_num_threads(measured)
    adapter = build_adapter(request.policy)
    now = subject_of(adapter, ProfileConfig(request.policy, recipe, cut_layer=config.cut_layer))
    for said in profile.check(now, request.other_device, request.commit):
        say(said)
    profile = profile.scaled(request.factor)
    ratios = request.keep_ratios or config.keep_ratios
    ratios = [bucket.keep_ratio for bucket in profile.ladder] if ratios is None else ratios
    check_candidates(ratios)
    views = {}
    for keep in sorted(ratios, reverse=True):
        profile.bucket(keep)
        last = build_recipe(recipe, keep, cut_layer=config.cut_layer).cuts[-1]
        counts = last.budget.keep(adapter.layout)
        names = [view.name for view in adapter.layout.views]
        views[keep] = dict(zip(names, map(int, counts), strict=True))
    return Subject(profile, latency.fit(profile), recipe, views, adapter.dt_s)


def _forecasts(subject: Subject, config: TuneConfig, request: Request) -> list[Forecast]:
    made = []
    for keep, views in subject.views.items():
        tokens = sum(views.values())
        predicted = _predicted_ms(subject, config, request, tokens)
        meets = predicted <= 1e3 * request.deadline
        made.append(Forecast(keep, tokens, views, predicted, meets))
    return made


def _predicted_ms(subject: Subject, config: TuneConfig, request: Request, tokens: int) -> float:
    """From the picture to the actuator."""
    return subject.model.predict(tokens, request.percentile) + 1e3 * _way_s(config)


def _way_s(config: TuneConfig) -> float:
    """From the picture to the policy and from there to the actuator."""
    way = config.realtime.get("transport_s", 0.0) + config.realtime.get("actuation_s", 0.0)
    return float(way)


def _left_out(
    subject: Subject, forecasts: Sequence[Forecast], config: TuneConfig, request: Request
) -> list[float]:
    """Budgets of the profile that are no candidates and would meet the deadline."""
    return [
        bucket.keep_ratio
        for bucket in subject.profile.ladder
        if bucket.keep_ratio not in {forecast.keep_ratio for forecast in forecasts}
        and _predicted_ms(subject, config, request, bucket.tokens) <= 1e3 * request.deadline
    ]


def _told(forecasts: Sequence[Forecast], request: Request) -> list[str]:
    return [
        f"keep {f.keep_ratio:g}: {f.predicted_ms:.1f} ms at p{request.percentile}, which "
        f"{'meets' if f.meets else 'misses'} {1e3 * request.deadline:g} ms."
        for f in forecasts
    ]


def _halve(
    config: TuneConfig,
    request: Request,
    subject: Subject,
    candidates: Sequence[Forecast],
    folder: Path,
    play: Play,
    say: Callable[[str], None],
) -> tuple[list[dict[float, dict[str, Any]]], dict[str, Any]]:
    """Rung by rung, the row of each candidate that played it; and dense's row of the last."""
    alive = [forecast.keep_ratio for forecast in candidates]
    played: list[dict[float, dict[str, Any]]] = []
    dense: dict[str, Any] = {}
    for number, rung in enumerate(config.rungs):
        table = _table(config, request, subject, alive, number, folder)
        found = realtime_rows(table, play(table))
        dense = next(row for row in found if row["recipe"] == "dense")
        rows = {r["keep_ratio"]: {**r, "rung": number} for r in found if r is not dense}
        played.append(rows)
        order = sorted(
            alive,
            key=lambda keep: (not _in_age(rows[keep], request), -rows[keep]["score"], keep),
        )
        if number < len(config.rungs) - 1:
            alive = sorted(order[: max(1, math.ceil(config.survive * len(order)))], reverse=True)
            say(
                f"after {rung.places} episodes each: keep "
                f"{', '.join(f'{keep:g}' for keep in alive)} of {len(order)} go on."
            )
    return played, dense


def _curve(
    played: Sequence[Mapping[float, Mapping[str, Any]]], candidates: Sequence[Forecast]
) -> list[dict[str, Any]]:
    """A row per candidate from the largest rung that it played, most tokens first."""
    last = {keep: row for rows in played for keep, row in rows.items()}
    predicted = {forecast.keep_ratio: forecast.predicted_ms for forecast in candidates}
    return [{**last[keep], "predicted_ms": predicted[keep]} for keep in sorted(last, reverse=True)]


def _table(
    config: TuneConfig,
    request: Request,
    subject: Subject,
    alive: Sequence[float],
    number: int,
    folder: Path,
) -> RunConfig:
    """The run of one rung."""
    rung = config.rungs[number]
    rows = [{"recipe": subject.recipe, "keep_ratio": keep} for keep in alive]
    realtime = dict(config.realtime) | {
        "period_s": request.period_s,
        "deadline_s": request.deadline_s,
        "latency": "profile",
        "profile": request.profile,
        "other_device": True,  # it was checked before; what plays here is a simulation of it
        "commit": "ignore",
        "settings": {SETTING: {"factor": request.factor}},
    }
    return RunConfig(
        world=config.world,
        suites={
            config.suite: {
                "policy": request.policy, "tasks": rung.tasks, "states": rung.states
            }
        },
        rows=[{"recipe": "dense"}, *rows],
        results=str(folder / "realtime.json"),
        work=str(folder / "episodes"),
        cut_layer=config.cut_layer,
        execute=config.execute,
        seed=config.seed,
        workers=config.workers,
        threads=config.threads,
        sim=config.sim,
        realtime=realtime,
    )  # fmt: skip


def _best(curve: Sequence[Mapping[str, Any]], request: Request) -> Mapping[str, Any]:
    """Of those that played longest, the best score within the bounds; of equals the cheapest."""
    last = max(row["rung"] for row in curve)
    final = [row for row in curve if row["rung"] == last]
    allowed = [row for row in final if _in_age(row, request)]
    if not allowed:
        youngest = min(_age_ms(row) for row in final)
        raise ConfigError(
            f"tune: no budget keeps the age at the actuator within {1e3 * request.max_age_s:g} ms;"
            f" the best has {youngest:.0f} ms at the 99th percentile: give a larger --max-age, or "
            "a shorter --period."
        )
    best = max(allowed, key=lambda row: (row["score"], -row["keep_ratio"]))
    if request.min_score is not None and best["score"] < request.min_score:
        raise ConfigError(
            f"tune: no budget that meets the deadline reaches a score of {request.min_score:g}; "
            f"the best, keep ratio {best['keep_ratio']:g}, has {best['score']:.3g}: take a longer "
            "--period or a faster device."
        )
    return best


def _in_age(row: Mapping[str, Any], request: Request) -> bool:
    """Whether the age at the actuator is within the bound."""
    return request.max_age_s is None or _age_ms(row) <= 1e3 * request.max_age_s


def _age_ms(row: Mapping[str, Any]) -> float:
    """Infinite where in some episode nothing was ever acted on."""
    return math.inf if row["age_p99_ms"] is None else row["age_p99_ms"]


def _ladder(
    played: Sequence[Mapping[float, Mapping[str, Any]]],
    curve: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    floor: float,
) -> list[float]:
    """The recommended budget and the smaller ones that keep enough of its score.

    A budget that went out early is compared on the scenes that both were at.
    """
    top = best["keep_ratio"]
    smaller = [
        row["keep_ratio"]
        for row in curve
        if row["keep_ratio"] < top and row["score"] >= floor * played[row["rung"]][top]["score"]
    ]
    return [top, *smaller]


def _controller(subject: Subject, ladder: Sequence[float], request: Request) -> ControllerConfig:
    """The run-time controller of a ladder, with latencies as the deadline was judged by."""
    tokens = [sum(subject.views[rung].values()) for rung in ladder]
    expected = tuple(subject.model.predict(n, request.percentile) / 1e3 for n in tokens)
    return ControllerConfig(tuple(ladder), expected, request.deadline)


def _notes(
    subject: Subject,
    dense: Mapping[str, Any],
    best: Mapping[str, Any],
    controller: ControllerConfig,
    config: TuneConfig,
    request: Request,
) -> list[str]:
    """What else the user has to know of a recommendation."""
    notes = []
    dense_ms = float(np.percentile(subject.profile.dense.total_ms(), request.percentile))
    dense_ms += 1e3 * _way_s(config)
    if dense_ms <= 1e3 * request.deadline and dense["score"] > best["score"]:
        notes.append(
            f"dense meets the deadline, too ({dense_ms:.1f} ms), and scores {dense['score']:.3g} "
            f"here against {best['score']:.3g}: nothing has to be cut."
        )
    if rung := Controller(controller).new_state().rung:
        notes.append(
            f"the controller begins at {controller.buckets[rung]:g}: it keeps "
            f"{controller.up_margin:.0%} of the deadline free, and {best['keep_ratio']:g} takes "
            f"{1e3 * controller.latency_s[0]:.1f} ms of it."
        )
    return notes


def _document(
    config: TuneConfig,
    request: Request,
    subject: Subject,
    forecasts: Sequence[Forecast],
    curve: Sequence[Mapping[str, Any]],
    dense: Mapping[str, Any],
    best: Mapping[str, Any],
    controller: ControllerConfig,
    folder: Path,
) -> dict[str, Any]:
    """What is printed last, and its two configs."""
    keep = best["keep_ratio"]
    recipe_file = folder / "recipe.yaml"
    configs.save(_recipe(subject.recipe, keep, config.cut_layer), recipe_file)
    profile = subject.profile
    ladder = list(controller.buckets)
    tuned = {
        "policy": request.policy,
        "recipe": subject.recipe,
        "cut_layer": config.cut_layer,
        "keep_ratio": keep,
        "buckets": dict(subject.views[keep]),
        "ladder": ladder,
        "realtime": dict(config.realtime)
        | {"period_s": request.period_s, "deadline_s": request.deadline},
        "controller": {
            "buckets": list(ladder),
            "latency_s": list(controller.latency_s),
            "period_s": request.deadline,
        },
        "profile": str(request.profile),
        "factor": request.factor,
        "percentile": request.percentile,
    }
    configs.save(tuned, folder / "tuned.yaml")
    median = subject.model.predict(sum(subject.views[keep].values()), 50)
    return {
        **{k: tuned[k] for k in ("policy", "recipe", "cut_layer", "keep_ratio", "buckets")},
        "ladder": ladder,
        "score": best["score"],
        "scored_on": "the scenes that the budget was chosen on, so that it flatters it a little",
        "score_dense": dense["score"],
        "diff_vs_dense": best["diff_vs_dense"],
        "diff_ci": best["diff_ci"],
        "miss_rate": best["miss_rate"],
        "age_p99_ms": best["age_p99_ms"],
        "ceiling": subject.model.ceiling,
        "speedup": float(np.median(profile.dense.total_ms())) / median,
        "predicted_ms": best["predicted_ms"],
        "deadline_ms": 1e3 * request.deadline,
        "percentile": request.percentile,
        "forecast": [forecast.row() for forecast in forecasts],
        "curve": [dict(row) for row in curve],
        "dense": dict(dense),
        "request": asdict(request),
        "config": str(folder / "tuned.yaml"),
        "recipe_file": str(recipe_file),
    }


def _recipe(name: str, keep: float, cut_layer: int | None) -> dict[str, Any]:
    """The recipe at this budget, spelt out, so that it can be run by its file alone."""
    data = configs.load(name, kind="recipe")
    pruner = build_recipe(name, keep, cut_layer=cut_layer)
    entries = data.get("cuts") or []
    listed = list(entries.values()) if isinstance(entries, Mapping) else list(entries)
    cuts = []
    for entry, cut in zip([e for e in listed if e is not None], pruner.cuts, strict=True):
        budget = entry["budget"]
        budget = {"name": budget} if isinstance(budget, str) else dict(budget)
        if hasattr(cut.budget, "keep_ratio"):
            budget["keep_ratio"] = cut.budget.keep_ratio
        cuts.append({**entry, "site": cut.site, "budget": budget})
    return {**data, "name": f"{pruner.name}_tuned", "cuts": cuts}
