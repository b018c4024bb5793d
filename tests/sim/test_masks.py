"""Masks and their index: exact, annotated, brought along; and who finds them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("h5py")
pytest.importorskip("sklearn")

from vla_prune_sim.masks import evaluate as evaluating
from vla_prune_sim.masks.cli import register
from vla_prune_sim.masks.folder import folder_entries
from vla_prune_sim.masks.index import Entry, write_index

from tests.models import tiny
from tests.recon.conftest import write_demos
from vla_prune.adapters.openvla import OpenVLAAdapter, hashed_words
from vla_prune.errors import ConfigError, MissingError, ShapeError
from vla_prune.models import OpenVLA
from vla_prune.recon.checkpoint import save_reconstructor
from vla_prune.recon.model import ReconConfig, ReconPruner

SOURCE = {"source": "test"}


def entries(made: list[str], count: int = 3, size: int = 8) -> list[Entry]:
    """Left halves are foreground; who was asked for is written down."""

    def maker(number: int):
        def make():
            made.append(str(number))
            mask = np.zeros((8, size), np.uint8)
            mask[:, :4], mask[:, -2:] = 1, 2
            return np.full((8, 8, 3), number, np.uint8), mask

        return make

    return [Entry(f"e{i}", "front", f"scene {i // 2}", str(i), maker(i)) for i in range(count)]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_a_row_names_picture_mask_camera_and_labels(tmp_path: Path):
    assert write_index(entries([]), tmp_path, 1, 4, SOURCE) == (3, 3)
    first = rows(tmp_path)[0]
    assert (first["camera"], first["group"], first["labels"]) == (
        "front",
        "scene 0",
        [1.0, 1.0, 0.0, -1.0],
    )
    assert np.array(Image.open(tmp_path / first["image"])).shape == (8, 8, 3)
    assert sorted(np.unique(np.array(Image.open(tmp_path / first["mask"])))) == [0, 128, 255]


def test_a_killed_call_goes_on_and_makes_nothing_twice(tmp_path: Path):
    made: list[str] = []
    write_index(entries(made, 2), tmp_path, 1, 4, SOURCE)
    whole = (tmp_path / "index.jsonl").read_text()
    (tmp_path / "index.jsonl").write_text(whole[:-15])  # the last line was cut short
    assert write_index(entries(made, 3), tmp_path, 1, 4, SOURCE) == (3, 2)
    assert made == ["0", "1", "1", "2"]
    assert len(rows(tmp_path)) == 3
    assert (tmp_path / "index.jsonl").read_text().startswith(whole)


def test_bad_input_gets_one_sentence(tmp_path: Path):
    with pytest.raises(ShapeError, match="the mask is 9 x 8 pixels, its image 8 x 8"):
        write_index(entries([], size=9), tmp_path / "a", 1, 4, SOURCE)
    write_index(entries([]), tmp_path / "b", 1, 4, SOURCE)
    with pytest.raises(ConfigError, match="labels of 1 x 4 tokens, 2 x 4 are asked for"):
        write_index(entries([]), tmp_path / "b", 2, 4, SOURCE)


def test_brought_masks_are_matched_by_name(tmp_path: Path):
    for camera in ("left", "right"):
        for kind, ink in (("images", 7), ("masks", 255)):
            (tmp_path / kind / camera).mkdir(parents=True)
            Image.fromarray(np.full((4, 4), ink, np.uint8)).save(
                tmp_path / kind / camera / "0.png"
            )
    write_index(
        folder_entries(tmp_path / "images", tmp_path / "masks"), tmp_path / "out", 2, 2, SOURCE
    )
    assert [r["camera"] for r in rows(tmp_path / "out")] == ["left", "right"]
    (tmp_path / "masks" / "right" / "0.png").unlink()
    with pytest.raises(MissingError, match=r"right/0.png: .* \(1 of 2 images have none\)"):
        list(folder_entries(tmp_path / "images", tmp_path / "masks"))
    with pytest.raises(MissingError, match="no images"):
        list(folder_entries(tmp_path / "out" / "nothing", tmp_path))


def test_masks_made_in_another_way_are_not_mixed(tmp_path: Path):
    write_index(entries([], 2), tmp_path, 1, 4, {"source": "x", "others": "foreground"})
    assert write_index(entries([]), tmp_path, 1, 4, {"source": "x", "others": "foreground"}) == (
        3,
        1,
    )
    with pytest.raises(ConfigError, match="with others 'foreground', this call has 'background'"):
        write_index(entries([]), tmp_path, 1, 4, {"source": "x", "others": "background"})
    with pytest.raises(ConfigError, match="with annotations None, this call has 'True'"):
        write_index(
            entries([]),
            tmp_path,
            1,
            4,
            {"source": "x", "others": "foreground", "annotations": "True"},
        )


def brought(folder: Path, names: list[str]) -> tuple[Path, Path]:
    for name in names:
        for kind in ("images", "masks"):
            path = (folder / kind / name).with_suffix(
                ".png" if kind == "masks" else Path(name).suffix
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), 255, np.uint8)).save(path)
    return folder / "images", folder / "masks"


def test_a_scenes_pictures_are_one_group_and_no_picture_hides_another(tmp_path: Path):
    names = ["day/a.png", "day/b.png", "night/a.png", "night/a.jpg"]
    made = list(folder_entries(*brought(tmp_path / "one", names)))
    assert {e.group for e in made} == {"day", "night"}
    assert len({e.key for e in made}) == 4
    assert len({e.frame for e in made if e.camera == "day"}) == 2
    images, masks = brought(
        tmp_path / "two", ["cam/s1_001.png", "cam/s1_002.png", "cam/s2_001.png"]
    )
    made = list(folder_entries(images, masks, r"s\d+"))
    assert [e.group for e in made] == ["s1", "s1", "s2"]
    with pytest.raises(ConfigError, match="matches nothing in this path"):
        list(folder_entries(images, masks, "x"))
    with pytest.raises(ConfigError, match="is no regular expression"):
        list(folder_entries(images, masks, "("))
    with pytest.raises(ConfigError, match=r"'a__y\.png', is another image's too; rename one"):
        list(folder_entries(*brought(tmp_path / "three", ["a/y.png", "a__y.png"])))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["libero_object", "--annotations"], "--annotations means nothing to a LIBERO suite"),
        (["libero_object", "--masks", "x"], "--masks means nothing to a LIBERO suite"),
        ([".", "--seed", "0"], "--seed means nothing to a nuScenes root, which has --annotations"),
        ([".", "--others", "ignore"], "--others means nothing to a nuScenes root"),
        ([".", "--masks", "x", "--annotations"], "--annotations means nothing to a folder of"),
        ([".", "--group-by", "x"], "--group-by means nothing to a nuScenes root"),
    ],
)
def test_options_that_do_not_apply_are_refused(arguments: list[str], said: str, tmp_path: Path):
    app = typer.Typer()
    register(app)
    run = CliRunner().invoke(app, ["masks", "make", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(run.exception, ConfigError)
    assert said in str(run.exception)
    assert not (tmp_path / "out").exists()


# --- driving -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keyframes of a car and a pedestrian on a straight street."""
    pytest.importorskip("nuscenes")
    from vla_prune_sim.drive.make_world import Painter
    from vla_prune_sim.drive.write_nuscenes import write_root

    from .tiny_drive import tiny_scene

    folder = tmp_path_factory.mktemp("masks") / "root"
    scene = tiny_scene()
    write_root([replace(scene, keyframes=scene.keyframes[[0, -1]])], folder, Painter(), (400, 225))
    return folder


