"""Intervals and tables against numbers worked out by hand."""

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from vla_prune import report
from vla_prune.errors import ConfigError, MissingError


def test_paired_interval_of_equal_outcomes_is_zero() -> None:
    difference, interval = report.paired_interval([1, 0, 1], [1, 0, 1])
    assert difference == 0.0
    assert interval == (0.0, 0.0)


def test_paired_interval_covers_the_true_difference_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        reference = rng.random(100) < 0.8
        ours = np.where(rng.random(100) < 0.1, False, reference)  # true difference -0.08
        _, (low, high) = report.paired_interval(ours, reference, seed=trial, draws=1000)
        inside += low <= -0.08 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    reference = rng.random(200) < 0.5
    paired = reference.copy()
    paired[:4] = ~paired[:4]
    _, (low, high) = report.paired_interval(paired, reference)
    _, (wide_low, wide_high) = report.paired_interval(rng.permutation(paired), reference)
    assert high - low < 0.5 * (wide_high - wide_low)


def test_no_episodes_give_no_number() -> None:
    difference, _ = report.paired_interval([], [])
    assert np.isnan(difference)


def test_cells_read_well() -> None:
    assert report.cell(None) == "-"
    assert report.cell(0.12345) == "0.123"
    assert report.cell([-0.05, 0.01]) == "-0.05 to 0.01"
    assert report.cell(1234.5) == "1234"


DENSE = {
    "suite": "drive",
    "recipe": "dense",
    "keep_ratio": 1.0,
    "control": "none",
    "episodes": 4,
    "score": 0.75,
    "diff": 0.0,
    "diff_ci": [0.0, 0.0],
    "tokens": 432.0,
    "macs": 5e8,
    "time_ratio": 1.0,
}


def test_markdown_says_what_a_row_is_and_what_it_costs() -> None:
    blind = {
        "recipe": "blind",
        "score": 0.1,
        "diff": -0.65,
        "diff_ci": [-0.8, -0.5],
        "tokens": 0.0,
    }
    driver = {"suite": "drive", "driver": "stop", "keep_ratio": 1.0, "control": "none"}
    driver |= {"episodes": 4, "score": None, "errors": 1, "diff": -0.1, "diff_ci": [-0.2, 0.0]}
    rows = [DENSE, DENSE | blind, DENSE | {"control": "other_images"}, driver]
    lines = report.markdown(rows).splitlines()
    assert lines[0].startswith("| row | kept | episodes | score | points to dense |")
    assert lines[2] == "| dense | 100% | 4 | 75.0% | +0 (+0 to +0) | 432 | 500 M | 1.00 |"
    assert lines[3].startswith("| blind | 0% | 4 | 10.0% | -65 (-80 to -50) | 0 |")
    assert lines[4].startswith("| dense, other images | 100% |")
    assert lines[5] == "| stop (1 errors) | - | 4 | - | -10 (-20 to +0) | - | - | - |"


def test_markdown_names_the_suite_only_where_there_are_several() -> None:
    both = report.markdown([DENSE, DENSE | {"suite": "libero_spatial"}]).splitlines()
    assert both[0].startswith("| suite | row |")
    assert both[3].startswith("| spatial | dense |")


def test_read_refuses_what_is_no_table(tmp_path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(MissingError, match="no such results file"):
        report.read(path)
    for text, message in (("{", "not JSON"), ('{"rows": [{"ms": 1}]}', "no table of closed-loop")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            report.read(path)
    path.write_text(json.dumps({"rows": [DENSE]}))
    assert report.read(path, "drive")["rows"] == [DENSE]
    with pytest.raises(ConfigError, match="did you mean 'drive'"):
        report.read(path, "drve")


def test_scorers_stand_beside_domains_and_attention_at_its_best_layer(tmp_path) -> None:
    found = [("foreground", 0.99), ("attention@0", 0.5), ("attention@1", 0.7)]
    rows = [{"domain": "drive", "scorer": s, "average_precision": ap} for s, ap in found]
    rows.append({"domain": "libero", "scorer": "attention@0", "average_precision": 0.6})
    path = tmp_path / "foreground.json"
    path.write_text(json.dumps({"rows": rows}))
    assert report.markdown(report.read(path)["rows"]).splitlines() == [
        "| scorer | drive | libero |",
        "|---|---|---|",
        "| foreground | 0.990 | - |",
        "| attention, best layer | 0.700 | 0.600 |",
    ]
    assert len(report.read(path, "libero")["rows"]) == 1
    with pytest.raises(ConfigError, match="domain 'city'"):
        report.read(path, "city")


def test_an_ablation_has_a_line_for_each_variant_best_first_where_most_were_run() -> None:
    def row(variant: str, keep: float, success: float, **more) -> dict:
        told = {"suite": "s", "recipe": variant, "variant": variant, "keep_ratio": keep}
        told |= {"episodes": 9, "success": success, "tokens": 36.0}
        return told | {"diff": success - 0.9, "diff_ci": [-0.5, 0.1]} | more

    lead = {"worse": {"diff": 0.25, "diff_ci": [0.1, 0.4], "episodes": 9}}
    rows = [
        row("dense", 1.0, 0.9),
        row("worse", 0.125, 0.5),
        row("tri_level", 0.25, 0.8),
        row("tri_level", 0.125, 0.75, tri_level_minus=lead),
        row("blind", 1.0, 0.0, tokens=0.0),
    ]
    assert report.markdown(rows).splitlines() == [
        "| variant | 100% | 25% | 12.5% | 0% | points to dense at 12.5% | ours above it |",
        "|---|---|---|---|---|---|---|",
        "| dense | 90.0 | - | - | - | - | - |",
        "| blind | - | - | - | 0.0 | - | - |",
        "| tri_level | - | 80.0 | 75.0 | - | -15 (-50 to +10) | - |",
        "| worse | - | - | 50.0 | - | -40 (-50 to +10) | +25 (+10 to +40) |",
    ]


def test_provenance_names_the_program_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--policy", "my policy"])
    assert report.provenance(3)["command"] == "vla-prune --policy 'my policy'"
    told = report.provenance(3, "python -m some.module")
    assert told["command"] == "python -m some.module --policy 'my policy'"
    assert told["seed"] == 3


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_wide_table_is_broken_into_tables_that_fit(width) -> None:
    columns = ["name", *(f"part_{n}" for n in range(12))]
    rows = [dict.fromkeys(columns, 0.123) | {"name": name} for name in ("dense", "dual_level")]
    console = Console(width=width, record=True, file=io.StringIO())
    made = report.tables("a table", rows, columns, width)
    console.print(*made, sep="\n")
    text = console.export_text()
    assert "…" not in text
    assert text.count("dual_level") == len(made)
    assert [c for t in made for c in [column.header for column in t.columns][1:]] == columns[1:]
    assert (len(made) == 1) == (width == 200)
