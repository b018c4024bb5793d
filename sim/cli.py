"""Commands that need a simulator; they join ``vla-prune`` through an entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from vla_prune_sim import demo as demonstration
from vla_prune_sim import rollout, table

from vla_prune import config, report
from vla_prune.cli import Json, Set, emit, err, out, progress


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(demo)
    worlds = typer.Typer(help="Synthetic driving worlds.", no_args_is_help=True)
    worlds.command()(make)
    app.add_typer(worlds, name="world")


def run(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="configs/run/*.yaml")],
    only: Annotated[
        list[str], typer.Option(help="SUITE:TASK:STATE:RECIPE:KEEP, an entry to repeat.")
    ] = [],  # noqa: B006 typer needs a list
    recipes: Annotated[str, typer.Option(help="Comma-separated: only rows of these.")] = "",
    overrides: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Run a table of closed-loop episodes; a killed run goes on where it stopped."""
    data = config.load(name, overrides, kind="run")
    config.check_keys(name, rollout.RunConfig, data)
    if recipes:
        wanted = {item.strip() for item in recipes.split(",")} | {"dense"}
        data["rows"] = [row for row in data["rows"] if row["recipe"] in wanted]
    run_config = rollout.RunConfig(**data)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        line = bar.add_task("episodes", total=None)
        results = rollout.run(
            run_config, only, lambda done, total: bar.update(line, completed=done, total=total)
        )
    if only:
        for result in results:
            told = ", ".join(f"{name} {value:g}" for name, value in result["outcome"].items())
            out.print(f"{result['key']}: {told}")
        emit({"episodes": results}, as_json)
        return
    document = table.make(run_config, results)
    shown = list(dict.fromkeys(name for row in document["rows"] for name in row))
    out.print(report.table(run_config.results, document["rows"], shown))
    emit(document, as_json)


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where pictures and results go.")] = Path(
        "runs/demo"
    ),
    as_json: Json = False,
) -> None:
    """See pruning work: LIBERO in closed loop where it is installed, drawn frames elsewhere."""
    with progress("demo") as update:
        document = demonstration.run(folder, update)
    if "rows" in document:
        shown = ["suite", "recipe", "keep_ratio", "episodes", "success", "tokens", "time_ratio"]
        out.print(report.table("closed loop", document["rows"], shown))
    stages = [
        {"recipe": row["recipe"], "keep_ratio": row["keep_ratio"], "ms": row["median_ms"]}
        | {name: row["stages_ms"].get(name) for name in demonstration.STAGES}
        for row in document["stages"]
    ]
    columns = ["recipe", "keep_ratio", "ms", *demonstration.STAGES]
    out.print(report.table("one policy call, median milliseconds", stages, columns))
    out.print(
        f"kept {document['kept']} of {document['of']} visual tokens: {document['picture']}",
        highlight=False,
    )
    emit(document, as_json)


def make(
    folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    scenes: Annotated[int, typer.Option(help="How many drives of twenty seconds.")] = 4,
    seed: Annotated[int, typer.Option(help="Another seed, other towns.")] = 7,
    as_json: Json = False,
) -> None:
    """Write a nuScenes root of synthetic towns, with maps, tables and pictures."""
    from vla_prune_sim.drive.make_world import make_root

    with progress("scenes") as update:
        make_root(folder, scenes, seed, lambda number: update((number - 1) / scenes))
    out.print(f"{scenes} scenes in {folder}", highlight=False)
    emit({"root": str(folder), "scenes": scenes, "seed": seed, "synthetic": True}, as_json)
