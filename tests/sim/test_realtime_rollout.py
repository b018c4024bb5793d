"""Tables in real time: settings, the controller, profiles that do not fit, rows and the figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from vla_prune_sim import rollout, table
from vla_prune_sim.realtime import figure
from vla_prune_sim.realtime import table as realtime_table
from vla_prune_sim.realtime.config import RealtimeConfig, Setting
from vla_prune_sim.realtime.pilot import make_pilot
from vla_prune_sim.realtime.profiles import rounds

from vla_prune.build import build_adapter
from vla_prune.errors import ConfigError, MissingError, ShapeError
from vla_prune.tune.measure import ProfileConfig, subject_of
from vla_prune.tune.profile import Bucket, Profile
from vla_prune.types import ActionChunk

from .test_rollout import POLICY

KEEPS = (1.0, 0.5, 0.25)


def synthetic(policy: str, cut_layer: int = 2) -> Profile:
    """Dense takes 100 ms, a bucket 10 ms and its share of 90 ms, up to 5% more by the round."""
    torch.set_num_threads(1)
    adapter = build_adapter(policy)
    jitter = 1.0 + 0.05 * np.linspace(0.0, 1.0, 5)

    def bucket(recipe: str, keep: float) -> Bucket:
        tokens = round(16 * keep)
        stages = {"vision": 10.0, "prefill": 90.0 * keep, "selection": 0.0, "other": 0.0}
        return Bucket(recipe, keep, tokens, {}, {s: ms * jitter for s, ms in stages.items()})

    subject = subject_of(adapter, ProfileConfig(policy, cut_layer=cut_layer))
    buckets = (bucket("dense", 1.0), *(bucket("dual_level", keep) for keep in KEEPS))
    return Profile(subject, {}, 16, buckets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("realtime")


@pytest.fixture(scope="module")
def policy(folder: Path) -> str:
    file = folder / "policy.yaml"
    file.write_text(POLICY.replace("chunk: 2", "chunk: 8") + "dt_s: 0.1\n")
    return str(file)


@pytest.fixture(scope="module")
def profile(policy: str) -> Profile:
    return synthetic(policy)


@pytest.fixture(scope="module")
def whole(folder: Path, policy: str, profile: Profile) -> rollout.RunConfig:
    profile.save(folder / "profile.json")
    return rollout.RunConfig(
        world="tests.sim.moving_world:MovingWorld",
        suites={"moving": {"policy": policy, "tasks": [0], "states": [5, 6]}},
        rows=[
            {"recipe": "dense"},
            {"recipe": "dual_level", "keep_ratio": 0.25},
            {"recipe": "dual_level", "controller": True},
            {"recipe": "dual_level", "keep_ratio": 0.5, "settings": ["slow"]},
            {"driver": "expert"},
        ],
        results=str(folder / "results" / "realtime.json"),
        work=str(folder / "work"),
        cut_layer=2,
        workers=1,
        realtime={
            "period_s": 0.2,
            "execute": 2,
            "hold": {"name": "hold", "action": [0.0] * 7},
            "mode": "asynchronous",
            "latency": "profile",
            "profile": str(folder / "profile.json"),
            "settings": {
                "fast": {"dense_periods": 0.4},
                "slow": {"dense_periods": 2.5},
                "busy": {"factor": 1.0, "load": {"step_at_s": 0.8, "step": 2.5}},
            },
            "ladder": list(KEEPS),
            "controller": {"patience": 2, "window": 2},
        },
    )


@pytest.fixture(scope="module")
def results(whole: rollout.RunConfig) -> list[dict]:
    """Of the whole table, run once."""
    return rollout.run(whole)


@pytest.fixture
def config(whole: rollout.RunConfig, tmp_path: Path) -> rollout.RunConfig:
    """The table, with folders of a test's own."""
    return replace(whole, work=str(tmp_path / "work"), results=str(tmp_path / "realtime.json"))


def course(results: list[dict]) -> dict:
    return {
        r["key"]: (r["outcome"], r["steps"], r.get("calls"), r.get("realtime")) for r in results
    }


def test_rows_run_in_their_settings_repeat_and_resume(
    whole: rollout.RunConfig, results: list[dict]
) -> None:
    config = whole
    keys = [r["key"] for r in results]
    assert keys == [episode.key for episode in rollout.episodes(config)]
    assert len(keys) == 2 * (3 + 3 + 3 + 1 + 1)
    assert "moving:0:5:dual_level:controller@busy" in keys
    lines = Path(config.work) / "episodes.jsonl"
    lines.write_text("\n".join(lines.read_text().splitlines()[:9]) + '\n{"key"')
    assert course(rollout.run(config)) == course(results)

    found = {r["key"]: r for r in results}
    fast, slow = (found[f"moving:0:5:dense:1@{name}"]["realtime"] for name in ("fast", "slow"))
    # 0.08 s fit into a period of 0.2 s; 0.5 s do not, and are felt at the next step of 0.1 s.
    assert (fast["misses"], fast["releases"]) == (0, 12)
    assert slow["misses"] == slow["releases"] == 12
    assert slow["age_p50_ms"] >= 500.0 > 300.0 >= fast["age_p99_ms"]
    pruned = found["moving:0:5:dual_level:0.25@slow"]
    assert pruned["outcome"]["fresh"] > found["moving:0:5:dense:1@slow"]["outcome"]["fresh"]
    assert pruned["kept"] == {"decoder.2": 4}
    assert "llm_ms" not in pruned  # nothing was measured


