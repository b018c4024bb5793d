"""Camera pictures of a scene from anywhere on its streets, with exact masks. OpenCV on one core.

A painter: the ground is looked up in a picture from above (`Ground`), then every visible face is
filled from back to front, in an order that is right for boxes of any length (`paint_order`). The
cost is Python per polygon, so all corners are projected at once and one fill paints both the
colour and, in a fourth channel, what it belongs to: masks are exact and nearly free. Earth is
flat and nothing is antialiased. OpenCV's threads only cost time here: `cv2.setNumThreads(1)`.

    >>> renderer = Renderer(scene, channels=["CAM_FRONT"])  # doctest: +SKIP
    >>> views, ids = renderer.render(pose, agents, present, masks=True)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from vla_prune_sim.drive.ground import Ground, SeenGround, sight_lines
from vla_prune_sim.drive.occlusion import paint_order
from vla_prune_sim.drive.scene import CAMERAS, Camera, Scene
from vla_prune_sim.drive.solids import Solids, blend, lay_shadows

from vla_prune.errors import ConfigError, ShapeError, did_you_mean

# What a mask holds besides 1 + the index of an agent.
SKY, ROAD, PAVEMENT, GRASS, BUILDING, TREE = 0, -1, -2, -3, -4, -5
# While painting, the fourth channel holds 0 for the sky, the ground's kinds, these two, and from
# FIRST on the agents that this camera sees.
_BUILDING, _TREE, _FIRST = 4, 5, 6
AGENTS_M, BUILDINGS_M, TREES_M = 120.0, 260.0, 130.0  # farther ones are not drawn
DETAIL_M, WINDOWS_M, SHADOW_M = 45.0, 90.0, 50.0
HAZE_FROM_M, HAZE_M = 20.0, 260.0  # begins here; e-folding beyond
NEAR_M = 0.2
SHIFT = 4  # bits of a pixel's fraction
SHADOW = np.array([50, 51, 55])


class Renderer:
    """Draws one scene.

    Args:
        scene: whatever it was read from; without scenery the streets are bare.
        size: width and height of a view, pixels.
        channels: cameras to draw, all of the scene's where not given.
    """

    def __init__(
        self,
        scene: Scene,
        size: tuple[int, int] = (400, 224),
        channels: Iterable[str] | None = None,
    ) -> None:
        if channels is None:
            channels = [name for name in CAMERAS if name in scene.cameras]
        for name in channels:
            if name not in scene.cameras:
                raise did_you_mean(f"Renderer of {scene.name}", "camera", name, scene.cameras)
        if min(size) < 8:
            raise ConfigError(
                f"Renderer: size is {size}; a view is width x height, at least 8 x 8 pixels."
            )
        self.ground, self.solids = Ground(scene), Solids(scene)
        sky = np.array(scene.scenery.sky, float)
        haze = 0.6 * sky + 0.4 * np.clip(220.0 * self.solids.light, 0, 255)
        self._haze = haze
        self.views = {
            name: _View(scene.cameras[name].scaled(*size), sky, haze) for name in channels
        }

    def render(
        self,
        ego_pose: np.ndarray,
        agents_pose: np.ndarray,
        present: np.ndarray,
        masks: bool = False,
    ) -> dict[str, np.ndarray] | tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The picture of each camera, ``[H, W, 3]`` uint8 RGB.

        Args:
            ego_pose: ``[3]`` of the rear axle.
            agents_pose: ``[N, 3]`` centres of all tracks of the scene.
            present: ``[N]`` bool, who is there.
            masks: also give what each pixel shows, ``[H, W]`` int32: 1 + the index of the agent,
                `SKY`, `ROAD` (with its paint), `PAVEMENT`, `GRASS`, `BUILDING` or `TREE`.
        """
        ego_pose, agents_pose = np.asarray(ego_pose, float), np.asarray(agents_pose, float)
        present = np.asarray(present, bool).copy()
        n = self.solids.agents
        if ego_pose.shape != (3,) or agents_pose.shape != (n, 3) or present.shape != (n,):
            raise ShapeError(
                f"Renderer.render: ego_pose {ego_pose.shape}, agents_pose {agents_pose.shape}, "
                f"present {present.shape}; this scene needs (3,), ({n}, 3) and ({n},)."
            )
        if not (np.isfinite(ego_pose).all() and np.isfinite(agents_pose[present]).all()):
            raise ShapeError(
                "Renderer.render: the pose of the ego or of an agent that is present is not "
                "finite; mark agents without a pose as not present."
            )
        agents_pose = np.where(present[:, None], agents_pose, 0.0)
        frame = _Frame(self.solids, ego_pose, agents_pose, present, self._haze)
        pictures, ids = {}, {}
        for name, view in self.views.items():
            image, table = view.paint(self.ground, frame, masks)
            pictures[name] = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
            if masks:
                ids[name] = cv2.LUT(cv2.extractChannel(image, 3), table)
        return (pictures, ids) if masks else pictures


