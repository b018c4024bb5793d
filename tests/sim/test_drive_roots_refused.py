"""A root that is incomplete or damaged is refused in one sentence that names the culprit."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from vla_prune_sim.drive import load_nuscenes
from vla_prune_sim.drive.load import open_world
from vla_prune_sim.drive.load_nuscenes import load_root, load_scene, read_image
from vla_prune_sim.drive.write_nuscenes import write_root

from vla_prune.errors import ConfigError, MissingError, ShapeError, VlaPruneError

from .small_scene import small_map, small_scene

pytest.importorskip("nuscenes")
VERSION = "v1.0-synthetic"
GZIP = b"\x1f\x8b\x08\x00"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    ground = small_map()
    scenes = [small_scene("a", ground), small_scene("b", ground)]
    out = tmp_path_factory.mktemp("world") / "root"
    return write_root(scenes, out, image_size=(80, 45), sweeps=False)


@pytest.fixture
def root(whole, tmp_path):
    """A copy that a test may damage; files are links until they are replaced."""
    shutil.copytree(whole, tmp_path / "root", copy_function=os.link)
    return tmp_path / "root"


def edit(root, table, change):
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.unlink()
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize(
    "lost",
    [
        f"{VERSION}/sample_annotation.json",
        f"{VERSION}/map.json",
        "maps/expansion/singapore-queenstown.json",
        "maps/93406b464a165eaba6d9de76ca09f5da.png",
        "samples/CAM_BACK_LEFT/b__CAM_BACK_LEFT__1530000001500000.jpg",
        "synthetic.json",
    ],
)
def test_a_missing_file_is_named(root, lost):
    (root / lost).unlink()
    with pytest.raises(MissingError, match=lost.rsplit("/", 1)[-1]):
        load_root(root)
    with pytest.raises(MissingError, match=lost.rsplit("/", 1)[-1]):
        open_world(root)


@pytest.mark.parametrize(
    "name", [f"{VERSION}/ego_pose.json", "maps/expansion/singapore-queenstown.json"]
)
def test_a_cut_off_table_or_map_is_named(root, name):
    text = (root / name).read_text()
    (root / name).unlink()
    (root / name).write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match=name):
        load_scene(root, "a")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (f"{VERSION}/ego_pose.json", GZIP),
        (f"{VERSION}/scene.json", GZIP),
        (f"{VERSION}/scene.json", b"[]"),
        ("maps/expansion/singapore-queenstown.json", GZIP),
        ("maps/expansion/singapore-queenstown.json", b"[]"),
    ],
)
def test_a_table_or_map_that_is_something_else_is_named(root, name, data):
    path = root / name
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=path.name):
        open_world(root)


def test_a_version_folder_without_maps_beside_it_is_told_so(root):
    shutil.rmtree(root / "maps")
    with pytest.raises(MissingError, match=r"root/maps is missing; unpack the maps beside"):
        open_world(root / VERSION)


def test_an_old_map_is_refused(root):
    path = root / "maps" / "expansion" / "singapore-queenstown.json"
    layers = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(layers | {"version": "1.2"}))
    with pytest.raises(ConfigError, match=r"queenstown.json is of version 1.2"):
        open_world(root)
    del layers["arcline_path_3"]
    path.write_text(json.dumps(layers))
    with pytest.raises(MissingError, match=r"queenstown.json lacks arcline_path_3"):
        open_world(root)


def test_an_unknown_map_name_is_named(root):
    edit(root, "log", lambda rows: rows[1].update(location="singapore-queenstwon"))
    with pytest.raises(ConfigError, match="did you mean 'singapore-queenstown'"):
        load_root(root)


def test_a_table_that_names_no_record_is_refused(root):
    edit(root, "instance", lambda rows: rows[0].update(category_token="nobody"))
    with pytest.raises(ConfigError, match="nobody"):
        load_root(root)


def test_time_stamps_that_go_backwards_are_named(root):
    def swap(rows):
        a, b = (next(r for r in rows if r["timestamp"] % 10**7 == at) for at in (500000, 1000000))
        a["timestamp"], b["timestamp"] = b["timestamp"], a["timestamp"]

    edit(root, "sample", swap)
    with pytest.raises(ShapeError, match=r"^a: time stamp \d+ of sample "):
        load_scene(root, "a")
    assert load_scene(root, "b").steps == 41


def test_a_reading_whose_time_goes_backwards_is_named(root):
    def swap(rows):
        row = next(r for r in rows if "b__CAM_FRONT__1530000002000000" in r["filename"])
        row["timestamp"] -= 600_000

    edit(root, "sample_data", swap)
    with pytest.raises(ShapeError, match=r"^b: time stamp \d+ of sample_data "):
        load_scene(root, "b")
    assert load_scene(root, "a").steps == 41


def test_a_pose_that_is_not_finite_ends_its_scene_alone(root):
    def spoil(rows):
        rows[3]["translation"][0] = float("nan")

    edit(root, "ego_pose", spoil)
    with pytest.raises(ShapeError, match=r"^a: a pose of the ego is not finite"):
        load_scene(root, "a")
    assert np.isfinite(load_scene(root, "b").ego).all()


def test_a_box_that_is_not_finite_ends_its_scene_alone(root):
    edit(root, "sample_annotation", lambda rows: rows[-1]["rotation"].__setitem__(0, float("inf")))
    with pytest.raises(ShapeError, match=r"^b: a pose of instance"):
        load_scene(root, "b")
    assert len(load_scene(root, "a").tracks) == 4


@pytest.mark.parametrize("width", [float("nan"), 0.0, -1.8])
def test_a_size_that_is_none_ends_its_scene_alone(root, width):
    def spoil(rows):
        for row in rows:
            if row["instance_token"] == rows[-1]["instance_token"]:
                row["size"][0] = width

    edit(root, "sample_annotation", spoil)
    with pytest.raises(ShapeError, match=r"^b: the size of instance \w+ is"):
        load_scene(root, "b")
    assert len(load_scene(root, "a").tracks) == 4


def test_a_corrupt_picture_is_found_when_it_is_read(root):
    name = "a__CAM_FRONT__1530000001000000.jpg"
    path = root / "samples" / "CAM_FRONT" / name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    images = load_scene(root, "a").images["CAM_FRONT"]
    with pytest.raises(ShapeError, match=name):
        read_image(images[2])
    path.write_bytes(b"no picture")
    with pytest.raises(ShapeError, match=name):
        read_image(images[2])
    path.unlink()
    with pytest.raises(MissingError, match=name):
        read_image(images[2])
    assert read_image(images[3]).shape == (45, 80, 3)


def test_unknown_scenes_and_versions_are_named(root):
    with pytest.raises(ConfigError, match=r"scene 'aa' is unknown; did you mean 'a'"):
        load_scene(root, "aa")
    with pytest.raises(ConfigError, match=r"did you mean 'v1\.0-mini'"):
        load_root(root, "v1.0-mino")
    with pytest.raises(MissingError, match=r"v1\.0-mini/category\.json"):
        load_root(root, "v1.0-mini")


def test_two_versions_in_one_root_need_a_choice(root):
    shutil.copytree(root / VERSION, root / "v1.0-mini")
    with pytest.raises(ConfigError, match=r"v1\.0-mini, v1\.0-synthetic"):
        open_world(root)
    assert open_world(root / "v1.0-mini").label == "v1.0-mini"
    assert open_world(root / VERSION).load("a").source == "synthetic"


def test_tables_are_read_once_per_process_and_again_when_they_change(root):
    first = load_nuscenes._open_root(root, None)
    assert load_nuscenes._open_root(root, VERSION) is first
    edit(root, "scene", lambda rows: rows[0].update(description="Another."))
    assert load_scene(root, "a").description == "Another."


def test_a_world_gives_the_same_scene_while_it_has_it(root):
    world = open_world(str(root))
    assert (world.label, world.names) == (VERSION, ("a", "b"))
    assert world.load("b") is world.load("b")
    assert world.load("b") is not world.load("a")


def test_folders_that_hold_no_scenes_are_refused(tmp_path):
    with pytest.raises(MissingError, match="neither"):
        open_world(tmp_path)
    with pytest.raises(MissingError, match="no folder"):
        open_world(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no nuScenes tables"):
        load_root(tmp_path)


def test_every_refusal_is_a_users_error():
    assert all(issubclass(e, VlaPruneError) for e in (ConfigError, MissingError, ShapeError))


def test_without_the_devkit_it_is_asked_for(root, monkeypatch):
    load_nuscenes._open.cache_clear()
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(MissingError, match=r"vla-prune\[nuscenes\]"):
        load_root(root)


def first_of(root, scene: str) -> dict:
    """The first sample of a scene."""
    tables = {
        n: json.loads((root / VERSION / f"{n}.json").read_text()) for n in ("scene", "sample")
    }
    token = next(r["first_sample_token"] for r in tables["scene"] if r["name"] == scene)
    return next(r for r in tables["sample"] if r["token"] == token)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("rotation", [float("nan")] * 4, "no unit quaternion"),
        ("rotation", [0.0] * 4, "no unit quaternion"),
        ("translation", [0.0, float("nan"), 1.0], "no unit quaternion and place"),
        ("camera_intrinsic", [], "no matrix"),
        ("camera_intrinsic", [[0.0] * 3] * 3, "positive focal lengths"),
    ],
)
def test_a_camera_that_sees_nothing_ends_its_scene(root, field, value, says):
    def spoil(rows):
        for row in rows:
            if row["camera_intrinsic"]:
                row[field] = value

    edit(root, "calibrated_sensor", spoil)
    with pytest.raises(ShapeError, match=says):
        load_scene(root, "a")


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("ego_pose", "translation", [None, 0.0, 0.0]),
        ("ego_pose", "rotation", [0.0, 0.0, 0.0, 0.0]),
        ("sample", "next", "nobody"),
        ("sample", "timestamp", None),
        ("sample_annotation", "size", [1.0, 2.0]),
    ],
)
def test_a_broken_record_ends_its_scene_alone(root, table, field, value):
    sample = first_of(root, "a")
    wanted = {"ego_pose": 3, "sample": 0, "sample_annotation": 0}[table]

    def spoil(rows):
        mine = [r for r in rows if r["token"] == sample["token"]] if table == "sample" else rows
        mine[wanted][field] = value

    edit(root, table, spoil)
    with pytest.raises(ShapeError, match=r"\ba\b"):
        load_scene(root, "a")
    assert load_scene(root, "b").steps == 41


@pytest.mark.parametrize(
    ("table", "rows", "says"),
    [
        ("scene", [], "has no scene"),
        ("scene", {"name": "a"}, "no list of records"),
        ("log", [{"token": "x"}], "lacks the record or field"),
        ("map", [{"token": "x", "log_tokens": []}], "lacks the record or field 'filename'"),
    ],
)
def test_a_table_that_is_none_refuses_the_root(root, table, rows, says):
    path = root / VERSION / f"{table}.json"
    path.unlink()
    path.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=says):
        open_world(root)
