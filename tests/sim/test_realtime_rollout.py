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
from vla_prune_sim.survey import marks

from vla_prune import config as configs
from vla_prune import report
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
    fixed = ["dense 1", "dual_level 0.25", "dual_level 0.5"]
    assert sorted(picked["diff_vs_fixed"]) == fixed
    assert picked["diff_vs_fixed"]["dense 1"]["diff"] == picked["diff_vs_dense"]
    assert sum(picked["buckets"].values()) == pytest.approx(1.0)
    assert "misses" not in rows[(None, 1.0, "-")]
    assert slow["miss_rate_vs_dense"] < 0.0
    assert slow["miss_rate_vs_dense_ci"][1] < 0.0
    # Provenance on top, as in every results file, and the profile that the run charged.
    assert all(document[key] not in (None, "") for key in ("command", "commit", "machine", "seed"))
    charged = document["runs"][config.world]["profiles"]["moving"]
    assert charged["subject"]["recipe"] == "dual_level"
    assert [b["keep_ratio"] for b in charged["buckets"]] == [1.0, *KEEPS]
    assert charged["buckets"][0]["median_ms"] == pytest.approx(102.5)
    assert charged["factors"]["slow"] == pytest.approx(2.5 * 0.2 / 0.1025)
    shown = report.markdown(report.read(Path(config.results))["rows"])
    assert "| controller |" in shown
    assert shown.count("\n") == 2 + len(document["rows"])
    json.dumps(document, allow_nan=False)
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
    (picture.parent / "list.json").write_text("[]")
    for wrong, said in (("nowhere.json", "no such results file"), ("list.json", "no table of")):
        with pytest.raises(SystemExit):
            figure.main([str(picture.parent / wrong)])
        assert said in capsys.readouterr().err
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


def test_limits_may_be_given_task_by_task(config: rollout.RunConfig) -> None:
    rows = [config.rows[0], config.rows[-1]]
    tasks = config.suites["moving"].tasks
    limits = [9.0] * max(tasks) + [1.5]
    given = replace(
        config, rows=rows, realtime=replace(config.realtime, limit_s={"moving": limits})
    )
    driver = [e.key for e in rollout.episodes(given) if e.row.driver]
    for result in rollout.run(given, driver):
        assert (result["outcome"]["fresh"] > 0.0) == (result["task"] < max(tasks))
    short = replace(given, realtime=replace(config.realtime, limit_s={"moving": limits[:-1]}))
    with pytest.raises(ConfigError, match=f"limits for {max(tasks)} tasks, and task {max(tasks)}"):
        rollout.run(short, driver)


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


def test_the_controller_counts_the_way_to_the_actuator(profile: Profile) -> None:
    realtime = RealtimeConfig(
        0.1, 2, "continue_chunk", latency="profile", profile="x", ladder=KEEPS, actuation_s=0.06
    )
    pilot = make_pilot(realtime, rounds(profile), Setting())
    chunk = ActionChunk(np.zeros((2, 1)), 0.1, 0.0, {"decoder.2": np.arange(4)})
    decision = pilot.choose(0.0)
    for _ in range(5):
        pilot.learn(decision.rung, pilot.controller.config.latency_s[decision.rung], chunk)
        decision = pilot.choose(0.0)
    # 34 ms and 60 ms behind it: the half would be on time, and what it leads to would not.
    assert decision.keep_ratio == 0.25
    assert decision.expected_s == pytest.approx(0.0325 + 0.06, abs=0.003)


def test_what_a_call_takes_here_may_be_charged(config: rollout.RunConfig) -> None:
    """Live: times are this machine's, so a device 1e4 times slower acts on nothing in time."""
    live = {"period_s": 0.2, "execute": 2, "hold": {"name": "hold", "action": [0.0] * 7}}
    live |= {"mode": "asynchronous", "latency": "live"}
    live["settings"] = {"here": {}, "slower": {"factor": 1e4}}
    rows = [{"recipe": "dense"}, {"recipe": "dual_level", "keep_ratio": 0.25}]
    found = rollout.run(replace(config, rows=rows, realtime=live))
    for result in found:
        assert result["llm_ms"] > 0
        timing = result["realtime"]
        if result["setting"] == "slower":
            assert timing["age_p50_ms"] is None
            assert timing["misses"] == timing["releases"] > 0
        else:
            assert timing["age_p50_ms"] > 0


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


def test_dense_may_play_more_in_one_setting_than_in_another(config: rollout.RunConfig) -> None:
    rows = [
        {"recipe": "dense", "settings": ["slow"]},
        {"recipe": "dense", "settings": ["fast"], "states": 1},
        {"recipe": "dual_level", "keep_ratio": 0.5, "settings": ["slow"]},
    ]
    played = [episode.key for episode in rollout.episodes(replace(config, rows=rows))]
    of = "moving:0:{}:{}@{}".format
    assert played == [
        of(5, "dense:1", "slow"),
        of(6, "dense:1", "slow"),
        of(5, "dense:1", "fast"),
        of(5, "dual_level:0.5", "slow"),
        of(6, "dual_level:0.5", "slow"),
    ]


