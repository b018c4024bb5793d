"""The camera pictures: who hides whom against slow references, the ground, and what moves how."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from vla_prune_sim.drive.geometry import corners, overlap, to_local
from vla_prune_sim.drive.ground import sight_lines
from vla_prune_sim.drive.occlusion import paint_order
from vla_prune_sim.drive.render import BUILDING, GRASS, PAVEMENT, ROAD, SKY, TREE, Renderer
from vla_prune_sim.drive.scene import CAMERAS, Scene
from vla_prune_sim.drive.shapes import build_shape
from vla_prune_sim.drive.stage import SIZES

from tests.sim.tiny_drive import LANE_M, tiny_scene
from vla_prune.errors import ConfigError, ShapeError

SMALL = (100, 56)
ORIGIN = np.zeros(3)
BOX = "movable_object.debris"  # drawn as its plain box
CATEGORIES = [
    *SIZES,
    BOX,
    "vehicle.emergency.police",
    "vehicle.construction",
    "vehicle.trailer",
    "human.pedestrian.police_officer",
]


def draw(scene: Scene, ego=ORIGIN, size=SMALL, channels=None):
    renderer = Renderer(scene, size, channels)
    return renderer.render(ego, scene.tracks.pose[:, 0], scene.tracks.valid[:, 0], masks=True)


def rays(scene: Scene, channel: str, size=SMALL, ego=ORIGIN) -> tuple[np.ndarray, np.ndarray]:
    """Origin ``[3]`` and directions ``[H, W, 3]`` of every pixel, in the world."""
    camera = scene.cameras[channel].scaled(*size)
    cos, sin = np.cos(ego[2]), np.sin(ego[2])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return turn @ camera.translation + [*ego[:2], 0], sight_lines(camera) @ turn.T


def first_box(origin, ways, boxes: np.ndarray) -> np.ndarray:
    """Literal z-buffer: which box of ``[N, 6]`` (as buildings) each ray meets first, or -1."""
    best, who = np.full(ways.shape[:2], np.inf), np.full(ways.shape[:2], -1)
    for i, (x, y, heading, length, width, height) in enumerate(boxes):
        start = np.append(to_local(origin[None, :2], np.array([x, y, heading]))[0], origin[2])
        way = ways.copy()
        way[..., :2] = to_local(ways[..., :2], np.array([0, 0, heading]))
        low, high = (
            np.array([-length / 2, -width / 2, 0]),
            np.array([length / 2, width / 2, height]),
        )
        with np.errstate(divide="ignore"):
            a, b = (low - start) / way, (high - start) / way
        enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
        hit = (enter < leave) & (enter > 0) & (enter < best)
        best[hit], who[hit] = enter[hit], i
    return who


def first_face(origin, ways, shapes, poses) -> np.ndarray:
    """The same for the faces of shapes: every ray against every face."""
    best, who = np.full(ways.shape[:2], np.inf), np.full(ways.shape[:2], -1)
    for i, (shape, pose) in enumerate(zip(shapes, poses, strict=True)):
        start = np.append(to_local(origin[None, :2], pose)[0], origin[2])
        way = ways.copy()
        way[..., :2] = to_local(ways[..., :2], np.array([0, 0, pose[2]]))
        for points, n, normal in zip(shape.corners, shape.count, shape.normal, strict=True):
            towards = way @ normal
            if (start - points[0]) @ normal <= 0:
                continue
            with np.errstate(divide="ignore"):
                depth = ((points[0] - start) @ normal) / towards
            spot = start + depth[..., None] * way
            inside = (depth > 0) & (depth < best) & (towards < 0)
            for a, b in zip(points[:n], np.roll(points[:n], -1, axis=0), strict=True):
                inside &= ((spot - a) @ np.cross(normal, b - a)) >= 0
            best[inside], who[inside] = depth[inside], i
    return who


def inner(ids: np.ndarray) -> np.ndarray:
    """Pixels whose eight neighbours show the same."""
    same = np.zeros(ids.shape, bool)
    same[1:-1, 1:-1] = True
    for r in (-1, 0, 1):
        for c in (-1, 0, 1):
            same &= np.roll(ids, (r, c), (0, 1)) == ids
    return same


def scatter(seed: int, count: int, longest: float) -> np.ndarray:
    """Boxes ``[count, 6]`` around the ego that touch neither it nor each other."""
    rng = np.random.default_rng(seed)
    kept = [np.array([1.0, 0.0, 0.0, 5.0, 2.4, 1.0])]
    while len(kept) <= count:
        box = np.array(
            [
                *rng.uniform(-28, 28, 2),
                rng.uniform(-np.pi, np.pi),
                rng.uniform(0.5, longest),
                rng.uniform(0.4, 2.5),
                rng.uniform(0.6, 4.0),
            ]
        )
        new = corners(box[:3], box[3], box[4])
        if not any(overlap(new, corners(b[:3], b[3], b[4])) for b in kept):
            kept.append(box)
    return np.array(kept[1:])


@pytest.mark.parametrize(("seed", "longest"), [(0, 4.0), (1, 30.0), (3, 45.0)])
def test_boxes_hide_each_other_as_rays_say(seed, longest):
    boxes = scatter(seed, 24, longest)
    scene = tiny_scene([(BOX, tuple(b[3:]), tuple(b[:3])) for b in boxes], buildings=())
    _, ids = draw(scene)
    seen = 0
    for channel in CAMERAS:
        want = first_box(*rays(scene, channel), boxes)
        have = np.where(ids[channel] > 0, ids[channel] - 1, -1)
        sure = inner(want)
        seen += (sure & (want >= 0)).sum()
        assert (have == want)[sure].mean() >= 0.995
    assert seen > 2000


def test_buildings_and_agents_hide_each_other_as_rays_say():
    boxes = scatter(7, 20, 25.0)
    agents, houses = boxes[:10], boxes[10:]
    scene = tiny_scene([(BOX, tuple(b[3:]), tuple(b[:3])) for b in agents], buildings=houses)
    _, ids = draw(scene)
    for channel in CAMERAS:
        want = first_box(*rays(scene, channel), boxes)
        want = np.where(want >= len(agents), BUILDING - 1, want)
        have = np.where((ids[channel] > 0) | (ids[channel] == BUILDING), ids[channel] - 1, -1)
        sure = inner(want)
        assert (have == want)[sure].mean() >= 0.995


def test_shapes_hide_each_other_as_rays_say():
    sizes = {c: SIZES.get(c, SIZES["vehicle.car"])[1] for c in CATEGORIES if c != BOX}
    kinds = sorted(sizes, key=lambda c: sizes[c][2])  # the low ones in front
    reach = np.array([np.hypot(*sizes[c][:2]) / 2 for c in kinds])
    at = 4.0 + 2 * np.cumsum(reach) - reach  # nobody stands in anybody
    boxes = [
        (c, sizes[c], (x, 0.06 * x * np.sin(2.0 * i), 0.7 * i))
        for i, (c, x) in enumerate(zip(kinds, at, strict=True))
    ]
    scene = tiny_scene(boxes, buildings=())
    _, ids = draw(scene, size=(200, 112), channels=["CAM_FRONT"])
    shapes = [build_shape(c, np.array(size), i) for i, (c, size, _) in enumerate(boxes)]
    poses = [np.array(pose) for _, _, pose in boxes]
    want = first_face(*rays(scene, "CAM_FRONT", (200, 112)), shapes, poses)
    sure = inner(want)
    assert len(np.unique(want[sure])) > 5
    assert (ids["CAM_FRONT"] - 1 == want)[sure & (want >= 0)].mean() >= 0.99
    assert (ids["CAM_FRONT"] <= 0)[sure & (want < 0)].mean() >= 0.99


@pytest.mark.parametrize("seed", range(2))
def test_paint_order_is_right_along_every_ray(seed):
    boxes = scatter(100 + seed, 30, 40.0)
    footprint = corners(boxes[:, :3], boxes[:, 3], boxes[:, 4])
    order = paint_order(footprint, np.zeros(30), boxes[:, 5], np.array([0.0, 0.0, 1.5]))
    assert {i for i, _ in order} == set(range(30))
    assert_painted_last_is_first_hit(footprint, order)


def test_walls_around_the_viewer_that_hide_each_other_in_a_circle_are_cut():
    turns = np.arange(4) * np.pi / 2
    poses = np.stack([5 * np.cos(turns) - 4 * np.sin(turns), 5 * np.sin(turns) + 4 * np.cos(turns),
                      turns + np.pi / 2], -1)  # fmt: skip
    footprint = corners(poses, np.full(4, 14.0), np.full(4, 0.5))
    order = paint_order(footprint, np.zeros(4), np.full(4, 3.0), np.array([0.0, 0.0, 1.5]))
    assert len(order) > 4
    assert_painted_last_is_first_hit(footprint, order)


def assert_painted_last_is_first_hit(footprint, order):
    """Along rays in the plan: of all pieces hit, the nearest is painted after the others."""
    for angle in np.linspace(-np.pi, np.pi, 180, endpoint=False) + 1e-3:
        way = np.array([np.cos(angle), np.sin(angle)])
        hits = []
        for rank, (i, planes) in enumerate(order):
            edge = np.roll(footprint[i], -1, axis=0) - footprint[i]
            inwards = np.stack([-edge[:, 1], edge[:, 0]], -1)
            lines = [(n, n @ p) for n, p in zip(inwards, footprint[i], strict=True)]
            lines += [(plane[:2], -plane[2]) for plane in planes]
            enter, leave = 0.0, np.inf
            for n, least in lines:
                slope = n @ way
                if slope > 0:
                    enter = max(enter, least / slope)
                else:
                    leave = min(leave, least / slope)
            if leave - enter > 1e-6:
                hits.append((enter, rank))
        assert not hits or min(hits)[1] == max(rank for _, rank in hits)


def test_a_crown_over_a_car_hides_nothing_of_it():
    car = ("vehicle.car", (4.5, 1.8, 1.6), (15.0, 0.0, 0.3))
    bare = draw(tiny_scene([car], buildings=()))[1]["CAM_FRONT"]
    tree = draw(tiny_scene([car], buildings=(), trees=[(15.0, 1.2, 7.0, 2.0)]))[1]["CAM_FRONT"]
    assert (tree == TREE).sum() > 20
    assert ((bare == 1) & (tree != 1)).sum() <= 0.15 * (bare == 1).sum()  # a trunk beside it


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_shape_stays_in_its_box_and_reaches_its_top(category):
    size = np.array([1.9, 0.8, 1.7])
    for index in range(3):
        shape = build_shape(category, size, index)
        low, high = shape.corners.min((0, 1)), shape.corners.max((0, 1))
        assert (low >= [-0.95 - 1e-9, -0.4 - 1e-9, -1e-9]).all()
        assert (high <= [0.95 + 1e-9, 0.4 + 1e-9, 1.7 + 1e-9]).all()
        assert high[2] == pytest.approx(1.7)


def tilted(scene: Scene, roll: float, pitch: float) -> Scene:
    """The scene with its front camera rolled and pitched, radians."""
    camera = scene.cameras["CAM_FRONT"]
    c, s, d, t = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, d, -t], [0, t, d]]
    return replace(scene, cameras={"CAM_FRONT": replace(camera, rotation=camera.rotation @ turn)})


@pytest.mark.parametrize(("roll", "pitch"), [(0.0, 0.0), (0.12, 0.05)])
@pytest.mark.parametrize("ego", [(0.0, 0.0, 0.0), (21.3, 1.1, 2.2)])
def test_the_ground_is_drawn_where_it_projects(ego, roll, pitch):
    scene = tilted(tiny_scene((), buildings=()), roll, pitch)
    ego = np.array(ego)
    _, ids = draw(scene, ego, (400, 224), ["CAM_FRONT"])
    origin, ways = rays(scene, "CAM_FRONT", (400, 224), ego)
    assert (ids["CAM_FRONT"][ways[..., 2] > 0] == SKY).all()
    depth = -origin[2] / np.minimum(ways[..., 2], -1e-9)
    spots = origin[:2] + depth[..., None] * ways[..., :2]
    near = (ways[..., 2] < 0) & (depth < 35)
    road = shapely.Polygon(scene.map.drivable[0][0])
    walk = shapely.union_all([shapely.Polygon(w) for w in scene.map.walkways])
    points = shapely.points(spots[near])
    edge = shapely.distance(points, shapely.union_all([road.exterior, walk.boundary]))
    want = np.where(shapely.contains(road, points), ROAD, GRASS)
    want[shapely.contains(walk, points)] = PAVEMENT
    sure = edge > 0.3  # the kerb, and a texel
    assert sure.sum() > 5000
    assert len(np.unique(want[sure])) > 1
    assert (ids["CAM_FRONT"][near][sure] == want[sure]).all()


def test_paint_is_drawn_where_it_projects():
    scene = tiny_scene((), buildings=())
    views, _ = draw(scene, size=(800, 448), channels=["CAM_FRONT"])
    camera = scene.cameras["CAM_FRONT"].scaled(800, 448)

    def colour(x, y):
        spot = camera.rotation.T @ (np.array([x, y, 0.0]) - camera.translation)
        u, v, depth = camera.intrinsic @ spot
        return views["CAM_FRONT"][round(v / depth), round(u / depth)].astype(int)

    for x in (8.0, 10.0, 14.0):
        line, aside = colour(x, LANE_M / 2), colour(x, LANE_M / 2 - 0.5)
        assert line[0] - line[2] > 50
        assert abs(aside[0] - aside[2]) < 20


def test_what_is_behind_a_camera_is_not_drawn():
    behind = (BOX, (3.0, 3.0, 3.0), (-12.0, 0.0, 0.4))
    views, ids = draw(tiny_scene([behind]))
    bare, _ = draw(tiny_scene())
    assert (ids["CAM_BACK"] == 1).sum() > 50
    assert not (ids["CAM_FRONT"] == 1).any()
    none = draw(tiny_scene(()))[0]
    assert np.array_equal(views["CAM_FRONT"], none["CAM_FRONT"])
    assert not np.array_equal(bare["CAM_FRONT"], none["CAM_FRONT"])


def test_a_wall_beside_the_camera_is_cut_at_it():
    wall = (BOX, (40.0, 0.5, 3.0), (0.0, 4.0, 0.0))
    scene = tiny_scene([wall], buildings=())
    _, ids = draw(scene)
    for channel in ("CAM_FRONT_LEFT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_FRONT"):
        want = first_box(*rays(scene, channel), np.array([[0.0, 4.0, 0.0, 40.0, 0.5, 3.0]]))
        sure = inner(want)
        assert (want == 0).sum() > 100
        assert ((ids[channel] - 1 == 0) == (want == 0))[sure].mean() > 0.995


@pytest.mark.parametrize("wall", ["truck", "building"])
def test_what_is_hidden_has_no_pixel(wall):
    child = ("human.pedestrian.child", (0.4, 0.4, 1.1), (30.0, 0.0, 0.0))
    if wall == "truck":
        scene = tiny_scene([child, ("vehicle.truck", (7.0, 2.4, 3.0), (15.0, 0.0, 0.0))])
    else:
        scene = tiny_scene([child], buildings=[(15.0, 0.0, 0.3, 6.0, 4.0, 6.0)])
    renderer = Renderer(scene, (400, 224), ["CAM_FRONT"])
    there = np.ones(len(scene.tracks), bool)
    _, ids = renderer.render(ORIGIN, scene.tracks.pose[:, 0], there, masks=True)
    assert not (ids["CAM_FRONT"] == 1).any()
    aside = np.array([0.0, 9.0, -0.3])
    _, ids = renderer.render(aside, scene.tracks.pose[:, 0], there, masks=True)
    assert (ids["CAM_FRONT"] == 1).sum() > 20


def test_who_is_not_present_is_not_drawn_and_may_lack_a_pose():
    scene = tiny_scene()
    renderer = Renderer(scene, SMALL)
    pose = scene.tracks.pose[:, 0].copy()
    pose[0] = np.nan
    _, ids = renderer.render(ORIGIN, pose, np.array([False, True]), masks=True)
    shown = np.unique(np.stack(list(ids.values())))
    assert 1 not in shown
    assert 2 in shown


def test_the_same_again_bit_for_bit_and_masks_change_no_picture():
    scene = tiny_scene(trees=[(20.0, 8.0, 6.0, 1.8)])
    first, second = Renderer(scene, SMALL), Renderer(scene, SMALL)
    pose, there = scene.tracks.pose[:, 0], scene.tracks.valid[:, 0]
    views, ids = first.render(ORIGIN, pose, there, masks=True)
    first.render(np.array([9.0, 1.0, 0.5]), pose, there)
    again, ids_again = first.render(ORIGIN, pose, there, masks=True)
    plain = second.render(ORIGIN, pose, there)
    assert list(views) == list(CAMERAS)
    for name in CAMERAS:
        assert views[name].shape == (56, 100, 3)
        assert views[name].dtype == np.uint8
        assert ids[name].dtype == np.int32
        assert np.array_equal(views[name], again[name])
        assert np.array_equal(views[name], plain[name])
        assert np.array_equal(ids[name], ids_again[name])


def test_the_picture_moves_with_the_ego():
    tracks = (scene := tiny_scene()).tracks
    renderer = Renderer(scene, (400, 224), ["CAM_FRONT"])

    def car(ego):
        _, ids = renderer.render(np.array(ego), tracks.pose[:, 0], tracks.valid[:, 0], masks=True)
        rows, columns = np.nonzero(ids["CAM_FRONT"] == 1)
        return len(rows), columns.mean()

    size, column = car((0.0, 0.0, 0.0))
    assert car((5.0, 0.0, 0.0))[0] > 1.5 * size
    assert car((-5.0, 0.0, 0.0))[0] < 0.8 * size
    assert car((0.0, 1.0, 0.0))[1] > column + 10  # a step to the left
    assert car((0.0, 0.0, 0.1))[1] > column + 25  # a turn to the left: 0.1 rad of 316 pixels
    assert car((0.0, 0.0, -0.1))[1] < column - 25


def test_dusk_is_darker():
    scene = tiny_scene()
    day = draw(scene)[0]["CAM_FRONT"]
    dusk = draw(replace(scene, scenery=replace(scene.scenery, sun=0.4, sky=(84, 84, 116))))[0]
    assert dusk["CAM_FRONT"].mean() < 0.75 * day.mean()


def test_more_road_users_than_short_names_keep_the_nearest():
    rings, ways = np.meshgrid(np.linspace(10, 60, 20), np.linspace(-0.44, 0.44, 20), indexing="ij")
    spots = np.stack([rings * np.cos(ways), rings * np.sin(ways)], -1).reshape(-1, 2)
    boxes = [(BOX, (0.3, 0.2, 0.4), (x, y, 0.0)) for x, y in spots]
    _, ids = draw(tiny_scene(boxes, buildings=()), size=(800, 448), channels=["CAM_FRONT"])
    shown = set(np.unique(ids["CAM_FRONT"]).tolist())
    assert shown >= set(range(1, 201))  # ten rings
    assert not shown & set(range(261, 401))


def test_mistakes_are_named():
    scene = tiny_scene()
    with pytest.raises(ConfigError, match="'CAM_FORNT' is unknown; did you mean 'CAM_FRONT'"):
        Renderer(scene, channels=["CAM_FORNT"])
    with pytest.raises(ConfigError, match="size is"):
        Renderer(scene, (400, 0))
    renderer = Renderer(scene, SMALL, ["CAM_FRONT"])
    pose, there = scene.tracks.pose[:, 0], scene.tracks.valid[:, 0]
    with pytest.raises(ShapeError, match=r"this scene needs \(3,\), \(2, 3\)"):
        renderer.render(ORIGIN, pose[:1], there)
    with pytest.raises(ShapeError, match="not finite"):
        renderer.render(np.array([0.0, np.nan, 0.0]), pose, there)