def test_masks_of_a_synthetic_root_are_what_was_painted(root: Path, tmp_path: Path):
    from vla_prune_sim.masks.drive import root_entries

    wanted = [e for e in root_entries(root) if e.camera == "CAM_FRONT"][:1]
    write_index(wanted, tmp_path, 9, 16, SOURCE)
    [row] = rows(tmp_path)
    labels = np.array(row["labels"]).reshape(9, 16)
    assert Path(row["image"]).is_file()
    assert (labels[:3] == 0).mean() > 0.9  # sky and building
    assert labels[-1].mean() > 0.5  # road in front of the bonnet
    assert 0.05 < labels.mean() < 0.6


def test_annotations_agree_with_what_was_painted(root: Path):
    """Hulls and map against exact masks: the same but for a band at the edges."""
    from vla_prune_sim.masks.drive import root_entries

    exact = {e.key: e for e in root_entries(root)}
    told = {e.key: e for e in root_entries(root, annotations=True)}
    camera = "CAM_FRONT"
    [key] = [k for k in told if camera in k][:1]
    ours = told[key].make()[1]
    twin = next(e for e in exact.values() if e.camera == camera).make()[1]
    assert ours.shape == twin.shape
    counted = ours != 2
    assert counted.mean() > 0.95
    both = (ours == 1) & (twin == 1) & counted
    either = ((ours == 1) | (twin == 1)) & counted
    # Beyond 60 m the ground is not told, and the exact road goes to the horizon.
    assert both.sum() / either.sum() > 0.8


