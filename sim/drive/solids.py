"""Everything that stands in a scene, as flat faces in the world: road users, buildings, trees.

Owners are counted through: the scene's tracks first, then buildings, then crowns, then trunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vla_prune_sim.drive.geometry import corners
from vla_prune_sim.drive.ground import brightness
from vla_prune_sim.drive.scene import Scene
from vla_prune_sim.drive.shapes import CORNERS, Shape, build_block, build_shape

SUN = np.array([0.48, 0.62, 0.62])  # towards it
AMBIENT, DIRECT = 0.62, 0.45
STOREY_M, BAY_M = 3.0, 2.7  # a window each
CROWN = np.array([84, 116, 58], float)
BARK = np.array([92, 74, 58], float)
GLASS, LIT_GLASS, DUSK = (70, 82, 96), (232, 196, 120), 0.5


@dataclass
class Faces:
    """Faces in the world.

    Attributes:
        corners: ``[F, 8, 3]`` metres, counter-clockwise from outside; the last one repeats.
        count: ``[F]`` how many corners are its own.
        normal: ``[F, 3]`` outwards.
        colour: ``[F, 3]`` in the scene's light, without haze.
        detail: ``[F]`` whether it is not worth drawing from afar.
        owner: ``[F]`` whose it is.
        span: ``[F, 2]`` reach of its part, along the owner's length where ``axis`` is 0, from its
            underside up where it is 2.
        axis: ``[F]``.
    """

    corners: np.ndarray
    count: np.ndarray
    normal: np.ndarray
    colour: np.ndarray
    detail: np.ndarray
    owner: np.ndarray
    span: np.ndarray
    axis: np.ndarray


class Solids:
    """What stands in a scene.

    Args:
        scene: its tracks' categories and sizes, and its scenery.

    Attributes:
        agents: how many tracks.
        buildings: how many.
        trees: how many.
        footprint: ``[O, 4, 2]`` of every owner, as of the last `place`.
        pose: ``[O, 3]`` of every owner, likewise.
        bottom: ``[O]`` height of its underside, metres.
        top: ``[O]`` height of its upper side, metres.
        windows: ``[M, 4, 3]`` of the buildings.
        first_window: ``[faces of buildings + 1]`` into ``windows``.
        glass: ``[3]`` their colour.
    """

    def __init__(self, scene: Scene) -> None:
        scenery, tracks = scene.scenery, scene.tracks
        self.agents, self.buildings = len(tracks), len(scenery.buildings)
        self.trees = len(scenery.trees)
        self.light = brightness(scenery)
        self._size = np.asarray(tracks.size, float).reshape(-1, 3)
        shapes = [
            build_shape(category, self._size[i], i) for i, category in enumerate(tracks.categories)
        ]
        self._own, self._bare, self._lamp = _gather(shapes)
        base = np.asarray(tracks.z, float) - self._size[:, 2] / 2
        b = scenery.buildings.reshape(-1, 6)
        t = scenery.trees.reshape(-1, 4)
        rooms = [
            build_block(size, colour)
            for size, colour in zip(b[:, 3:], scenery.building_colours, strict=True)
        ]
        walls, bare, _ = _gather(rooms)
        self._walls = _turn(walls, b[:, :3], np.zeros(len(b)))
        self._walls.colour = bare * self._shade(self._walls.normal)[:, None]
        self._walls.owner = self._walls.owner + self.agents
        self.windows, self.first_window = _windows(self._walls)
        dusk = scenery.sun < DUSK
        self.glass = np.array(LIT_GLASS, float) if dusk else self.light * np.array(GLASS)
        self._tree = t
        crown, trunk = t[:, 3], np.maximum(0.1, 0.09 * t[:, 3])
        flat = np.zeros((len(t), 1))
        at = np.concatenate([t[:, :2], flat], axis=1)
        still = [corners(b[:, :3], b[:, 3], b[:, 4])]
        still += [corners(at, 1.4 * r, 1.4 * r) for r in (crown, trunk)]
        self.bottom = np.concatenate([base, np.zeros(len(b)), t[:, 2] - 2 * crown, 0 * crown])
        self.top = np.concatenate(
            [base + self._size[:, 2], b[:, 5], t[:, 2], t[:, 2] - 1.6 * crown]
        )
        self.pose = np.concatenate([np.zeros((self.agents, 3)), b[:, :3], at, at])
        self.footprint = np.concatenate([np.zeros((self.agents, 4, 2)), *still])

    def place(self, pose: np.ndarray, shown: np.ndarray, viewer: np.ndarray) -> Faces:
        """All faces: of buildings, of the agents that are shown, and of trees.

        Args:
            pose: ``[N, 3]`` of the agents.
            shown: ``[N]`` bool.
            viewer: ``[2]`` where trees turn to, metres.
        """
        self.pose[: self.agents] = pose
        self.footprint[: self.agents] = corners(pose, self._size[:, 0], self._size[:, 1])
        pick = np.flatnonzero(shown[self._own.owner])
        own = Faces(**{name: values[pick] for name, values in vars(self._own).items()})
        own = _turn(own, pose, self.bottom[: self.agents])
        shade = np.where(self._lamp[pick], 1.0, self._shade(own.normal))
        own.colour = self._bare[pick] * shade[:, None]
        parts = [vars(part) for part in (self._walls, own, self._face_trees(viewer))]
        return Faces(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _face_trees(self, viewer: np.ndarray) -> Faces:
        """Crowns and trunks, turned to the viewer ``[2]``."""
        x, y, height, radius = self._tree.T
        sight = np.stack([x, y], -1) - viewer
        sight = sight / np.maximum(np.linalg.norm(sight, axis=1, keepdims=True), 1e-6)
        right = np.stack([sight[:, 1], -sight[:, 0]], -1)
        middle = np.stack([x, y, height - radius], -1)
        lit = middle.copy()
        lit[:, :2] += right * (np.sign(right @ SUN[:2]) * 0.16 * radius)[:, None]
        lit[:, 2] += 0.18 * radius
        shape = [_disc(middle, radius, right), _disc(lit, 0.72 * radius, right)]
        thick = np.maximum(0.1, 0.09 * radius)[:, None, None]
        stem = np.zeros((len(x), CORNERS, 3))
        stem[..., :2] = np.stack([x, y], -1)[:, None]
        wide = np.array([-0.5, 0.5, 0.4, -0.4, -0.4, -0.4, -0.4, -0.4])
        stem[..., :2] += wide[:, None] * thick * 1.4 * right[:, None]
        stem[:, 2:, 2] = (height - 1.6 * radius)[:, None]
        n, which = self.trees, np.arange(self.trees)
        tint = (1.0 + 0.16 * np.sin(which * 2.4))[:, None] * self.light
        crown = self.agents + self.buildings + which
        return Faces(
            corners=np.concatenate([*shape, stem]),
            count=np.repeat([CORNERS, CORNERS, 4], n),
            normal=np.tile(np.pad(-sight, ((0, 0), (0, 1))), (3, 1)),
            colour=np.concatenate(
                [tint * CROWN, 1.22 * tint * CROWN, self.light * BARK + 0 * tint]
            ),
            detail=np.repeat([False, True, False], n),
            owner=np.concatenate([crown, crown, crown + self.trees]),
            span=np.zeros((3 * n, 2)),
            axis=np.full(3 * n, 2),
        )

    def _shade(self, normal: np.ndarray) -> np.ndarray:
        return self.light * (AMBIENT + DIRECT * np.maximum(normal @ SUN, 0.0))


def _gather(shapes: list[Shape]) -> tuple[Faces, np.ndarray, np.ndarray]:
    """Faces of all shapes, each in its own frame, their colours in white light, and lamps."""
    if not shapes:
        shapes, empty = [build_block(np.ones(3), np.zeros(3))], True
    else:
        empty = False
    joined = {
        name: np.concatenate([getattr(shape, name) for shape in shapes])
        for name in ("corners", "count", "normal", "colour", "lamp", "detail", "span")
    }
    counts = [len(shape.count) for shape in shapes]
    joined["owner"] = np.repeat(np.arange(len(shapes)), counts)
    joined["axis"] = np.repeat([shape.axis for shape in shapes], counts)
    if empty:
        joined = {name: values[:0] for name, values in joined.items()}
    lamp, bare = joined.pop("lamp"), joined["colour"]
    return Faces(**joined), bare, lamp


def _turn(faces: Faces, pose: np.ndarray, base: np.ndarray) -> Faces:
    """The same faces with each owner at its pose ``[N, 3]`` and its underside at ``base``."""
    owner = faces.owner
    cos, sin = np.cos(pose[owner, 2]), np.sin(pose[owner, 2])
    moved, normal = np.empty_like(faces.corners), np.empty_like(faces.normal)
    x, y = faces.corners[..., 0], faces.corners[..., 1]
    moved[..., 0] = cos[:, None] * x - sin[:, None] * y + pose[owner, 0, None]
    moved[..., 1] = sin[:, None] * x + cos[:, None] * y + pose[owner, 1, None]
    moved[..., 2] = faces.corners[..., 2] + base[owner, None]
    normal[:, 0] = cos * faces.normal[:, 0] - sin * faces.normal[:, 1]
    normal[:, 1] = sin * faces.normal[:, 0] + cos * faces.normal[:, 1]
    normal[:, 2] = faces.normal[:, 2]
    return Faces(**{**vars(faces), "corners": moved, "normal": normal})


def _windows(walls: Faces) -> tuple[np.ndarray, np.ndarray]:
    """A window for each storey and bay of each upright wall, and where each wall's begin."""
    panes, first = [np.zeros((0, 4, 3))], [0]
    for wall, normal in zip(walls.corners[:, :4], walls.normal, strict=True):
        a, b, _, d = wall
        wide, tall = float(np.linalg.norm(b - a)), float(np.linalg.norm(d - a))
        columns, rows = int((wide - 1.0) / BAY_M), int((tall - 0.6) / STOREY_M)
        if abs(normal[2]) > 0.5 or columns < 1 or rows < 1:
            first.append(first[-1])
            continue
        s = (np.arange(columns) + 0.5) / columns * wide
        t = 0.3 + np.arange(rows) * STOREY_M + 1.8
        s, t = (v.reshape(-1, 1) for v in np.meshgrid(s, t))
        along, up = (b - a) / wide, (d - a) / tall
        u, v = s + np.array([-0.65, 0.65, 0.65, -0.65]), t + np.array([-0.8, -0.8, 0.8, 0.8])
        panes.append(a + u[..., None] * along + v[..., None] * up)
        first.append(first[-1] + len(s))
    return np.concatenate(panes), np.array(first)


def _disc(middle: np.ndarray, radius: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Upright polygons ``[K, 8, 3]``."""
    angle = np.arange(CORNERS) * 2 * np.pi / CORNERS + 0.2
    out = np.repeat(middle[:, None], CORNERS, axis=1)
    out[..., :2] += (radius[:, None] * np.cos(angle))[..., None] * right[:, None]
    out[..., 2] += radius[:, None] * np.sin(angle)
    return out


def lay_shadows(footprint: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Footprints ``[N, 4, 2]`` grown and pushed away from the sun: ``[N, 4, 3]`` on the ground."""
    middle = footprint.mean(1, keepdims=True)
    out = np.zeros((len(footprint), 4, 3))
    away = np.minimum(0.16 * height, 0.5)[:, None, None] * SUN[:2]
    out[..., :2] = middle + 1.1 * (footprint - middle) - away
    return out


def blend(colour: np.ndarray, haze: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours ``[F, 3]`` seen through haze, of which ``share`` ``[F]`` is left."""
    return haze + share[:, None] * (colour - haze)
