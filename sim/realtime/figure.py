"""The figure of real time: closed-loop score against keep ratio, one line a device.

``python -m vla_prune_sim.realtime.figure results/realtime.json`` writes ``results/realtime.png``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_prune import report
from vla_prune.errors import MissingError, ShapeError, VlaPruneError

POOLED = "pooled"


def draw(document: Mapping[str, Any], output: Path) -> Path:
    """One panel a domain; a diamond where the tuned budget is, a star where the controller is.

    The star stands at the mean ratio that it kept. Controls are left to the table.

    Args:
        document: as `table.make` gives it.
        output: PNG to write.

    Raises:
        MissingError: matplotlib is not installed.
        ShapeError: there is no row of a policy.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingError(
            "the figure needs matplotlib; install 'vla-prune[viz]', or read the rows."
        ) from None
    if any("domain" not in row for row in document["rows"]):
        raise ShapeError(
            "the figure: these rows are not of real time; give results/realtime.json."
        )
    domains = _by(_shown(document["rows"]), "domain")
    if not domains:
        raise ShapeError("the figure: there is no row of a policy; run a real-time table first.")
    figure = Figure(figsize=(5.2 * len(domains), 3.8), layout="constrained")
    axes = figure.subplots(1, len(domains), squeeze=False)[0]
    for axis, (domain, rows) in zip(axes, domains.items(), strict=True):
        for number, (profile, line) in enumerate(_by(rows, "profile").items()):
            fixed = sorted((r["keep_ratio"], r["score"]) for r in line if _on_the_line(r))
            colour = f"C{number}"
            axis.plot(*zip(*fixed, strict=True), "o-", color=colour, label=profile)
            for row in (r for r in line if r.get("tuned") and "keep_ratio" in r):
                axis.plot(row["keep_ratio"], row["score"], "D", color=colour, markersize=9)
            for row in (r for r in line if r.get("controller")):
                mean = sum(float(keep) * share for keep, share in row["buckets"].items())
                axis.plot(mean, row["score"], "*", color=colour, markersize=13)
        axis.set_xscale("log", base=2)
        ticks = sorted({r["keep_ratio"] for r in rows if _on_the_line(r)})
        axis.set_xticks(ticks, [f"{100 * tick:g}%" for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="visual tokens kept", ylabel="score in real time", title=domain)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    return output


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Policies only; pooled over suites where there are several."""
    pooled = {row["domain"] for row in rows if row["suite"] == POOLED}
    return [
        row
        for row in rows
        if "driver" not in row and (row["suite"] == POOLED or row["domain"] not in pooled)
    ]


def _on_the_line(row: Mapping[str, Any]) -> bool:
    return "keep_ratio" in row and "charged_as" not in row and not row.get("tuned")


def _by(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row[name]].append(row)
    return groups


def main(argv: Sequence[str] | None = None) -> None:
    """Draw from a results file."""
    parser = argparse.ArgumentParser(description="Score against keep ratio in real time.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    try:
        document = report.read(args.results)
        print(draw(document, args.out or args.results.with_suffix(".png")))
    except VlaPruneError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