def test_a_root_may_be_called_as_a_version(root: Path, tmp_path: Path):
    from vla_prune_sim.masks.drive import root_entries

    named = tmp_path / "v1.0-mini"
    named.symlink_to(root, target_is_directory=True)
    for folder in (named, root / "v1.0-synthetic"):
        assert next(iter(root_entries(folder, annotations=True))).make()[1].any()


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_edges_that_leave_the_picture_stay_straight(spread: float):
    """A half plane below a slope, its corners ever farther away."""
    import cv2
    from vla_prune_sim.masks.drive import clipped_pixels

    left, right = -3_000 * spread, 300 * spread
    corners = [(left, 0.1 * left), (right, 0.1 * right), (right, 9e5), (left, 9e5)]
    outline = clipped_pixels(np.column_stack([np.array(corners) + 50, np.ones(4)]), (200, 100))
    mask = np.zeros((100, 200), np.uint8)
    cv2.fillPoly(mask, [outline], 1)
    y, x = np.mgrid[:100, :200]
    off = y - (50 + 0.1 * (x - 50))
    assert mask[off > 1].all()
    assert not mask[off < -1].any()


def test_a_polygon_behind_or_beside_the_picture_is_nothing():
    from vla_prune_sim.masks.drive import clipped_pixels

    square = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    assert len(clipped_pixels(np.column_stack([square, -np.ones(4)]), (200, 100))) == 0
    assert len(clipped_pixels(np.column_stack([square + 9_000, np.ones(4)]), (200, 100))) == 0
    # Half of it is too near: what is left begins there.
    deep = np.array([[0.0, 0, 0.1], [100, 0, 1.0], [0, 50, 1.0]])
    assert len(clipped_pixels(deep, (200, 100))) == 4


# --- LIBERO ------------------------------------------------------------------------------------


@pytest.mark.libero
def test_libero_masks_agree_with_the_patch_labels(open_env):
    from vla_prune_sim.libero.env import VIEWS
    from vla_prune_sim.libero.expert import GOALS
    from vla_prune_sim.libero.labels import patches
    from vla_prune_sim.masks.libero import mask_of, segments

    from vla_prune.recon.frames import cell_shares

    env = open_env("libero_object", 0, look="fast", images=False)
    env.reset(seed=0, options={"init": 0})
    scene, target, goal = env.scene(), env.goal[0][1], GOALS["libero_object"]
    owners = segments(scene, VIEWS["agentview"], 48)
    assert {target, goal, "robot"} <= set(owners.ravel())
    alone = cell_shares(mask_of(owners, scene, target, goal, 0) == 1, 12, 12)
    everything = cell_shares(mask_of(owners, scene, target, goal, 1) == 1, 12, 12)
    labels = patches(scene, target, goal, VIEWS["agentview"]).ravel()
    assert np.corrcoef(everything, labels > 0)[0, 1] > 0.8
    assert alone.sum() < everything.sum()


