"""Scenes as a nuScenes root that nuscenes-devkit opens: tables, map, calibration and pictures.

The format is that of Caesar et al., 2020 (arXiv 1903.11027), map expansion 1.3. What it has no
place for (scenery, seed, speed limits, the route) stands in ``synthetic.json``, so that
`load_nuscenes` gives back the scene that was written. The same scenes make the same bytes.

Where a root differs from a real one: LIDAR_TOP is a stub of a few points at 2 Hz, every box is
``v80-100`` visible and has one LiDAR point, lanes have no divider segments, and the pictures of
sweeps are drawn only where they are asked for.

    >>> write_root([make_scene(7)], Path("runs/world"))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.nuscenes_format import (
    ATTRIBUTES,
    CATEGORIES,
    EXTRA,
    LOCATIONS,
    MARKER,
    TABLES,
    VERSION,
    VISIBILITY,
)
from vla_prune_sim.drive.scene import CAMERAS, STEP_S, Scene, Tracks
from vla_prune_sim.drive.write_map import MapWriter, Plot
from vla_prune_sim.drive.write_pictures import (
    Draw,
    Pictures,
    picture_folder,
    picture_name,
    time_stamp,
)
from vla_prune_sim.drive.write_records import (
    attribute_of,
    floats,
    heading_quaternion,
    links_of,
    rotation_quaternion,
    token_of,
    write_json,
)

from vla_prune.errors import ConfigError, ShapeError, did_you_mean

SWEEPS_HZ = 12
LIDAR_POSE = ((0.944, 0.0, 1.840), (0.7071068, 0.0, 0.0, -0.7071068))


def write_root(
    scenes: Iterable[Scene],
    out: Path,
    draw: Draw | None = None,
    image_size: tuple[int, int] = (400, 225),
    sweeps: bool = True,
    sweep_pictures: bool = False,
    go_on: bool = False,
) -> Path:
    """Write scenes, one after the other, into a new root; its path.

    Scenes that share one `RoadMap` object share their ground.

    Args:
        scenes: with a keyframe at their first and last step, and names that differ.
        out: a folder that does not exist yet, or is empty.
        draw: makes the pictures; None writes flat ones.
        image_size: width and height of the pictures, pixels.
        sweeps: also write the cameras' 12 Hz rows with the ego's pose.
        sweep_pictures: draw these too.
        go_on: ``out`` may hold what an earlier call with the same arguments wrote before it was
            broken off; its pictures are taken as they are.
    """
    out = Path(out)
    if not go_on and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"write_root: {out} is not an empty folder; choose another, or empty it."
        )
    root = _Root(out, Pictures(out, draw, image_size, go_on), sweeps, sweep_pictures)
    for scene in scenes:
        root.add(scene)
    if not root.tables["scene"]:
        raise ConfigError("write_root: no scene was given; a root needs at least one.")
    root.save()
    return out


class _Root:
    """A root that grows scene by scene."""

    def __init__(
        self,
        out: Path,
        pictures: Pictures,
        sweeps: bool,
        sweep_pictures: bool,
    ) -> None:
        self.out, self.size, self.pictures = out, pictures.size, pictures
        self.sweeps, self.sweep_pictures = sweeps, sweep_pictures
        self.tables: dict[str, list[dict]] = {name: [] for name in TABLES}
        self.maps: dict[str, MapWriter] = {}
        # The map itself is kept too, so that its id stays its own.
        self.plots: dict[int, tuple[Any, str, Plot]] = {}
        self.extra: dict[str, dict] = {"towns": {}, "scenes": {}}
        for table, names in (("category", CATEGORIES), ("attribute", ATTRIBUTES)):
            for name in names:
                self._row(table, token_of(table, name), name=name, description="")
        for i, level in enumerate(VISIBILITY, 1):
            self._row("visibility", str(i), level=level, description="")

    def add(self, scene: Scene) -> None:
        """Write one scene."""
        _check(scene)
        if scene.name in self.extra["scenes"]:
            raise ConfigError(f"write_root: two scenes are called {scene.name!r}; rename one.")
        town, plot = self._plot(scene)
        name, keys = scene.name, scene.keyframes
        stamps = [time_stamp(scene, step) for step in keys]
        samples = [token_of(name, "sample", i) for i in range(len(keys))]
        log = self._row(
            "log",
            token_of(name, "log"),
            logfile=name,
            vehicle="synthetic",
            date_captured="2018-01-01",
            location=scene.map.location,
        )
        self._row(
            "scene",
            token_of(name),
            log_token=log,
            nbr_samples=len(keys),
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
            name=name,
            description=scene.description,
        )
        for token, stamp, link in zip(samples, stamps, links_of(samples), strict=True):
            self._row("sample", token, timestamp=stamp, scene_token=token_of(name), **link)
        self._pictures(scene, samples, plot)
        self._lidar(scene, samples, plot)
        self._annotations(scene.name, scene.tracks, keys, samples, plot)
        self.extra["scenes"][name] = _extra(scene) | {"town": town}

    def save(self) -> None:
        """Write what all scenes share."""
        logs = {row["token"]: row["location"] for row in self.tables["log"]}
        for location, writer in sorted(self.maps.items()):
            self._row(
                "map",
                LOCATIONS[location],
                category="semantic_prior",
                filename=f"maps/{writer.save(self.out / 'maps')}",
                log_tokens=[token for token, where in logs.items() if where == location],
            )
        (self.out / VERSION).mkdir(exist_ok=True)
        for name, rows in self.tables.items():
            write_json(self.out / VERSION / f"{name}.json", rows)
        write_json(self.out / EXTRA, self.extra)
        (self.out / MARKER).write_text(
            "Synthetic scenes in the nuScenes format, written by vla-prune world make; no road, "
            "car or person in them exists.\n"
        )

    def _row(self, table: str, token: str, **record: Any) -> str:
        self.tables[table].append({"token": token, **record})
        return token

    def _plot(self, scene: Scene) -> tuple[str, Plot]:
        """The scene's ground, laid out where it is new."""
        key = id(scene.map)
        if key not in self.plots:
            writer = self.maps.setdefault(scene.map.location, MapWriter(scene.map.location))
            plot, town = writer.add(scene.map), f"town-{len(self.plots)}"
            self.plots[key] = scene.map, town, plot
            lanes = scene.map.lanes
            self.extra["towns"][town] = {
                "offset": plot.offset.tolist(),
                "bounds": plot.bounds,
                "lanes": {k: [v, lanes[v].speed_mps] for k, v in plot.lanes.items()},
            }
        return self.plots[key][1:]

    def _calibrated(self, scene: str, channel: str, modality: str, **record: Any) -> str:
        if not any(row["channel"] == channel for row in self.tables["sensor"]):
            self._row("sensor", token_of("sensor", channel), channel=channel, modality=modality)
        sensor = token_of("sensor", channel)
        return self._row(
            "calibrated_sensor",
            token_of(scene, "calibrated", channel),
            sensor_token=sensor,
            **record,
        )

    def _pictures(self, scene: Scene, samples: list[str], plot: Plot) -> None:
        """Rows and files of all cameras."""
        frames = self._frames(scene)
        cameras = {name: camera.scaled(*self.size) for name, camera in scene.cameras.items()}
        width, height = self.size
        for channel, camera in cameras.items():
            calibrated = self._calibrated(
                scene.name,
                channel,
                "camera",
                translation=floats(camera.translation),
                rotation=rotation_quaternion(camera.rotation),
                camera_intrinsic=floats(camera.intrinsic),
            )
            tokens = [token_of(scene.name, channel, i) for i in range(len(frames))]
            for token, (step, sample, key), link in zip(
                tokens, frames, links_of(tokens), strict=True
            ):
                self._sample_data(
                    scene,
                    token,
                    step,
                    plot,
                    sample_token=samples[sample],
                    calibrated_sensor_token=calibrated,
                    fileformat="jpg",
                    is_key_frame=key,
                    height=height,
                    width=width,
                    filename=picture_name(scene, step, channel, picture_folder(key)),
                    **link,
                )
        for step, _, key in frames:
            if key or self.sweep_pictures:
                self.pictures.write(scene, step, picture_folder(key))

    def _frames(self, scene: Scene) -> list[tuple[float, int, bool]]:
        """(step, number of the sample, whether it is the keyframe) of each picture."""
        keys, frames = scene.keyframes.tolist(), []
        for i, (a, b) in enumerate(pairwise(keys)):
            frames.append((a, i, True))
            count = round((b - a) * STEP_S * SWEEPS_HZ) if self.sweeps else 1
            between = range(1, count)
            frames += [(a + (b - a) * j / count, i + (2 * j > count), False) for j in between]
        return [*frames, (keys[-1], len(keys) - 1, True)]

    def _lidar(self, scene: Scene, samples: list[str], plot: Plot) -> None:
        translation, rotation = LIDAR_POSE
        calibrated = self._calibrated(
            scene.name,
            "LIDAR_TOP",
            "lidar",
            translation=translation,
            rotation=rotation,
            camera_intrinsic=[],
        )
        angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        ground = np.full(8, -translation[2])
        points = np.stack([8 * np.cos(angle), 8 * np.sin(angle), ground, 0 * angle, 0 * angle], -1)
        folder = self.out / "samples" / "LIDAR_TOP"
        folder.mkdir(parents=True, exist_ok=True)
        tokens = [token_of(scene.name, "LIDAR_TOP", i) for i in range(len(samples))]
        for token, sample, step, link in zip(
            tokens, samples, scene.keyframes.tolist(), links_of(tokens), strict=True
        ):
            name = f"{scene.name}__LIDAR_TOP__{time_stamp(scene, step)}.pcd.bin"
            (folder / name).write_bytes(points.astype("<f4").tobytes())
            self._sample_data(
                scene,
                token,
                step,
                plot,
                sample_token=sample,
                calibrated_sensor_token=calibrated,
                fileformat="pcd",
                is_key_frame=True,
                height=0,
                width=0,
                filename=f"samples/LIDAR_TOP/{name}",
                **link,
            )

    def _sample_data(
        self, scene: Scene, token: str, step: float, plot: Plot, **record: Any
    ) -> None:
        """A reading, and where the ego was; both bear the same token, as in nuScenes."""
        before = min(int(step), scene.steps - 2)
        a, b = scene.ego[before], scene.ego[before + 1]
        x, y, heading = a + (step - before) * np.append(b[:2] - a[:2], wrap(b[2] - a[2]))
        stamp = time_stamp(scene, step)
        self._row("sample_data", token, ego_pose_token=token, timestamp=stamp, **record)
        self._row(
            "ego_pose",
            token,
            timestamp=stamp,
            rotation=heading_quaternion(heading),
            translation=floats([*(np.array([x, y]) + plot.offset), 0.0]),
        )

    def _annotations(
        self, scene: str, tracks: Tracks, keys: np.ndarray, samples: list[str], plot: Plot
    ) -> None:
        """Boxes at the keyframes; who is there at none of them is lost."""
        for i, (name, category) in enumerate(zip(tracks.tokens, tracks.categories, strict=True)):
            if category not in CATEGORIES:
                raise did_you_mean(f"write_root: {scene}", "category", category, CATEGORIES)
            seen = [k for k, step in enumerate(keys) if tracks.valid[i, step]]
            if not seen:
                continue
            tokens = [token_of(scene, "box", name, k) for k in seen]
            instance = self._row(
                "instance",
                token_of(scene, "instance", name),
                category_token=token_of("category", category),
                nbr_annotations=len(seen),
                first_annotation_token=tokens[0],
                last_annotation_token=tokens[-1],
            )
            length, width, height = tracks.size[i]
            for k, token, link in zip(seen, tokens, links_of(tokens), strict=True):
                x, y, heading = tracks.pose[i, keys[k]]
                attribute = attribute_of(category, abs(tracks.speed[i, keys[k]]))
                self._row(
                    "sample_annotation",
                    token,
                    sample_token=samples[k],
                    instance_token=instance,
                    visibility_token="4",
                    attribute_tokens=[token_of("attribute", attribute)] if attribute else [],
                    translation=floats([x + plot.offset[0], y + plot.offset[1], tracks.z[i]]),
                    size=floats([width, length, height]),
                    rotation=heading_quaternion(heading),
                    num_lidar_pts=1,
                    num_radar_pts=0,
                    **link,
                )


