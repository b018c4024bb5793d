"""Tuning: what meets a deadline, halving on paired scenes, bounds, ready configs, the command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner
from vla_prune_sim import rollout
from vla_prune_sim.play import Player
from vla_prune_sim.realtime.config import RealtimeConfig
from vla_prune_sim.tune import tuner
from vla_prune_sim.tune.cli import tune as command
from vla_prune_sim.tune.config import Request, TuneConfig, seconds

from vla_prune import cli
from vla_prune import config as configs
from vla_prune.build import build_recipe
from vla_prune.errors import ConfigError
from vla_prune.tune import latency
from vla_prune.tune.controller import ControllerConfig
from vla_prune.tune.profile import Bucket, Profile

from .test_realtime_rollout import synthetic
from .test_rollout import POLICY

REALTIME = {"execute": 2, "hold": {"name": "hold", "action": [0.0] * 7}, "mode": "asynchronous"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and its profile: 10 ms and 90 ms times the keep ratio, up to 5% more."""
    made = tmp_path_factory.mktemp("tune")
    (made / "policy.yaml").write_text(POLICY.replace("chunk: 2", "chunk: 8") + "dt_s: 0.1\n")
    synthetic(str(made / "policy.yaml")).save(made / "profile.json")
    return made


@pytest.fixture
def config() -> TuneConfig:
    return TuneConfig(
        world="tests.sim.moving_world:MovingWorld",
        suite="moving",
        rungs=[{"tasks": 0, "states": "0-1"}, {"tasks": "0-1", "states": "0-3"}],
        realtime=REALTIME,
        cut_layer=2,
        workers=1,
    )


@pytest.fixture
def request_(folder: Path) -> Request:
    return Request(str(folder / "policy.yaml"), str(folder / "profile.json"), period_s=0.1)


