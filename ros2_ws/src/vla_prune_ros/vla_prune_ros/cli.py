"""``vla-prune ros``: commands about a ROS 2 graph; they join through an entry point."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.table import Table

from vla_prune.build import import_object
from vla_prune.cli import Json, Set, emit, out
from vla_prune.errors import ConfigError, MissingError, did_you_mean
from vla_prune_ros.contract import load_contract
from vla_prune_ros.graph import Graph, judge, topics

READERS = {"rclpy": "vla_prune_ros.graph_ros:read", "dds": "vla_prune_ros.graph_dds:read"}
NEEDS = {"rclpy": ("rclpy",), "dds": ("cyclonedds", "rosbags")}
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="A ROS 2 graph and our topic maps.", no_args_is_help=True)
    group.callback()(_root)
    group.command()(check)
    app.add_typer(group, name="ros")


def _root() -> None:
    """A ROS 2 graph and our topic maps."""


def check(
    contract: Annotated[str, typer.Argument(metavar="CONTRACT", help="configs/ros/*.yaml")],
    seconds: Annotated[float, typer.Option(help="How long to listen.")] = 5.0,
    namespace: Annotated[str, typer.Option(help="Of the nodes; relative topics are in it.")] = "/",
    via: Annotated[str, typer.Option(help="auto, rclpy or dds.")] = "auto",
    domain: Annotated[int | None, typer.Option(help="In place of ROS_DOMAIN_ID.")] = None,
    everywhere: Annotated[
        bool, typer.Option(help="With dds: also other machines, not this one alone.")
    ] = False,
    overrides: Set = [],  # noqa: B006 typer needs a list
    as_json: Json = False,
) -> None:
    """Which topics match a contract: rates, sizes, QoS conflicts, small buffers, clock offsets.

    Ends with exit code 1 if something would keep the nodes from working.
    """
    if not seconds > 0:
        raise ConfigError(f"ros check: seconds is {seconds:g}; give more than 0.")
    asked = load_contract(contract, overrides)
    graph: Graph = import_object(READERS[reader(via)])(
        topics(asked, namespace), seconds, domain, namespace, not everywhere
    )
    findings = judge(asked, graph, namespace)
    table = Table("topic", "", "finding", title=f"{contract}: read through {graph.source}")
    for finding in findings:
        colour = COLOURS[finding.level]
        table.add_row(finding.topic, f"[{colour}]{finding.level}[/{colour}]", finding.text)
    out.print(table)
    emit(
        {
            "contract": contract,
            "source": graph.source,
            "rmem_max": graph.rmem_max,
            "findings": [asdict(finding) for finding in findings],
            "traffic": {topic: asdict(traffic) for topic, traffic in graph.traffic.items()},
        },
        as_json,
    )
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def reader(via: str) -> str:
    """How the graph is read: rclpy where it can be imported, else DDS.

    Raises:
        MissingError: nothing that could read it is installed.
    """
    if via != "auto":
        if via not in READERS:
            raise did_you_mean("ros check", "way", via, ("auto", *READERS))
        missing = [name for name in NEEDS[via] if find_spec(name) is None]
        if not missing:
            return via
        raise MissingError(f"ros check: {', '.join(missing)} cannot be imported; {_HELP}")
    for name, needs in NEEDS.items():
        if all(find_spec(need) is not None for need in needs):
            return name
    raise MissingError(f"ros check: neither rclpy nor cyclonedds can be imported; {_HELP}")


_HELP = "source the setup file of a ROS 2 installation, or pip install 'vla-prune[dds]'."
