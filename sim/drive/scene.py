"""What a driving scene is, whatever it was read from: road, others, the ego's log, cameras.

Everything lives in one right-handed plane, metres: x east, y north, headings in radians
counter-clockwise from x. The ego's pose is its rear axle, as in nuScenes; other boxes are given by
their centre. Time runs in steps of ``STEP_S``. Knows no file format, no renderer and no policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

STEP_S = 0.1
STOPPED_MPS = 0.05  # who is no faster stands
PRIMED = 10  # steps of the log before a driver takes over
# The nuScenes car, a Renault Zoe: metres. Its box is centred ahead of the rear axle.
EGO_LENGTH, EGO_WIDTH, EGO_HEIGHT = 4.084, 1.730, 1.562
EGO_WHEELBASE, EGO_CENTRE = 2.588, 1.294
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)


@dataclass(frozen=True)
class Lane:
    """One lane, or the connector that crosses a junction.

    Attributes:
        token: its name on the map.
        centre: ``[P, 3]`` poses along the middle, at most a metre apart.
        polygon: ``[Q, 2]`` outline.
        after: tokens of the lanes that follow.
        speed_mps: limit.
        connector: whether it crosses a junction.
    """

    token: str
    centre: np.ndarray
    polygon: np.ndarray
    after: tuple[str, ...] = ()
    speed_mps: float = 13.9
    connector: bool = False


@dataclass(frozen=True)
class RoadMap:
    """The ground.

    Attributes:
        location: a nuScenes map name.
        lanes: token -> lane, connectors among them.
        drivable: outlines with holes: a list of ``[outer, hole, ...]``, each ``[Q, 2]``. Together
            they cover every lane and junction.
        crossings: pedestrian crossings, ``[Q, 2]`` each.
        walkways: pavements, ``[Q, 2]`` each.
        dividers: painted lines, ``[P, 2]`` each: between lanes of one direction.
        centre_lines: painted lines between opposite directions, ``[P, 2]`` each.
        stop_lines: ``[Q, 2]`` outlines each.
    """

    location: str
    lanes: Mapping[str, Lane]
    drivable: list[list[np.ndarray]]
    crossings: list[np.ndarray] = field(default_factory=list)
    walkways: list[np.ndarray] = field(default_factory=list)
    dividers: list[np.ndarray] = field(default_factory=list)
    centre_lines: list[np.ndarray] = field(default_factory=list)
    stop_lines: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Tracks:
    """All other road users and loose things, logged.

    Attributes:
        tokens: ``N`` names.
        categories: ``N`` nuScenes categories, such as ``vehicle.car``.
        size: ``[N, 3]`` length, width, height in metres.
        pose: ``[N, T, 3]`` centre and heading; finite also where not valid.
        z: ``[N]`` height of the box's centre above the ground, metres.
        speed: ``[N, T]`` m/s along the heading, negative backwards.
        valid: ``[N, T]`` whether it was there.
    """

    tokens: tuple[str, ...]
    categories: tuple[str, ...]
    size: np.ndarray
    pose: np.ndarray
    z: np.ndarray
    speed: np.ndarray
    valid: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on the ego.

    Attributes:
        name: nuScenes channel.
        width: pixels.
        height: pixels.
        intrinsic: ``[3, 3]`` for that size.
        rotation: ``[3, 3]`` from the camera's frame (x right, y down, z forward) to the ego's (x
            forward, y left, z up).
        translation: ``[3]`` of the camera in the ego's frame, metres above the ground at z = 0.
    """

    name: str
    width: int
    height: int
    intrinsic: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    def scaled(self, width: int, height: int) -> Camera:
        """The same view at another size; what no longer fits is cut off at the bottom."""
        factor = width / self.width
        intrinsic = self.intrinsic * np.array([[factor], [factor], [1.0]])
        return Camera(self.name, width, height, intrinsic, self.rotation, self.translation)


@dataclass(frozen=True)
class Scenery:
    """What stands beside the road and nobody annotates: for pictures only.

    Attributes:
        buildings: ``[B, 6]`` x, y, heading, length, width, height.
        building_colours: ``[B, 3]`` uint8 RGB.
        trees: ``[K, 4]`` x, y, height, crown radius.
        sun: brightness of the light, 0.35 (dusk) to 1.1.
        sky: ``[3]`` uint8 RGB.
    """

    buildings: np.ndarray
    building_colours: np.ndarray
    trees: np.ndarray
    sun: float = 1.0
    sky: tuple[int, int, int] = (150, 185, 220)


@dataclass(frozen=True)
class Shots:
    """What one sensor of a log took, as far as it is on disk, in time's order.

    Attributes:
        files: ``K`` pictures, or points of a LiDAR (``.pcd.bin``).
        pose: ``[K, 3]`` of the rear axle at that very moment, which falls between two steps.
        time_s: ``[K]`` seconds after step 0.
        mount: ``[4, 4]`` from the sensor's frame to the ego's.
    """

    files: tuple[Path, ...]
    pose: np.ndarray
    time_s: np.ndarray
    mount: np.ndarray


@dataclass(frozen=True)
class Scene:
    """One drive of about twenty seconds.

    Attributes:
        name: such as ``scene-0061``.
        source: ``synthetic``, ``nuscenes`` or ``scenarionet``.
        version: of the data, such as ``v1.0-mini``.
        description: a sentence.
        map: the ground.
        ego: ``[T, 3]`` logged poses of the rear axle, every ``STEP_S``.
        ego_speed: ``[T]`` m/s.
        tracks: the others, over the same steps.
        cameras: by channel.
        route: ``[R, 2]`` middle of the lanes to follow, metres; begins behind the ego's start and
            goes on beyond the end of the log where the map does.
        on_lanes: whether it follows lanes; else it is the log's own path, and nothing may be told
            of it that a navigator would not know.
        scenery: for pictures.
        keyframes: steps (indices into ``ego``) with annotations and pictures.
        images: channel -> the keyframes' picture files, where there are any.
        shots: channel, or ``LIDAR_TOP`` -> all it took, sweeps included, where there is any.
        start_us: time stamp of step 0, microseconds.
        seed: behind a synthetic scene; None otherwise.
        scenario: what is special, such as ``cut_in``; empty where unknown.
    """

    name: str
    source: str
    version: str
    description: str
    map: RoadMap
    ego: np.ndarray
    ego_speed: np.ndarray
    tracks: Tracks
    cameras: Mapping[str, Camera]
    route: np.ndarray
    scenery: Scenery
    keyframes: np.ndarray
    images: Mapping[str, list[Path]] = field(default_factory=dict)
    shots: Mapping[str, Shots] = field(default_factory=dict)
    start_us: int = 0
    seed: int | None = None
    scenario: str = ""
    on_lanes: bool = True

    @property
    def steps(self) -> int:
        """How many steps are logged."""
        return len(self.ego)


def ego_centre(pose: np.ndarray) -> np.ndarray:
    """Pose ``[..., 3]`` of the ego box's centre, from that of its rear axle."""
    ahead = np.stack([np.cos(pose[..., 2]), np.sin(pose[..., 2]), np.zeros(pose.shape[:-1])], -1)
    return pose + EGO_CENTRE * ahead
