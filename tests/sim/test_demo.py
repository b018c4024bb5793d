"""The demo: what it shows, what it leaves, what it says where something is missing."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner
from vla_prune_sim import cli, demo

from tests.sim.test_rollout import config  # noqa: F401 a fixture
from vla_prune.errors import ConfigError, MissingError

LACKING = "weights 'pocket_drive': no such folder here."


def silent(what: str, share: float) -> None:
    assert what
    assert 0.0 <= share <= 1.0


def test_without_its_weights_driving_gives_way_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "drive_lacks", lambda: LACKING)
    monkeypatch.setattr(demo, "libero_lacks", lambda: "")
    assert demo.choose() == ("libero", f"Showing libero (no drive: {LACKING})")
    monkeypatch.setattr(demo, "libero_lacks", lambda: "hf-libero is not installed.")
    world, note = demo.choose()
    assert world == "frames"
    assert LACKING in note
    assert "hf-libero" in note
    with pytest.raises(MissingError, match="world drive cannot be shown: weights 'pocket_drive'"):
        demo.choose("drive")
    monkeypatch.setattr(demo, "drive_lacks", lambda: "")
    assert demo.choose() == ("drive", "")


def test_a_world_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="world 'drives' is unknown; did you mean 'drive'"):
        demo.choose("drives")


def test_a_closed_loop_leaves_a_page_with_a_film_of_each_place(config, tmp_path: Path):  # noqa: F811
    for _ in range(2):  # a second demo plays again
        found = demo.closed_loop(tmp_path, "tiny", config, silent)
        lines = (Path(config.work) / "episodes.jsonl").read_text().splitlines()
        assert len(lines) == 4 + 4 + 5 * 2
    rows = {row.get("recipe"): row for row in reversed(found["rows"])}
    assert found["dense"] == rows["dense"]["success"]
    assert found["pruned"] == rows["dual_level"]["success"]
    assert (found["kept"], found["of"]) == (4, 16)
    text = Path(found["report"]).read_text()
    assert re.findall(r"<figcaption>(tiny, task \d)", text) == [
        "tiny, task 0", "tiny, task 0", "tiny, task 2", "tiny, task 2"
    ]  # fmt: skip
    assert "<td>expert</td>" in text
    assert Path(found["picture"]).stat().st_size > 0


def test_driving_makes_its_world_and_drives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("nuscenes")
    from vla_prune_sim.drive import make_world

    from tests.sim.small_scene import small_scene
    from tests.sim.test_drive_env import POLICY

    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "run.yaml").write_text(
        f"extends: run/drive_smoke.yaml\nsuites: {{drive: {{policy: {tmp_path}/policy.yaml}}}}\n"
        "workers: 1\nsim: {scenes: 1, image_size: [64, 36], square: 16}\n"
    )
    monkeypatch.setattr(make_world, "logged_scenes", lambda count, seed: iter([small_scene("a")]))
    monkeypatch.setitem(demo.RUNS, "drive", str(tmp_path / "run.yaml"))
    monkeypatch.setitem(demo.POLICIES, "drive", str(tmp_path / "policy.yaml"))
    found = demo.run(tmp_path / "out", "drive", silent)
    assert len(list((tmp_path / "out" / "worlds").glob("seed7_scenes1_*/synthetic.json"))) == 1
    assert found["assets"][0].startswith("v1.0-synthetic-")
    names = {row.get("recipe") or row["driver"] for row in found["rows"]}
    assert names == {"dense", "dual_level", "blind", "rule_expert", "stop"}
    assert 0.0 <= found["dense"] <= 1.0
    assert 0.0 <= found["pruned"] <= 1.0
    page = Path(found["report"]).read_text()
    assert page.count("<img") == 1
    assert f"<h1>drive ({found['assets'][0]})" in page, "a made world is called that"
    assert found["stages"]


def test_drawn_frames_end_with_one_json_line(tmp_path: Path):
    app = typer.Typer()
    cli.register(app)
    done = CliRunner().invoke(app, ["demo", "--world", "frames", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert (document["world"], document["dense"], document["pruned"]) == ("frames", None, None)
    assert (document["kept"], document["of"]) == (72, 288)
    assert Path(document["report"]).read_text().count("<img") == 1
    assert [row["recipe"] for row in document["stages"]] == ["dense", "dual_level"]