def test_mistakes_in_a_table_are_named(config: rollout.RunConfig, tmp_path: Path) -> None:
    rows, realtime = config.rows, config.realtime
    with pytest.raises(ConfigError, match="setting 'slw' is unknown; did you mean 'slow'"):
        replace(config, rows=[*rows, {"recipe": "grid", "settings": ["slw"]}])
    with pytest.raises(ConfigError, match="dual_level runs in 'fast' and no row 'dense' does"):
        replace(config, rows=[{"recipe": "dense", "settings": ["slow", "busy"]}, *rows[1:]])
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
    with pytest.raises(ConfigError, match=r"keep ratio 0\.75 is not in the profile"):
        rollout.run(replace(config, rows=off))
    for section in ([1], "fast"):
        written = {"period_s": 0.1, "execute": 1, "hold": "brake", "controller": section}
        with pytest.raises(ConfigError, match=r"controller is .*; it takes a mapping"):
            replace(config, realtime=written)
    both = [rows[0], {"recipe": "dual_level", "tuned": "x.yaml"}]
    with pytest.raises(ConfigError, match="give one of the three"):
        replace(config, rows=both)
    reading = replace(realtime, controller={"entropy": [0.2, 0.8]})
    with pytest.raises(ConfigError, match="measured without them; profile with --signals"):
        rollout.run(replace(config, rows=rows[:3], realtime=reading))


def test_a_device_on_which_not_even_the_floor_fits_hands_over_and_the_table_goes_on(
    config: rollout.RunConfig,
) -> None:
    stone = replace(config.realtime, settings={"stone": {"dense_periods": 5.0}})
    given = replace(config, rows=config.rows[:3], realtime=stone)
    results = rollout.run(given)
    held = [r for r in results if r.get("controller")]
    assert len(held) == 2
    assert all(r["handed_over"] == r["calls"] > 0 for r in held)
    # Nothing was ever acted on: an age of nothing is no small one.
    rows = realtime_table.rows(given, results)
    [row] = [r for r in rows if r.get("controller")]
    assert (row["never_acted"], row["age_p99_ms"]) == (2, None)


def test_all_that_can_be_refused_is_refused_before_the_first_episode(
    config: rollout.RunConfig, profile: Profile, tmp_path: Path
) -> None:
    """The second suite's profile is of another policy."""
    other = replace(profile, subject=replace(profile.subject, weights_hash="0" * 16))
    other.save(tmp_path / "other.json")
    suite = config.suites["moving"]
    files = {"moving": config.realtime.profile, "again": str(tmp_path / "other.json")}
    two = replace(
        config,
        suites={"moving": suite, "again": suite},
        realtime=replace(config.realtime, profile=files),
    )
    with pytest.raises(ConfigError, match="weights whose hash is 0000000000000000"):
        rollout.run(two)
    assert not rollout.read_lines(Path(two.work) / "episodes.jsonl")


def test_controls_take_the_times_that_the_table_says_and_their_rows_say_so(
    config: rollout.RunConfig,
) -> None:
    charged = {"grid": "dual_level", "blind": "dual_level"}
    table_ = replace(
        config,
        rows=[
            config.rows[0],
            config.rows[1],
            {"recipe": "grid", "keep_ratio": 0.25},
            {"recipe": "blind"},
        ],
        realtime=replace(
            config.realtime,
            charged_as=charged,
            settings={"slow": config.realtime.settings["slow"]},
        ),
    )
    rows = {r["recipe"]: r for r in realtime_table.rows(table_, rollout.run(table_))}
    assert rows["grid"]["charged_as"] == rows["blind"]["charged_as"] == "dual_level"
    assert "charged_as" not in rows["dual_level"]
    # 10 ms and 4/16 of 90 ms are 32.5 ms; without a visual token it is 10 ms.
    assert rows["grid"]["age_p50_ms"] == rows["dual_level"]["age_p50_ms"]
    assert rows["blind"]["age_p50_ms"] <= rows["grid"]["age_p50_ms"]


def test_a_control_takes_no_times_of_a_cut_elsewhere(config: rollout.RunConfig) -> None:
    """divprune cuts before the decoder: what dual_level needs in front of its cut is too much."""
    table_ = replace(
        config,
        rows=[config.rows[0], {"recipe": "divprune", "keep_ratio": 0.25}],
        realtime=replace(config.realtime, charged_as={"divprune": "dual_level"}),
    )
    with pytest.raises(
        ConfigError, match=r"divprune cuts at projector and dual_level at decoder\.2"
    ):
        rollout.run(table_)