@pytest.mark.libero
@pytest.mark.parametrize("view", ["agentview", "wrist"])
def test_the_gripper_is_in_the_libero_masks_as_single_rays_see_it(open_env, view: str):
    import mujoco
    from vla_prune_sim.libero.env import VIEWS
    from vla_prune_sim.masks.libero import segments

    env = open_env("libero_object", 0, look="fast", images=False)
    env.reset(seed=0, options={"init": 0})
    scene, camera, size = env.scene(), VIEWS[view], 24
    model, data, geom = scene.model, scene.data, np.empty(1, np.int32)
    cam = model.camera(camera).id
    half, axes = np.tan(np.radians(model.cam_fovy[cam]) / 2), data.cam_xmat[cam].reshape(3, 3)
    drawn, eye = np.array([0, 1, 0, 0, 0, 0], np.uint8), data.cam_xpos[cam].copy()
    expected = np.full((size, size), "", object)
    for row, y in enumerate(np.linspace(1, -1, 2 * size + 1)[1::2]):
        for col, x in enumerate(np.linspace(-1, 1, 2 * size + 1)[1::2]):
            ray = axes @ np.array([x * half, y * half, -1.0])
            if mujoco.mj_ray(model, data, eye, ray, drawn, 1, -1, geom) >= 0:
                expected[row, col] = scene.geom_owner[geom[0]]
    owners = segments(scene, camera, size)
    assert np.array_equal(owners, expected)
    assert (owners == "robot").mean() > (0.15 if view == "wrist" else 0.02)


# --- who finds them ----------------------------------------------------------------------------


ATTENTION = {f"{name}@{layer}" for name in evaluating.ATTENTION for layer in (0, 1)}
UNTRAINED = {"random", "grid", "norm", "text_similarity", *ATTENTION}


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch):
    """``evaluation(changes, **domain's)``: settings of a policy of three layers."""
    demos = write_demos(tmp_path / "demos")
    torch.manual_seed(0)
    llm = {**tiny.POCKET.llm, "num_hidden_layers": 3}
    adapter = OpenVLAAdapter(OpenVLA(replace(tiny.POCKET, llm=llm)), hashed_words)
    pruner = ReconPruner(ReconConfig(16, ffn=24, heads=2, kv_heads=1))
    save_reconstructor(tmp_path / "recon", pruner, adapter.encoder())
    monkeypatch.setattr(evaluating, "build_adapter", lambda name: adapter)

    def made(changes: dict | None = None, **domain) -> evaluating.EvaluateConfig:
        plain = {
            "policy": "tiny",
            "demos": str(demos),
            "foreground": ["thing"],
            "ignore": ["other"],
            "trained": {"foreground": str(tmp_path / "recon")},
        }
        written = {
            "domains": {"tiny": plain | domain},
            "results": str(tmp_path / "r.json"),
            "figure": str(tmp_path / "f.png"),
            "frames": 4,
        }
        (tmp_path / "run.yaml").write_text(json.dumps(written | (changes or {})))
        return evaluating.load(str(tmp_path / "run.yaml"))

    return made


def test_evaluation_writes_rows_bars_and_a_picture(evaluation, tmp_path: Path):
    trained = {"foreground": str(tmp_path / "recon"), "mask_head": str(tmp_path / "none")}
    document = evaluating.run(evaluation(trained=trained))
    assert json.loads((tmp_path / "r.json").read_text()) == document
    found = {row["scorer"]: row for row in document["rows"]}
    assert set(found) == {"foreground", "position_prior", *UNTRAINED}
    assert all(0 <= row["average_precision"] <= 1 for row in found.values())
    for row in found.values():
        for share, recall in row["recall_at_k"].items():
            assert recall <= row["best_recall_at_k"][share] <= 1
    assert len(document["left_out"]) == 1
    assert "row 'mask_head' is left out" in document["left_out"][0]
    bar = document["bars"]["tiny"]
    assert bar["ours"] == found["foreground"]["average_precision"]
    assert bar["best_free_ap"] == max(found[n]["average_precision"] for n in UNTRAINED)
    assert found[bar["best_free"]]["average_precision"] == bar["best_free_ap"]
    assert bar["over_position_prior"] == pytest.approx(
        bar["ours"] - found["position_prior"]["average_precision"]
    )
    low, high = bar["over_position_prior_ci"]
    assert low <= bar["over_position_prior"] <= high
    assert Image.open(tmp_path / "f.png").size[1] > 4 * 2 * 48


