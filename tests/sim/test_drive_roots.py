"""Scenes written as a nuScenes root come back, and nuscenes-devkit opens what was written."""

import filecmp
import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely.geometry import Polygon
from shapely.ops import unary_union
from vla_prune_sim.drive.arclines import fit_arclines
from vla_prune_sim.drive.geometry import Polyline, wrap
from vla_prune_sim.drive.load_nuscenes import load_root, load_scene, read_image
from vla_prune_sim.drive.make_world import Painter, between
from vla_prune_sim.drive.matching import find_route
from vla_prune_sim.drive.render import Renderer
from vla_prune_sim.drive.sampling import resample, settled
from vla_prune_sim.drive.scene import CAMERAS
from vla_prune_sim.drive.simulation import Simulation
from vla_prune_sim.drive.write_nuscenes import write_root

from vla_prune.errors import ConfigError, ShapeError

from .small_scene import STEPS, along, parked_scene, put, small_map, small_scene

pytest.importorskip("nuscenes")
SIZE = (80, 45)
POSE_M, HEADING_RAD, SPEED_MPS = 0.02, 0.02, 0.1  # of the ego: 12 Hz poses read at 10 Hz
TRACK_M, TRACK_RAD, TRACK_MPS = 0.15, 0.06, 0.6  # of the others: 2 Hz boxes in a 15 m bend
LANE_M, AREA_M2 = 0.02, 0.5
WALKER = "human.pedestrian.adult"


@pytest.fixture(scope="module")
def scenes():
    ground = small_map()
    return [small_scene("a", ground), parked_scene("b", ground), small_scene("c")]


@pytest.fixture(scope="module")
def root(scenes, tmp_path_factory):
    return write_root(scenes, tmp_path_factory.mktemp("world") / "root", image_size=SIZE)


@pytest.fixture(scope="module")
def real(root, tmp_path_factory):
    """The same files as a real root: nothing of ours, another version string."""
    out = tmp_path_factory.mktemp("world") / "real"
    shutil.copytree(root, out, copy_function=os.link)
    (out / "v1.0-synthetic").rename(out / "v1.0-mini")
    (out / "synthetic.json").unlink()
    return out


