"""ScenarioNet pickles of nuScenes scenes, written here as its converter writes them."""

import os
import pickle

import numpy as np
import pytest
from shapely.geometry import Point, Polygon
from shapely.ops import unary_union
from vla_prune_sim.drive.geometry import Polyline, wrap
from vla_prune_sim.drive.load import open_world
from vla_prune_sim.drive.load_scenarionet import load_pickle, load_scenarionet, scene_files
from vla_prune_sim.drive.scene import CAMERAS, PRIMED
from vla_prune_sim.drive.simulation import Simulation

from vla_prune.errors import ConfigError, MissingError, ShapeError

from .small_scene import SPEED, STEPS, small_scene

pytest.importorskip("nuscenes")


def column(value) -> np.ndarray:
    return np.full((STEPS, 1), value, float)


def track(kind, category, pose, size, valid, z=0.0) -> dict:
    """Zeros where nobody is there, sizes as columns."""
    state = {
        "position": np.column_stack([pose[:, :2], np.full(STEPS, z)]) * valid[:, None],
        "heading": pose[:, 2] * valid,
        "velocity": np.zeros((STEPS, 2)),
        "valid": valid.astype(float),
        "length": column(size[0]) * valid[:, None],
        "width": column(size[1]) * valid[:, None],
        "height": column(size[2]) * valid[:, None],
    }
    return {"type": kind, "state": state, "metadata": {"type": category, "track_length": STEPS}}


def closed(ring) -> np.ndarray:
    return np.concatenate([ring, ring[:1]])


def scenario(scene=None) -> dict:
    """A scene as ScenarioNet has it."""
    scene = scene or small_scene("scene-0042")
    kinds = ("VEHICLE", "VEHICLE", "PEDESTRIAN", "TRAFFIC_CONE")
    everywhere = np.ones(STEPS, bool)
    tracks = {"ego": track("VEHICLE", "vehicle.car", scene.ego, (1.73, 4.08, 1.56), everywhere)}
    others = scene.tracks
    for i, kind in enumerate(kinds):
        tracks[others.tokens[i]] = track(
            kind, others.categories[i], others.pose[i], others.size[i], others.valid[i], z=2.5
        )
    ground, features = scene.map, {}
    for token, lane in ground.lanes.items():
        kind = "LANE_SURFACE_UNSTRUCTURE" if lane.connector else "LANE_SURFACE_STREET"
        line = np.concatenate([lane.centre[::2], lane.centre[-1:]])
        before = [k for k, v in ground.lanes.items() if token in v.after]
        features[token] = {
            "type": kind,
            "polyline": line,
            "entry_lanes": before,
            "exit_lanes": list(lane.after),
        }
        if not lane.connector:
            features[token]["polygon"] = closed(lane.polygon)
    rings = [ring for area in ground.drivable for ring in area]
    for layer, kind, shape in (
        (rings, "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline"),
        (ground.crossings, "CROSSWALK", "polygon"),
        (ground.walkways, "ROAD_EDGE_SIDEWALK", "polygon"),
        (ground.dividers, "ROAD_LINE_BROKEN_SINGLE_WHITE", "polyline"),
        (ground.centre_lines, "ROAD_LINE_SOLID_SINGLE_YELLOW", "polyline"),
    ):
        for i, points in enumerate(layer):
            name = f"boundary_{i}" if layer is rings else f"{kind}-{i}"
            ring = layer is rings or shape == "polygon"
            features[name] = {"type": kind, shape: closed(points) if ring else points}
    return {
        "id": scene.name,
        "version": "nuscenesv1.0-mini",
        "length": STEPS,
        "metadata": {
            "dataset": "nuscenes",
            "map": ground.location,
            "ts": np.arange(STEPS) * 0.1,
            "sdc_id": "ego",
            "sample_rate": 0.1,
        },
        "tracks": tracks,
        "map_features": features,
        "dynamic_map_states": {},
    }


