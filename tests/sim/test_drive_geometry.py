"""Poses, boxes and paths."""

import numpy as np
import pytest
from vla_prune_sim.drive.geometry import Polyline, corners, overlap, to_local, to_world, wrap

BEND = Polyline(np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 50.0]]))


def test_there_and_back():
    rng = np.random.default_rng(0)
    pose, points = rng.normal(size=(4, 3)), rng.normal(size=(4, 7, 2))
    np.testing.assert_allclose(to_local(to_world(points, pose), pose), points, atol=1e-12)
    # A metre ahead of something that looks north is a metre north of it.
    ahead = to_world(np.array([[1.0, 0.0]]), np.array([5.0, 6.0, np.pi / 2]))
    np.testing.assert_allclose(ahead, [[5.0, 7.0]], atol=1e-12)


def test_angles_are_wrapped():
    assert wrap(3 * np.pi / 2) == pytest.approx(-np.pi / 2)
    assert wrap(-np.pi) == pytest.approx(-np.pi)


def test_corners_begin_front_left_and_go_round():
    box = corners(np.array([10.0, 0.0, 0.0]), 4.0, 2.0)
    np.testing.assert_allclose(box, [[12, 1], [8, 1], [8, -1], [12, -1]])


@pytest.mark.parametrize(
    ("pose", "touch"),
    [
        ([3.9, 0.0, 0.0], True),
        ([4.1, 0.0, 0.0], False),
        ([0.0, 2.1, 0.0], False),
        # Turned by 45 degrees a corner reaches 3 / sqrt(2) = 2.12 m towards the other.
        ([4.0, 0.0, np.pi / 4], True),
        ([4.2, 0.0, np.pi / 4], False),
        ([0.0, 0.0, 1.0], True),
    ],
)
def test_boxes_overlap_when_they_do(pose, touch: bool):
    a, b = (corners(np.array(p, float), 4.0, 2.0) for p in ([0.0, 0.0, 0.0], pose))
    assert bool(overlap(a, b)) == touch
    assert bool(overlap(b, a)) == touch


@pytest.mark.parametrize(
    ("xy", "along", "left"),
    [
        ([30.0, 2.0], 30.0, 2.0),
        ([97.0, 30.0], 130.0, 3.0),
        ([-8.0, 1.0], -8.0, 1.0),
        ([99.0, 70.0], 170.0, 1.0),
    ],
)
@pytest.mark.parametrize("hint", [False, True])
def test_a_place_beside_a_path(xy, along: float, left: float, hint: bool):
    s, side = BEND.project(np.array(xy), near=along if hint else None)
    assert (float(s), float(side)) == pytest.approx((along, left))
    back = BEND.pose(s)
    normal = np.array([-np.sin(back[2]), np.cos(back[2])])
    np.testing.assert_allclose(back[:2] + side * normal, xy, atol=1e-9)


@pytest.mark.parametrize("near", [-500.0, -31.0, 0.0, 75.0, 150.0, 181.0, 900.0])
def test_a_hint_beyond_the_ends_still_finds_a_place(near: float):
    s, side = BEND.project(np.array([100.0, 40.0]), near=near)
    assert np.isfinite([s, side]).all()


def test_a_hint_tells_branches_of_a_loop_apart():
    turn = np.linspace(0, 2 * np.pi, 200)
    loop = Polyline(np.stack([50 * np.sin(turn), 50 - 50 * np.cos(turn)], axis=-1))
    first, last = (float(loop.project(np.array([0.0, 0.0]), near=s)[0]) for s in (3.0, 310.0))
    assert first == pytest.approx(0.0, abs=1.0)
    assert last == pytest.approx(loop.length, abs=1.0)


def test_repeated_points_do_no_harm_and_one_point_is_refused():
    path = Polyline(np.array([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0], [2.0, 0.0]]))
    assert path.length == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two points that differ"):
        Polyline(np.zeros((3, 2)))


def test_a_hint_never_leads_off_the_path():
    """What lies beyond the stretch that is looked at is not beyond the path."""
    place = np.array([100.0, 45.0])
    s, _ = BEND.project(place, near=55.0)  # the stretch ends before the bend
    assert float(s) <= 100.0
    for _ in range(3):
        s, _ = BEND.project(place, near=float(s))
    assert float(s) == pytest.approx(145.0)
