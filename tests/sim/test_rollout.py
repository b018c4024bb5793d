"""Tables of episodes over a tiny world: resumable, durable, paired, repeatable."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vla_prune_sim import play, rollout, table

from tests.models.tiny import POLICY
from vla_prune.build import build_adapter
from vla_prune.errors import ActionError, ConfigError, MissingError
from vla_prune.policy import VLAPolicy, attach


@pytest.fixture
def config(tmp_path: Path) -> rollout.RunConfig:
    (tmp_path / "policy.yaml").write_text(POLICY)
    return rollout.RunConfig(
        world="tests.sim.tiny_world:TinyWorld",
        suites={
            "tiny": {"policy": str(tmp_path / "policy.yaml"), "tasks": [0, 2], "states": [5, 6]}
        },
        rows=[
            {"recipe": "dense"},
            {"recipe": "dual_level", "keep_ratio": 0.25},
            {"recipe": "blind", "states": 1},
            {"driver": "expert", "states": 1},
            {"recipe": "dense", "control": "wrong_instruction", "states": 1},
            {"recipe": "dense", "control": "other_images", "states": 1},
            {"recipe": "dense", "control": "black", "states": 1},
        ],
        results=str(tmp_path / "results" / "tiny.json"),
        work=str(tmp_path / "work"),
        cut_layer=2,
        execute=2,
        workers=1,
    )


def outcome(results: list[dict]) -> dict:
    return {r["key"]: (r["outcome"], r["steps"], r.get("calls"), r.get("kept")) for r in results}


def test_a_row_may_play_the_first_tasks_and_states_alone(config: rollout.RunConfig) -> None:
    rows = [
        {"recipe": "dense", "tasks": 1},
        {"recipe": "random", "keep_ratio": 0.5, "tasks": 1, "states": 1},
        {"recipe": "random", "keep_ratio": 0.25},
    ]
    made = rollout.episodes(replace(config, rows=rows))
    assert [(e.task, e.state) for e in made[:3]] == [(0, 5), (0, 6), (0, 5)]
    assert len(made) == 2 + 1 + 4
    assert made[2].row == rollout.Row("random", keep_ratio=0.5)
    for wrong in ({"tasks": 0}, {"states": -1}):
        with pytest.raises(ConfigError, match=r"random plays .*; give 1 or more, or leave it out"):
            replace(config, rows=[rows[0], rows[1] | wrong])


def test_a_table_runs_resumes_and_repeats(config: rollout.RunConfig) -> None:
    results = rollout.run(config)
    keys = [episode.key for episode in rollout.episodes(config)]
    assert [r["key"] for r in results] == keys
    assert len(keys) == 2 * (2 + 2 + 1 + 1 + 1 + 1 + 1)

    # Half of the lines and a half-written one are what a kill leaves: the rest is run again, once.
    lines = Path(config.work) / "episodes.jsonl"
    kept = lines.read_text().splitlines()[:7]
    lines.write_text("\n".join(kept) + '\n{"key": "tiny:0')
    again = rollout.run(config)
    assert outcome(again) == outcome(results)
    assert [json.loads(line)["key"] for line in lines.read_text().splitlines()[:7]] == [
        json.loads(line)["key"] for line in kept
    ]

    # What is written behind the broken line can be read again: nothing is left for a third run.
    assert {result["key"] for result in rollout.read_lines(lines)} == set(keys)

    one = rollout.run(config, only=["tiny:2:6:dual_level:0.25"])
    assert outcome(one) == {one[0]["key"]: outcome(results)[one[0]["key"]]}


def test_episodes_of_other_commits_are_told(
    config: rollout.RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vla_prune.report.commit", lambda folder=None: "aaaa")
    rollout.run(config)
    assert not caplog.records
    lines = Path(config.work) / "episodes.jsonl"
    lines.write_text("".join(line + "\n" for line in lines.read_text().splitlines()[:7]))
    monkeypatch.setattr("vla_prune.report.commit", lambda folder=None: "bbbb")
    document = table.make(config, rollout.run(config))
    assert "commit aaaa count as done" in caplog.text
    assert document["commits"] == ["aaaa", "bbbb"]


def test_random_sets_differ_between_tasks(config: rollout.RunConfig) -> None:
    adapter = build_adapter(config.suites["tiny"].policy)
    row = rollout.Row("random", keep_ratio=0.25)
    seat = type("Seat", (), {"start": lambda *given: None})()
    player = play.Player(config, "", keep_frames=False, seats=0)
    runs = [player._begin(seat, rollout.Episode("tiny", task, 5, row)) for task in (0, 2, 2)]
    seen = adapter.example_observation(0)
    with attach(play.pruner_of(row, 2), adapter) as policy:
        kept = [policy.act_one(seen, run.state).kept for run in runs]
    (first,), (other,), (again,) = (one.values() for one in kept)
    assert first.tolist() != other.tolist() == again.tolist()


def test_images_of_another_task_last_as_long_as_its_own(config: rollout.RunConfig) -> None:
    suite = replace(config.suites["tiny"], tasks=[0, 1, 2, 3])
    player = play.Player(replace(config, suites={"tiny": suite}), "", keep_frames=False, seats=0)
    player.frames.mkdir(parents=True)
    for task, calls in ((0, 5), (2, 2), (3, 6)):
        np.save(player.frames / f"tiny_{task}_5.npy", np.zeros((calls, 1, 2, 2, 3), np.uint8))
    episode = rollout.Episode("tiny", 0, 5, rollout.Row("dense", control="other_images"))
    assert player._others_frames(episode).name == "tiny_3_5.npy"


def test_another_world_or_policy_is_not_taken_for_done(config: rollout.RunConfig) -> None:
    short = replace(config, rows=config.rows[:1])
    lines = Path(config.work) / "episodes.jsonl"
    policy = Path(config.suites["tiny"].policy)

    def played(config: rollout.RunConfig) -> int:
        rollout.run(config)
        return len(lines.read_text().splitlines())

    assert played(short) == 4
    assert played(replace(short, sim={"corrupt": [9, 9]})) == 8
    policy.write_text(POLICY + "seed: 3\n")
    assert played(short) == 12
    policy.write_text(POLICY)
    assert played(short) == 12
    # Lines from before there were marks count.
    told = [json.loads(line) for line in lines.read_text().splitlines()[:4]]
    lines.write_text("".join(json.dumps({**r, "mark": "x"}) + "\n" for r in told[:2]))
    assert played(short) == 6
    del told[0]["mark"]
    lines.write_text(json.dumps(told[0]) + "\n")
    assert played(short) == 4


def test_weights_that_are_missing_are_named_first(config: rollout.RunConfig) -> None:
    Path(config.suites["tiny"].policy).write_text("adapter: openvla\nweights: pocket_nowhere\n")
    with pytest.raises(MissingError, match="weights 'pocket_nowhere': no such folder"):
        rollout.run(config)
    assert not Path(config.work).exists()


def test_controls_that_cannot_be_are_named(config: rollout.RunConfig) -> None:
    suite = replace(config.suites["tiny"], tasks=[2])
    rows = [{"recipe": "dense"}, {"recipe": "dense", "control": "other_images"}]
    with pytest.raises(ConfigError, match="put two tasks in the config"):
        rollout.run(replace(config, suites={"tiny": suite}, rows=rows))


def test_rows_pair_with_dense_and_count_tokens(config: rollout.RunConfig) -> None:
    document = table.make(config, rollout.run(config))
    assert document == json.loads(Path(config.results).read_text())
    rows = {(row.get("recipe"), row["control"]): row for row in document["rows"]}
    expert = rows[(None, "none")]
    assert (expert["driver"], expert["episodes"]) == ("expert", 2)
    assert expert["total"] == pytest.approx(8 * 7 * len("expert"))
    assert not {"tokens", "macs", "time_ratio"} & set(expert)
    dense, dual = rows[("dense", "none")], rows[("dual_level", "none")]
    assert (dense["tokens"], dual["tokens"], rows[("blind", "none")]["tokens"]) == (16, 4, 0)
    assert dense["diff"] == 0.0
    assert dual["diff"] == pytest.approx(dual["success"] - dense["success"])
    assert dual["macs"] < dense["macs"]
    assert (Path(config.results).parent / document["episodes_file"]).exists()
    assert {"command", "commit", "machine", "assets", "rows", "episodes_file"} <= set(document)


def test_a_broken_simulator_ends_the_run_and_loses_nothing(config: rollout.RunConfig) -> None:
    broken = replace(config, sim={"fail_at": [2, 6]})
    with pytest.raises(RuntimeError, match="the simulator broke"):
        rollout.run(broken)
    finished = rollout.read_lines(Path(config.work) / "episodes.jsonl")
    assert {r["key"] for r in finished} >= {"tiny:0:5:dense:1", "tiny:0:6:dense:1"}
    assert len(rollout.run(config)) == len(rollout.episodes(config))


def broken_off(results: list[dict]) -> dict[str, str]:
    return {r["key"]: r["error"] for r in results if "error" in r}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_corrupt_picture_ends_its_episode_and_not_the_run(
    config: rollout.RunConfig, batch: int
) -> None:
    config = replace(config, rows=config.rows[:4], batch=batch, sim={"corrupt": [2, 6]})
    results = rollout.run(config)
    said = "view_3.jpg is no whole picture; get it again."
    assert broken_off(results) == {
        f"tiny:2:6:{row}": said for row in ("dense:1", "dual_level:0.25")
    }
    assert len(results) == len(rollout.episodes(config))
    lost = next(r for r in results if r["key"] == "tiny:2:6:dual_level:0.25")
    assert (lost["outcome"], lost["calls"], lost["steps"]) == ({"success": 0.0}, 2, 2)
    assert "time_ratio" not in lost
    rows = table.rows(config, results)
    assert [row.get("errors") for row in rows] == [1, 1, None, None]
    known = [r["outcome"]["success"] for r in results if r.get("recipe") == "dense"]
    assert rows[0]["success"] == pytest.approx(sum(known) / 4)


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_no_action_ends_its_episode_alone(
    config: rollout.RunConfig, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = VLAPolicy.act

    def mumble(self: VLAPolicy, observations: list, states: list, *bucket: int) -> list:
        bad = [i for i, o in enumerate(observations) if o.instruction == "open the drawer"]
        if bad:
            raise ActionError("'left, I think' is no plan.", bad)
        return act(self, observations, states, *bucket)

    monkeypatch.setattr(VLAPolicy, "act", mumble)
    config = replace(config, rows=config.rows[:2], batch=batch)
    results = rollout.run(config)
    lost = broken_off(results)
    assert set(lost) == {r["key"] for r in results if r["task"] == 2}
    assert set(lost.values()) == {"'left, I think' is no plan."}
    assert all(r["calls"] == 4 for r in results if r["task"] == 0)
    rows = table.rows(config, results)
    assert [row["errors"] for row in rows] == [2, 2]
    assert rows[0]["tokens"] == 16


def test_what_dense_cannot_say_when_it_is_timed_loses_no_episode(
    config: rollout.RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = VLAPolicy.act

    def mumble(self: VLAPolicy, observations: list, *rest: object) -> list:
        # Dense has no answer to the last look of a pruned drive.
        if self.pruners[0].name != "dual_level":
            raise ActionError("'left, I think' is no plan.", range(len(observations)))
        return act(self, observations, *rest)

    monkeypatch.setattr(VLAPolicy, "act", mumble)
    results = rollout.run(replace(config, rows=config.rows[:2]))
    pruned = [r for r in results if r["recipe"] == "dual_level"]
    assert not any("error" in r or "time_ratio" in r for r in pruned)
    assert table.rows(config, results)[1]["time_ratio"] is None


def test_processes_give_what_one_process_gives(config: rollout.RunConfig, tmp_path: Path) -> None:
    alone = rollout.run(config)
    together = rollout.run(replace(config, workers=2, work=str(tmp_path / "other")))
    assert outcome(together) == outcome(alone)


def test_a_batch_of_environments_gives_what_single_ones_give(
    config: rollout.RunConfig, tmp_path: Path
) -> None:
    alone = rollout.run(config)
    batched = rollout.run(replace(config, batch=3, work=str(tmp_path / "other")))
    assert [r["key"] for r in batched] == [r["key"] for r in alone]
    # The toy world's outcome hangs on the last bit of an action; what must agree is the course.
    names = ("steps", "calls", "kept", "seed")
    course = [[r.get(name) for name in names] for r in alone]
    assert [[r.get(name) for name in names] for r in batched] == course


def test_what_breaks_in_an_environments_process_is_told(config: rollout.RunConfig) -> None:
    with pytest.raises(RuntimeError, match="the simulator broke"):
        rollout.run(replace(config, batch=2, sim={"fail_at": [2, 6]}))


def test_time_is_compared_within_an_episode(config: rollout.RunConfig) -> None:
    results = rollout.run(config)
    assert all(r["time_ratio"] > 0 for r in results if r.get("recipe") not in ("dense", None))
    assert not any("time_ratio" in r for r in results if r.get("recipe") == "dense")
    slow = [r | ({"time_ratio": 0.25} if "time_ratio" in r else {"llm_ms": 99.0}) for r in results]
    rows = {
        (r["recipe"], r["control"]): r["time_ratio"]
        for r in table.rows(config, slow)
        if "recipe" in r
    }
    assert rows[("dual_level", "none")] == 0.25
    assert rows[("dense", "none")] == rows[("dense", "black")] == 1.0


def test_a_dense_warm_up_counts_as_dense(config: rollout.RunConfig) -> None:
    rows = [{"recipe": "dense"}, {"recipe": "vla_pruner", "keep_ratio": 0.25}]
    results = rollout.run(replace(config, rows=rows))
    warm = next(r for r in results if r["recipe"] == "vla_pruner")
    assert (warm["calls"], warm["unpruned_calls"]) == (4, 3)
    pruned = table.rows(config, results)[1]
    assert pruned["tokens"] == pytest.approx((3 * 16 + 1 * 4) / 4)
    quick = [r | {"time_ratio": 0.2} if r["recipe"] == "vla_pruner" else r for r in results]
    assert table.rows(config, quick)[1]["time_ratio"] == pytest.approx((3 + 0.2) / 4)


def test_a_dense_refresh_counts_as_dense_also_at_the_end(
    config: rollout.RunConfig, tmp_path: Path
) -> None:
    recipe = tmp_path / "refreshed.yaml"
    recipe.write_text("extends: configs/recipe/dual_level.yaml\nhistory: {refresh: 3}\n")
    rows = [{"recipe": "dense"}, {"recipe": str(recipe), "keep_ratio": 0.25}]
    results = rollout.run(replace(config, rows=rows))
    refreshed = next(r for r in results if r["recipe"] == str(recipe))
    assert (refreshed["calls"], refreshed["unpruned_calls"]) == (4, 2)  # calls 0 and 3
    assert table.rows(config, results)[1]["tokens"] == pytest.approx((2 * 16 + 2 * 4) / 4)
    assert refreshed["time_ratio"] != 1.0


def test_an_ablation_names_its_variants_without_their_folder(config: rollout.RunConfig) -> None:
    rows = [{"recipe": "dense"}, {"recipe": "ablation/only_semantic", "keep_ratio": 0.25}]
    config = replace(config, rows=rows, ablation=True)
    made = table.rows(config, rollout.run(config))
    assert [row["variant"] for row in made] == ["dense", "only_semantic"]
    told, columns = table.short(made)
    assert [row["name"] for row in told] == ["dense", "ablation/only_semantic"]
    assert "variant" not in columns


def test_an_ablation_tells_what_ours_is_worth_against_every_other_row() -> None:
    """Pairs are over the places where both were run, and at one budget."""
    config = rollout.RunConfig(
        world="tests.sim.tiny_world:TinyWorld",
        suites={"a": {"policy": "p", "tasks": [0], "states": [0]}},
        rows=[{"recipe": "dense"}],
        results="r.json",
        work="w",
        ablation=True,
    )

    def ran(recipe: str, keep: float, outcomes: list[float]) -> list[dict]:
        row = {"suite": "a", "recipe": recipe, "keep_ratio": keep, "control": "none", "task": 0}
        return [
            row | {"state": state, "outcome": {"success": value}, "seed": state, "assets": "x"}
            for state, value in enumerate(outcomes)
        ]

    results = [
        *ran("dense", 1.0, [1, 1, 1, 1]),
        *ran("tri_level", 0.25, [1, 1, 1, 0]),
        *ran("random", 0.25, [0, 1, 0, 0]),
        *ran("ablation/only_action", 0.25, [1, 0]),
        *ran("random", 0.5, [1, 1, 1, 1]),
    ]
    made = table.rows(config, results)
    [ours] = [row for row in made if row["variant"] == "tri_level"]
    told = ours["tri_level_minus"]
    assert set(told) == {"random", "only_action"}
    assert (told["random"]["diff"], told["random"]["episodes"]) == (0.5, 4)
    assert (told["only_action"]["diff"], told["only_action"]["episodes"]) == (0.5, 2)
    low, high = told["random"]["diff_ci"]
    assert 0.0 <= low < 0.5 < high <= 1.0
    assert not any("tri_level_minus" in row for row in made if row is not ours)
    assert "tri_level_minus" not in table.short(made)[1]


def test_tasks_and_states_can_be_spans(config: rollout.RunConfig) -> None:
    suite = {"policy": "p", "tasks": "0,2-3", "states": 5}
    spans = replace(config, suites={"tiny": suite}, rows=[{"recipe": "dense"}])
    assert [(e.task, e.state) for e in rollout.episodes(spans)] == [(0, 5), (2, 5), (3, 5)]


def test_a_folder_in_use_is_refused(config: rollout.RunConfig) -> None:
    folder = Path(config.work)
    folder.mkdir()
    with rollout._claimed(folder), pytest.raises(ConfigError, match="in use by another run"):
        rollout.run(config)


def test_workers_end_with_a_killed_run(tmp_path: Path) -> None:
    """They would play on for hours, and nobody would hear of it."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from vla_prune_sim.rollout import end_with_parent\n"
        "def work():\n"
        "    end_with_parent()\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=work).start()\n"
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        parent.communicate(timeout=60)  # the pipe closes with the last who holds it: the worker


