"""The commands ``vla-prune masks make`` and ``vla-prune masks evaluate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from vla_prune import report
from vla_prune.cli import Json, Set, emit, err, out, progress
from vla_prune.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from vla_prune_sim.masks.index import Entry

SUITES = ("libero_spatial", "libero_object")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    masks = typer.Typer(help="Foreground masks, and who finds them.", no_args_is_help=True)
    masks.command()(make)
    masks.command()(evaluate)
    app.add_typer(masks, name="masks")


def make(
    source: Annotated[
        str, typer.Argument(help="nuScenes root, folder of images, or a LIBERO suite.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Index, masks and new images.")],
    masks: Annotated[Path | None, typer.Option(help="PNGs of a folder of images.")] = None,
    rows: Annotated[int, typer.Option(help="Tokens from top to bottom.")] = 12,
    cols: Annotated[int, typer.Option(help="Tokens from left to right.")] = 12,
    group_by: Annotated[
        str | None, typer.Option(help="Regular expression: an image's scene; else its folder.")
    ] = None,
    annotations: Annotated[
        bool, typer.Option(help="Boxes and map also where exact masks can be had.")
    ] = False,
    episodes: Annotated[int | None, typer.Option(help="Of a LIBERO suite; 50.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of a LIBERO suite's first layout; 0.")] = None,
    others: Annotated[
        str | None,
        typer.Option(help="LIBERO's other objects: foreground, background or ignore."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write masks and their index; a killed call goes on where it stopped."""
    from vla_prune_sim.masks.index import write_index

    options = {
        "masks": masks,
        "group_by": group_by,
        "annotations": annotations or None,
        "episodes": episodes,
        "seed": seed,
        "others": others,
    }
    options = {name: value for name, value in options.items() if value is not None}
    entries, about = _entries(source, options)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("masks", total=None)
        total, new = write_index(
            entries, folder, rows, cols, about, lambda n: bar.update(task, completed=n)
        )
    out.print(f"{total} masks in {folder}, {new} of them new", highlight=False)
    emit({"index": str(folder / "index.jsonl"), "masks": total, "new": new}, as_json)


def _entries(source: str, options: Mapping[str, Any]) -> tuple[Iterator[Entry], dict[str, Any]]:
    """What a source gives, and what of the options changes a mask."""
    if source in SUITES:
        from vla_prune_sim.masks.libero import libero_entries

        _refuse_others(options, "a LIBERO suite", ("episodes", "seed", "others"))
        drawn = {"seed": 0, "others": "foreground"} | dict(options)
        entries = libero_entries(source, **{"episodes": 50, **drawn})
        return entries, {"source": source, "seed": drawn["seed"], "others": drawn["others"]}
    path = Path(source).expanduser()
    if not path.is_dir():
        raise MissingError(
            f"{source} is no folder and no LIBERO suite ({', '.join(SUITES)}); give a nuScenes "
            "root, or a folder of images with --masks."
        )
    about = {"source": str(path.resolve())} | {n: str(value) for n, value in options.items()}
    if "masks" in options:
        from vla_prune_sim.masks.folder import folder_entries

        _refuse_others(options, "a folder of images", ("masks", "group_by"))
        return folder_entries(path, options["masks"], options.get("group_by")), about
    from vla_prune_sim.masks.drive import root_entries

    _refuse_others(options, "a nuScenes root", ("annotations",))
    return root_entries(path, "annotations" in options), about


def _refuse_others(options: Mapping[str, Any], what: str, known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            say = [f"--{n.replace('_', '-')}" for n in (name, *known)]
            raise ConfigError(
                f"masks make: {say[0]} means nothing to {what}, which has {', '.join(say[1:])}; "
                "leave it out."
            )


def evaluate(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="configs/run/foreground.yaml")],
    overrides: Set = [],  # noqa: B006 typer needs a list
    as_json: Json = False,
) -> None:
    """How well scores find foreground tokens: a table, results and a picture."""
    from vla_prune_sim.masks import evaluate as evaluating

    with progress("scoring") as update:
        document = evaluating.run(evaluating.load(name, overrides), update)
    shown = ["domain", "scorer", "average_precision", "recall_at_k"]
    rows = [
        row | {"recall_at_k": ", ".join(f"{v:.3f}" for v in row["recall_at_k"].values())}
        for row in document["rows"]
    ]
    out.print(report.table("foreground tokens", rows, shown))
    for sentence in document["left_out"]:
        err.print(sentence, highlight=False)
    emit(document, as_json)
