"""What road users and buildings look like: flat faces in metres, by nuScenes category.

A shape fills its annotated box and never leaves it. Its parts stand in a row along one axis (0:
one behind the other, 2: one on the other), so that they can be painted from the far part to the
near one; within a part, faces that look at the viewer hide nothing but what comes before them.

    >>> shape = build_shape("vehicle.car", np.array([4.5, 1.8, 1.6]), index=0)
    >>> shape.corners.shape[1:]
    (8, 3)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]
CORNERS = 8  # a face has at most
CARS = ((168, 32, 36), (38, 70, 142), (226, 226, 224), (52, 54, 58), (150, 154, 160),
        (36, 98, 74), (196, 158, 60), (120, 42, 84), (92, 134, 176), (190, 96, 40))  # fmt: skip
BIG = ((214, 210, 200), (190, 74, 48), (62, 104, 150), (228, 190, 70), (96, 126, 92))
CLOTHES = ((176, 48, 60), (44, 92, 148), (228, 226, 216), (70, 130, 84), (206, 150, 52),
           (112, 72, 134), (60, 62, 72), (214, 122, 140))  # fmt: skip
TROUSERS = ((44, 48, 66), (72, 66, 58), (36, 36, 40), (96, 104, 122))
SKIN = ((226, 186, 158), (188, 136, 104), (120, 84, 64))
GLASS, TYRE, DARK, WHITE = (54, 66, 80), (26, 26, 28), (40, 40, 44), (236, 236, 232)
FRONT_LAMP, REAR_LAMP, ORANGE = (255, 244, 206), (206, 28, 30), (240, 112, 28)
THINGS = ((150, 132, 104), (116, 118, 122), (134, 96, 70))


@dataclass(frozen=True)
class Shape:
    """Faces of one thing, in its own frame: x forward, y left, z up from its underside.

    Attributes:
        corners: ``[F, 8, 3]`` metres, counter-clockwise from outside; the last one repeats.
        count: ``[F]`` how many corners are its own.
        normal: ``[F, 3]`` outwards, of length one.
        colour: ``[F, 3]`` RGB in white light.
        lamp: ``[F]`` whether it shines by itself.
        detail: ``[F]`` whether it lies on another face, and is not worth drawing from afar.
        span: ``[F, 2]`` from where to where its part reaches along ``axis``.
        axis: 0 or 2.
    """

    corners: np.ndarray
    count: np.ndarray
    normal: np.ndarray
    colour: np.ndarray
    lamp: np.ndarray
    detail: np.ndarray
    span: np.ndarray
    axis: int


class _Builder:
    def __init__(self, axis: int) -> None:
        self.axis, self.rows, self.span = axis, [], (0.0, 0.0)

    def block(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        top_x: tuple[float, float] | None = None,
        top_y: tuple[float, float] | None = None,
        same_part: bool = False,
    ) -> dict[str, np.ndarray]:
        """A box, or with another top a frustum, as a new part; its faces ``[4, 3]`` by name.

        Each face begins at its lower left corner as seen from outside.
        """
        (a, b), (c, d), (e, f) = x, y, z
        (g, h), (i, j) = top_x or x, top_y or y
        low = {"br": (a, c, e), "fr": (b, c, e), "fl": (b, d, e), "bl": (a, d, e)}
        up = {"br": (g, i, f), "fr": (h, i, f), "fl": (h, j, f), "bl": (g, j, f)}
        span = (x, y, z)[self.axis]
        self.span = (min(span[0], self.span[0]), max(span[1], self.span[1])) if same_part else span
        faces = {
            "back": (low["bl"], low["br"], up["br"], up["bl"]),
            "front": (low["fr"], low["fl"], up["fl"], up["fr"]),
            "right": (low["br"], low["fr"], up["fr"], up["br"]),
            "left": (low["fl"], low["bl"], up["bl"], up["fl"]),
            "top": (up["br"], up["fr"], up["fl"], up["bl"]),
            "bottom": (low["bl"], low["fl"], low["fr"], low["br"]),
        }
        faces = {name: np.array(face) for name, face in faces.items()}
        for face in faces.values():
            self.add(face, colour)
        return faces

    def add(
        self, face: np.ndarray, colour: Colour, lamp: bool = False, detail: bool = False
    ) -> None:
        self.rows.append((np.asarray(face, float), colour, lamp, detail, self.span))

    def patch(
        self, face: np.ndarray, u: tuple[float, float], v: tuple[float, float], colour: Colour,
        lamp: bool = False,
    ) -> None:  # fmt: skip
        """A part of a face, by shares of its width and height."""
        (a, b, c, d), points = face, []
        for s, t in ((u[0], v[0]), (u[1], v[0]), (u[1], v[1]), (u[0], v[1])):
            points.append((a * (1 - s) + b * s) * (1 - t) + (d * (1 - s) + c * s) * t)
        self.add(np.array(points), colour, lamp, detail=True)

    def wheel(self, x: float, y: float, radius: float, sides: tuple[int, ...]) -> None:
        """A disc on the ground, seen from the left (1), the right (-1), or both."""
        angle = np.arange(CORNERS) * 2 * np.pi / CORNERS + np.pi / CORNERS
        for side in sides:
            for part, colour in ((1.0, TYRE), (0.5, (120, 122, 126))):
                r = part * radius
                ring = (x - side * r * np.cos(angle), y + 0 * angle, radius + r * np.sin(angle))
                self.add(np.stack(ring, -1), colour, detail=part < 1)

    def done(self) -> Shape:
        faces, colour, lamp, detail, span = zip(*self.rows, strict=True)
        first = np.stack([face[:3] for face in faces])
        normal = np.cross(first[:, 1] - first[:, 0], first[:, 2] - first[:, 0])
        last = np.arange(CORNERS)  # the last corner is repeated
        padded = [face[np.minimum(last, len(face) - 1)] for face in faces]
        return Shape(
            corners=np.stack(padded),
            count=np.array([len(face) for face in faces]),
            normal=normal / np.linalg.norm(normal, axis=1, keepdims=True),
            colour=np.array(colour, float),
            lamp=np.array(lamp),
            detail=np.array(detail),
            span=np.array(span),
            axis=self.axis,
        )


def build_shape(category: str, size: np.ndarray, index: int) -> Shape:
    """The shape of a thing.

    Args:
        category: of nuScenes; unknown ones are plain boxes.
        size: ``[3]`` length, width, height in metres.
        index: chooses among the colours of its kind.
    """
    length, width, height = (float(v) for v in size)
    kind = next((k for k in _KINDS if category.startswith(k)), "")
    return _KINDS.get(kind, _thing)(length / 2, width / 2, height, index, category)


def build_block(size: np.ndarray, colour: np.ndarray) -> Shape:
    """A plain block: ``[3]`` length, width, height in metres; ``[3]`` RGB."""
    length, width, height = (float(v) for v in size)
    build = _Builder(axis=2)
    build.block((-length / 2, length / 2), (-width / 2, width / 2), (0.0, height), tuple(colour))
    return build.done()


def _car(x: float, y: float, h: float, index: int, category: str) -> Shape:
    paint = WHITE if "emergency" in category else CARS[index % len(CARS)]
    build = _Builder(axis=2)
    waist, floor = 0.56 * h, 0.13 * h
    build.block((-0.94 * x, 0.94 * x), (-0.9 * y, 0.9 * y), (0.0, floor), TYRE)
    body = build.block(
        (-x, x), (-y, y), (floor, waist), paint, (-0.97 * x, 0.93 * x), (-0.97 * y, 0.97 * y)
    )
    _lamps(build, body, 0.5, 0.8)
    build.patch(body["front"], (0.28, 0.72), (0.2, 0.55), DARK)
    radius = min(0.34, 0.24 * h, 0.3 * x)
    for along in (-0.62 * x, 0.6 * x):
        build.wheel(along, y, radius, (1,))
        build.wheel(along, -y, radius, (-1,))
    cabin = build.block(
        (-0.9 * x, 0.42 * x), (-0.95 * y, 0.95 * y), (waist, h), paint,
        (-0.68 * x, 0.06 * x), (-0.76 * y, 0.76 * y),
    )  # fmt: skip
    for name in ("front", "back"):
        build.patch(cabin[name], (0.07, 0.93), (0.08, 0.86), GLASS)
    for name in ("left", "right"):
        build.patch(cabin[name], (0.08, 0.47), (0.1, 0.84), GLASS)
        build.patch(cabin[name], (0.53, 0.92), (0.1, 0.84), GLASS)
    if "emergency" in category:
        build.patch(cabin["top"], (0.4, 0.6), (0.1, 0.9), (60, 90, 230), lamp=True)
    return build.done()


def _truck(x: float, y: float, h: float, index: int, category: str) -> Shape:
    paint = ORANGE if "construction" in category else BIG[(index + 1) % len(BIG)]
    load = (226, 222, 212) if index % 2 else BIG[index % len(BIG)]
    build = _Builder(axis=0)
    nose = x - min(2.0, 0.7 * x)
    floor = 0.14 * h
    build.block((-0.97 * x, nose), (-0.86 * y, 0.86 * y), (0.0, floor), TYRE)
    box = build.block((-x, nose), (-y, y), (floor, h), load, same_part=True)
    build.patch(box["back"], (0.04, 0.2), (0.02, 0.09), REAR_LAMP, lamp=True)
    build.patch(box["back"], (0.8, 0.96), (0.02, 0.09), REAR_LAMP, lamp=True)
    build.patch(box["back"], (0.49, 0.51), (0.1, 0.96), DARK)
    _side_wheels(build, (-0.65 * x,), y, min(0.3 * x, 0.2 * h))
    build.block((nose, 0.97 * x), (-0.86 * y, 0.86 * y), (0.0, floor), TYRE)
    cab = build.block(
        (nose, x), (-0.97 * y, 0.97 * y), (floor, 0.84 * h), paint, (nose, 0.97 * x),
        same_part=True,
    )  # fmt: skip
    build.patch(cab["front"], (0.06, 0.94), (0.5, 0.9), GLASS)
    build.patch(cab["front"], (0.05, 0.2), (0.12, 0.24), FRONT_LAMP, lamp=True)
    build.patch(cab["front"], (0.8, 0.95), (0.12, 0.24), FRONT_LAMP, lamp=True)
    build.patch(cab["left"], (0.1, 0.6), (0.5, 0.86), GLASS)
    build.patch(cab["right"], (0.4, 0.9), (0.5, 0.86), GLASS)
    _side_wheels(build, ((x + nose) / 2,), 0.97 * y, min(0.4 * (x - nose), 0.2 * h))
    return build.done()


def _bus(x: float, y: float, h: float, index: int, category: str) -> Shape:
    paint = BIG[index % len(BIG)]
    build = _Builder(axis=2)
    floor = 0.1 * h
    build.block((-0.98 * x, 0.98 * x), (-0.9 * y, 0.9 * y), (0.0, floor), TYRE)
    body = build.block((-x, x), (-y, y), (floor, h), paint)
    for name in ("left", "right"):
        for k in range(6):
            build.patch(body[name], (0.03 + 0.16 * k, 0.17 + 0.16 * k), (0.45, 0.85), GLASS)
        build.patch(body[name], (0.0, 1.0), (0.3, 0.36), WHITE)
    for name in ("front", "back"):
        build.patch(body[name], (0.06, 0.94), (0.4, 0.84), GLASS)
    build.patch(body["front"], (0.25, 0.75), (0.88, 0.97), (255, 190, 60), lamp=True)
    _lamps(build, body, 0.1, 0.18)
    _side_wheels(build, (-0.55 * x, 0.6 * x), y, min(0.3 * x, 0.2 * h))
    return build.done()


def _two_wheels(x: float, y: float, h: float, index: int, category: str) -> Shape:
    motor = "motorcycle" in category
    build = _Builder(axis=2)
    build.span = (0.0, 0.35 * h)
    radius = min(0.34, 0.42 * x)
    for along in (-x + radius, x - radius):
        build.wheel(along, 0.0, radius, (1, -1))
    paint = CARS[(index + 3) % len(CARS)]
    thick = (0.5 if motor else 0.12) * y
    build.block((-0.55 * x, 0.6 * x), (-thick, thick), (0.24 * h, 0.46 * h), paint)
    bar = build.block((0.45 * x, 0.6 * x), (-y, y), (0.52 * h, 0.58 * h), DARK)
    build.patch(bar["front"], (0.42, 0.58), (0.0, 1.0), FRONT_LAMP, lamp=True)
    _person(build, (-0.3 * x, 0.16 * x), 0.8 * y, (0.3 * h, h), index, helmet=True)
    return build.done()


def _pedestrian(x: float, y: float, h: float, index: int, category: str) -> Shape:
    build = _Builder(axis=2)
    _person(build, (-x, x), y, (0.0, h), index, child="child" in category)
    return build.done()


def _person(
    build: _Builder,
    x: tuple[float, float],
    y: float,
    z: tuple[float, float],
    index: int,
    child: bool = False,
    helmet: bool = False,
) -> None:
    """Legs, body and head; children have bigger heads and brighter clothes."""
    low, high = z
    hip, neck = (low + share * (high - low) for share in ((0.42, 0.76) if child else (0.47, 0.85)))
    shirt = (250, 208, 40) if child else CLOTHES[index % len(CLOTHES)]
    skin, hair = SKIN[index % len(SKIN)], WHITE if helmet else DARK
    middle = (x[0] + x[1]) / 2
    slim = (middle + 0.7 * (x[0] - middle), middle + 0.7 * (x[1] - middle))
    legs = build.block(
        slim, (-0.62 * y, 0.62 * y), (low, hip), TROUSERS[index % len(TROUSERS)],
        top_y=(-0.7 * y, 0.7 * y),
    )  # fmt: skip
    for name in ("front", "back"):
        build.patch(legs[name], (0.44, 0.56), (0.0, 0.8), TYRE)
    body = build.block(x, (-y, y), (hip, neck), shirt, top_y=(-0.72 * y, 0.72 * y), top_x=slim)
    for name in ("left", "right"):
        build.patch(body[name], (0.3, 0.7), (0.0, 0.2), skin)
    side = 0.5 * min(0.24, high - neck, 2 * y, x[1] - x[0])
    head = build.block(
        (middle - side, middle + side), (-side, side), (neck, high), skin,
        (middle - 0.85 * side, middle + 0.85 * side), (-0.85 * side, 0.85 * side),
    )  # fmt: skip
    build.patch(head["top"], (0.0, 1.0), (0.0, 1.0), hair)
    for name, cut in (("front", 0.78), ("back", 0.2), ("left", 0.5), ("right", 0.5)):
        build.patch(head[name], (0.0, 1.0), (cut, 1.0), hair)


def _cone(x: float, y: float, h: float, index: int, category: str) -> Shape:
    build = _Builder(axis=2)
    build.block((-x, x), (-y, y), (0.0, 0.06 * h), ORANGE)
    cone = build.block(
        (-0.7 * x, 0.7 * x), (-0.7 * y, 0.7 * y), (0.06 * h, h), ORANGE,
        (-0.12 * x, 0.12 * x), (-0.12 * y, 0.12 * y),
    )  # fmt: skip
    for name in ("front", "back", "left", "right"):
        build.patch(cone[name], (0.0, 1.0), (0.42, 0.7), WHITE)
    return build.done()


def _barrier(x: float, y: float, h: float, index: int, category: str) -> Shape:
    build = _Builder(axis=2)
    box = build.block((-x, x), (-y, y), (0.0, h), WHITE)
    for name in ("front", "back") if y > x else ("left", "right"):
        for k in range(3):
            build.patch(box[name], (0.4 * k, 0.4 * k + 0.2), (0.25, 0.9), (206, 44, 40))
    return build.done()


def _thing(x: float, y: float, h: float, index: int, category: str) -> Shape:
    return build_block(np.array([2 * x, 2 * y, h]), THINGS[index % len(THINGS)])


def _lamps(build: _Builder, body: dict[str, np.ndarray], low: float, high: float) -> None:
    for name, colour in (("front", FRONT_LAMP), ("back", REAR_LAMP)):
        for u in ((0.04, 0.22), (0.78, 0.96)):
            build.patch(body[name], u, (low, high), colour, lamp=True)


def _side_wheels(build: _Builder, at: tuple[float, ...], y: float, room: float) -> None:
    for along in at:
        build.wheel(along, y, min(0.48, room), (1,))
        build.wheel(along, -y, min(0.48, room), (-1,))


# By the beginning of the category; the first that fits.
_KINDS = {
    "vehicle.bicycle": _two_wheels,
    "vehicle.motorcycle": _two_wheels,
    "vehicle.bus": _bus,
    "vehicle.truck": _truck,
    "vehicle.construction": _truck,
    "vehicle.car": _car,
    "vehicle.emergency": _car,
    "human.pedestrian": _pedestrian,
    "movable_object.trafficcone": _cone,
    "movable_object.barrier": _barrier,
}
