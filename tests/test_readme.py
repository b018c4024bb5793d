"""What the README shows runs."""

import re
from pathlib import Path

from vla_prune import config

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


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