def test_the_controller_goes_down_under_load_and_counts_what_it_kept(
    results: list[dict],
) -> None:
    results = {r["key"]: r for r in results}
    busy = results["moving:0:5:dual_level:controller@busy"]
    # 0.105 s fit at keep 1; 2.5 times as much does not, and half of the tokens does.
    assert set(busy["buckets"]) == {"1", "0.5"}
    assert sum(busy["buckets"].values()) == busy["calls"]
    assert busy["realtime"]["misses"] < results["moving:0:5:dense:1@busy"]["realtime"]["misses"]
    assert results["moving:0:5:dual_level:controller@fast"]["buckets"] == {"1": 12}


def test_rows_are_paired_with_dense_on_the_same_device(
    config: rollout.RunConfig, results: list[dict]
) -> None:
    document = table.make(config, results)
    rows = {
        (r.get("recipe"), r.get("keep_ratio", "controller"), r["profile"]): r
        for r in document["rows"]
    }
    assert rows[("dense", 1.0, "slow")]["diff_vs_dense"] == 0.0
    slow = rows[("dual_level", 0.25, "slow")]
    assert slow["diff_vs_dense"] > 0.0
    assert slow["diff_ci"][0] > 0.0
    assert slow["misses"] < rows[("dense", 1.0, "slow")]["misses"]
    assert {"age_p50_ms", "age_p95_ms", "age_p99_ms", "rate_hz", "stale_ratio"} <= set(slow)
    picked = rows[("dual_level", "controller", "slow")]
    assert picked["best_fixed"] == "dual_level 0.25"
    assert sum(picked["buckets"].values()) == pytest.approx(1.0)
    assert "misses" not in rows[(None, 1.0, "-")]
    told, columns = realtime_table.short(document["rows"])
    assert "dual_level controller" in [row["name"] for row in told]
    assert {"name", "profile", "score", "misses"} <= set(columns)

    # Another domain's rows stay; this one's are replaced.
    file = Path(config.results)
    other = {**document, "rows": [{**slow, "domain": "other"}, *document["rows"]]}
    file.write_text(json.dumps(other))
    again = table.make(config, results)
    assert len(again["rows"]) == len(document["rows"]) + 1
    file.write_text("[]")
    with pytest.raises(ConfigError, match="holds no real-time results; name another file"):
        table.make(config, results)


def test_the_figure_is_drawn_from_the_results_file(
    config: rollout.RunConfig, results: list[dict], capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    table.make(config, results)
    figure.main([config.results])
    picture = Path(capsys.readouterr().out.strip())
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ShapeError, match="there is no row of a policy"):
        figure.draw({"rows": []}, picture)


def test_all_suites_of_a_table_are_pooled_and_have_their_own_profiles(
    config: rollout.RunConfig,
) -> None:
    suite = config.suites["moving"]
    profile = config.realtime.profile
    two = replace(
        config,
        suites={"moving": suite, "again": suite},
        rows=config.rows[:2],
        realtime=replace(
            config.realtime,
            profile={"moving": profile, "again": profile},
            settings={"slow": config.realtime.settings["slow"]},
        ),
    )
    rows = table.make(two, rollout.run(two))["rows"]
    assert [r["suite"] for r in rows].count("pooled") == 2
    lost = replace(two, realtime=replace(two.realtime, profile={"moving": profile}))
    with pytest.raises(ConfigError, match="realtime: profile: suite 'again' is unknown"):
        rollout.run(lost)


def test_reference_drivers_are_judged_by_the_same_time_limit(config: rollout.RunConfig) -> None:
    """2.4 s of driving are no success where 1.5 s are given."""
    rows = [config.rows[0], config.rows[-1]]
    for limit, in_time in ((1.5, False), (2.4, True)):
        realtime = replace(config.realtime, limit_s={"moving": limit})
        given = replace(config, rows=rows, realtime=realtime)
        driver = [e.key for e in rollout.episodes(given) if e.row.driver]
        for result in rollout.run(given, driver):
            assert (result["outcome"]["fresh"] > 0.0) == in_time


