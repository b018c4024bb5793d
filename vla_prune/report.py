"""Tables for people and numbers for programs: paired intervals, row formatting, provenance.

Knows no policy and no simulator.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vla_prune.errors import ConfigError, MissingError, did_you_mean

CHANGES = "+changes"  # behind the commit of a tree with changes


def paired_interval(
    ours: Sequence[float], reference: Sequence[float], seed: int = 0, draws: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Mean difference over paired episodes and its 95% bootstrap interval.

    Args:
        ours: outcome of each episode.
        reference: outcome of the same episodes with the reference row, in the same order.
        seed: of the resampling.
        draws: bootstrap samples.

    Returns:
        ``(difference, (low, high))`` in the unit of the outcomes.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(reference, dtype=float)
    if len(difference) == 0:
        return float("nan"), (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(difference), size=(draws, len(difference)))
    low, high = np.percentile(difference[picks].mean(axis=1), [2.5, 97.5])
    return float(difference.mean()), (float(low), float(high))


def commit(folder: Path | None = None) -> str:
    """The checkout's commit, `CHANGES` behind it if files differ, ``unknown`` outside one."""
    where = folder or Path(__file__).resolve().parent
    try:
        head = _git(where, "rev-parse", "--short=12", "HEAD")
        return head + CHANGES if _git(where, "status", "--porcelain", "-uno") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read(path: Path, suite: str = "") -> dict[str, Any]:
    """A results document of a closed-loop table, whole or one suite's rows, or of scorers.

    Raises:
        MissingError: no such file.
        ConfigError: neither a table of closed-loop episodes nor one of scorers.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such results file; 'vla-prune run' writes them.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    rows = document.get("rows") if isinstance(document, dict) else None
    if not rows or any(_is_no_row(row) for row in rows):
        raise ConfigError(
            f"{path}: no table of closed-loop episodes (rows with 'suite' and 'diff_ci') nor of "
            "scorers; give what 'vla-prune run' or 'vla-prune masks evaluate' wrote."
        )
    where = "domain" if "scorer" in rows[0] else "suite"
    suites = list(dict.fromkeys(row[where] for row in rows))
    if suite and suite not in suites:
        raise did_you_mean(str(path), where, suite, suites)
    return document | {"rows": [row for row in rows if suite in ("", row[where])]}


def _is_no_row(row: Any) -> bool:
    """Reference drivers are paired with nothing in real time."""
    if isinstance(row, Mapping) and {"scorer", "domain", "average_precision"} <= set(row):
        return False
    if not isinstance(row, Mapping) or "suite" not in row:
        return True
    return "diff_ci" not in row and not {"domain", "driver"} <= set(row)


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def provenance(seed: int, program: str = "vla-prune") -> dict[str, Any]:
    """What every results file begins with: command, commit, machine and seed.

    Args:
        seed: of the run.
        program: how this process was started, such as ``python -m vla_prune_sim.train.look``.
    """
    command = " ".join([program, *map(shlex.quote, sys.argv[1:])])
    return {"command": command, "commit": commit(), "machine": machine(), "seed": seed}


def machine() -> dict[str, Any]:
    """What a figure has to name."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """Rows as a rich table; numbers get three significant places."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(
            column, justify="left" if column in ("recipe", "suite", "name") else "right"
        )
    for row in rows:
        made.add_row(*(cell(row.get(column)) for column in columns))
    return made


def tables(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    width: int,
    lead: int = 1,
) -> list[Table]:
    """The same rows as tables below each other, so that no number is cut off.

    Args:
        title: of the first.
        rows: of all of them.
        columns: in order; as many a table as fit.
        width: characters of a line.
        lead: how many columns stand in each table, because they name the row.
    """

    def wide(column: str) -> int:
        return max(len(column), *(len(cell(row.get(column))) for row in rows)) + len(" | ")

    named, groups = list(columns[:lead]), [[]]
    room = width - 1 - sum(map(wide, named))
    left = room
    for column in columns[lead:]:
        left -= wide(column)
        if left < 0 and groups[-1]:
            groups.append([])
            left = room - wide(column)
        groups[-1].append(column)
    return [
        table(title if number == 0 else "", rows, [*named, *group])
        for number, group in enumerate(groups)
    ]


def cell(value: Any) -> str:
    """One value as text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return " to ".join(cell(item) for item in value)
    return str(value)


UNITS = ("_m", "_s", "_mps")  # parts of an outcome that are no shares end so
# What a table of closed-loop episodes shows, in this order; other numbers of a row stand between.
_FIRST = ("suite", "row", "kept", "episodes")
_LAST = ("points to dense", "visual tokens", "LLM multiply-accumulates", "LLM time")
_MINUS = "tri_level_minus"  # of our row in an ablation: by how much it lies above each other
_SHOWN_OTHERWISE = {
    *("suite", "recipe", "driver", "variant", "control", "keep_ratio", "episodes", "errors"),
    *("diff", "diff_ci", "tokens", "macs", "time_ratio"),
}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a table of episodes, or of scorers, as the Markdown that stands in a README."""
    if all("scorer" in row for row in rows):
        return _lines(_found(rows))
    if all("domain" in row for row in rows):
        return _lines([_in_time(row) for row in rows])
    if all("variant" in row for row in rows):
        return _lines(_variants(rows))
    parts = [name for name in dict.fromkeys(k for r in rows for k in r) if _is_part(name, rows)]
    suites = len({row["suite"] for row in rows}) > 1
    columns = [*_FIRST[0 if suites else 1 :], *parts, *_LAST]
    found = [_cells(row, parts) for row in rows]
    return _lines([{column: cells[column] for column in columns} for cells in found])