def save(folder, whole, name="sd_nuscenes_v1.0-mini_scene-0042.pkl"):
    path = folder / name
    path.write_bytes(pickle.dumps(whole, protocol=4))
    return path


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, scenario())
    (tmp_path / "dataset_summary.pkl").write_bytes(pickle.dumps({"some": "summary"}))
    (tmp_path / "dataset_mapping.pkl").write_bytes(pickle.dumps({"some": "mapping"}))
    return tmp_path


def test_a_folder_of_pickles_is_a_world(folder):
    world = open_world(folder)
    assert (world.label, world.names) == ("scenarionet", ("scene-0042",))
    scene = world.load("scene-0042")
    assert (scene.source, scene.version) == ("scenarionet", "nuscenesv1.0-mini")
    assert (scene.images, tuple(scene.cameras)) == ({}, CAMERAS)
    assert scene.keyframes.tolist() == list(range(0, STEPS, 5))
    with pytest.raises(ConfigError, match="did you mean 'scene-0042'"):
        world.load("scene-0043")


def test_the_log_comes_back(folder):
    scene, wanted = load_scenarionet(next(folder.glob("sd_*"))), small_scene()
    assert np.hypot(*(scene.ego - wanted.ego)[:, :2].T).max() < 0.05
    assert np.abs(wrap(scene.ego[:, 2] - wanted.ego[:, 2])).max() < 0.03
    assert np.abs(scene.ego_speed - SPEED).max() < 0.1
    tracks = scene.tracks
    assert tracks.tokens == wanted.tracks.tokens, "the ego is none of the others"
    assert tracks.categories == wanted.tracks.categories
    assert np.allclose(tracks.size, wanted.tracks.size)
    assert np.allclose(tracks.z, tracks.size[:, 2] / 2)
    assert np.array_equal(tracks.valid, wanted.tracks.valid)
    assert np.hypot(*(tracks.pose - wanted.tracks.pose)[..., :2].transpose(2, 0, 1)).max() < 0.15


def test_the_ground_comes_back(folder):
    scene, wanted = load_scenarionet(next(folder.glob("sd_*"))), small_scene()
    ground = scene.map

    def area(rings):
        return unary_union([Polygon(outer, holes) for outer, *holes in rings])

    assert area(ground.drivable).symmetric_difference(area(wanted.map.drivable)).area < 0.1
    assert {k: v.after for k, v in ground.lanes.items()} == {
        k: v.after for k, v in wanted.map.lanes.items()
    }
    for token, lane in wanted.map.lanes.items():
        got = ground.lanes[token]
        assert got.connector == lane.connector
        assert Polygon(got.polygon).symmetric_difference(Polygon(lane.polygon)).area < 1.0
        assert (
            np.abs(
                wrap(
                    got.centre[:, 2]
                    - Polyline(lane.centre).pose(
                        Polyline(lane.centre).project(got.centre[:, :2])[0]
                    )[:, 2]
                )
            ).max()
            < 0.1
        )
    counts = [
        len(getattr(ground, key))
        for key in ("crossings", "walkways", "dividers", "centre_lines", "stop_lines")
    ]
    assert counts == [1, 2, 1, 1, 0]
    assert all(area(ground.drivable).contains(Point(*p[:2])) for p in scene.ego)


def test_the_route_follows_the_lanes(folder):
    scene = load_scenarionet(next(folder.glob("sd_*")))
    path = Polyline(scene.route)
    at, off = path.project(scene.ego[:, :2])
    assert np.abs(off).max() < 0.1
    assert (at[0], path.length - at[-1]) == pytest.approx((30, 80), abs=0.2)


