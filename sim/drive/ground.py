"""The ground of a scene, painted once from above and looked up by each camera.

Flat earth: which point of it a pixel shows is fixed in the ego's frame, so a frame costs a few
`cv2.remap` calls however much is painted (`cv2.warpPerspective` took twice as long). Coarser
copies of the picture stand for what is far, as single texels would flicker there. Light is in the
paint; haze is the camera's.

    >>> ground = Ground(scene)  # doctest: +SKIP
    >>> ground.draw(image, seen, pose)  # doctest: +SKIP
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import shapely
from shapely.geometry import LineString, Polygon
from shapely.ops import substring
from vla_prune_sim.drive.scene import Camera, RoadMap, Scene, Scenery

ROAD, PAVEMENT, GRASS = 1, 2, 3  # what `Ground.kind` holds
MARGIN_M, AHEAD_M = 80.0, 120.0  # painted around the log, and along the route beyond its end
TEXEL_M, TEXELS = 0.1, 9_000_000  # no finer, no more
FAR_M = 400.0
LEVELS = 4  # copies, each half as fine as the one before
POLYGON = 3  # of `shapely.get_type_id`
SHIFT = 4  # bits of a pixel's fraction in OpenCV's drawing
PAINT_M, DASH_M, GAP_M = 0.15, 3.0, 4.5
STRIPE_M = 0.5  # of a zebra crossing
KERB_M = 0.2
STOP_M = 1.0  # deeper stop lines are areas of the map, not paint
COLOURS = {
    "grass": (98, 122, 70),
    "pavement": (164, 160, 154),
    "kerb": (190, 187, 180),
    "road": (86, 87, 92),
    "white": (225, 225, 222),
    "yellow": (222, 186, 84),
}


class Ground:
    """A scene's ground from above.

    Args:
        scene: its map is painted, around its log.

    Attributes:
        kind: ``[R, C]`` uint8, `ROAD` (paint on it included), `PAVEMENT` or `GRASS`; rows towards
            north, columns towards east.
        origin: ``[2]`` world position of the picture's south-west corner, metres.
        texel: metres.
        levels: the picture ``[R, C, 4]`` uint8 (the last channel is spare) and its coarser copies.
    """

    def __init__(self, scene: Scene) -> None:
        self._light = brightness(scene.scenery)
        ahead = scene.route[np.hypot(*(scene.route - scene.ego[-1, :2]).T) < AHEAD_M]
        driven = np.concatenate([scene.ego[:, :2], ahead])
        low, high = driven.min(0) - MARGIN_M, driven.max(0) + MARGIN_M
        self.origin, self.texel = low, max(TEXEL_M, float(np.sqrt(np.prod(high - low) / TEXELS)))
        coarsest = 2 ** (LEVELS - 1)
        columns, rows = (
            (np.ceil((high - low) / self.texel / coarsest) * coarsest).astype(int).tolist()
        )
        self.kind = np.full((rows, columns), GRASS, np.uint8)
        picture = np.empty((rows, columns, 4), np.uint8)
        cv2.rectangle(picture, (0, 0), (columns, rows), (*COLOURS["grass"], 0), cv2.FILLED)
        self._pave(picture, scene.map)
        self._mark(picture, scene.map)
        _speckle(picture, 6)
        _speckle(picture, 10, self.kind == GRASS)
        if self._light != 1.0:
            picture = cv2.convertScaleAbs(picture, alpha=self._light)
        self.levels = [picture]
        for _ in range(1, LEVELS):
            self.levels.append(cv2.resize(self.levels[-1], None, fx=0.5, fy=0.5))

    def draw(self, image: np.ndarray, seen: SeenGround, pose: np.ndarray) -> None:
        """Paint what a camera sees of the ground into ``image`` ``[H, W, 4]``.

        Args:
            image: rows below the horizon are overwritten.
            seen: the camera.
            pose: ``[3]`` of the ego's rear axle.
        """
        grass = [self._light * v for v in (*COLOURS["grass"], 0)]
        for level, first, last in seen.bands:
            cv2.remap(
                self.levels[level],
                *self._texels(level, seen.x[first:last], seen.y[first:last], pose),
                cv2.INTER_LINEAR,
                dst=image[seen.horizon + first : seen.horizon + last],
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=grass,
            )

    def kinds(self, seen: SeenGround, pose: np.ndarray) -> np.ndarray:
        """`kind` as a camera sees it, ``[H - horizon, W]`` uint8."""
        where = self._texels(0, seen.x, seen.y, pose)
        return cv2.remap(
            self.kind,
            *where,
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=GRASS,
        )

    def _texels(
        self, level: int, x: np.ndarray, y: np.ndarray, pose: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows of a level at points given in the ego's frame."""
        size = self.texel * 2**level
        cos, sin = float(np.cos(pose[2]) / size), float(np.sin(pose[2]) / size)
        column, row = ((pose[:2] - self.origin) / size - 0.5).tolist()
        return cos * x - sin * y + column, sin * x + cos * y + row

    def _pave(self, picture: np.ndarray, ground: RoadMap) -> None:
        """Pavements, roads and the kerb between them."""
        rows, columns = self.kind.shape
        frame = shapely.box(*self.origin, *(self.origin + self.texel * np.array([columns, rows])))
        road = shapely.union_all([Polygon(p[0], p[1:]).buffer(0) for p in ground.drivable])
        walk = shapely.union_all([Polygon(p).buffer(0) for p in ground.walkways])
        # The kerb lies on the road's edge only where there is a pavement beside it.
        kerb = road.buffer(KERB_M).intersection(walk.buffer(KERB_M))
        for name, area, kind in (
            ("pavement", walk, PAVEMENT),
            ("kerb", kerb, PAVEMENT),
            ("road", road, ROAD),
        ):
            rings = self._rings(area.intersection(frame))
            cv2.fillPoly(self.kind, rings, kind, cv2.LINE_8, SHIFT)
            cv2.fillPoly(picture, rings, (*COLOURS[name], 0), cv2.LINE_8, SHIFT)

    def _mark(self, picture: np.ndarray, ground: RoadMap) -> None:
        """Paint on the road."""
        areas = [stripe for outline in ground.crossings for stripe in _zebra(Polygon(outline))]
        for outline in ground.stop_lines:
            area = Polygon(outline).buffer(0)
            if area.area and min(_sides(area)[1:]) <= STOP_M:
                areas.append(area)
        dashes = [dash for line in ground.dividers for dash in _dashes(line)]
        areas += shapely.buffer(dashes, PAINT_M / 2, cap_style="flat").tolist()
        lines = [LineString(line).buffer(PAINT_M / 2) for line in ground.centre_lines]
        for name, painted in (("yellow", lines), ("white", areas)):
            for area in painted:
                rings = self._rings(area)
                cv2.fillPoly(picture, rings, (*COLOURS[name], 0), cv2.LINE_AA, SHIFT)

    def _rings(self, area: shapely.Geometry) -> list[np.ndarray]:
        """Outlines and holes of an area in fractions of a texel, for `cv2.fillPoly`."""
        parts = shapely.get_parts(area)
        rings = shapely.get_rings(parts[shapely.get_type_id(parts) == POLYGON])
        xy, ring = shapely.get_coordinates(rings, return_index=True)
        xy = np.rint(((xy - self.origin) / self.texel - 0.5) * 2**SHIFT).astype(np.int32)
        return np.split(xy, np.flatnonzero(np.diff(ring)) + 1) if len(xy) else []


