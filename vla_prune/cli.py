"""The ``vla-prune`` command.

Results go to stdout, all else to stderr; with ``--json`` the last stdout line is JSON.

Exit code 2 is the user's mistake, 1 a failure. Commands that need a simulator join through the
entry point group ``vla_prune.commands``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from vla_prune import config
from vla_prune.errors import ConfigError, VlaPruneError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="End with one line of JSON on stdout.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a config key: a.b=value.")]


@app.callback()
def root() -> None:
    """Visual-token pruning that makes VLA policies fast enough to control robots and vehicles."""


def emit(document: dict[str, Any], as_json: bool) -> None:
    """The last stdout line of a command that reports."""
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """A progress bar on stderr; yields a function that takes the share done, in [0, 1]."""
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Recipes, policies, benches, runs and simulators that are shipped."""
    found = {}
    for kind in ("recipe", "policy", "bench", "run", "sim"):
        files = sorted((config.configs_folder() / kind).glob("*.yaml"))
        found[kind] = {path.stem: _what(path) for path in files}
    for kind, entries in found.items():
        out.print(f"[bold]{kind}[/bold]")
        for name, what in entries.items():
            out.print(f"  {name:20} {what}", highlight=False, markup=False)
    emit(found, as_json)


def _what(path: Path) -> str:
    """The second line of a config says what it shows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[1].removeprefix("# ") if len(lines) > 1 and lines[1].startswith("#") else ""


@app.command()
def bench(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="configs/bench/*.yaml")],
    recipes: Annotated[str, typer.Option(help="Comma-separated, in place of the config's.")] = "",
    overrides: Set = [],  # noqa: B006 typer needs a list
    as_json: Json = False,
) -> None:
    """Dense against pruned on one kernel in one run: speed-up, ideal, ceiling, selection cost."""
    from vla_prune import bench as benching
    from vla_prune import report

    data = config.load(name, overrides, kind="bench")
    if recipes:
        data["recipes"] = [item.strip() for item in recipes.split(",")]
    config.check_keys(name, benching.BenchConfig, data)
    with progress(f"bench {name}") as update:
        result = benching.run(benching.BenchConfig(**data), update)
    columns = [
        "recipe",
        "keep_ratio",
        "tokens",
        "median_ms",
        "p95_ms",
        "speedup",
        "ideal",
        "ceiling",
        "selection_fraction",
    ]
    out.print(report.table(result["machine"]["policy"], result["rows"], columns))
    for row in result["rows"]:
        stages = ", ".join(f"{k} {v:.2f}" for k, v in row["stages_ms"].items())
        out.print(f"  {row['recipe']} {row['keep_ratio']}: median ms: {stages}", highlight=False)
    emit(result, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed and usable, and what brings the rest."""
    from vla_prune.doctor import examine

    checks = examine()
    for check in checks:
        mark = "[green]ok  [/green]" if check.ok else "[yellow]none[/yellow]"
        out.print(f"{mark} {check.name:18}", end="")
        out.print(
            check.detail + ("" if check.ok else f"; {check.remedy}"), markup=False, highlight=False
        )
    emit({c.name: {"ok": c.ok, "detail": c.detail, "remedy": c.remedy} for c in checks}, as_json)


@app.command()
def draw(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="configs/policy/*.yaml")],
    output: Annotated[Path, typer.Option("--out", help="PNG to write.")] = Path("kept.png"),
    recipe: Annotated[str, typer.Option(help="Recipe to show.")] = "dual_level",
    keep_ratio: Annotated[float, typer.Option(help="Fraction kept, in (0, 1].")] = 0.25,
    images: Annotated[list[Path], typer.Option("--image", help="One per camera, in order.")] = [],  # noqa: B006
    instruction: Annotated[
        str, typer.Option()
    ] = "pick up the black bowl and place it on the plate",
    cut_layer: Annotated[int | None, typer.Option(help="Move the decoder cut.")] = None,
    as_json: Json = False,
) -> None:
    """Show which patches of an image a recipe keeps."""
    from vla_prune import draw as drawing

    result = drawing.draw_policy(
        policy, recipe, keep_ratio, images, instruction, output, cut_layer
    )
    out.print(f"wrote {output}: kept {result['kept']}", highlight=False)
    emit(result, as_json)


@app.command()
def show(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="results/*.json")],
    suite: Annotated[str, typer.Option(help="Only rows of this suite, such as pooled.")] = "",
    as_json: Json = False,
) -> None:
    """A table of closed-loop episodes, or of scorers, as Markdown, as it stands in a README."""
    from vla_prune import report

    document = report.read(results, suite)
    sys.stdout.write(report.markdown(document["rows"]))
    emit(document, as_json)


