"""Real-time episodes to rows: score against dense of the same device, ages, misses.

One results file holds several domains: a run replaces the rows of its own and keeps the others.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vla_prune_sim.realtime.config import Setting
from vla_prune_sim.realtime.latency import device_factor

from vla_prune import report
from vla_prune.errors import ConfigError
from vla_prune.tune.profile import Profile

if TYPE_CHECKING:
    from vla_prune_sim.rollout import RunConfig

POOLED = "pooled"
AGES = ("age_p50_ms", "age_p95_ms", "age_p99_ms")
MEANS = ("rate_hz", "stale_ratio", "seam_jump")
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
    own = report.provenance(config.seed)
    run = own | {
        "assets": sorted({r["assets"] for r in results}),
        "commits": sorted({r["commit"] for r in results if "commit" in r}),
        "realtime": asdict(config.realtime),
        "profiles": _profiles(config),
        "episodes_file": lines.name,
    }
    document = own | {
        "runs": {**old.get("runs", {}), domain: _plain(run)},
        "rows": kept + rows(config, results),
    }
    partial = file.with_name(file.name + ".part")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)
    return document


def _profiles(config: RunConfig) -> dict[str, Any]:
    """Suite -> what its profile says: times, on what, and what the settings made of them."""
    realtime = config.realtime
    if realtime.latency != "profile":
        return {}
    told = {}
    for suite in config.suites:
        profile = Profile.load(realtime.profile_of(suite))
        dense_s = profile.dense.total_ms() / 1e3
        told[suite] = {
            "subject": asdict(profile.subject),
            "machine": dict(profile.machine),
            "buckets": [
                {"recipe": b.recipe, "keep_ratio": b.keep_ratio, "tokens": b.tokens}
                | {f"{name}_ms": ms for name, ms in b.summary()["total"].items()}
                for b in profile.buckets
            ],
            "factors": {
                name: device_factor(dense_s, setting, realtime.period_s)
                for name, setting in (realtime.settings or {"-": Setting()}).items()
            },
        }
    return told


def short(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of a table that fits a terminal."""
    told = []
    for row in rows:
        told.append({"name": f"{row.get('recipe') or row['driver']} {report.budget(row)}", **row})
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
    return [
        row | _against_smallest(key, groups) | _against_fixed(key, groups)
        for key, row in made.items()
    ]


def _summary(
    config: RunConfig, key: tuple, group: Sequence[Result], groups: Mapping[tuple, list[Result]]
) -> dict[str, Any]:
    suite, name, _, setting = key
    first = group[0]
    row: dict[str, Any] = {"domain": config.world, "suite": suite, "profile": setting or "-"}
    row |= {"driver": name} if "driver" in first else {"recipe": name}
    ratios = [r["keep_ratio"] for r in group]
    row |= {name: True for name in ("controller", "tuned") if first.get(name)}
    row |= {} if first.get("controller") else {"keep_ratio": float(np.mean(ratios))}
    if name in config.realtime.charged_as:
        row["charged_as"] = config.realtime.charged_as[name]
    row |= {"episodes": len(group), "score": float(np.mean([score(r) for r in group]))}
    if errors := sum("error" in r for r in group):
        row["errors"] = errors
    if "driver" in first:
        return row
    dense = groups[(suite, "dense", 1.0, setting)]
    row |= _named(("diff_vs_dense", "diff_ci"), _paired(group, dense))
    names = ("miss_rate_vs_dense", "miss_rate_vs_dense_ci")
    row |= _named(names, _paired(group, dense, _miss_rate))
    told = [r["realtime"] for r in group if "realtime" in r]
    releases = sum(t["releases"] for t in told)
    row["misses"] = sum(t["misses"] for t in told)
    row["miss_rate"] = row["misses"] / releases if releases else None
    row["longest_miss_run"] = max((t["longest_miss_run"] for t in told), default=None)
    for figure in MEANS:  # over episodes
        known = [t[figure] for t in told if t[figure] is not None]
        row[figure] = float(np.mean(known)) if known else None
    for figure in AGES:  # of an episode in which nothing was ever acted on, it is infinite
        ages = [t[figure] for t in told]
        row[figure] = float(np.mean(ages)) if ages and None not in ages else None
    row["never_acted"] = sum(t[AGES[0]] is None for t in told)
    if refused := sum(t.get("refused", 0) for t in told):
        row["refused"] = refused
        row["refused_because"] = next(t["refused_because"] for t in told if t.get("refused"))
    if first.get("controller"):
        row["buckets"] = _shares(group)
        row["handed_over"] = sum(r["handed_over"] for r in group if "handed_over" in r)
    return row


def _against_fixed(key: tuple, groups: Mapping[tuple, list[Result]]) -> dict[str, Any]:
    """A controller against every fixed budget on the same device, and which turned out best.

    Budgets may have played different episodes: the best is the one that the controller stands
    least above, over what both played.
    """
    suite, _, keep, setting = key
    if keep not in ("controller", "tuned controller"):
        return {}
    found = {
        f"{other[1]} {other[2]:g}": _named(("diff", "ci"), _paired(groups[key], groups[other]))
        for other in [(suite, "dense", 1.0, setting), *_fixed(key, groups).values()]
    }
    return {"best_fixed": min(found, key=lambda name: found[name]["diff"]), "diff_vs_fixed": found}


def _against_smallest(key: tuple, groups: Mapping[tuple, list[Result]]) -> dict[str, Any]:
    """A row of a recipe against its smallest fixed budget on the same device."""
    fixed = _fixed(key, groups)
    smallest = fixed.get(min(fixed, default=1.0))
    if smallest is None or smallest == key:
        return {}
    names = ("diff_vs_smallest", "diff_vs_smallest_ci")
    told = {"smallest": smallest[2]}
    return told | _named(names, _paired(groups[key], groups[smallest]))


def _fixed(key: tuple, groups: Mapping[tuple, list[Result]]) -> dict[float, tuple]:
    """Keep ratio -> key of the rows of the same recipe on the same device."""
    suite, name, _, setting = key
    return {
        other[2]: other
        for other in groups
        if (other[0], other[1], other[3]) == (suite, name, setting) and name != "dense"
        and isinstance(other[2], float) and "driver" not in groups[other][0]
    }  # fmt: skip


def _named(
    names: tuple[str, str], found: tuple[float, tuple[float, float]]
) -> dict[str, float | list[float]]:
    """A difference and its interval."""
    return {names[0]: found[0], names[1]: list(found[1])}


def _miss_rate(result: Result) -> float:
    return result.get("realtime", {}).get("miss_rate") or 0.0


def score(result: Result) -> float:
    """What counts most in an episode."""
    return float(next(iter(result["outcome"].values())))


def _paired(
    ours: Sequence[Result],
    theirs: Sequence[Result],
    value: Callable[[Result], float] = score,
) -> tuple[float, tuple[float, float]]:
    """Mean difference and interval over the places that both were at."""
    other = {_place(r): value(r) for r in theirs}
    pairs = [(value(r), other[_place(r)]) for r in ours if _place(r) in other]
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
    names = " ".join(name for name in ("tuned", "controller") if result.get(name))
    keep = names or float(result["keep_ratio"])
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
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value == float("inf") else value