def test_older_files_that_link_no_lanes_give_the_same_route(folder, tmp_path):
    whole = scenario()
    for feature in whole["map_features"].values():
        feature.pop("exit_lanes", None)
        feature.pop("entry_lanes", None)
        for key in ("polyline", "polygon"):
            if key in feature:
                feature[key] = [tuple(point) for point in feature[key].tolist()]
    old = load_scenarionet(save(tmp_path, whole, "old.pkl"))
    assert old.map.lanes["first"].after == ("bend",)
    assert np.allclose(old.route, load_scenarionet(next(folder.glob("sd_*"))).route)


def test_missing_messages_make_no_leaps(tmp_path):
    scene = small_scene()
    # From step 20 on two messages are missing: the log runs 2 m ahead until the file's last steps.
    at = np.arange(STEPS) + 2.0 * ((np.arange(STEPS) >= 20) & (np.arange(STEPS) < 36))
    ego = np.stack([np.interp(at, np.arange(STEPS), c) for c in scene.ego[:, :2].T], -1)
    whole = scenario()
    whole["tracks"]["ego"]["state"]["position"][:, :2] = ego
    loaded = load_scenarionet(save(tmp_path, whole))
    assert np.abs(np.diff(np.hypot(*np.diff(ego, axis=0).T))).max() / 0.01 > 100
    assert np.abs(np.diff(loaded.ego_speed)).max() / 0.1 < 3.0
    assert np.hypot(*(loaded.ego[-1] - scene.ego[-1])[:2]) < 0.3


def test_lanes_alone_are_ground_enough(tmp_path):
    whole = scenario()
    features = whole["map_features"]
    whole["map_features"] = {k: v for k, v in features.items() if not k.startswith("boundary")}
    scene = load_scenarionet(save(tmp_path, whole))
    ground = unary_union([Polygon(outer, holes) for outer, *holes in scene.map.drivable])
    assert all(ground.contains(Polygon(lane.polygon)) for lane in scene.map.lanes.values())


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


class Sly:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize(("evil", "says"), [(Evil(), r"(posix|nt)\.system"), (Sly(), "eval")])
def test_code_in_a_pickle_is_never_run(tmp_path, evil, says):
    path = save(tmp_path, scenario() | {"extra": evil})
    with pytest.raises(ConfigError, match=says):
        load_scenarionet(path)


def test_what_is_no_scene_is_refused(tmp_path):
    path = save(tmp_path, scenario())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ShapeError, match=f"{path.name} is no whole pickle"):
        load_scenarionet(path)
    with pytest.raises(ShapeError, match="lacks id, version"):
        load_scenarionet(save(tmp_path, {"tracks": {}}))
    with pytest.raises(MissingError, match=r"nowhere\.pkl"):
        load_scenarionet(tmp_path / "nowhere.pkl")


def test_poses_and_times_must_make_sense(tmp_path):
    whole = scenario()
    whole["tracks"]["walker"]["state"]["position"][7, 0] = np.nan
    with pytest.raises(ShapeError, match="track walker is not finite"):
        load_scenarionet(save(tmp_path, whole))
    whole = scenario()
    whole["metadata"]["ts"][9] = 0.0
    with pytest.raises(ShapeError, match="time stamp 9"):
        load_scenarionet(save(tmp_path, whole))
    for given, says in (
        (0.5 * np.arange(STEPS), r"its steps are 0\.5 s apart; .* at 10 Hz"),
        (0.1 * np.arange(3), f"ts has 3 entries for {STEPS} steps"),
        (np.full(STEPS, np.nan), "one is not finite"),
    ):
        whole = scenario()
        whole["metadata"]["ts"] = given
        with pytest.raises(ShapeError, match=says):
            load_scenarionet(save(tmp_path, whole))
    whole = scenario()
    whole["metadata"]["dataset"] = "waymo"
    with pytest.raises(ShapeError, match="is of waymo; only scenes of nuScenes"):
        load_scenarionet(save(tmp_path, whole))
    whole = scenario()
    whole["tracks"]["ego"]["state"]["position"] = np.zeros((3, 3))
    with pytest.raises(ShapeError, match=r"track ego has positions \(3, 3\)"):
        load_scenarionet(save(tmp_path, whole))