class _Frame:
    """One instant: what is where, in which colour; the same for all cameras."""

    def __init__(
        self,
        solids: Solids,
        ego: np.ndarray,
        agents: np.ndarray,
        present: np.ndarray,
        haze: np.ndarray,
    ) -> None:
        self.solids, self.ego, self.haze = solids, ego, haze
        self.faces = solids.place(agents, present, ego[:2])
        a, b, t = solids.agents, solids.buildings, solids.trees
        self.away = np.hypot(*(solids.pose[:, :2] - ego[:2]).T)
        limit = np.repeat([AGENTS_M, BUILDINGS_M, TREES_M], [a, b, 2 * t])
        self.shown = np.flatnonzero(
            (self.away < limit) & np.concatenate([present, np.ones(b + 2 * t, bool)])
        )
        self.clear = np.exp(-np.maximum(self.away - HAZE_FROM_M, 0.0) / HAZE_M)
        owner = self.faces.owner
        colour = blend(self.faces.colour, haze, self.clear[owner])
        self.ink = np.column_stack([np.clip(colour, 0, 255), np.zeros(len(colour))])
        self.worth = ~self.faces.detail | (self.away[owner] < DETAIL_M)
        rows = solids.footprint[self.shown]
        self.boxes = np.concatenate(
            [
                np.dstack([rows, np.repeat(level[self.shown, None], 4, axis=1)])
                for level in (solids.bottom, solids.top)
            ],
            axis=1,
        )
        near = np.flatnonzero(present & (self.away[:a] < SHADOW_M))
        self.shadows = lay_shadows(solids.footprint[near], solids.top[near])
        self.shadow = (*(SHADOW * solids.light).tolist(), 0)