def test_a_terminal_gets_one_name_for_each_row(config: rollout.RunConfig) -> None:
    rows = [
        {
            "suite": "s",
            "recipe": "dense",
            "keep_ratio": 1.0,
            "control": "black",
            "progress_m": 9.0,
        },
        {"suite": "s", "driver": "stop", "keep_ratio": 1.0, "control": "none", "score": 0.5},
    ]
    told, columns = table.short(rows)
    assert [row["name"] for row in told] == ["dense, black", "stop"]
    assert columns == ["name", "keep_ratio", "score"]


def test_mistakes_in_a_table_are_named(config: rollout.RunConfig) -> None:
    with pytest.raises(ConfigError, match="the first row must be dense"):
        replace(config, rows=[{"recipe": "blind"}])
    with pytest.raises(ConfigError, match="control 'blak' is unknown; did you mean 'black'"):
        replace(config, rows=[{"recipe": "dense"}, {"recipe": "dense", "control": "blak"}])
    with pytest.raises(ConfigError, match="names neither or several of a recipe, a driver"):
        replace(config, rows=[{"recipe": "dense"}, {"keep_ratio": 0.5}])
    with pytest.raises(ConfigError, match="'blind' has no budget"):
        replace(config, rows=[{"recipe": "dense"}, {"recipe": "blind", "keep_ratio": 0.5}])
    with pytest.raises(ConfigError, match="driver 'expert' looks at no images or words"):
        replace(config, rows=[{"recipe": "dense"}, {"driver": "expert", "control": "black"}])
    with pytest.raises(ConfigError, match="'keep_rato' is unknown; did you mean 'keep_ratio'"):
        replace(config, rows=[{"recipe": "dense", "keep_rato": 0.5}])
    with pytest.raises(ConfigError, match=r"suites.tiny: field 'policy' is missing"):
        replace(config, suites={"tiny": {"tasks": [0], "states": [5]}})
    with pytest.raises(ConfigError, match="tasks: '0 to 9' is no list of numbers"):
        replace(config, suites={"tiny": {"policy": "p", "tasks": "0 to 9", "states": [5]}})
    with pytest.raises(ConfigError, match="did you mean 'tiny:0:5:dense:1'"):
        rollout.run(config, only=["tiny:0:5:dens:1"])
    twice = replace(config, rows=[{"recipe": "dense"}, {"recipe": "blind"}, {"recipe": "blind"}])
    with pytest.raises(ConfigError, match="'tiny:0:5:blind:1' stands in the table twice"):
        rollout.run(twice)
    with pytest.raises(ConfigError, match="world 'libro' is unknown; did you mean 'libero'"):
        rollout.run(replace(config, world="libro"))
    with pytest.raises(
        ConfigError, match="recipe 'dualevel' is unknown; did you mean 'dual_level'"
    ):
        rollout.run(replace(config, rows=[{"recipe": "dense"}, {"recipe": "dualevel"}]))