def test_a_call_without_a_visual_token_takes_what_the_model_says(profile: Profile) -> None:
    ladder = rounds(profile).of("blind", {"blind": "dual_level"})
    assert np.median(ladder[0]) == pytest.approx(0.01 * 1.025, rel=0.01)


def test_the_best_fixed_budget_is_so_over_what_the_controller_played(
    config: rollout.RunConfig, results: list[dict]
) -> None:
    scores = {"dense:1@slow": {5: 1.0, 6: 0.0}, "dual_level:0.25@slow": {5: 0.9, 6: None}}
    scores["dual_level:controller@slow"] = {5: 1.0, 6: None}
    played = []
    for result in results:
        name = result["key"].split(":", 3)[3]
        if (value := scores.get(name, {}).get(result["state"])) is not None:
            played.append({**result, "outcome": {"score": value}})
    rows = {report.budget(r): r for r in realtime_table.rows(config, played)}
    assert rows["0.25"]["score"] > rows["1"]["score"]  # dense has an episode more, a hard one
    assert rows["controller"]["best_fixed"] == "dense 1"
    assert rows["controller"]["diff_vs_fixed"]["dense 1"]["diff"] == 0.0


def test_a_tuned_file_is_a_row(config: rollout.RunConfig, tmp_path: Path) -> None:
    tuned = {"policy": "p", "recipe": "dual_level", "cut_layer": 2, "keep_ratio": 0.5}
    file = tmp_path / "tuned.yaml"
    file.write_text(json.dumps({**tuned, "ladder": [0.5, 0.25]}))
    given = replace(
        config,
        rows=[
            config.rows[0],
            {"recipe": "dual_level", "keep_ratio": 0.5},
            {"recipe": "dual_level", "keep_ratio": 0.25},
            {"tuned": {"moving": str(file)}},
            {"tuned": str(file), "controller": True},
        ],
        realtime=replace(config.realtime, settings={"slow": config.realtime.settings["slow"]}),
    )
    results = rollout.run(given)
    found = {r["key"]: r for r in results}
    assert "moving:0:5:dual_level:tuned@slow" in found
    picked = found["moving:0:5:dual_level:tuned_controller@slow"]
    assert set(picked["buckets"]) <= {"0.5", "0.25"}  # its own ladder, not the table's
    rows = {(r["recipe"], report.budget(r)): r for r in realtime_table.rows(given, results)}
    row, fixed = rows[("dual_level", "tuned 0.5")], rows[("dual_level", "0.5")]
    assert (row["score"], row["misses"]) == (fixed["score"], fixed["misses"])
    smallest = rows[("dual_level", "0.25")]
    for ours in (row, fixed, rows[("dual_level", "tuned controller")]):
        assert ours["smallest"] == 0.25
        gap = ours["score"] - smallest["score"]
        assert ours["diff_vs_smallest"] == pytest.approx(gap)
        assert ours["diff_vs_smallest_ci"][0] <= gap <= ours["diff_vs_smallest_ci"][1]
    assert "diff_vs_smallest" not in smallest
    with pytest.raises(ConfigError, match="tuned with cut layer 2, and the table has 1"):
        rollout.episodes(replace(given, cut_layer=1))
    wrong = [config.rows[0], {"tuned": {"movin": str(file)}}]
    with pytest.raises(ConfigError, match="rows: tuned: suite 'moving' is unknown"):
        rollout.episodes(replace(given, rows=wrong))


def test_an_episode_is_done_until_what_it_hangs_on_changes(
    config: rollout.RunConfig, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    shipped = (configs.configs_folder() / "recipe" / "dual_level.yaml").read_text()
    mine.write_text(shipped)
    realtime = replace(config.realtime, charged_as={str(mine): "dual_level"})
    given = replace(config, rows=[*config.rows[:3], {"recipe": str(mine)}], realtime=realtime)

    def told(table_: rollout.RunConfig) -> dict[str, str]:
        return marks(table_, None, rollout.episodes(table_))

    def changed(table_: rollout.RunConfig) -> set[str]:
        return {key.split(":", 3)[3] for key, mark in told(table_).items() if before[key] != mark}

    before = told(given)
    more = {**realtime.settings, "new": {"factor": 9.0}}
    after = told(replace(given, realtime=replace(realtime, settings=more)))
    assert {k: v for k, v in after.items() if not k.endswith("@new")} == before
    calm = replace(given, realtime=replace(realtime, controller={"patience": 9}))
    assert changed(calm) == {f"dual_level:controller@{name}" for name in realtime.settings}
    mine.write_text(shipped.replace("share: 0.75", "share: 0.5"))
    assert changed(given) == {f"{mine}:1@{name}" for name in realtime.settings}