class _View:
    """One camera: what of it does not change."""

    def __init__(self, camera: Camera, sky: np.ndarray, haze: np.ndarray) -> None:
        self.camera, self.seen = camera, SeenGround(camera)
        sight = sight_lines(camera)
        up = np.clip(sight[..., 2] / np.linalg.norm(sight, axis=-1) / 0.35, 0, 1)[..., None]
        self.sky = np.zeros((camera.height, camera.width, 4), np.uint8)
        self.sky[..., :3] = np.rint(haze + np.sqrt(up) * (sky - haze))
        away = np.hypot(self.seen.x, self.seen.y)
        clear = np.exp(-np.maximum(away - HAZE_FROM_M, 0.0) / HAZE_M)
        clear = np.where(self.seen.above, 0.0, clear)[..., None]
        hazy = int((clear.min(axis=(1, 2), initial=1.0) < 0.98).sum())
        self.hazy = slice(self.seen.horizon, self.seen.horizon + hazy)
        self.clear = np.repeat(np.rint(255 * clear[:hazy]), 4, axis=2).astype(np.uint8)
        self.haze = np.rint((1 - clear[:hazy]) * self.sky[self.hazy]).astype(np.uint8)

    def paint(self, ground: Ground, frame: _Frame, masks: bool) -> tuple[np.ndarray, np.ndarray]:
        """Picture ``[H, W, 4]`` and ``[1, 256]`` what its fourth channel stands for."""
        seen, image = self.seen, self.sky.copy()
        matrix, viewer = self._look(frame.ego)
        ground.draw(image, seen, frame.ego)
        if self.hazy.stop > self.hazy.start:
            band = image[self.hazy]
            cv2.multiply(band, self.clear, dst=band, scale=1 / 255)
            cv2.add(band, self.haze, dst=band)
        for points in frame.shadows[~_outside(_project(frame.shadows, matrix), self.camera)]:
            _fill(image, points, matrix, frame.shadow)
        if masks and seen.horizon < len(image):
            kinds = ground.kinds(seen, frame.ego)
            kinds[seen.above] = 0
            cv2.insertChannel(kinds, image[seen.horizon :], 3)
        owners = frame.shown[~_outside(_project(frame.boxes, matrix), self.camera)]
        table, short = _names(frame.solids, owners, frame.away)
        self._draw(image, frame, owners[short[owners] > 0], short, matrix, viewer)
        return image, table

    def _look(self, ego: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``[3, 4]`` from the world to pixels, and where the camera is."""
        cos, sin = np.cos(ego[2]), np.sin(ego[2])
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        viewer = turn @ self.camera.translation + np.array([ego[0], ego[1], 0.0])
        to_pixels = self.camera.intrinsic @ (turn @ self.camera.rotation).T
        return np.hstack([to_pixels, (-to_pixels @ viewer)[:, None]]), viewer

    def _draw(
        self,
        image: np.ndarray,
        frame: _Frame,
        owners: np.ndarray,
        short: np.ndarray,
        matrix: np.ndarray,
        viewer: np.ndarray,
    ) -> None:
        solids = frame.solids
        order = paint_order(
            solids.footprint[owners], solids.bottom[owners], solids.top[owners], viewer
        )
        kept = _facing(frame, owners, viewer)
        faces = frame.faces
        spots = _project(faces.corners[kept], matrix)
        near = spots[..., 2].max(1) >= NEAR_M
        kept, spots = kept[near], spots[near]
        owner = faces.owner[kept]
        start = np.searchsorted(owner, owners, "left").tolist()
        stop = np.searchsorted(owner, owners, "right").tolist()
        whole = (spots[..., 2].min(1) >= NEAR_M).tolist()
        flat = _pixels(np.maximum(spots, (-np.inf, -np.inf, NEAR_M)))
        flat = [points[:n] for points, n in zip(flat, faces.count[kept].tolist(), strict=True)]
        ink = frame.ink[kept]
        ink[:, 3] = short[owner]
        ink = ink.tolist()
        panes = self._panes(frame, kept, matrix)
        for i, planes in order:
            for f in range(start[i], stop[i]):
                if whole[f] and not planes:
                    cv2.fillConvexPoly(image, flat[f], ink[f], cv2.LINE_8, SHIFT)
                else:
                    points = faces.corners[kept[f], : len(flat[f])]
                    _fill(image, points, matrix, ink[f], planes)
                if f in panes and not planes:
                    cv2.fillPoly(image, *panes[f], cv2.LINE_8, SHIFT)

    def _panes(
        self, frame: _Frame, drawn: np.ndarray, matrix: np.ndarray
    ) -> dict[int, tuple[list[np.ndarray], list[float]]]:
        """Windows in pixels and their colour, by place in ``drawn``, of walls that have some."""
        solids, owner = frame.solids, frame.faces.owner
        begin = solids.first_window
        place = np.flatnonzero((drawn < len(begin) - 1) & (frame.away[owner[drawn]] < WINDOWS_M))
        if not len(place):
            return {}
        walls = drawn[place]
        count = begin[walls + 1] - begin[walls]
        wall = np.repeat(np.arange(len(walls)), count)
        index = np.arange(len(wall)) + (begin[walls] - np.cumsum(count) + count)[wall]
        spots = _project(solids.windows[index], matrix)
        # Of a window, the second corner is its right one.
        fits = (spots[..., 2].min(1) >= NEAR_M) & (spots[:, 1, 0] > 0)
        fits &= spots[:, 0, 0] < self.camera.width * spots[:, 0, 2]
        flat = list(_pixels(spots[fits]))
        cuts = np.searchsorted(wall[fits], np.arange(len(walls) + 1)).tolist()
        glass = blend(solids.glass, frame.haze, frame.clear[owner[walls]]).tolist()
        return {
            int(f): (flat[a:b], [*ink, _BUILDING])
            for f, a, b, ink in zip(place, cuts[:-1], cuts[1:], glass, strict=True)
            if b > a
        }


def _names(solids: Solids, owners: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Table from short names to what masks hold, and each owner's short name, or 0."""
    a = solids.agents
    table, short = np.zeros((1, 256), np.int32), np.zeros(len(away), np.int64)
    table[0, :_FIRST] = SKY, ROAD, PAVEMENT, GRASS, BUILDING, TREE
    short[a : a + solids.buildings], short[a + solids.buildings :] = _BUILDING, _TREE
    agents = owners[owners < a]
    if len(agents) > 256 - _FIRST:  # the nearest
        agents = agents[np.argsort(away[agents], kind="stable")[: 256 - _FIRST]]
    short[agents] = _FIRST + np.arange(len(agents))
    table[0, _FIRST : _FIRST + len(agents)] = agents + 1
    return table, short


def _facing(frame: _Frame, owners: np.ndarray, viewer: np.ndarray) -> np.ndarray:
    """Faces that look at the viewer: by owner, then by part from far to near, then as listed."""
    solids, faces = frame.solids, frame.faces
    wanted = np.zeros(len(frame.away), bool)
    wanted[owners] = True
    pick = np.flatnonzero(wanted[faces.owner] & frame.worth)
    pick = pick[((viewer - faces.corners[pick, 0]) * faces.normal[pick]).sum(-1) > 1e-9]
    owner, span = faces.owner[pick], faces.span[pick]
    x, y, heading = solids.pose.T
    along = np.cos(heading) * (viewer[0] - x) + np.sin(heading) * (viewer[1] - y)
    up = viewer[2] - solids.bottom
    at = np.where(faces.axis[pick] == 0, along[owner], up[owner])
    gap = np.maximum(np.maximum(span[:, 0] - at, at - span[:, 1]), 0.0)
    return pick[np.lexsort((-gap, owner))]


def _pixels(spots: np.ndarray) -> np.ndarray:
    """Homogeneous pixels ``[..., 3]`` as OpenCV draws them, ``[..., 2]`` int32."""
    flat = spots[..., :2] / spots[..., 2:]
    return np.rint(np.clip(flat, -1e6, 1e6) * 2**SHIFT).astype(np.int32)


def _project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Homogeneous pixels ``[..., 3]``; the last is the depth in metres."""
    flat = points.reshape(-1, 3) @ matrix[:, :3].T + matrix[:, 3]
    return flat.reshape(points.shape)


def _outside(spots: np.ndarray, camera: Camera) -> np.ndarray:
    """``[P]`` whether all corners ``[P, C, 3]`` are beyond one side of the picture."""
    u, v, depth = spots[..., 0], spots[..., 1], spots[..., 2]
    out = (depth < NEAR_M).all(-1)
    # Half a pixel of the edge is drawn.
    for beyond in (
        u < -0.5 * depth,
        v < -0.5 * depth,
        u > (camera.width - 0.5) * depth,
        v > (camera.height - 0.5) * depth,
    ):
        out |= beyond.all(-1)
    return out


def _fill(
    image: np.ndarray,
    points: np.ndarray,
    matrix: np.ndarray,
    ink: Iterable[float],
    planes: Iterable[np.ndarray] = (),
) -> None:
    """A face ``[C, 3]`` of which only a part may be in front of the camera or of ``planes``."""
    for plane in planes:
        points = _clip(points, points[:, :2] @ plane[:2] + plane[2])
    if not len(points):
        return
    spots = _project(points, matrix)
    spots = _clip(spots, spots[:, 2] - NEAR_M)
    if len(spots) > 2:
        cv2.fillConvexPoly(image, _pixels(spots), ink, cv2.LINE_8, SHIFT)


def _clip(points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The part of a convex polygon ``[C, D]`` where ``inside`` ``[C]`` is not negative."""
    if (inside >= 0).all():
        return points
    kept = []
    for i in range(len(points)):
        a, b = inside[i - 1], inside[i]
        if (a < 0) != (b < 0):
            kept.append(points[i - 1] + a / (a - b) * (points[i] - points[i - 1]))
        if b >= 0:
            kept.append(points[i])
    return np.array(kept).reshape(-1, points.shape[1])