@app.command()
def profile(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="configs/policy/*.yaml")],
    output: Annotated[Path, typer.Option("--out", help="Profile to write, JSON.")],
    recipe: Annotated[str, typer.Option(help="Whose buckets are measured.")] = "dual_level",
    buckets: Annotated[
        str, typer.Option(help="Comma-separated keep ratios.")
    ] = "1.0,0.75,0.5,0.25,0.125,0.0625",
    rounds: Annotated[int, typer.Option(help="Timed calls of each bucket.")] = 60,
    warmup: Annotated[int, typer.Option(help="Calls of each before that.")] = 3,
    cut_layer: Annotated[int | None, typer.Option(help="Move the decoder cut.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
    signals: Annotated[
        bool, typer.Option("--signals", help="Read the controller's score signals, too.")
    ] = False,
    overrides: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Stage times of a policy on this machine over a list of buckets, and the latency model."""
    from vla_prune import report
    from vla_prune.tune import measure

    ratios = measure.keep_ratios(buckets)
    settings = measure.ProfileConfig(
        policy, recipe, ratios, rounds, warmup, cut_layer, threads, overrides, signals
    )
    with progress(f"profile {policy}") as update:
        result = measure.run(settings, output, update)
    columns = ["recipe", "keep_ratio", "tokens", "median", "p95", "p99", "jitter", "memory_mb"]
    out.print(report.table(f"{result['policy']}: ms of a call", result["rows"], columns))
    for row in result["rows"]:
        stages = ", ".join(f"{stage} {row[stage]:.2f}" for stage in result["stages"])
        out.print(f"  {row['recipe']} {row['keep_ratio']}: median ms: {stages}", highlight=False)
    for said in result["notes"]:
        err.print(said, highlight=False, markup=False)
    out.print(f"wrote {output}", highlight=False, markup=False)
    emit(result, as_json)


@app.command()
def export(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="configs/policy/*.yaml")],
    output: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    buckets: Annotated[str, typer.Option(help="Comma-separated keep ratios.")] = "0.5,0.25,0.125",
    weights: Annotated[
        str, typer.Option(help="Reconstructor: a folder, a shipped name, or 'random' (untrained).")
    ] = "",
    k: Annotated[
        str, typer.Option("--k", help="input, static, or auto: the faster one.")
    ] = "auto",
    quantise: Annotated[str, typer.Option(help="none, int8 or fp16.")] = "none",
    frames: Annotated[int, typer.Option(help="Random frames to compare with torch on.")] = 1000,
    provider: Annotated[str, typer.Option(help="cpu, cuda or tensorrt, to compare on.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Vision encoder, foreground reconstructor and top-k as ONNX, checked against torch.

    Exit code 1 if it keeps other tokens, but for swaps within rounding in at most 1% of frames.
    """
    from vla_prune.build import build_adapter
    from vla_prune.recon import export as exporting
    from vla_prune.report import provenance
    from vla_prune.tune.measure import keep_ratios

    settings = exporting.ExportConfig(
        str(output), weights or None, keep_ratios(buckets), k, quantise, frames, provider, threads
    )
    with progress(f"export {policy}") as update:
        result = exporting.export(settings, build_adapter(policy), update, provenance(seed=0))
    out.print(exporting.told(result), highlight=False, markup=False)
    emit(result, as_json)
    if quantise == "none" and not result["parity"]["passed"]:
        raise typer.Exit(1)


train = typer.Typer(help="Train what a recipe needs.", no_args_is_help=True)
app.add_typer(train, name="train")


@train.command("recon")
def train_recon(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="configs/recon/*.yaml")],
    overrides: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Train the foreground reconstructor of a policy's encoder; a killed run goes on."""
    from vla_prune.adapters.encoder import encoder_of
    from vla_prune.build import build_adapter
    from vla_prune.recon import train as training

    data = config.load(name, overrides, kind="recon")
    if "policy" not in data:
        raise ConfigError(f"{name}: field 'policy' is missing; name one of configs/policy.")
    adapter = build_adapter(data["policy"])
    settings = training.train_config(name, data, encoder_of(adapter).dim)
    with Progress(*Progress.get_default_columns(), console=err, transient=True) as bar:
        task = bar.add_task(f"recon {name}")

        def report(what: str, done: int, total: int, line: Mapping[str, float]) -> None:
            bar.update(task, description=what, completed=done, total=total)
            if line:
                told = ", ".join(f"{key} {value:.4g}" for key, value in line.items())
                err.print(f"step {done}: {told}", highlight=False)

        result = training.train(settings, adapter, report)
    told = ", ".join(f"{key} {value:.4g}" for key, value in result.items())
    out.print(f"weights in {Path(settings.out) / training.WEIGHTS}; held out: {told}")
    emit({"weights": str(Path(settings.out) / training.WEIGHTS), "held_out": result}, as_json)


def main() -> None:
    """Run; turn the user's mistakes into one sentence and exit code 2."""
    for point in entry_points(group="vla_prune.commands"):
        try:
            point.load()(app)
        except ImportError as error:
            err.print(f"[yellow]{point.name} commands are off: {error}[/yellow]")
    try:
        code = app(standalone_mode=False)
    except VlaPruneError as error:
        err.print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        err.print("stopped.")
        sys.exit(1)
    except typer.Exit as exit_:
        sys.exit(exit_.exit_code)
    except Exception as error:
        if getattr(error, "exit_code", None) is not None:  # click's usage errors
            error.show()
            sys.exit(error.exit_code)
        err.print_exception()
        sys.exit(1)
    if isinstance(code, int):  # what a typer.Exit becomes where typer itself ends no process
        sys.exit(code)


if __name__ == "__main__":
    main()
