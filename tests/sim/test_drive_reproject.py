"""Logged pictures moved to where the ego is: against the truth, which our renderer draws."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vla_prune_sim import rollout, table
from vla_prune_sim.drive.env import DriveEnv
from vla_prune_sim.drive.envelope import Envelope
from vla_prune_sim.drive.geometry import to_local
from vla_prune_sim.drive.load import open_world
from vla_prune_sim.drive.make_world import Painter
from vla_prune_sim.drive.render import BUILDING as BUILDING_ID
from vla_prune_sim.drive.render import Renderer
from vla_prune_sim.drive.reproject import Reprojector
from vla_prune_sim.drive.scene import Scene
from vla_prune_sim.drive.score import PARTS
from vla_prune_sim.drive.simulation import Simulation
from vla_prune_sim.drive.world import DriveWorld
from vla_prune_sim.drive.write_nuscenes import LIDAR_POSE, write_root

from vla_prune.errors import ConfigError, ShapeError

from .test_drive_env import POLICY
from .tiny_drive import BUILDING, tiny_scene

pytest.importorskip("nuscenes")
SIZE = (400, 224)
PARKED = ("vehicle.car", (4.5, 1.8, 1.6), (18.0, 3.5, 0.0))
WALKER = ("human.pedestrian.adult", (0.6, 0.7, 1.8), (14.0, -4.2, np.pi / 2))
STEP = 10  # a keyframe


def write(out: Path, names: str, **options) -> Path:
    scene = tiny_scene([PARKED, WALKER])
    scenes = [replace(scene, name=name) for name in names]
    return write_root(scenes, out / "root", Painter(), (400, 225), **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("world"), "a")


@pytest.fixture(scope="module")
def scene(root: Path) -> Scene:
    return open_world(root).load("a")


@pytest.fixture(scope="module")
def reprojector(scene: Scene) -> Reprojector:
    return Reprojector(scene, SIZE)


def moved(scene: Scene, ahead=0.0, left=0.0, degrees=0.0) -> np.ndarray:
    return scene.ego[STEP] + [ahead, left, np.deg2rad(degrees)]


def truth(scene: Scene, pose: np.ndarray) -> dict[str, np.ndarray]:
    tracks = scene.tracks
    return Renderer(scene, SIZE).render(pose, tracks.pose[:, STEP], tracks.valid[:, STEP])


def logged(reprojector: Reprojector, channel: str) -> np.ndarray:
    return reprojector._nearest(channel, reprojector.scene.ego[STEP], None).picture


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_where_the_log_was_it_shows_the_log(reprojector: Reprojector):
    views = reprojector.render(moved(reprojector.scene), None, None)
    assert len(views) == 6
    for name, view in views.items():
        np.testing.assert_array_equal(view, logged(reprojector, name))


@pytest.mark.parametrize(
    ("move", "share"),
    [
        ({"left": 0.3}, 0.6),
        ({"left": -0.3}, 0.6),
        ({"degrees": 5.0}, 0.6),
        ({"ahead": 0.5}, 1.0),
    ],
)
def test_it_is_nearer_to_the_truth_than_the_nearest_picture(reprojector, move, share):
    pose = moved(reprojector.scene, **move)
    views, right = reprojector.render(pose, None, None), truth(reprojector.scene, pose)
    for name, view in views.items():
        if "ahead" in move and name.startswith("CAM_BACK"):
            continue  # little moves there, and JPEG is not the truth either
        assert gap(view, right[name]) < share * gap(logged(reprojector, name), right[name]), name


def test_what_the_camera_did_not_see_comes_from_its_neighbour(reprojector: Reprojector):
    scene = reprojector.scene
    pose = moved(scene, degrees=5.0)
    right, alone = truth(scene, pose)["CAM_FRONT"], Reprojector(scene, SIZE, ["CAM_FRONT"])
    edge = np.s_[:, :20]  # what five degrees bring into view
    filled = alone.render(pose, None, None)["CAM_FRONT"]
    alone._beside = lambda name: []
    bare = alone.render(pose, None, None)["CAM_FRONT"]
    assert gap(filled[edge], right[edge]) < 0.5 * gap(bare[edge], right[edge])


def test_the_same_place_gives_the_same_picture(reprojector: Reprojector):
    pose = moved(reprojector.scene, 0.2, 0.3, 2.0)
    first, again = (r.render(pose, None, None) for r in (reprojector, reprojector))
    fresh = Reprojector(reprojector.scene, SIZE, ["CAM_FRONT"]).render(pose, None, None)
    np.testing.assert_array_equal(first["CAM_FRONT"], again["CAM_FRONT"])
    np.testing.assert_array_equal(first["CAM_FRONT"], fresh["CAM_FRONT"])


def test_a_lidar_lifts_what_nobody_annotated(tmp_path: Path):
    root = write(tmp_path, "a", sweeps=False)
    scene = open_world(root).load("a")
    pose = moved(scene, left=0.5)
    tracks, flat = scene.tracks, Reprojector(scene, SIZE).render(pose, None, None)
    instant = pose, tracks.pose[:, STEP], tracks.valid[:, STEP]
    right, masks = Renderer(scene, SIZE).render(*instant, masks=True)
    # The building's two walls in sight, every 20 cm; the LiDAR's frame has y forward.
    x, y, _, length, width, height = BUILDING
    west, south = x - length / 2, y - width / 2
    up, along = np.arange(0, height, 0.2), np.arange(0, length, 0.2)
    sides = [(west + along, [south]), ([west], south + along[along < width])]
    grids = [np.stack(np.meshgrid(*side, up), -1).reshape(-1, 3) for side in sides]
    points = np.concatenate(grids)
    points[:, :2] = to_local(points[:, :2], scene.ego[STEP])
    points -= LIDAR_POSE[0]
    flipped = np.column_stack([-points[:, 1], points[:, 0], points[:, 2]])
    rows = np.hstack([flipped, np.zeros((len(points), 2))])
    shots = scene.shots["LIDAR_TOP"]
    shots.files[STEP // 5].write_bytes(rows.astype("<f4").tobytes())
    lifted = Reprojector(scene, SIZE).render(pose, None, None)
    for name in ("CAM_FRONT_LEFT", "CAM_FRONT"):
        shown = masks[name] == BUILDING_ID
        before, after = (gap(v[name][shown], right[name][shown]) for v in (flat, lifted))
        assert after < 0.7 * before
    shots.files[STEP // 5].write_bytes(b"half")
    with pytest.raises(ShapeError, match="no whole reading; get it again, or remove it"):
        Reprojector(scene, SIZE).render(pose, None, None)


def test_pictures_have_their_own_time_and_place(tmp_path: Path):
    root = write(tmp_path, "a", sweep_pictures=True)
    front = open_world(root).load("a").shots["CAM_FRONT"]
    assert len(front.files) == 8 * 6 + 1
    np.testing.assert_allclose(front.time_s, np.arange(49) / 12, atol=1e-6)
    np.testing.assert_allclose(front.pose[:, 0], 8.0 * front.time_s, atol=1e-5)
    front.files[1].unlink()
    assert len(open_world(root).load("a").shots["CAM_FRONT"].files) == 48


def test_a_log_that_stands_still_is_told_apart_by_time(scene: Scene):
    still = {k: replace(v, pose=np.zeros_like(v.pose)) for k, v in scene.shots.items()}
    reprojector = Reprojector(replace(scene, shots=still), SIZE, ["CAM_FRONT"])
    views = [reprojector.render(np.zeros(3), None, None, step=s)["CAM_FRONT"] for s in (0, 10, 12)]
    assert (views[0] != views[1]).any()
    np.testing.assert_array_equal(views[1], views[2])


@pytest.mark.parametrize(
    ("place", "level"),
    [
        ((0.04, 0.45, 4.0), "trusted"),
        ((0.0, 0.6, 0.0), "flagged"),
        ((0.0, 0.0, -7.0), "flagged"),
        ((0.0, -1.1, 0.0), "beyond"),
        ((0.0, 0.0, 11.0), "beyond"),
    ],
)
def test_the_envelope_has_three_levels(scene: Scene, place, level):
    assert Envelope(scene).stray(moved(scene, *place), STEP).level == level


def test_who_is_ahead_of_the_log_sees_the_future_and_is_not_trusted(scene: Scene):
    envelope, step = Envelope(scene), 10
    levels = {
        ahead: envelope.stray(scene.ego[step + ahead], step).level for ahead in (-8, 0, 4, 8, 12)
    }
    assert levels == {-8: "trusted", 0: "trusted", 4: "trusted", 8: "flagged", 12: "beyond"}


def test_past_the_end_of_the_log_nothing_is_known(scene: Scene):
    ahead = [Envelope(scene).stray(scene.ego[-1] + [m, 0.0, 0.0], 40).level for m in (2, 4, 6)]
    assert ahead == ["trusted", "flagged", "beyond"]


def test_beyond_the_envelope_the_episode_ends(root: Path):
    env = DriveEnv(root, agents="log", observation="reproject", image_size=(64, 36), plan_steps=1)
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert (info["stray"].level, info["inside"]) == ("trusted", 1.0)
    turn = np.stack([4.0 * np.arange(1, 7), 0.6 * np.arange(1, 7)], -1)
    levels = []
    while True:
        obs, _, terminated, truncated, info = env.step(turn)
        levels.append(info["stray"].level)
        if terminated or truncated:
            break
    assert (terminated, truncated, info["ended"]) == (False, True, "envelope")
    assert levels[-1] == "beyond"
    assert "beyond" not in levels[:-1]
    # Thirty steps were to be driven; those that are lost were not inside.
    assert info["inside"] == pytest.approx(levels.count("trusted") / 30)
    env.reset(seed=0)
    with pytest.raises(ShapeError, match="the plan is not finite"):
        env.step(np.full((6, 2), np.nan))


def test_a_world_of_logged_pictures_says_how_much_it_knows(root: Path):
    episodes = DriveWorld(str(root), agents="log", observation="reproject").open("drive", 0)
    episodes.start(0, 0)
    while not episodes.over:
        episodes.guide("log_expert")
    assert episodes.outcome["inside"] == 1.0
    assert episodes.outcome["score"] > 0.7
    episodes.start(0, 0)
    assert episodes.outcome == dict.fromkeys(PARTS, 0.0)
    while not episodes.over:
        episodes.advance(np.tile([4.0, 0.6], (6, 1)))
    # The driven part was good; that there was little of it is said beside.
    assert episodes.env.simulation.ended == "envelope"
    assert episodes.outcome["ep"] > 0.8
    assert episodes.outcome["inside"] < 0.7


def test_the_step_that_strayed_is_not_scored(scene: Scene):
    from vla_prune_sim.drive.score import as_drive

    simulation = Simulation(scene, "log", envelope=Envelope(scene))
    while not simulation.over:
        simulation.advance(np.stack([4.0 * np.arange(1, 7), 0.6 * np.arange(1, 7)], -1))
    drive = as_drive(simulation, 20.0)
    assert len(drive.ego) == len(simulation.strays)
    assert drive.ended == ""


def test_mistakes_are_named(root: Path, scene: Scene):
    with pytest.raises(
        ConfigError, match="observation 'reproject' goes with agents 'log', not 'idm'"
    ):
        DriveEnv(root, observation="reproject")
    with pytest.raises(ConfigError, match="observation 'reprojet' is unknown; did you mean"):
        DriveEnv(root, observation="reprojet")
    with pytest.raises(ConfigError, match="a has no logged pictures; open a nuScenes root"):
        Reprojector(replace(scene, shots={}))
    with pytest.raises(ConfigError, match="a view 400 wide has 8 to 225 rows"):
        Reprojector(scene, (400, 300))
    with pytest.raises(
        ConfigError, match="camera 'CAM_FRNT' is unknown; did you mean 'CAM_FRONT'"
    ):
        Reprojector(scene, SIZE, ["CAM_FRNT"])
    with pytest.raises(ShapeError, match="needs x, y and heading, finite"):
        Reprojector(scene, SIZE).render(np.array([0.0, np.nan, 0.0]), None, None)


def test_a_broken_scene_ends_its_episodes_and_not_the_run(tmp_path: Path):
    root = write(tmp_path, "abc", sweeps=False)
    picture = open_world(root).load("b").images["CAM_FRONT"][5]
    picture.write_bytes(picture.read_bytes()[:1000])
    file = root / "v1.0-synthetic" / "ego_pose.json"
    poses, third = json.loads(file.read_text()), open_world(root).load("c").start_us
    spoilt = [row for row in poses if row["timestamp"] == third + 500_000]
    spoilt[-1]["translation"][0] = float("nan")  # of the last scene written
    file.write_text(json.dumps(poses))
    (tmp_path / "policy.yaml").write_text(POLICY)
    config = rollout.RunConfig(
        world="drive",
        suites={
            "drive": {"policy": str(tmp_path / "policy.yaml"), "tasks": [0, 1, 2], "states": [0]}
        },
        rows=[{"recipe": "dense"}, {"driver": "log_expert"}],
        results=str(tmp_path / "drive.json"),
        work=str(tmp_path / "work"),
        cut_layer=2,
        workers=1,
        sim={
            "root": str(root),
            "image_size": [64, 36],
            "square": 16,
            "agents": "log",
            "observation": "reproject",
        },
    )
    results = rollout.run(config)
    expert = {r["task"]: r for r in results if r.get("driver")}
    assert "error" not in expert[0]
    assert expert[0]["outcome"]["inside"] == 1.0
    assert f"{picture.name} is no whole picture" in expert[1]["error"]
    assert expert[1]["steps"] > 11
    assert expert[2]["error"].startswith("c: a pose of the ego is not finite")
    assert all(expert[i]["outcome"] == dict.fromkeys(PARTS, 0.0) for i in (1, 2))
    row = table.make(config, results)["rows"][1]
    assert (row["episodes"], row["errors"]) == (3, 2)
    assert row["score"] == pytest.approx(expert[0]["outcome"]["score"] / 3)
