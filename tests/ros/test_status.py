"""What a node says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from vla_prune_ros import wire
from vla_prune_ros.status import ERROR, OK, WARN, Health, Rate, machine

from vla_prune.runtime.deadline import DeadlineMonitor

from .scene import STATUS


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.hz(0.0) == 0.0
    for i in range(60):
        rate.count(i / 30)
    np.testing.assert_allclose(rate.hz(59 / 30), 30.0)
    assert rate.hz(59 / 30 + 1.0) < 20.0  # nothing came for a second
    assert rate.hz(59 / 30 + 5.0) == 0.0


def test_status_is_a_message_and_diagnostics_name_the_fault() -> None:
    health = Health("policy_node", deadline=DeadlineMonitor(0.05))
    health.kept, health.stage_ms, health.tokens = {"decoder.3": 72}, {"vision": 4.5}, 288
    health.runs()
    message = wire.make(STATUS, health.message(3.0, 1.0))
    assert (message.state, message.sites, list(message.kept)) == ("running", ["decoder.3"], [72])
    assert list(message.stage_ms) == [4.5]
    level = lambda: health.diagnostics(3.0, 1.0, {})["status"][0]  # noqa: E731
    assert level()["level"] == OK
    health.waits("nothing came yet.")
    assert level()["level"] == WARN
    health.holds("camera wrist silent for 0.40 s")
    told = health.diagnostics(3.0, 1.0, {"temperature [C]": 61.2})
    made = wire.make("diagnostic_msgs/msg/DiagnosticArray", told).status[0]
    assert (made.level, made.message) == (ERROR, "camera wrist silent for 0.40 s")
    values = {v.key: v.value for v in made.values}
    assert values["kept"] == "decoder.3 72"
    assert values["temperature [C]"] == "61.2"
    assert {"rate [Hz]", "age [ms]", "misses", "misses in a row", "refused"} <= set(values)


def test_missed_deadlines_are_a_warning() -> None:
    health = Health("command_node", deadline=DeadlineMonitor(0.05))
    health.runs()
    health.deadline.cycle(0.0, 0.0, 0.2)
    told = health.diagnostics(0.0, 0.0, {})["status"][0]
    assert told["level"] == WARN
    assert told["message"].startswith("1 deadlines missed in a row")


def test_the_machine_is_read_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "statm").write_text("9999 2560 0 0")
    for number, heat in enumerate(("41000", "67500", "broken")):
        zone = tmp_path / "class" / "thermal" / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(heat)
    found = machine(tmp_path, tmp_path)
    assert found["memory [MiB]"] == 10.0
    assert found["temperature [C]"] == 67.5
    assert "temperature [C]" not in machine(tmp_path, tmp_path / "nowhere")


def test_a_second_fault_is_news_and_a_longer_one_is_none() -> None:
    health, told = Health("policy_node"), []
    for reason in (
        "camera a silent for 0.17 s",
        "camera a silent for 0.37 s",
        "camera a silent for 0.57 s; camera b silent for 0.16 s",
    ):
        health.holds(reason)
        told.append(health.news)
    assert told[0] == told[1] != told[2]
