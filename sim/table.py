"""Episodes to a table: success with paired intervals, tokens, cost, time ratios."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vla_prune_sim.play import pruner_of
from vla_prune_sim.rollout import Row, RunConfig

from vla_prune import report
from vla_prune.build import build_adapter
from vla_prune.cost import prefill_macs, tokens_per_layer
from vla_prune.pruner import Pruner
from vla_prune.recon.bind import bind, scoring_macs

POOLED = "pooled"
OURS, MINUS = "tri_level", "tri_level_minus"


def make(config: RunConfig, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results document: one row per suite and recipe, and pooled over suites."""
    if config.realtime:
        from vla_prune_sim.realtime import table as realtime

        return realtime.make(config, results)
    lines = Path(config.results).with_suffix(".episodes.jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("".join(json.dumps(r) + "\n" for r in results), encoding="utf-8")
    document = report.provenance(config.seed) | {
        "assets": sorted({r["assets"] for r in results}),
        "commits": sorted({r["commit"] for r in results if "commit" in r}),
        "rows": rows(config, results),
        "episodes_file": lines.name,
    }
    Path(config.results).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def rows(config: RunConfig, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of the results, each suite by itself and then all of them."""
    dense = {_place(r): r for r in results if _row(r) == ("dense", 1.0, "none")}
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        groups[(result["suite"], *_row(result))].append(result)
    pooled = len({r["suite"] for r in results}) > 1
    for result in results if pooled else ():
        groups[(POOLED, *_row(result))].append(result)
    macs = _Macs(config)
    made = {key: _summary(key[0], group, dense, macs) for key, group in groups.items()}
    if config.ablation:
        for key, row in made.items():
            row["variant"] = Path(row.get("recipe") or row["driver"]).name
            if row["variant"] == OURS:
                row[MINUS] = _minus_others(key, groups)
    return list(made.values())


def short(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of a table that fits a terminal.

    One name for recipe, driver and control; no suite where there is but one; no costs, and no
    parts in metres or seconds.
    """
    told = []
    for row in rows:
        name = row.get("recipe") or row["driver"]
        control = row.get("control", "none")
        told.append({"name": name if control == "none" else f"{name}, {control}", **row})
    columns = dict.fromkeys(name for row in told for name in row)
    hidden = {"recipe", "driver", "control", "macs", "variant", "parts_diff", MINUS}
    hidden |= {"suite"} if len({row["suite"] for row in rows}) == 1 else set()
    return told, [c for c in columns if c not in hidden and not c.endswith(report.UNITS)]


def _summary(
    suite: str, group: list[Mapping[str, Any]], dense: Mapping[tuple, Any], macs: _Macs
) -> dict[str, Any]:
    first = group[0]
    measure = next(iter(first["outcome"]))  # what counts most
    parts = dict.fromkeys(name for r in group for name in r["outcome"])
    paired = [r for r in group if _place(r) in dense]
    names = [name for name in ("recipe", "driver", "keep_ratio", "control") if name in first]
    summary = {"suite": suite} | {name: first[name] for name in names}
    summary["episodes"] = len(group)
    for name in parts:
        known = [r["outcome"][name] for r in group if r["outcome"].get(name) is not None]
        summary[name] = float(np.mean(known)) if known else None
    if errors := sum("error" in r for r in group):
        summary["errors"] = errors
    summary |= _difference(group, dense, measure)
    if told := _parts_diff(parts, measure, paired, dense):
        summary["parts_diff"] = told
    if "driver" in first:
        return summary
    counts = [macs.of(r) for r in group if "calls" in r]
    ratios = [_mixed(r, r["time_ratio"], 1.0) for r in group if "time_ratio" in r]
    dense_ratio = 1.0 if first["recipe"] == "dense" else None
    return summary | {
        "tokens": float(np.mean([tokens for tokens, _ in counts])) if counts else None,
        "macs": float(np.mean([macs for _, macs in counts])) if counts else None,
        "time_ratio": float(np.median(ratios)) if ratios else dense_ratio,
    }


def _difference(
    group: Iterable[Mapping[str, Any]], other: Mapping[tuple, Any], measure: str
) -> dict[str, Any]:
    """What a row has more of ``measure`` than another at the same places, and the interval."""
    pairs = [(r, other[_place(r)]) for r in group if _place(r) in other]
    columns = [[r["outcome"][measure] for r in column] for column in zip(*pairs, strict=True)]
    difference, interval = report.paired_interval(*(columns or ([], [])))
    return {"diff": difference, "diff_ci": list(interval)}


def _minus_others(
    key: tuple, groups: Mapping[tuple, list[Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Our row against all others of its suite and budget: row -> difference, interval, episodes.

    Pairs are over the places where both were run.
    """
    ours, told = groups[key], {}
    measure = next(iter(ours[0]["outcome"]))
    for other, group in groups.items():
        if other == key or (other[0], *other[2:]) != (key[0], *key[2:]) or "driver" in group[0]:
            continue
        there = {_place(r): r for r in group}
        count = sum(_place(r) in there for r in ours)
        if count:
            difference = _difference(ours, there, measure)
            told[Path(other[1]).name] = difference | {"episodes": count}
    return told


def _parts_diff(
    parts: Iterable[str],
    measure: str,
    paired: Sequence[Mapping[str, Any]],
    dense: Mapping[tuple, Any],
) -> dict[str, list[float]]:
    """Part of the outcome -> difference to dense, and the ends of its interval; shares only."""
    told = {}
    for name in parts:
        if name == measure or name.endswith(report.UNITS):
            continue
        values = [(r["outcome"].get(name), dense[_place(r)]["outcome"].get(name)) for r in paired]
        known = [pair for pair in values if None not in pair]
        if known:
            difference, interval = report.paired_interval(*zip(*known, strict=True))
            told[name] = [difference, *interval]
    return told


class _Macs:
    """Visual tokens kept, and multiply-accumulates of language model and reconstructor, a call."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.adapters: dict[str, Any] = {}
        self.pruners: dict[tuple, Pruner] = {}

    def of(self, result: Mapping[str, Any]) -> tuple[float, float]:
        suite = result["suite"]
        if suite not in self.adapters:
            self.adapters[suite] = build_adapter(self.config.suites[suite].policy)
        adapter, pruner = self.adapters[suite], self._pruner(result)
        pruned, dense = (self._call(adapter, pruner, kept) for kept in (result["kept"], {}))
        return tuple(_mixed(result, ours, full) for ours, full in zip(pruned, dense, strict=True))

    def _pruner(self, result: Mapping[str, Any]) -> Pruner:
        """The recipe of an episode, with the networks that it scores by."""
        suite, recipe, ratio = (result[name] for name in ("suite", "recipe", "keep_ratio"))
        if (suite, recipe, ratio) not in self.pruners:
            pruner = pruner_of(Row(recipe, ratio), self.config.cut_layer)
            [self.pruners[suite, recipe, ratio]] = bind([pruner], self.adapters[suite])
        return self.pruners[suite, recipe, ratio]

    def _call(self, adapter: Any, pruner: Pruner, kept: Mapping[str, int]) -> tuple[int, float]:
        total = adapter.layout.total
        lengths = tokens_per_layer(adapter.shape, total, adapter.other_tokens, kept)
        macs = prefill_macs(adapter.shape, lengths) + scoring_macs(pruner, adapter.layout, kept)
        return min([total, *kept.values()]), macs


def _mixed(result: Mapping[str, Any], pruned: float, dense: float) -> float:
    """Mean over an episode's calls, of which some may have been dense (a recipe's warm-up)."""
    share = result.get("unpruned_calls", 0) / result["calls"]
    return share * dense + (1.0 - share) * pruned


def _place(result: Mapping[str, Any]) -> tuple:
    return result["suite"], result["task"], result["state"]


def _row(result: Mapping[str, Any]) -> tuple:
    name = result.get("recipe") or result["driver"]
    return name, result["keep_ratio"], result["control"]