@pytest.fixture(scope="module")
def tables(root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the devkit's own imports
        from nuscenes.nuscenes import NuScenes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return NuScenes("v1.0-synthetic", str(root), verbose=False)


def area(rings) -> Polygon:
    return unary_union([Polygon(outer, holes) for outer, *holes in rings])


def test_the_ego_comes_back(root, scenes):
    scene = load_scene(root, "a")
    assert scene.steps == STEPS
    assert np.abs(scene.ego[:, :2] - scenes[0].ego[:, :2]).max() < POSE_M
    assert np.abs(wrap(scene.ego[:, 2] - scenes[0].ego[:, 2])).max() < HEADING_RAD
    assert np.abs(scene.ego_speed - scenes[0].ego_speed).max() < SPEED_MPS


def test_what_nuscenes_has_no_place_for_comes_back(root, scenes):
    scene = load_scene(root, "a")
    same = "name source version description start_us seed scenario"
    assert [getattr(scene, k) for k in same.split()] == [
        getattr(scenes[0], k) for k in same.split()
    ]
    assert np.array_equal(scene.keyframes, scenes[0].keyframes)
    assert np.allclose(scene.route, scenes[0].route, atol=1e-5)
    for key in ("buildings", "building_colours", "trees", "sun", "sky"):
        assert np.allclose(getattr(scene.scenery, key), getattr(scenes[0].scenery, key)), key


def test_the_others_come_back(root, scenes):
    tracks, wanted = load_scene(root, "a").tracks, scenes[0].tracks
    assert (tracks.tokens, tracks.categories) == (wanted.tokens, wanted.categories)
    assert np.allclose(tracks.size, wanted.size)
    assert np.allclose(tracks.z, wanted.z)
    assert np.array_equal(tracks.valid, wanted.valid)
    away = np.hypot(*(tracks.pose - wanted.pose)[..., :2].transpose(2, 0, 1))
    assert away.max() < TRACK_M
    assert away[1:].max() < 1e-4, "whoever goes straight is where it was"
    assert np.abs(wrap(tracks.pose - wanted.pose)[..., 2]).max() < TRACK_RAD
    assert np.abs(tracks.speed - wanted.speed).max() < TRACK_MPS


def test_lanes_come_back(root, scenes):
    lanes, wanted = load_scene(root, "a").map.lanes, scenes[0].map.lanes
    assert list(lanes) == list(wanted)
    for token, lane in wanted.items():
        got = lanes[token]
        assert (got.after, got.speed_mps, got.connector) == (
            lane.after,
            lane.speed_mps,
            lane.connector,
        )
        at, off = Polyline(lane.centre).project(got.centre[:, :2])
        assert np.abs(off).max() < LANE_M
        assert np.hypot(*np.diff(got.centre[:, :2], axis=0).T).max() <= 1.0
        ends = got.centre[[0, -1]] - lane.centre[[0, -1]]
        assert np.hypot(*ends[:, :2].T).max() < LANE_M
        heading = Polyline(lane.centre).pose(at)[:, 2]
        assert np.abs(wrap(got.centre[:, 2] - heading)).max() < 0.05
        assert Polygon(got.polygon).symmetric_difference(Polygon(lane.polygon)).area < AREA_M2


def test_the_ground_comes_back(root, scenes):
    ground, wanted = load_scene(root, "a").map, scenes[0].map
    assert ground.location == wanted.location
    assert [len(rings) for rings in ground.drivable] == [2, 1]
    assert area(ground.drivable).symmetric_difference(area(wanted.drivable)).area < AREA_M2
    for layer in ("crossings", "walkways", "stop_lines"):
        rings, given = getattr(ground, layer), getattr(wanted, layer)
        assert len(rings) == len(given)
        assert area([[r] for r in rings]).symmetric_difference(area([[r] for r in given])).area < (
            AREA_M2
        )
    for layer in ("dividers", "centre_lines"):
        for line, given in zip(getattr(ground, layer), getattr(wanted, layer), strict=True):
            assert np.abs(Polyline(given).project(line)[1]).max() < LANE_M


def test_cameras_come_back_at_the_size_of_the_root(root, scenes):
    cameras = load_scene(root, "a").cameras
    for name, camera in scenes[0].cameras.items():
        wanted = camera.scaled(*SIZE)
        assert (cameras[name].width, cameras[name].height) == SIZE
        for key in ("intrinsic", "rotation", "translation"):
            assert np.allclose(getattr(cameras[name], key), getattr(wanted, key), atol=1e-6), key


def test_a_route_is_found_where_nobody_wrote_it_down(real):
    scene = load_scene(real, "a")
    assert (scene.source, scene.version, scene.description) == ("nuscenes", "v1.0-mini", "A bend.")
    path = Polyline(scene.route)
    begin, off = path.project(scene.ego[:, :2])
    assert np.abs(off).max() < 0.05
    assert begin[0] == pytest.approx(30, abs=0.1)
    assert path.length - begin[-1] == pytest.approx(80, abs=0.1)


def test_a_parked_truck_does_not_shuffle(real, tmp_path):
    out = tmp_path / "jittered"
    shutil.copytree(real, out, copy_function=os.link)
    file = out / "v1.0-mini" / "sample_annotation.json"
    boxes = json.loads(file.read_text())
    rng = np.random.default_rng(0)
    for box in boxes:
        box["translation"][:2] = (
            np.array(box["translation"][:2]) + rng.normal(0, 0.1, 2)
        ).tolist()
    file.unlink()  # a link to the root that other tests read
    file.write_text(json.dumps(boxes))
    tracks = load_scene(out, "a").tracks
    truck, walker = (tracks.categories.index(f) for f in ("vehicle.truck", WALKER))
    assert np.ptp(tracks.pose[truck], axis=0).max() == tracks.speed[truck].max() == 0
    assert tracks.speed[walker].min() > 0.5, "who walks goes on walking"
    assert np.ptp(settled(WALKER, tracks.pose[walker, :3]), axis=0).max() > 0, "people may sway"


def test_off_the_lanes_the_route_is_the_logs_own_path(real):
    scene = load_scene(real, "b")
    assert "leaves the lanes" in scene.description
    assert not scene.on_lanes
    assert load_scene(real, "a").on_lanes
    bent = replace(scene, route=np.concatenate([scene.route[:40], scene.route[:1:-1]]))
    assert Simulation(bent).state()[6:].tolist() == [1, 0, 0, 1], "it tells no turn of the log"
    path = Polyline(scene.route)
    at, off = path.project(scene.ego[:, :2])
    assert np.abs(off).max() < 0.05
    assert (at[0], path.length - at[-1]) == pytest.approx((30, 80), abs=0.1)


def test_a_route_follows_a_change_of_lane():
    lanes = small_map().lanes
    s = np.arange(0, 50, 1.0)
    ego = put(np.stack([2 + s, np.clip((s - 18) / 4, 0, 3.5), 0 * s], -1))
    route, on_lanes = find_route(lanes, ego)
    off = Polyline(route).project(ego[:, :2])[1]
    assert on_lanes
    assert np.abs(off).max() < 1.8
    assert np.abs(off[[0, -1]]).max() < 0.1


def test_a_route_ends_where_the_lanes_end():
    lanes = {"beside": small_map().lanes["beside"]}
    route, on_lanes = find_route(lanes, put(np.array([[20.0, 3.5, 0.0], [40.0, 3.5, 0.0]])))
    assert on_lanes
    assert Polyline(route).length == pytest.approx(30 + 40, abs=0.1)


def test_two_writes_are_the_same_bytes(root, scenes, tmp_path):
    again = write_root(iter(scenes), tmp_path / "again", image_size=SIZE)
    names = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(root, again, names, shallow=False)[0] == names


def test_scenes_share_the_ground_of_one_map_and_no_other(root):
    extra = json.loads((root / "synthetic.json").read_text())
    towns = [extra["scenes"][name]["town"] for name in "abc"]
    assert towns[0] == towns[1] != towns[2]
    a, c = (extra["towns"][towns[i]]["bounds"] for i in (0, 2))
    assert a[3] + 50 <= c[1]
    assert np.allclose(load_scene(root, "a").ego, load_scene(root, "c").ego)


def test_a_root_says_that_it_is_synthetic(root):
    assert "ynthetic" in (root / "SYNTHETIC").read_text().splitlines()[0]
    assert load_root(root) == ["a", "b", "c"]


def test_the_devkit_answers_about_the_map(root, tables, scenes):
    from nuscenes.map_expansion.arcline_path_utils import length_of_lane
    from nuscenes.map_expansion.bitmap import BitMap
    from nuscenes.map_expansion.map_api import NuScenesMap

    api = NuScenesMap(str(root), "singapore-queenstown")
    pose = tables.get("ego_pose", tables.sample[0]["data"]["LIDAR_TOP"])["translation"]
    closest = api.get_closest_lane(*pose[:2])
    assert length_of_lane(api.get_arcline_path(closest)) == pytest.approx(60, abs=0.01)
    (bend,) = api.get_outgoing_lane_ids(closest)
    arcs = api.get_arcline_path(bend)
    assert [arc["radius"] for arc in arcs] == pytest.approx([15], rel=0.01)
    assert api.get_incoming_lane_ids(bend) == [closest]
    layers = api.layers_on_point(*pose[:2])
    assert layers["lane"] == closest
    assert layers["drivable_area"]
    assert not layers["ped_crossing"]
    assert set(api.get_next_roads(*pose[:2])) == {"road_segment", "road_block", "lane"}
    mask = api.get_map_mask((*pose[:2], 20, 20), 0, ["drivable_area", "lane"], (40, 40))
    assert mask.shape == (2, 40, 40)
    assert mask[:, 20, 20].all()
    assert 0.1 < mask[1].mean() < mask[0].mean() < 0.9
    records = api.get_records_in_radius(*pose[:2], 30, ["lane_divider", "road_divider"])
    assert [len(v) for v in records.values()] == [1, 1]
    assert BitMap(str(root), "singapore-queenstown", "semantic_prior").image.ndim == 2


def test_the_prior_shows_road_where_there_is_road(tables, scenes, root):
    prior = tables.map[0]["mask"]
    offset = [
        t["offset"] for t in json.loads((root / "synthetic.json").read_text())["towns"].values()
    ]
    for shift in offset:
        road, pavement = scenes[0].ego[:, :2] + shift, put([[20, -3.5], [15, 9.5]]) + shift
        nothing = put([[20, -10], [30, 30], [30, 6.2]]) + shift  # the last one is the hole
        assert prior.is_on_mask(*road.T).all()
        assert prior.is_on_mask(*pavement.T).all()
        assert not prior.is_on_mask(*nothing.T).any()


def test_the_devkit_sees_boxes_move(tables):
    car = next(i for i in tables.instance if i["nbr_annotations"] == 9)
    token = tables.get("sample_annotation", car["first_annotation_token"])["next"]
    assert tables.get("sample_annotation", token)["category_name"] == "vehicle.car"
    assert np.linalg.norm(tables.box_velocity(token)) == pytest.approx(8.0, abs=0.3)


def test_the_devkit_projects_the_car_ahead_into_the_front_camera(tables, root):
    from nuscenes.utils.geometry_utils import view_points

    token = tables.sample[0]["data"]["CAM_FRONT"]
    path, boxes, intrinsic = tables.get_sample_data(token)
    assert read_image(Path(path)).shape == (45, 80, 3)
    (car,) = [box for box in boxes if box.name == "vehicle.car"]
    # 18 m ahead of the rear axle, 16.3 m ahead of the camera; 1.51 m below it but for half of 1.7.
    scene = load_scene(root, "a")
    camera = scene.cameras["CAM_FRONT"]
    assert car.center[2] == pytest.approx(18 - camera.translation[0], abs=0.05)
    pixel = view_points(car.center[:, None], intrinsic, normalize=True)[:2, 0]
    local = np.array([18.0, 0.0, 0.85]) - camera.translation
    wanted = camera.intrinsic @ camera.rotation.T @ local
    assert pixel == pytest.approx(wanted[:2] / wanted[2], abs=0.1)


def test_cameras_have_sweeps_at_12_hz(tables, root):
    rows = [r for r in tables.sample_data if r["channel"] == "CAM_BACK"]
    first = [r for r in rows if r["filename"].split("/")[2].startswith("a__")]
    stamps = np.array([r["timestamp"] for r in first])
    assert len(first) == 8 * 6 + 1
    assert np.abs(np.diff(np.sort(stamps)) - 1e6 / 12).max() < 2
    assert sum(r["is_key_frame"] for r in first) == 9
    assert all((root / r["filename"]).exists() == r["is_key_frame"] for r in first)
    assert all(r["token"] == r["ego_pose_token"] for r in first)


def test_pictures_are_those_that_were_drawn(tmp_path):
    seen = []

    def draw(scene, step):
        seen.append(step)
        value = int(10 * step) % 250
        return {name: np.full((45, 80, 3), (value, 0, 250), np.uint8) for name in CAMERAS}

    scene = small_scene()
    out = write_root([scene], tmp_path / "root", draw, SIZE, sweep_pictures=True)
    assert len(seen) == 49
    loaded = load_scene(out, "small")
    assert [len(loaded.images[name]) for name in CAMERAS] == [9] * 6
    for k, step in enumerate(scene.keyframes):
        image = read_image(loaded.images["CAM_BACK"][k]).astype(int)
        assert np.abs(image - [int(10 * step) % 250, 0, 250]).max() < 8
    assert cv2.imread(str(next((out / "sweeps" / "CAM_FRONT").iterdir()))).shape == (45, 80, 3)


def test_a_picture_of_another_size_is_refused(tmp_path):
    def draw(scene, step):
        return dict.fromkeys(CAMERAS, np.zeros((45, 81, 3), np.uint8))

    with pytest.raises(ShapeError, match=r"CAM_FRONT.*\(45, 80, 3\)"):
        write_root([small_scene()], tmp_path / "root", draw, SIZE)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keyframes": np.arange(0, 40, 5)}, "last step"),
        ({"ego": np.full((STEPS, 3), np.nan)}, "ego is not finite"),
        ({"cameras": {}}, "six"),
        ({"map": replace(small_map(), location="boston")}, "did you mean 'boston-seaport'"),
    ],
)
def test_a_scene_that_fits_no_root_is_refused(tmp_path, changes, says):
    with pytest.raises((ShapeError, ConfigError), match=says):
        write_root([small_scene(**changes)], tmp_path / "root", image_size=SIZE)