class SeenGround:
    """How one camera sees flat ground.

    Args:
        camera: at the size that is drawn.

    Attributes:
        horizon: the first row that shows ground less than `FAR_M` away.
        x: ``[H - horizon, W]`` float32 metres forward in the ego's frame of what a pixel shows.
        y: the same to the left.
        above: ``[H - horizon, W]`` whether it shows no ground, as where the camera is tilted.
        bands: level of the ground's picture, first and last row + 1 below the horizon.
    """

    def __init__(self, camera: Camera) -> None:
        sight = sight_lines(camera)
        x, y, z = camera.translation
        below = sight[..., 2] < -z / FAR_M
        rows = np.flatnonzero(below.any(1))
        self.horizon = int(rows[0]) if len(rows) else camera.height
        sight, self.above = sight[self.horizon :], ~below[self.horizon :]
        depth = z / np.maximum(-sight[..., 2], z / FAR_M)
        self.x = (x + depth * sight[..., 0]).astype(np.float32)
        self.y = (y + depth * sight[..., 1]).astype(np.float32)
        # Mean of how wide and how long a pixel's patch of ground is; the latter grows faster.
        patch = depth[:, camera.width // 2] ** 1.5 / (camera.intrinsic[0, 0] * np.sqrt(z))
        level = np.clip(np.log2(patch / TEXEL_M), 0, LEVELS - 1).astype(int)
        cuts = [0, *(np.flatnonzero(np.diff(level)) + 1).tolist(), len(level)]
        self.bands = [(int(level[a]), a, b) for a, b in pairwise(cuts) if b > a]


def brightness(scenery: Scenery) -> float:
    """By how much the light multiplies colours; dusk is lifted, as a camera's exposure does."""
    return float(np.clip(0.25 + 0.75 * scenery.sun, 0.2, 1.2))


def sight_lines(camera: Camera) -> np.ndarray:
    """Where each pixel looks, ``[H, W, 3]`` in the ego's frame, one metre deep each."""
    rays = camera.rotation @ np.linalg.inv(camera.intrinsic)
    v, u = np.mgrid[: camera.height, : camera.width]
    return np.stack([u, v, np.ones_like(u)], -1) @ rays.T


def _speckle(picture: np.ndarray, strength: int, where: np.ndarray | None = None) -> None:
    """Grain and soft patches, the same at each call; a tile repeats."""
    rng = np.random.default_rng(strength)
    side = 512
    grain = rng.normal(0.0, 0.5, (side, side))
    patches = cv2.resize(np.pad(rng.normal(0.0, 1.0, (16, 16)), (0, 1), "wrap"), (side, side))
    tile = np.rint(strength * (grain + patches))
    more, less = (cv2.merge([np.maximum(v, 0).astype(np.uint8)] * 4) for v in (tile, -tile))
    for r in range(0, len(picture), side):
        for c in range(0, picture.shape[1], side):
            part = picture[r : r + side, c : c + side]
            rows, columns = part.shape[:2]
            mask = None if where is None else where[r : r + side, c : c + side].astype(np.uint8)
            cv2.add(part, more[:rows, :columns], dst=part, mask=mask)
            cv2.subtract(part, less[:rows, :columns], dst=part, mask=mask)


def _sides(area: shapely.Geometry) -> tuple[np.ndarray, float, float]:
    """Ring ``[4, 2]`` of the tightest rectangle around an area, and its two sides in metres."""
    ring = np.asarray(area.minimum_rotated_rectangle.exterior.coords)[:4]
    return ring, float(np.hypot(*(ring[1] - ring[0]))), float(np.hypot(*(ring[2] - ring[1])))


def _zebra(area: Polygon) -> list[shapely.Geometry]:
    """Stripes across the way people walk, which is along the longer side."""
    area = area.buffer(0)
    if not area.area:
        return []
    ring, first, second = _sides(area)
    if first < second:
        ring, first = np.roll(ring, -1, axis=0), second
    along, across = (ring[1] - ring[0]) / first, ring[3] - ring[0]
    stripes = []
    for s in np.arange(STRIPE_M / 2, first - STRIPE_M / 2, 2 * STRIPE_M):
        a, b = ring[0] + s * along, ring[0] + (s + STRIPE_M) * along
        stripes.append(Polygon([a, b, b + across, a + across]).intersection(area))
    return stripes


def _dashes(line: np.ndarray) -> list[LineString]:
    whole = LineString(line)
    starts = np.arange(GAP_M / 2, whole.length - DASH_M, DASH_M + GAP_M)
    return [substring(whole, s, s + DASH_M) for s in starts]