def test_the_layer_that_finds_most_sets_the_bar():
    """Of a score that is good at one layer and bad at another, the good one counts."""
    found = {
        "foreground": np.array([1.0, 0.9]),
        "position_prior": np.array([0.8, 0.7]),
        "received_attention@0": np.array([0.95, 0.85]),
        "received_attention@1": np.array([0.3, 0.5]),
        "mask_head": np.array([1.0, 1.0]),
    }
    bar = evaluating._bar(found)
    assert (bar["best_free"], bar["best_free_ap"]) == ("received_attention@0", pytest.approx(0.9))
    assert bar["error_left"] == pytest.approx(0.5)
    assert bar["over_position_prior"] == pytest.approx(0.2)


def test_an_index_of_masks_can_be_scored(evaluation, tmp_path: Path):
    """Both cameras of a frame are one policy call; a frame that lacks one is none."""

    def maker(number: int, row: int):
        def make():
            mask = np.zeros((48, 48), np.uint8)
            mask[12 * row : 12 * row + 12] = 1
            return np.full((48, 48, 3), number, np.uint8), mask

        return make

    made = [
        Entry(f"{scene}_{frame}_{view}", view, str(scene), f"{scene} {frame}", maker(frame, row))
        for scene in (0, 6)  # the second is held out
        for frame in range(3)
        for row, view in enumerate(("image", "wrist"))
        if (scene, frame, view) != (6, 2, "wrist")
    ]
    write_index(made, tmp_path / "index", 4, 4, SOURCE)
    given = {"index": str(tmp_path / "index"), "instruction": "pick", "demos": ""}
    settings = evaluation(**given, foreground=[], ignore=[])
    seen = evaluating.score_domain("tiny", settings.domains["tiny"], 9)
    expected = [1] * 4 + [0] * 12 + [0] * 4 + [1] * 4 + [0] * 8
    assert seen.labels.tolist() == [expected] * 2
    assert seen.scores["position_prior"][0].tolist() == expected
    assert [frame.images["wrist"][0, 0, 0] for frame in seen.frames] == [0, 1]
    document = evaluating.run(settings)
    assert {row["label_rule"] for row in document["rows"]} == {
        "masks, foreground from 0.5 of a token's counted pixels on"
    }
    lines = (tmp_path / "index" / "index.jsonl").read_text().splitlines(True)
    (tmp_path / "index" / "index.jsonl").write_text("".join(lines[:6]))
    with pytest.raises(MissingError, match="no held-out frame of all views of tiny"):
        evaluating.run(settings)


def test_the_position_prior_is_the_mean_label_of_the_training_demonstrations(evaluation):
    settings = evaluation()
    seen = evaluating.score_domain("tiny", settings.domains["tiny"], 4)
    import h5py

    with h5py.File(next(Path(settings.domains["tiny"].demos).glob("*.hdf5")), "r") as file:
        trained = [d["aux/patches"][()] for d in file["data"].values() if d.attrs["seed"] != 6]
    patches = np.concatenate(trained).reshape(-1, 32)
    expected = (patches == 1).sum(0) / (patches != 2).sum(0)
    prior = seen.scores["position_prior"]
    assert prior.shape == seen.labels.shape
    assert prior[0].tolist() == prior[-1].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("changes", "domain", "said"),
    [
        ({"domains": None}, {}, "domains is None; it takes a mapping"),
        ({"domains": {}}, {}, "'domains' names none"),
        ({"frames": 0}, {}, "frames is 0; give 1 or more"),
        ({"shares": [2]}, {}, r"shares has 2; a share of the tokens is in \(0, 1\]"),
        ({}, {"trained": {"random": None}}, "a trained row is called 'random'"),
        (
            {},
            {"foreground": ["thing", "background", "other"], "ignore": []},
            "no frame shows both",
        ),
        ({}, {"ignore": ["thing"]}, "'thing' is foreground and ignored"),
        ({}, {"index": "x"}, "give one of the two"),
        ({}, {"demos": "", "index": "x"}, "holds no instructions"),
        ({}, {"instruction": "go"}, "'instruction' means nothing to demonstrations"),
    ],
)
def test_evaluations_that_tell_nothing_are_refused(evaluation, changes, domain, said: str):
    with pytest.raises(ConfigError, match=said):
        evaluating.run(evaluation(changes, **domain))


def test_the_shipped_evaluation_loads():
    settings = evaluating.load("foreground")
    assert set(settings.domains) == {"drive", "libero_spatial", "libero_object"}
    assert all("foreground" in domain.trained for domain in settings.domains.values())
