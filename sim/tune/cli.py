"""``vla-prune tune``: joins the commands through `vla_prune_sim.cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vla_prune import config, report
from vla_prune.cli import Json, Set, emit, err, out
from vla_prune.errors import ConfigError, did_you_mean


def tune(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="configs/policy/*.yaml")],
    profile: Annotated[Path, typer.Option(help="What 'vla-prune profile' wrote.")],
    period: Annotated[str, typer.Option(help="Replanning period, such as 100ms.")],
    deadline: Annotated[
        str, typer.Option(help="From the picture to the actuator; the period if not given.")
    ] = "",
    percentile: Annotated[int, typer.Option(help="Of the calls that meet it: 50, 95, 99.")] = 99,
    max_age: Annotated[str, typer.Option(help="Oldest picture behind a command, p99.")] = "",
    min_score: Annotated[float | None, typer.Option(help="Least score in real time.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Comma-separated candidates; else all of the profile's."),
    ] = None,
    factor: Annotated[float, typer.Option(help="Tune for a device this much slower.")] = 1.0,
    other_device: Annotated[
        bool, typer.Option(help="The profile is of another device than this one.")
    ] = False,
    commit: Annotated[
        str, typer.Option(help="warn, refuse or ignore, when the profile is of another commit.")
    ] = "warn",
    name: Annotated[
        str,
        typer.Option("--config", help="configs/tune/*.yaml; else by the policy's name."),
    ] = "",
    folder: Annotated[Path | None, typer.Option("--out", help="Episodes and configs.")] = None,
    overrides: Set = [],  # noqa: B006 typer needs a list
    as_json: Json = False,
) -> None:
    """Which budget a deadline leaves: forecast, closed loop in real time, a ready config.

    Its last line is JSON in any case: what is recommended is for programs, too.
    """
    from vla_prune_sim import rollout
    from vla_prune_sim.tune import tuner
    from vla_prune_sim.tune.config import Request, TuneConfig, seconds

    request = Request(
        policy,
        str(profile),
        seconds(period, "--period"),
        seconds(deadline, "--deadline") if deadline else None,
        percentile,
        factor,
        other_device,
        seconds(max_age, "--max-age") if max_age else None,
        min_score,
        None if keep is None else _ratios(keep),
        commit,
    )
    data = config.load(name or _config_of(policy), overrides, kind="tune")
    config.check_keys("tune", TuneConfig, data)
    tuning = TuneConfig(**data)
    folder = folder or Path("runs/tune") / Path(policy).stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"tune: --out {folder} cannot be made: {error}.") from error

    def say(sentence: str) -> None:
        err.print(sentence, highlight=False, markup=False, soft_wrap=True)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        line = bar.add_task("episodes", total=None)

        def play(table: rollout.RunConfig) -> Any:
            return rollout.run(
                table, progress=lambda done, all_: bar.update(line, completed=done, total=all_)
            )

        found = tuner.tune(tuning, request, folder, play, say)
    found |= report.provenance(tuning.seed)
    (folder / "tune.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shown = ["keep_ratio", "predicted_ms", "episodes", "score", "diff_vs_dense", "diff_ci"]
    shown += ["miss_rate", "age_p99_ms", "rate_hz", "stale_ratio"]
    title = f"{policy}: {1e3 * request.deadline:g} ms at p{percentile}"
    out.print(
        report.table(title, [{**found["dense"], "keep_ratio": "dense"}, *found["curve"]], shown)
    )
    ladder = ", ".join(f"{rung:g}" for rung in found["ladder"])
    missed = "-" if found["miss_rate"] is None else f"{100 * found['miss_rate']:.1f}%"
    out.print(
        f"use {found['recipe']} at keep ratio {found['keep_ratio']:g} "
        f"({_views(found['buckets'])}), ladder {ladder}: score {found['score']:.3g}, "
        f"{missed} missed, {found['speedup']:.2f} times as fast as "
        f"dense (the ceiling is {found['ceiling']:.2f}).\nwrote {found['config']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    emit(found, True)


def _ratios(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",") if item.strip()]
    except ValueError:
        raise ConfigError(
            f"tune: --keep {text!r}; give keep ratios in (0, 1] with commas between them."
        ) from None


def _config_of(policy: str) -> str:
    """The shipped tune config of a policy's name."""
    name = Path(policy).stem
    known = sorted(path.stem for path in (config.configs_folder() / "tune").glob("*.yaml"))
    if name not in known:
        raise did_you_mean(
            "tune: no --config is given, and none is shipped", "policy", name, known
        )
    return name


def _views(buckets: dict[str, int]) -> str:
    return ", ".join(f"{view} {tokens}" for view, tokens in buckets.items())