def test_calls_that_cut_nothing_yet_do_not_look_like_a_load(profile: Profile) -> None:
    """A recipe's first calls are dense: what they take says nothing of the floor."""
    realtime = RealtimeConfig(
        0.1, 2, "continue_chunk", latency="profile", profile="x", ladder=KEEPS
    )
    dense = ActionChunk(np.zeros((2, 1)), 0.1, 0.0)
    cut = replace(dense, kept={"decoder.2": np.arange(4)})
    for ladder, known in ((KEEPS, [1.0] * 4), (KEEPS[1:], [1.0])):
        pilot = make_pilot(replace(realtime, ladder=ladder), rounds(profile), Setting())
        expected = pilot.controller.config.latency_s
        for chunk, seconds in (
            (dense, 0.105),
            (dense, 0.105),
            (dense, 0.105),
            (cut, expected[-1]),
        ):
            pilot.choose(0.0)
            pilot.learn(len(ladder) - 1, seconds, chunk)
        pilot.choose(0.0)
        assert list(pilot.state.loads) == pytest.approx(known, rel=0.01)


def check(config: rollout.RunConfig, profile: Profile, file: Path) -> None:
    profile.save(file)
    realtime = replace(config.realtime, profile=str(file))
    rollout.run(replace(config, realtime=realtime, rows=config.rows[:1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": "pocket_drive"}, "policy pocket_drive, and policy is to be run"),
        ({"weights_hash": "0" * 16}, "weights whose hash is 0000000000000000"),
        ({"dtype": "bfloat16"}, "dtype bfloat16, and float32 is to be run"),
        ({"threads": 8}, "CPU threads 8, and 1 is to be run"),
        ({"cut_layer": 3}, "cut layer 3, and 2 is to be run"),
    ],
)
def test_a_profile_of_something_else_is_refused(
    config: rollout.RunConfig, profile: Profile, tmp_path: Path, change: dict, said: str
) -> None:
    other = replace(profile, subject=replace(profile.subject, **change))
    with pytest.raises(ConfigError, match=said):
        check(config, other, tmp_path / "other.json")


def test_a_profile_of_another_commit_is_told_or_refused(
    config: rollout.RunConfig,
    profile: Profile,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = replace(profile, subject=replace(profile.subject, commit="0123456789ab"))
    check(config, old, tmp_path / "old.json")
    assert "measured at commit 0123456789ab" in caplog.text
    strict = replace(
        config, realtime=replace(config.realtime, commit="refuse"), work=str(tmp_path / "strict")
    )
    with pytest.raises(ConfigError, match="measured at commit 0123456789ab"):
        check(strict, old, tmp_path / "old.json")


def test_mistakes_in_a_table_are_named(config: rollout.RunConfig, tmp_path: Path) -> None:
    rows, realtime = config.rows, config.realtime
    with pytest.raises(ConfigError, match="setting 'slw' is unknown; did you mean 'slow'"):
        replace(config, rows=[*rows, {"recipe": "grid", "settings": ["slw"]}])
    with pytest.raises(ConfigError, match="limit_s: suite 'moving' is unknown; did you"):
        replace(config, realtime=replace(realtime, limit_s={"movin": 1.0}))
    with pytest.raises(ConfigError, match="which are of real time; add a section 'realtime'"):
        replace(config, realtime=None)
    with pytest.raises(ConfigError, match="control 'black' is not played in real time"):
        replace(config, rows=[*rows, {"recipe": "dense", "control": "black"}])
    with pytest.raises(ConfigError, match="picks keep ratios of a recipe that prunes"):
        replace(config, rows=[*rows, {"recipe": "dense", "controller": True}])
    with pytest.raises(ConfigError, match="'perod_s' is unknown; did you mean 'period_s'"):
        replace(config, realtime={"perod_s": 0.1, "execute": 1, "hold": "brake"})
    with pytest.raises(MissingError, match="no such file; write it with 'vla-prune profile"):
        rollout.run(replace(config, realtime=replace(realtime, profile="nowhere.json")))
    with pytest.raises(ConfigError, match=r"keep ratio 0\.3 is not in the profile, which has 1,"):
        rollout.run(replace(config, rows=rows[:3], realtime=replace(realtime, ladder=[1.0, 0.3])))
    grid = [rows[0], {"recipe": "grid", "keep_ratio": 0.25}]
    with pytest.raises(ConfigError, match="the profile is of 'dual_level'; profile that recipe"):
        rollout.run(replace(config, rows=grid))
    off = [rows[0], {"recipe": "dual_level", "keep_ratio": 0.75}]
    with pytest.raises(ConfigError, match="kept 12 tokens, and the profile has buckets of 4, 8"):
        rollout.run(replace(config, rows=off))
    with pytest.raises(ConfigError, match=r"the fastest bucket \(0\.25\) takes .*a longer period"):
        rollout.run(replace(config, rows=rows[:3], realtime=replace(realtime, settings={
            "stone": {"dense_periods": 5.0}
        })))  # fmt: skip