def _check(scene: Scene) -> None:
    where = f"write_root: {scene.name}"
    if scene.map.location not in LOCATIONS:
        raise did_you_mean(where, "map", scene.map.location, LOCATIONS)
    keys = scene.keyframes
    if scene.steps < 2 or len(keys) < 2 or keys[0] != 0 or keys[-1] != scene.steps - 1:
        raise ShapeError(
            f"{where} has {scene.steps} steps and keyframes {keys.tolist()}; it needs two or "
            "more, the first at step 0 and the last at the last step."
        )
    if set(scene.cameras) != set(CAMERAS):
        raise ShapeError(
            f"{where} has cameras {', '.join(scene.cameras) or 'none'}; it needs the six of "
            f"nuScenes: {', '.join(CAMERAS)}."
        )
    if (np.diff(keys) <= 0).any():
        raise ShapeError(f"{where}: keyframes {keys.tolist()} must ascend.")
    for kind, values in (("ego", scene.ego), ("tracks", scene.tracks.pose)):
        if not np.isfinite(values).all():
            raise ShapeError(f"{where}: a pose of {kind} is not finite; mend the scene.")


def _extra(scene: Scene) -> dict[str, Any]:
    """What nuScenes has no place for."""
    scenery = scene.scenery
    return {
        "seed": scene.seed,
        "scenario": scene.scenario,
        "route": floats(scene.route),
        "tracks": {token_of(scene.name, "instance", t): t for t in scene.tracks.tokens},
        "scenery": {
            "buildings": floats(scenery.buildings),
            "building_colours": np.asarray(scenery.building_colours).tolist(),
            "trees": floats(scenery.trees),
            "sun": float(scenery.sun),
            "sky": [int(v) for v in scenery.sky],
        },
    }
