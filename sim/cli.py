"""Commands that need a simulator; they join ``vla-prune`` through an entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from vla_prune_sim import demo as demonstration
from vla_prune_sim import rollout, table
from vla_prune_sim.masks import cli as masks
from vla_prune_sim.realtime import table as realtime_table
from vla_prune_sim.tune.cli import tune

from vla_prune import config, report
from vla_prune.cli import Json, Set, emit, err, out, progress
from vla_prune.errors import did_you_mean

ERRORS = 5  # of broken episodes that are told; all stand beside the results


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(demo)
    app.command()(tune)
    worlds = typer.Typer(help="Synthetic driving worlds.", no_args_is_help=True)
    worlds.command()(make)
    app.add_typer(worlds, name="world")
    masks.register(app)


def run(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="configs/run/*.yaml")],
    only: Annotated[
        list[str], typer.Option(help="SUITE:TASK:STATE:RECIPE:KEEP, an entry to repeat.")
    ] = [],  # noqa: B006 typer needs a list
    recipes: Annotated[
        str, typer.Option(help="Comma-separated: only rows of these, drivers too.")
    ] = "",
    overrides: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Run a table of closed-loop episodes; a killed run goes on where it stopped."""
    data = config.load(name, overrides, kind="run")
    config.check_keys(name, rollout.RunConfig, data)
    if recipes:
        wanted = {item.strip() for item in recipes.split(",")}
        there = {row.get("recipe") or row.get("driver", "") for row in data["rows"]}
        for item in sorted(wanted - there):
            raise did_you_mean(f"{name}: --recipes", "row", item, there)
        wanted.add("dense")
        data["rows"] = [
            row for row in data["rows"] if (row.get("recipe") or row.get("driver")) in wanted
        ]
    run_config = rollout.RunConfig(**data)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        line = bar.add_task("episodes", total=None)
        results = rollout.run(
            run_config, only, lambda done, total: bar.update(line, completed=done, total=total)
        )
    if only:
        for result in results:
            told = ", ".join(f"{k} {report.cell(v)}" for k, v in result["outcome"].items())
            out.print(f"{result['key']}: {told}")
        emit({"episodes": results}, as_json)
        return
    document = table.make(run_config, results)
    short = realtime_table.short if run_config.realtime else table.short
    rows, shown = short(document["rows"])
    out.print(*report.tables(run_config.results, rows, shown, out.width, lead=2), sep="\n")
    for result in [r for r in results if "error" in r][:ERRORS]:
        err.print(f"{result['key']}: {result['error']}", highlight=False, markup=False)
    emit(document, as_json)


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the report goes.")] = Path(
        "runs/demo"
    ),
    world: Annotated[
        str, typer.Option(help="drive, libero or frames; what is there where not given.")
    ] = "",
    as_json: Json = False,
) -> None:
    """See pruning work: a policy dense and pruned in closed loop, a table and films on a page."""
    world, note = demonstration.choose(world)
    if note:
        err.print(note, highlight=False, markup=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        line = bar.add_task("demo", total=1.0)
        document = demonstration.run(
            folder, world, lambda what, share: bar.update(line, description=what, completed=share)
        )
    document["note"] = note
    if "rows" in document:
        rows, shown = table.short(document["rows"])
        out.print(
            *report.tables(f"closed loop: {world}", rows, shown, out.width, lead=2), sep="\n"
        )
    stages = [
        {"recipe": row["recipe"], "keep_ratio": row["keep_ratio"], "ms": row["median_ms"]}
        | {name: row["stages_ms"].get(name) for name in demonstration.STAGES}
        for row in document["stages"]
    ]
    shown = ["recipe", "keep_ratio", "ms", *demonstration.STAGES]
    out.print(report.table("one policy call, median milliseconds", stages, shown))
    out.print(
        f"kept {document['kept']} of {document['of']} visual tokens: {document['picture']}\n"
        f"report: {document['report']}",
        highlight=False,
        soft_wrap=True,
    )
    emit(document, as_json)


def make(
    folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    scenes: Annotated[int, typer.Option(help="How many drives of twenty seconds.")] = 4,
    seed: Annotated[int, typer.Option(help="Another seed, other towns.")] = 7,
    sweeps: Annotated[
        bool, typer.Option("--sweeps", help="Draw the 12 Hz pictures, too: six times as long.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a nuScenes root of synthetic towns, with maps, tables and pictures."""
    from vla_prune_sim.drive.make_world import make_root

    with progress("scenes") as update:
        make_root(folder, scenes, seed, lambda n: update((n - 1) / scenes), sweeps)
    out.print(f"{scenes} scenes in {folder}", highlight=False)
    emit({"root": str(folder), "scenes": scenes, "seed": seed, "synthetic": True}, as_json)
