"""The ground of synthetic scenes as a nuScenes map: expansion 1.3 and the semantic prior picture.

nuscenes-devkit knows four map names only, and a root has many towns, so the towns of one location
are stacked northwards on one canvas, `GAP_M` apart. Knows no scene.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from shapely.geometry import LineString, Polygon
from shapely.ops import unary_union
from vla_prune_sim.drive.arclines import fit_arclines
from vla_prune_sim.drive.nuscenes_format import LOCATIONS
from vla_prune_sim.drive.scene import Lane, RoadMap

LAYERS = (
    "polygon",
    "line",
    "node",
    "lane",
    "lane_connector",
    "drivable_area",
    "road_segment",
    "road_block",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "road_divider",
    "lane_divider",
    "traffic_light",
)
GAP_M = 60
FINE_M = 0.005  # lines lose points closer than this to the rest
PIXELS_PER_M = 10


@dataclass
class Plot:
    """Where a town lies on its canvas.

    Attributes:
        offset: ``[2]`` what was added to its coordinates, metres.
        bounds: x and y from, x and y to, on the canvas, metres.
        lanes: token on the canvas -> token in the town.
    """

    offset: np.ndarray
    bounds: tuple[int, int, int, int]
    lanes: dict[str, str] = field(default_factory=dict)


class MapWriter:
    """One location.

    Args:
        location: one of `LOCATIONS`.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.layers: dict[str, Any] = {name: [] for name in LAYERS}
        self.layers |= {"arcline_path_3": {}, "connectivity": {}}
        self.towns: list[tuple[RoadMap, Plot]] = []
        self._nodes: dict[tuple[float, float], str] = {}
        self._width = self._height = GAP_M

    def add(self, road_map: RoadMap) -> Plot:
        """Give a town its place."""
        rings = [ring for area in road_map.drivable for ring in area]
        rings += [*road_map.walkways, *(lane.polygon for lane in road_map.lanes.values())]
        points = np.concatenate(rings)
        low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
        offset = np.array([GAP_M, self._height]) - low
        plot = Plot(offset, tuple(int(v) for v in (*(low + offset), *(high + offset))))
        self.towns.append((road_map, plot))
        self._width = max(self._width, plot.bounds[2] + GAP_M)
        self._height = plot.bounds[3] + GAP_M
        self._nodes = {}
        self._lanes(road_map, plot)
        self._areas(road_map, plot)
        self._lines(road_map, plot)
        return plot

    def save(self, maps: Path) -> str:
        """Write both files below the root's ``maps``; the prior's name."""
        (maps / "expansion").mkdir(parents=True, exist_ok=True)
        whole = {"version": "1.3", "canvas_edge": [self._width, self._height], **self.layers}
        text = json.dumps(whole, separators=(",", ":"))
        (maps / "expansion" / f"{self.location}.json").write_text(text)
        prior = maps / f"{LOCATIONS[self.location]}.png"
        size = (self._width * PIXELS_PER_M, self._height * PIXELS_PER_M)
        _write_png(prior, size, self._bands())
        return prior.name

    def _new(self, layer: str, **record: Any) -> str:
        token = f"{layer}-{len(self.layers[layer])}"
        self.layers[layer].append({"token": token, **record})
        return token

    def _path(self, points: np.ndarray, plot: Plot) -> list[str]:
        """Tokens of nodes; lines and areas that meet share theirs."""
        tokens = []
        for x, y in np.round(points + plot.offset, 3).tolist():
            if (x, y) not in self._nodes:
                self._nodes[x, y] = self._new("node", x=x, y=y)
            tokens.append(self._nodes[x, y])
        return tokens

    def _polygon(self, rings: list[np.ndarray], plot: Plot) -> str:
        outer, *holes = (self._path(ring, plot) for ring in rings)
        holes = [{"node_tokens": hole} for hole in holes]
        return self._new("polygon", exterior_node_tokens=outer, holes=holes)

    def _line(self, points: np.ndarray, plot: Plot) -> str:
        points = np.array(LineString(points).simplify(FINE_M).coords)
        return self._new("line", node_tokens=self._path(points, plot))

    def _edge(self, lane: Lane, point: np.ndarray, plot: Plot) -> str:
        """The side of the lane's outline whose middle is nearest to a point."""
        ends = np.stack([lane.polygon, np.roll(lane.polygon, -1, axis=0)])
        nearest = np.hypot(*(ends.mean(0) - point).T).argmin()
        return self._line(ends[:, nearest], plot)

    def _lanes(self, road_map: RoadMap, plot: Plot) -> None:
        names = {}
        for name, lane in road_map.lanes.items():
            layer = "lane_connector" if lane.connector else "lane"
            polygon = self._polygon([lane.polygon], plot)
            edges = {
                "from_edge_line_token": self._edge(lane, lane.centre[0, :2], plot),
                "to_edge_line_token": self._edge(lane, lane.centre[-1, :2], plot),
            }
            record = {"polygon_token": polygon, "lane_type": "CAR", **edges}
            if not lane.connector:
                record |= {"left_lane_divider_segments": [], "right_lane_divider_segments": []}
                segment = self._new("road_segment", polygon_token=polygon, is_intersection=False)
                self._new("road_block", polygon_token=polygon, road_segment_token=segment, **edges)
            names[name] = self._new(layer, **record)
            centre = lane.centre + np.append(plot.offset, 0.0)
            self.layers["arcline_path_3"][names[name]] = fit_arclines(centre)
        plot.lanes.update({token: name for name, token in names.items()})
        follow = {token: {"incoming": [], "outgoing": []} for token in names.values()}
        for name, lane in road_map.lanes.items():
            for after in lane.after:
                follow[names[name]]["outgoing"].append(names[after])
                follow[names[after]]["incoming"].append(names[name])
        self.layers["connectivity"] |= follow

    def _areas(self, road_map: RoadMap, plot: Plot) -> None:
        areas = [self._polygon(rings, plot) for rings in road_map.drivable]
        self._new("drivable_area", polygon_tokens=areas)
        turns = [Polygon(lane.polygon) for lane in road_map.lanes.values() if lane.connector]
        crossed = unary_union(turns).buffer(0.05).simplify(0.05)
        for part in getattr(crossed, "geoms", [crossed]):
            if not part.is_empty:
                polygon = self._polygon([np.array(part.exterior.coords)[:-1]], plot)
                self._new("road_segment", polygon_token=polygon, is_intersection=True)
        for ring in road_map.crossings:
            polygon = self._polygon([ring], plot)
            self._new("ped_crossing", polygon_token=polygon, road_segment_token="")
        for ring in road_map.walkways:
            self._new("walkway", polygon_token=self._polygon([ring], plot))
        for ring in road_map.stop_lines:
            self._new(
                "stop_line",
                polygon_token=self._polygon([ring], plot),
                stop_line_type="YIELD",
                ped_crossing_tokens=[],
                traffic_light_tokens=[],
                road_block_token="",
            )

    def _lines(self, road_map: RoadMap, plot: Plot) -> None:
        for points in road_map.dividers:
            line = self._line(points, plot)
            nodes = self.layers["line"][-1]["node_tokens"]
            kinds = [{"node_token": n, "segment_type": "SINGLE_DASHED_WHITE"} for n in nodes]
            self._new("lane_divider", line_token=line, lane_divider_segments=kinds)
        for points in road_map.centre_lines:
            line = self._line(points, plot)
            self._new("road_divider", line_token=line, road_segment_token="")

    def _bands(self) -> Iterator[np.ndarray]:
        """The prior from north to south, a town at a time: 255 on roads and pavements."""
        width, top = self._width * PIXELS_PER_M, self._height
        for i, (road_map, plot) in reversed(list(enumerate(self.towns))):
            bottom = plot.bounds[1] - GAP_M if i == 0 else self.towns[i - 1][1].bounds[3]
            band = np.zeros(((top - bottom) * PIXELS_PER_M, width), np.uint8)
            for rings in [*road_map.drivable, *([ring] for ring in road_map.walkways)]:
                on = [
                    (ring + plot.offset - [0, top]) * [PIXELS_PER_M, -PIXELS_PER_M]
                    for ring in rings
                ]
                cv2.fillPoly(band, [np.round(ring).astype(np.int32) for ring in on], 255)
            yield band
            top = bottom


def _write_png(path: Path, size: tuple[int, int], bands: Iterator[np.ndarray]) -> None:
    """A grey PNG, band by band: the canvas of a hundred towns would not fit into memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    squeeze = zlib.compressobj(3)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.write(chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)))
        for band in bands:
            # A leading zero in each row says that it is not filtered.
            file.write(chunk(b"IDAT", squeeze.compress(np.pad(band, ((0, 0), (1, 0))).tobytes())))
        file.write(chunk(b"IDAT", squeeze.flush()))
        file.write(chunk(b"IEND", b""))
