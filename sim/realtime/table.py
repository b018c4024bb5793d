"""Real-time episodes to rows: score against dense of the same device, ages, misses.

One results file holds several domains: a run replaces the rows of its own and keeps the others.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune import report
from vla_prune.errors import ConfigError

if TYPE_CHECKING:
    from vla_prune_sim.rollout import RunConfig

POOLED = "pooled"
MEANS = ("age_p50_ms", "age_p95_ms", "age_p99_ms", "rate_hz", "stale_ratio", "seam_jump")
Result = Mapping[str, Any]


def make(config: RunConfig, results: Sequence[Result]) -> dict[str, Any]:
    """The results document, written."""
    file = Path(config.results)
    domain = config.world
    lines = file.with_name(f"{file.stem}_{Path(domain).name.split(':')[-1]}.episodes.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("".join(json.dumps(r) + "\n" for r in results), encoding="utf-8")
    old = _read(file)
    kept = [row for row in old.get("rows", ()) if row["domain"] != domain]
    run = report.provenance(config.seed) | {
        "assets": sorted({r["assets"] for r in results}),
        "realtime": {k: v for k, v in config.realtime.mark().items() if v != float("inf")},
        "episodes_file": lines.name,
    }
    document = {
        "runs": {**old.get("runs", {}), domain: _plain(run)},
        "rows": kept + rows(config, results),
    }
    partial = file.with_name(file.name + ".part")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)
    return document


def short(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of a table that fits a terminal."""
    told = []
    for row in rows:
        keep = "controller" if row.get("controller") else f"{row['keep_ratio']:g}"
        told.append({"name": f"{row.get('recipe') or row['driver']} {keep}", **row})
    shown = ["name", "suite", "profile", "episodes", "score", "diff_vs_dense", "diff_ci"]
    return told, [*shown, "misses", "miss_rate", "age_p99_ms", "stale_ratio"]


def rows(config: RunConfig, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each suite by itself, and all of them where there are several."""
    groups: dict[tuple, list[Result]] = defaultdict(list)
    pooled = len({r["suite"] for r in results}) > 1
    for suite in (None, POOLED) if pooled else (None,):
        for result in results:
            groups[(suite or result["suite"], *_row(result))].append(result)
    made = {key: _summary(config, key, group, groups) for key, group in groups.items()}
    return [row | _against_best(key, made, groups) for key, row in made.items()]


def _summary(
    config: RunConfig, key: tuple, group: Sequence[Result], groups: Mapping[tuple, list[Result]]
) -> dict[str, Any]:
    suite, name, keep, setting = key
    first = group[0]
    row: dict[str, Any] = {"domain": config.world, "suite": suite, "profile": setting or "-"}
    row |= {"driver": name} if "driver" in first else {"recipe": name}
    row |= {"controller": True} if keep == "controller" else {"keep_ratio": keep}
    row |= {"episodes": len(group), "score": float(np.mean([score(r) for r in group]))}
    if errors := sum("error" in r for r in group):
        row["errors"] = errors
    if "driver" in first:
        return row
    difference, interval = _paired(group, groups[(suite, "dense", 1.0, setting)])
    row |= {"diff_vs_dense": difference, "diff_ci": list(interval)}
    told = [r["realtime"] for r in group if "realtime" in r]
    releases = sum(t["releases"] for t in told)
    row["misses"] = sum(t["misses"] for t in told)
    row["miss_rate"] = row["misses"] / releases if releases else None
    row["longest_miss_run"] = max((t["longest_miss_run"] for t in told), default=None)
    for figure in MEANS:  # over episodes
        known = [t[figure] for t in told if t[figure] is not None]
        row[figure] = float(np.mean(known)) if known else None
    if keep == "controller":
        row["buckets"] = _shares(group)
        row["handed_over"] = sum(r["handed_over"] for r in group if "handed_over" in r)
    return row


def _against_best(
    key: tuple, made: Mapping[tuple, Mapping[str, Any]], groups: Mapping[tuple, list[Result]]
) -> dict[str, Any]:
    """A controller against the fixed budget that turned out best on the same device."""
    suite, _, keep, setting = key
    if keep != "controller":
        return {}
    fixed = {
        other: made[other]["score"]
        for other in made
        if other[0] == suite and other[3] == setting and other[2] != "controller"
        and "driver" not in made[other]
    }  # fmt: skip
    best = max(fixed, key=fixed.__getitem__)
    difference, interval = _paired(groups[key], groups[best])
    return {
        "best_fixed": f"{best[1]} {best[2]:g}",
        "diff_vs_best": difference,
        "diff_vs_best_ci": list(interval),
    }


def score(result: Result) -> float:
    """What counts most in an episode."""
    return float(next(iter(result["outcome"].values())))


def _paired(ours: Sequence[Result], theirs: Sequence[Result]) -> tuple[float, tuple[float, float]]:
    """Mean difference and interval over the places that both were at."""
    other = {_place(r): score(r) for r in theirs}
    pairs = [(score(r), other[_place(r)]) for r in ours if _place(r) in other]
    return report.paired_interval([a for a, _ in pairs], [b for _, b in pairs])


def _shares(group: Sequence[Result]) -> dict[str, float]:
    """Keep ratio -> share of the controller's calls."""
    counts: dict[str, int] = defaultdict(int)
    for result in group:
        for keep, calls in result.get("buckets", {}).items():
            counts[keep] += calls
    total = sum(counts.values())
    return {keep: counts[keep] / total for keep in sorted(counts, key=float, reverse=True)}


def _place(result: Result) -> tuple:
    return result["suite"], result["task"], result["state"]


def _row(result: Result) -> tuple:
    keep = "controller" if result.get("controller") else result["keep_ratio"]
    return result.get("recipe") or result["driver"], keep, result.get("setting", "")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if {"runs", "rows"} <= set(found):
            return found
    except ValueError:
        pass
    raise ConfigError(
        f"run: results {file} is there and holds no real-time results; name another file."
    )


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return None if value == float("inf") else value
