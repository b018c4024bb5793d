"""What the README shows runs."""

import json
import re
from pathlib import Path

import pytest

from vla_prune import config, report

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_python_block_runs() -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["chunk"].actions.shape == (8, 7)
    assert {site: len(kept) for site, kept in names["chunk"].kept.items()} == {"decoder.2": 72}


def test_every_config_that_is_named_exists() -> None:
    for path in re.findall(r"configs/[\w/]+\.yaml", README):
        assert config.find(path).is_file()


def test_every_recipe_of_the_table_is_shipped() -> None:
    table = README.split("| recipe |")[1].split("\n\n")[0]
    for name in re.findall(r"`(\w+)`", table):
        assert config.find(name, "recipe").is_file()


def test_every_table_is_what_its_results_file_says() -> None:
    """A table stands below the command that prints it: ``<!-- vla-prune show FILE ... -->``."""
    for file, suite, table in re.findall(
        r"<!-- vla-prune show (\S+)(?: --suite (\w+))? -->\n\n((?:\|.*\n)+)", README
    ):
        assert table == report.markdown(report.read(ROOT / file, suite)["rows"]), file


def test_the_speed_ups_are_those_of_the_bench_file() -> None:
    bench = json.loads((ROOT / "results" / "bench_decoder12.json").read_text(encoding="utf-8"))
    measured = {row["recipe"]: row["speedup"] for row in bench["rows"]}
    paragraph = README.split("**Speed-up of a 12-layer decoder**")[1].split("\n\n")[0]
    shown = re.findall(r"`(\w+)` (\d\.\d\d)", paragraph)
    assert shown
    for recipe, speedup in shown:
        assert f"{measured[recipe]:.2f}" == speedup, recipe


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("*.json")), ids=lambda f: f.name)
def test_a_results_file_names_command_commit_machine_and_seed(file: Path) -> None:
    results = json.loads(file.read_text(encoding="utf-8"))
    for key in ("command", "commit", "machine", "seed"):
        assert results[key] not in (None, "", {}), key