def test_what_the_ego_does_later_is_not_told_when_it_is_handed_over(tmp_path):
    states = []
    for brakes in (False, True):
        whole = scenario()
        place = whole["tracks"]["ego"]["state"]["position"]
        if brakes:
            place[PRIMED + 1 :, :2] = place[PRIMED, :2] + 0.2 * (
                place[PRIMED + 1 :, :2] - place[PRIMED, :2]
            )
        states.append(Simulation(load_scenarionet(save(tmp_path, whole))).state()[:6])
    np.testing.assert_array_equal(states[0], states[1])


@pytest.mark.parametrize(
    "change",
    [
        {"polyline": np.zeros((1, 2))},
        {"polyline": np.full((4, 2), 3.0)},
        {"polyline": np.full((4, 2), np.nan)},
        {"polygon": np.array([[0.0, 0.0], [4.0, 0.0]])},
    ],
)
def test_a_lane_without_an_extent_is_refused_and_named(tmp_path, change):
    whole = scenario()
    token = next(k for k, f in whole["map_features"].items() if "LANE_SURFACE_ST" in f["type"])
    whole["map_features"][token] |= change
    with pytest.raises(ShapeError, match=r"lane|makes no scene"):
        load_scenarionet(save(tmp_path, whole))


@pytest.mark.parametrize(
    ("place", "value"),
    [(("metadata",), None), (("tracks", "walker", "state", "length"), "abc")],
)
def test_odd_data_is_named_by_its_file(tmp_path, place, value):
    whole = part = scenario()
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ShapeError, match=r"\.pkl: what it holds makes no scene"):
        load_scenarionet(save(tmp_path, whole))


def test_an_ego_that_is_not_always_there_is_refused(tmp_path):
    whole = scenario()
    state = whole["tracks"]["ego"]["state"]
    state["position"][7], state["valid"][7] = np.nan, 0.0
    with pytest.raises(ShapeError, match="the ego, track ego, is not there at step 7"):
        load_scenarionet(save(tmp_path, whole))


@pytest.mark.parametrize("length", [np.nan, 0.0])
def test_a_size_that_is_none_is_refused(tmp_path, length):
    whole = scenario()
    whole["tracks"]["walker"]["state"]["length"][:] = length
    with pytest.raises(ShapeError, match="the size of track walker is"):
        load_scenarionet(save(tmp_path, whole))


@pytest.mark.parametrize(
    ("lost", "place"),
    [("heading", ("tracks", "walker", "state")), ("state", ("tracks", "cone"))],
)
def test_what_a_track_lacks_is_named(tmp_path, lost, place):
    whole = part = scenario()
    for key in place:
        part = part[key]
    del part[lost]
    with pytest.raises(ShapeError, match=rf"\.pkl: it lacks '{lost}'; convert"):
        load_scenarionet(save(tmp_path, whole))


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_of_either_numpy_are_read(tmp_path, core):
    """Of numpy 2's own modules numpy 1 has but some, and the reverse."""

    class Array:
        def __reduce__(self):
            make = np.arange(3).__reduce_ex__(5)[0]  # numpy's _frombuffer
            return make, (bytearray(np.arange(3.0).tobytes()), np.dtype("f8"), (3,), "C")

    path = save(tmp_path, {})
    data = pickle.dumps(scenario() | {"extra": Array()}, protocol=3)
    path.write_bytes(data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core))
    whole = load_pickle(path)
    assert whole["extra"].tolist() == [0.0, 1.0, 2.0]
    assert whole["tracks"]["ego"]["state"]["heading"].shape == (STEPS,)


def test_two_files_of_one_name_are_refused(folder):
    (folder / "more").mkdir()
    save(folder / "more", scenario())
    with pytest.raises(ConfigError, match="both 'scene-0042'"):
        scene_files(folder)