def _lines(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same columns as Markdown."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _found(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Average precision of each scorer by domain; of attention, at its best layer there."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        name, _, layer = row["scorer"].partition("@")
        found = best.setdefault(f"{name}, best layer" if layer else name, {})
        found[row["domain"]] = max(row["average_precision"], found.get(row["domain"], 0.0))
    return [
        {"scorer": name} | {d: _number(found.get(d), ".3f") for d in domains}
        for name, found in best.items()
    ]


def _variants(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Cells of an ablation: a line a variant, best first at the budget where most were run."""
    measure = next(name for name in ("success", "score") if name in rows[0])
    runs = {(row["suite"], row["variant"], _kept(row)): row for row in rows}
    shares = [kept for _, _, kept in runs]
    screen = max(dict.fromkeys(shares), key=shares.count)
    told: dict[tuple[str, str], dict[str, str]] = {}
    for suite, variant, kept in sorted(runs, key=lambda run: -runs[run][measure]):
        row = runs[suite, variant, kept]
        blank = dict.fromkeys(sorted(set(shares), key=lambda k: -float(k[:-1])), "-")
        cells = told.setdefault((suite, variant), {"suite": suite, "variant": variant} | blank)
        cells[kept] = _number(row[measure], ".1f", 100.0)
        if kept == screen:
            ours = (r for r in rows if _MINUS in r and (r["suite"], _kept(r)) == (suite, kept))
            lead = next(ours, {}).get(_MINUS, {}).get(variant)
            cells[f"points to dense at {screen}"] = _points(row["diff"], row["diff_ci"])
            cells["ours above it"] = _points(lead["diff"], lead["diff_ci"]) if lead else "-"
    ends = (f"points to dense at {screen}", "ours above it")
    lines = [cells | {end: cells.get(end, "-") for end in ends} for cells in told.values()]
    # Dense and blind on top, then the best at the screen's budget.
    lines.sort(key=lambda cells: -float(cells[screen]) if cells[screen] != "-" else -1e9)
    hidden = {"suite"} if len({line["suite"] for line in lines}) == 1 else set()
    return [{k: v for k, v in line.items() if k not in hidden} for line in lines]


def budget(row: Mapping[str, Any]) -> str:
    """What picked the budget of a row of real time: a keep ratio, tuned, the controller."""
    parts = [name for name in ("tuned", "controller") if row.get(name)]
    return " ".join([*parts, *([f"{row['keep_ratio']:g}"] if "keep_ratio" in row else [])])


def _in_time(row: Mapping[str, Any]) -> dict[str, str]:
    """Cells of a row of real time."""
    points = "-"
    if "diff_ci" in row:
        points = _points(row["diff_vs_dense"], row["diff_ci"])
    return {
        "domain": row["domain"],
        "suite": row["suite"].removeprefix("libero_"),
        "device": row["profile"],
        "row": row.get("recipe") or row["driver"],
        "kept": "-" if "driver" in row else budget(row),
        "episodes": str(row["episodes"]),
        "score": f"{row['score']:.3f}",
        "points to dense": points,
        "misses": _number(row.get("miss_rate"), ".1f", 100.0, "%"),
        "age p99": _number(row.get("age_p99_ms"), ".0f", 1.0, " ms"),
    }


def _points(difference: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * difference:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def _is_part(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    if name in _SHOWN_OTHERWISE or name.endswith(UNITS):
        return False
    return all(isinstance(row.get(name), int | float | None) for row in rows)


def _cells(row: Mapping[str, Any], parts: Sequence[str]) -> dict[str, str]:
    name = row.get("variant") or row.get("recipe") or row["driver"]
    if row.get("control", "none") != "none":
        name += ", " + row["control"].replace("_", " ")
    if row.get("errors"):
        name += f" ({row['errors']} errors)"
    cells = {
        "suite": row["suite"].removeprefix("libero_"),
        "row": name,
        "kept": _kept(row),
        "episodes": str(row["episodes"]),
        "points to dense": _points(row["diff"], row["diff_ci"]),
        "visual tokens": _number(row.get("tokens"), ".0f"),
        "LLM multiply-accumulates": _number(row.get("macs"), ".0f", 1e-6, " M"),
        "LLM time": _number(row.get("time_ratio"), ".2f"),
    }
    return cells | {part: _number(row.get(part), ".1f", 100.0, "%") for part in parts}


def _kept(row: Mapping[str, Any]) -> str:
    if "driver" in row:
        return "-"
    return "0%" if row.get("tokens") == 0 else f"{100 * row['keep_ratio']:g}%"


def _number(value: float | None, form: str, factor: float = 1.0, unit: str = "") -> str:
    return "-" if value is None else f"{value * factor:{form}}{unit}"