@pytest.mark.parametrize(
    "path", sorted((configs.configs_folder() / "tune").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_tune_config_makes_tables_of_its_policys_suite(path: Path) -> None:
    data = configs.load(path)
    configs.check_keys(str(path), TuneConfig, data)
    made = TuneConfig(**data)
    RealtimeConfig(period_s=0.1, **made.realtime)
    assert (made.cut_layer, made.threads) == (None, 0)  # the profile's, whatever it was given
    assert configs.find(path.stem, "policy").is_file()
    assert [rung.places for rung in made.rungs] == sorted(rung.places for rung in made.rungs)


class Scores:
    """Plays tables without a simulator: what each keep ratio is worth, and what was asked for."""

    def __init__(
        self, worth: Mapping[float, float], ages_ms: Mapping[float, float] | None = None
    ) -> None:
        self.worth, self.ages_ms = {"dense": 0.3, **worth}, ages_ms or {}
        self.asked: list[list[str]] = []

    def __call__(self, table: rollout.RunConfig) -> Sequence[Mapping[str, Any]]:
        episodes = rollout.episodes(table)
        self.asked.append([episode.key for episode in episodes])
        return [self._result(episode) for episode in episodes]

    def _result(self, episode: rollout.Episode) -> dict[str, Any]:
        dense = episode.row.recipe == "dense"
        score = self.worth["dense" if dense else episode.row.keep_ratio]
        timing = dict.fromkeys(("rate_hz", "stale_ratio", "seam_jump", "age_p50_ms"), 1.0)
        timing |= {
            "releases": 10,
            "misses": 10 if dense else 1,
            "longest_miss_run": 1,
            "miss_rate": 0.1,
        }
        age = 120.0 if dense else self.ages_ms.get(episode.row.keep_ratio, 120.0)
        timing |= {"age_p95_ms": age, "age_p99_ms": age}
        place = {"suite": episode.suite, "task": episode.task, "state": episode.state}
        return {
            "key": episode.key,
            **place,
            "recipe": episode.row.recipe,
            "keep_ratio": episode.row.keep_ratio,
            "setting": episode.setting,
            "outcome": {"score": score + 0.01 * episode.state},
            "realtime": timing,
        }


def test_those_that_meet_the_deadline_play_and_the_better_half_goes_on(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    said: list[str] = []
    play = Scores({0.5: 0.4, 0.25: 0.6})
    found = tuner.tune(config, request_, tmp_path, play, said.append)
    # 105 ms at keep 1 do not fit into 100 ms.
    assert [row["meets"] for row in found["forecast"]] == [False, True, True]
    assert found["forecast"][1]["predicted_ms"] == pytest.approx(57.7, abs=0.5)
    assert any("keep 1: " in line and "misses 100 ms" in line for line in said)
    first, second = play.asked
    assert {key.split(":")[4] for key in first} == {
        "1@tuned_for",
        "0.5@tuned_for",
        "0.25@tuned_for",
    }
    assert {key.split(":")[4] for key in second} == {"1@tuned_for", "0.25@tuned_for"}
    assert len(second) == 2 * 8
    # The same scenes for all, and those of the first rung among those of the second.
    places = [{tuple(k.split(":")[:3]) for k in keys if ":0.25@" in k} for keys in play.asked]
    assert places[0] < places[1]
    assert {k for k in first if ":0.25@" in k} < set(second)

    assert (found["recipe"], found["keep_ratio"]) == ("dual_level", 0.25)
    assert found["buckets"] == {"image": 4}
    assert found["score"] == pytest.approx(0.6 + 0.015)
    assert found["diff_vs_dense"] == pytest.approx(0.3)
    assert found["miss_rate"] == pytest.approx(0.1)
    assert found["ceiling"] == pytest.approx(100 / 10, rel=0.01)
    assert [row["keep_ratio"] for row in found["curve"]] == [0.5, 0.25]
    assert json.loads(json.dumps(found)) == found


def test_what_is_saved_can_be_run(config: TuneConfig, request_: Request, tmp_path: Path) -> None:
    play = Scores({0.5: 0.7, 0.25: 0.65})
    found = tuner.tune(config, request_, tmp_path, play)
    assert found["ladder"] == [0.5, 0.25]
    tuned = configs.load(found["config"])
    assert (tuned["keep_ratio"], tuned["buckets"]) == (0.5, {"image": 8})
    assert ControllerConfig(**tuned["controller"]).buckets == (0.5, 0.25)
    assert tuned["controller"]["period_s"] == 0.1
    pruner = build_recipe(found["recipe_file"])
    assert pruner.cuts == build_recipe("dual_level", 0.5, cut_layer=2).cuts
    assert pruner.history == build_recipe("dual_level").history
    # A budget that loses more than a tenth is no fallback.
    worse = tuner.tune(config, request_, tmp_path, Scores({0.5: 0.7, 0.25: 0.5}))
    assert worse["ladder"] == [0.5]


def test_a_fallback_is_compared_on_the_scenes_that_both_were_at(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    """The later scenes are harder: what went out before them did not meet them."""

    class Harder(Scores):
        def _result(self, episode: rollout.Episode) -> dict[str, Any]:
            made = super()._result(episode)
            made["outcome"] = {"score": made["outcome"]["score"] - 0.3 * episode.task}
            return made

    found = tuner.tune(config, request_, tmp_path, Harder({0.5: 0.7, 0.25: 0.5}))
    assert found["keep_ratio"] == 0.5
    assert found["score"] < 0.6  # of all scenes; 0.7 of those that the smaller one was at, too
    assert found["ladder"] == [0.5]


def test_dense_is_named_where_it_meets_the_deadline_and_is_better(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    said: list[str] = []
    play = Scores({1.0: 0.2, 0.5: 0.2, 0.25: 0.25})
    found = tuner.tune(config, replace(request_, period_s=0.2), tmp_path, play, said.append)
    assert "dense meets the deadline, too (105" in said[-1]
    far = replace(config, realtime={**REALTIME, "transport_s": 0.05, "actuation_s": 0.05})
    said.clear()
    tuner.tune(far, replace(request_, period_s=0.2), tmp_path, play, said.append)
    assert not any("dense meets" in line for line in said)
    assert "the scenes that the budget was chosen on" in found["scored_on"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (0, "or 14 actions of 100 ms played"),
        (8, "in which a chunk of 8 actions of 100 ms runs out"),
    ],
)
def test_advice_knows_how_long_a_chunk_is(
    config: TuneConfig, request_: Request, folder: Path, tmp_path: Path, rows: int, told: str
) -> None:
    profile = replace(Profile.load(folder / "profile.json").scaled(40.0), chunk_rows=rows)
    profile.save(tmp_path / "slow.json")
    slow = replace(request_, profile=str(tmp_path / "slow.json"))
    with pytest.raises(ConfigError, match=told):
        tuner.tune(config, slow, tmp_path, Scores({}))


def test_of_equals_the_cheapest_is_recommended(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    one = replace(config, rungs=config.rungs[:1])
    found = tuner.tune(one, request_, tmp_path, Scores({0.5: 0.5, 0.25: 0.5}))
    assert found["keep_ratio"] == 0.25


def test_bounds_that_no_budget_reaches_are_told(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    play = Scores({0.5: 0.4, 0.25: 0.6})
    with pytest.raises(ConfigError, match=r"reaches a score of 0\.9; the best, keep ratio 0\.25"):
        tuner.tune(config, replace(request_, min_score=0.9), tmp_path, play)
    with pytest.raises(ConfigError, match="within 80 ms; the best has 120 ms"):
        tuner.tune(config, replace(request_, max_age_s=0.08), tmp_path, play)


def test_a_budget_that_is_too_old_does_not_push_out_one_that_is_not(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    play = Scores({0.5: 0.7, 0.25: 0.6}, {0.5: 150.0, 0.25: 90.0})
    found = tuner.tune(config, replace(request_, max_age_s=0.1), tmp_path, play)
    assert found["keep_ratio"] == 0.25
    assert tuner.tune(config, request_, tmp_path, play)["keep_ratio"] == 0.5


def test_a_budget_that_just_meets_the_deadline_gives_a_controller_that_loads(
    config: TuneConfig, request_: Request, folder: Path, tmp_path: Path
) -> None:
    """The model calls it in time; what was measured of it is a little over the deadline."""
    profile = Profile.load(folder / "profile.json")
    spike = np.array([1.0, 1.0, 1.0, 1.0, 1.1])
    buckets = [
        replace(b, samples_ms={s: t * spike for s, t in b.samples_ms.items()})
        if (b.recipe, b.keep_ratio) == ("dual_level", 0.25)
        else b
        for b in profile.buckets
    ]
    spiky = replace(profile, buckets=tuple(buckets))
    spiky.save(tmp_path / "p.json")
    period = 1e-3 * latency.fit(spiky).predict(4, 99) + 1e-6
    assert np.percentile(spiky.bucket(0.25).total_ms(), 99) > 1e3 * period
    near = replace(request_, profile=str(tmp_path / "p.json"), period_s=period)
    found = tuner.tune(config, near, tmp_path, Scores({0.25: 0.5}))
    tuned = configs.load(found["config"])
    assert ControllerConfig(**tuned["controller"]).latency_s[0] <= period


def test_a_budget_too_close_to_the_deadline_for_the_controller_is_told(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    play = Scores({0.5: 0.5, 0.25: 0.48})
    said: list[str] = []
    found = tuner.tune(config, replace(request_, period_s=0.065), tmp_path, play, said.append)
    assert (found["keep_ratio"], found["ladder"]) == (0.5, [0.5, 0.25])
    assert "the controller begins at 0.25: it keeps 20% of the deadline free" in said[-1]
    assert "0.5 takes 57.7 ms" in said[-1]
    said.clear()
    tuner.tune(config, request_, tmp_path, play, said.append)  # 100 ms leave enough
    assert not any("the controller begins" in line for line in said)


def of_threads(threads: int, folder: Path, tmp_path: Path) -> str:
    """The file of a profile that was measured with so many threads."""
    profile, file = Profile.load(folder / "profile.json"), tmp_path / f"of_{threads}.json"
    replace(profile, subject=replace(profile.subject, threads=threads)).save(file)
    return str(file)


def test_a_profile_of_two_threads_is_played_by_workers_of_one(
    config: TuneConfig,
    request_: Request,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    class Asked(Scores):
        def __call__(self, table: rollout.RunConfig) -> Sequence[Mapping[str, Any]]:
            asked.append((table.threads, table.workers))
            return super().__call__(table)

    monkeypatch.setattr(tuner.os, "cpu_count", lambda: 4)
    before = torch.get_num_threads()
    try:
        two = replace(request_, profile=of_threads(2, folder, tmp_path))
        many = replace(config, workers=0)
        tuner.tune(many, two, tmp_path, Asked({0.5: 0.5, 0.25: 0.5}))
    finally:
        torch.set_num_threads(before)
    assert asked == [(1, 4), (1, 4)]


def test_threads_that_this_machine_has_not_are_refused_and_others_told(
    config: TuneConfig,
    request_: Request,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play = Scores({0.5: 0.5, 0.25: 0.5})
    many = replace(request_, profile=of_threads(64, folder, tmp_path))
    monkeypatch.setattr(tuner.os, "cpu_count", lambda: 2)
    with pytest.raises(ConfigError, match="with 64 CPU threads, and this machine has 2; profile"):
        tuner.tune(config, many, tmp_path, play)
    said: list[str] = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        tuner.tune(config, request_, tmp_path, play, said.append)
    finally:
        torch.set_num_threads(before)
    assert "with 1 CPU threads, and torch takes 2 here: run the policy with 1" in said[0]


def test_a_slower_device_and_the_way_there_and_back_are_in_the_forecast(
    config: TuneConfig, request_: Request, tmp_path: Path
) -> None:
    class Asked(Scores):
        def __call__(self, table: rollout.RunConfig) -> Sequence[Mapping[str, Any]]:
            self.factors = {s.factor for s in table.realtime.settings.values()}
            return super().__call__(table)

    play = Asked({1.0: 0.5, 0.5: 0.5, 0.25: 0.5})
    long = replace(request_, period_s=1.0)
    plain = tuner.tune(config, long, tmp_path, play)["forecast"]
    assert play.factors == {1.0}
    slow = tuner.tune(config, replace(long, factor=2.0), tmp_path, play)["forecast"]
    assert play.factors == {2.0}
    far = replace(config, realtime={**REALTIME, "transport_s": 0.02, "actuation_s": 0.03})
    away = tuner.tune(far, long, tmp_path, play)["forecast"]
    for one, two, three in zip(plain, slow, away, strict=True):
        assert two["predicted_ms"] == pytest.approx(2 * one["predicted_ms"])
        assert three["predicted_ms"] == pytest.approx(one["predicted_ms"] + 50.0)


def test_a_profile_of_another_commit_is_told(
    config: TuneConfig, request_: Request, folder: Path, tmp_path: Path
) -> None:
    profile = Profile.load(folder / "profile.json")
    old = replace(profile, subject=replace(profile.subject, commit="0123456789ab"))
    old.save(tmp_path / "old.json")
    said: list[str] = []
    play = Scores({0.5: 0.5, 0.25: 0.5})
    tuner.tune(
        config, replace(request_, profile=str(tmp_path / "old.json")), tmp_path, play, said.append
    )
    assert "measured at commit 0123456789ab" in said[0]
    strict = replace(request_, profile=str(tmp_path / "old.json"), commit="refuse")
    with pytest.raises(ConfigError, match="measured at commit 0123456789ab"):
        tuner.tune(config, strict, tmp_path, play)


def test_a_deadline_that_no_budget_meets_says_what_would(
    config: TuneConfig, request_: Request, folder: Path, tmp_path: Path
) -> None:
    short = replace(request_, period_s=0.02)
    with pytest.raises(ConfigError) as told:
        tuner.tune(config, short, tmp_path, Scores({}))
    said = str(told.value)
    assert "not asked for" not in said
    dense = replace(request_, period_s=0.08, keep_ratios=[1.0])
    with pytest.raises(ConfigError, match=r"what would: keep ratio 0\.5, 0\.25, not asked for"):
        tuner.tune(config, dense, tmp_path, Scores({}))
    assert said.startswith("tune: no budget meets 20 ms at the 99th percentile: the fastest, ")
    assert "keep ratio 0.25, takes 34.1 ms, of which prefill takes 69%" in said
    assert "a period of 34 ms, or 1 actions of 100 ms played" in said

    profile = Profile.load(folder / "profile.json")

    def denoising(bucket: Bucket) -> Bucket:
        times = {**bucket.samples_ms, "denoise": bucket.samples_ms["vision"] * 3}
        return replace(bucket, samples_ms=times)

    slow = replace(
        profile,
        buckets=tuple(denoising(bucket) for bucket in profile.buckets),
        subject=replace(profile.subject, attention="eager"),
    )
    slow.save(tmp_path / "slow.json")
    other = replace(request_, profile=str(tmp_path / "slow.json"), period_s=0.05)
    with pytest.raises(ConfigError) as told:
        tuner.tune(config, replace(other, other_device=True), tmp_path, Scores({}))
    assert "of the denoising steps; another attention kernel than eager" in str(told.value)


def test_mistakes_are_named(
    config: TuneConfig, request_: Request, folder: Path, tmp_path: Path
) -> None:
    play = Scores({})
    with pytest.raises(ConfigError, match="the list of candidates is empty; give keep ratios"):
        replace(request_, keep_ratios=[])
    with pytest.raises(ConfigError, match="the list of candidates is empty"):
        tuner.tune(replace(config, keep_ratios=[]), request_, tmp_path, play)
    with pytest.raises(ConfigError, match=r"keep ratio 0\.3 was not measured; there is dense 1"):
        tuner.tune(config, replace(request_, keep_ratios=[0.3]), tmp_path, play)
    with pytest.raises(ConfigError, match="percentile 90 is not fitted; choose from 50, 95, 99"):
        replace(request_, percentile=90)
    with pytest.raises(ConfigError, match="cut layer 2, and 3 is to be run"):
        tuner.tune(replace(config, cut_layer=3), request_, tmp_path, play)
    (folder / "another.yaml").write_text((folder / "policy.yaml").read_text())
    another = replace(request_, policy=str(folder / "another.yaml"))
    with pytest.raises(ConfigError, match="measured with policy policy, and another is to be run"):
        tuner.tune(config, another, tmp_path, play)
    with pytest.raises(ConfigError, match="a rung lacks places of the one before"):
        replace(config, rungs=list(reversed(config.rungs)))
    camera = replace(config, realtime={**REALTIME, "camera_s": 0.2})
    with pytest.raises(ConfigError, match="--period is 100 ms, and there are 200 ms between two"):
        tuner.tune(camera, request_, tmp_path, play)
    with pytest.raises(ConfigError, match="rungs is empty"):
        replace(config, rungs=[])
    with pytest.raises(ConfigError, match="period_s is what tune is asked about"):
        replace(config, realtime={**REALTIME, "period_s": 0.1})
    for tasks in ([], "5-2", None):
        with pytest.raises(ConfigError, match="rungs: tasks"):
            replace(config, rungs=[{"tasks": tasks, "states": [0]}])
    with pytest.raises(ConfigError, match="threads -1 and workers 1; give 1 or more"):
        replace(config, threads=-1)
    for field, wrong, said in (
        ("transport_s", "1s", "tune: realtime: transport_s is '1s'; it takes a number"),
        ("execute", 0, "execute 0"),
        ("mod", "overlap", "did you mean 'mode'"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace(config, realtime={**REALTIME, field: wrong})
    for data, said in (
        ({"rungs": 3}, "rungs is 3; it takes a list"),
        ({"realtime": None}, "realtime is None; it takes a mapping"),
        ({"survive": "half"}, "survive is 'half'; it takes a number"),
    ):
        whole = {"world": "w", "suite": "s", "rungs": [], "realtime": {}} | data
        with pytest.raises(ConfigError, match=said):
            configs.check_keys("tune", TuneConfig, whole)
    for wrong in ("9e999", "100 parsecs", "-3ms", "0", "soon"):
        with pytest.raises(ConfigError, match="is no time; write it like 100ms or"):
            seconds(wrong, "--period")
    assert [seconds(t, "") for t in ("100ms", "0.1s", "0.1", "1e-1 s")] == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("given", [[], ["--cut-layer", "1"]])
def test_the_two_commands_fit_each_other_whatever_was_measured(
    folder: Path, tmp_path: Path, given: list[str]
) -> None:
    """``vla-prune profile POLICY --out F``, then ``vla-prune tune POLICY --profile F ...``."""
    policy, file = str(folder / "policy.yaml"), str(tmp_path / "p.json")
    (tmp_path / "tune.yaml").write_text(json.dumps({
        "world": "tests.sim.moving_world:MovingWorld",
        "suite": "moving",
        "rungs": [{"tasks": [0], "states": [0]}],
        "realtime": REALTIME,
        "workers": 1,
    }))  # fmt: skip
    before = torch.get_num_threads()
    try:
        made = CliRunner().invoke(
            cli.app,
            ["profile", policy, "--out", file, "--rounds", "1", "--warmup", "0", *given,
             "--buckets", "1.0,0.5,0.25"],
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        app = typer.Typer()
        app.command()(command)
        options = ["--profile", file, "--period", "10s", "--config", str(tmp_path / "tune.yaml")]
        told = CliRunner().invoke(app, [policy, *options, "--out", str(tmp_path / "o")])
        assert told.exit_code == 0, (told.output, told.exception)
    finally:
        torch.set_num_threads(before)
    assert json.loads(told.stdout.splitlines()[-1])["cut_layer"] == (1 if given else None)
    (tmp_path / "file").write_text("")
    told = CliRunner().invoke(app, [policy, *options, "--out", str(tmp_path / "file")])
    assert "cannot be made" in str(told.exception)


def test_the_command_tunes_is_interrupted_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {
        "world": "tests.sim.moving_world:MovingWorld",
        "suite": "moving",
        "rungs": [{"tasks": [0], "states": [0]}, {"tasks": [0], "states": [0, 1]}],
        "realtime": REALTIME,
        "cut_layer": 2,
        "workers": 1,
    }
    (tmp_path / "tune.yaml").write_text(json.dumps(written))
    app = typer.Typer()
    app.command()(command)
    options = ["--profile", str(folder / "profile.json"), "--period", "100ms", "--json"]
    options += ["--config", str(tmp_path / "tune.yaml"), "--out", str(tmp_path / "out")]

    begin, begun = Player._begin, []

    def stop(self: Player, *args: Any) -> Any:
        if len(begun) == 4:
            raise KeyboardInterrupt
        begun.append(args)
        return begin(self, *args)

    monkeypatch.setattr(Player, "_begin", stop)
    broken = CliRunner().invoke(app, [str(folder / "policy.yaml"), *options])
    assert broken.exit_code != 0
    monkeypatch.setattr(Player, "_begin", begin)
    lines = tmp_path / "out" / "episodes" / "episodes.jsonl"
    done = lines.read_text().splitlines()
    assert len(done) == 4
    told = CliRunner().invoke(app, [str(folder / "policy.yaml"), *options])
    assert told.exit_code == 0, told.output
    assert lines.read_text().splitlines()[:4] == done
    found = json.loads(told.stdout.splitlines()[-1])
    assert {"recipe", "buckets", "score", "miss_rate", "ceiling", "curve"} <= set(found)
    assert found["keep_ratio"] in (0.5, 0.25)
    assert json.loads((tmp_path / "out" / "tune.json").read_text()) == found
    whole = [*options[:-1], str(tmp_path / "whole")]
    told = CliRunner().invoke(app, [str(folder / "policy.yaml"), *whole])
    straight = json.loads(told.stdout.splitlines()[-1])
    files = ("config", "recipe_file", "command")
    assert {k: v for k, v in found.items() if k not in files} == {
        k: v for k, v in straight.items() if k not in files
    }