def test_folders_and_names_must_be_free(root, tmp_path):
    with pytest.raises(ConfigError, match="empty"):
        write_root([small_scene()], root)
    with pytest.raises(ConfigError, match="'a'"):
        write_root([small_scene("a"), small_scene("a")], tmp_path / "root", image_size=SIZE)


def test_arcs_keep_to_a_wavy_lane():
    x = np.linspace(0, 80, 161)
    y = 6 * np.sin(x / 12)
    poses = np.stack([x, y, np.arctan(0.5 * np.cos(x / 12))], -1)
    from nuscenes.map_expansion.arcline_path_utils import discretize_lane

    arcs = fit_arclines(poses)
    again = np.array(discretize_lane(arcs, 0.5))
    assert len(arcs) < 30
    assert np.abs(Polyline(poses).project(again[:, :2])[1]).max() < LANE_M
    assert np.abs(again[-1] - poses[-1]).max() < 0.03


def test_a_heading_turns_the_short_way_round():
    pose, speed, valid = resample(
        np.array([0.0, 1.0]),
        np.array([[0.0, 0.0, 3.0], [-2.0, 0.0, -3.0]]),
        np.array([-0.5, 0.0, 0.5, 1.0, 1.5]),
    )
    assert abs(wrap(pose[2, 2] - np.pi)) < 1e-9
    assert speed == pytest.approx(np.full(5, 2 * np.cos(np.pi - 3.0)))
    assert valid.tolist() == [False, True, True, True, False]
    assert np.isfinite(pose).all()


def test_the_way_is_where_it_seems():
    assert np.hypot(*np.diff(put(along(np.arange(0, 150, 0.5)))[:, :2], axis=0).T) == (
        pytest.approx(0.5, abs=1e-3)
    )


def test_a_sweep_is_drawn_between_two_steps():
    scene = small_scene("a")
    half = Painter((80, 45))(scene, 10.5)
    renderer = Renderer(scene, (80, 45))
    there = scene.tracks.valid[:, 11]
    middle = (scene.ego[10] + scene.ego[11]) / 2
    wanted = renderer.render(middle, scene.tracks.pose[:, 10:12].mean(1), there)
    gaps = [np.abs(half[name].astype(int) - wanted[name].astype(int)).mean() for name in wanted]
    assert max(gaps) < 1.0
    turned = between(np.array([0.0, 0.0, 3.1]), np.array([1.0, 0.0, -3.1]), 0.5)
    assert abs(turned[2]) == pytest.approx(np.pi, abs=1e-6), "the short way round"
