"""Configs: every shipped file loads, ``extends`` and overrides work, mistakes get one sentence."""

from pathlib import Path

import pytest

from vla_prune import bench, build, config
from vla_prune.errors import ConfigError, MissingError

CONFIGS = config.configs_folder()
RECIPES = sorted((CONFIGS / "recipe").glob("*.yaml"))
ALL = sorted(CONFIGS.glob("*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_builds(path: Path) -> None:
    pruner = build.build_recipe(str(path), keep_ratio=0.5)
    assert pruner.name == path.stem


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_first_line_is_the_command_and_second_says_what_it_shows(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# vla-prune ")
    assert second.startswith("# ")


@pytest.mark.parametrize("path", sorted((CONFIGS / "bench").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_bench_config_fits_its_dataclass(path: Path) -> None:
    data = config.load(path)
    config.check_keys(str(path), bench.BenchConfig, data)
    made = bench.BenchConfig(**data)
    config.find(made.policy, "policy")
    for recipe in made.recipes:
        build.build_recipe(recipe, made.keep_ratios[0])


RUNS = [p for p in ALL if p.parent.name == "run" and "domains:" not in p.read_text("utf-8")]


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_run_config_lists_its_episodes(path: Path) -> None:
    rollout = pytest.importorskip("vla_prune_sim.rollout")
    data = config.load(path)
    config.check_keys(str(path), rollout.RunConfig, data)
    found = rollout.episodes(rollout.RunConfig(**data))
    assert len({episode.key for episode in found}) == len(found) > 0


def test_a_tuned_file_that_is_missing_is_named_with_what_writes_it(tmp_path: Path) -> None:
    rollout = pytest.importorskip("vla_prune_sim.rollout")
    data = config.load("realtime_drive", kind="run")
    data["rows"][-1] = {"tuned": str(tmp_path / "p" / "tuned.yaml")}
    with pytest.raises(MissingError, match=r"p/tuned.yaml is not there; 'vla-prune tune' writes"):
        rollout.episodes(rollout.RunConfig(**data))


def test_keep_ratio_and_cut_layer_reach_the_cut() -> None:
    pruner = build.build_recipe("vla_pruner", keep_ratio=0.125, cut_layer=2)
    assert pruner.cuts[0].site == "decoder.2"
    assert pruner.cuts[0].budget.keep_ratio == 0.125


def test_cut_layer_leaves_the_projector_alone() -> None:
    assert build.build_recipe("divprune", cut_layer=2).cuts[0].site == "projector"


def test_extends_merges_and_the_file_wins(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: {b: 1, c: 2}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\na: {b: 3}\n")
    assert config.load(tmp_path / "top.yaml") == {"a": {"b": 3, "c": 2}}


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: two.yaml\n")
    (tmp_path / "two.yaml").write_text("extends: one.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        config.load(tmp_path / "one.yaml")


def test_set_overrides_in_order(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: {b: 1}\n")
    loaded = config.load(tmp_path / "x.yaml", ["a.b=2", "a.b=0.5", "a.new=[1, 2]"])
    assert loaded == {"a": {"b": 0.5, "new": [1, 2]}}


@pytest.mark.parametrize("text", ["a: [1, 2", "a: {b: 1", "a: b: c"])
def test_a_file_that_is_no_yaml_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: not readable as YAML"):
        config.load(tmp_path / "x.yaml")


def test_set_reaches_into_lists(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("rows: [{a: 1}, {a: 2}]\n")
    loaded = config.load(tmp_path / "x.yaml", ["rows.1.a=3", "rows.0.b=4"])
    assert loaded == {"rows": [{"a": 1, "b": 4}, {"a": 3}]}
    for wrong in ("rows.x.a=1", "rows.x=1", "rows.9=1", "rows=[1, 2"):
        with pytest.raises(ConfigError, match=r"--set '.*' cannot be"):
            config.load(tmp_path / "x.yaml", [wrong])
    with pytest.raises(ConfigError, match=r"key 'rows\.9\.a' is unknown"):
        config.load(tmp_path / "x.yaml", ["rows.9.a=1"])


def test_set_of_an_unknown_key_suggests(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("prune: {keep: 1}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'prune.keep'"):
        config.load(tmp_path / "x.yaml", ["pruen.keep=2"])


def test_set_without_a_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match=r"--set 'a' has no '='"):
        config.load(tmp_path / "x.yaml", ["a"])


def test_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="recipe 'vla_prunr' is unknown; did you mean 'vla_pruner'"
    ):
        build.build_recipe("vla_prunr")


def test_unknown_scorer_selector_and_field_suggest(tmp_path: Path) -> None:
    cut = "cuts: [{{site: projector, scorers: [{0}], selector: {1}, budget: {2}}}]\n"
    for text, message in (
        (cut.format("nrom", "topk", "constant"), "scorer 'nrom' is unknown; did you mean 'norm'"),
        (
            cut.format("norm", "topq", "constant"),
            "selector 'topq' is unknown; did you mean 'topk'",
        ),
        (
            cut.format("norm", "topk", "{name: constant, keep_ration: 0.5}"),
            "field 'keep_ration' is unknown; did you mean 'keep_ratio'",
        ),
        ("cust: []\n", "field 'cust' is unknown; did you mean 'cuts'"),
    ):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            build.build_recipe(str(path))


def test_a_cut_without_budget_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("cuts: [{site: projector, selector: topk}]\n")
    with pytest.raises(ConfigError, match="'budget' is missing"):
        build.build_recipe(str(path))


def test_missing_files_are_named() -> None:
    with pytest.raises(MissingError, match=r"nowhere.yaml: no such config file"):
        config.load("nowhere.yaml")
    with pytest.raises(MissingError, match="weights 'nowhere'"):
        config.resolve_weights("nowhere")


def test_list_or_empty_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="a config is a mapping"):
        config.load(path)


def test_resolved_config_is_saved_and_loads_again(tmp_path: Path) -> None:
    data = {"a": {"b": [1, 2]}, "c": "x"}
    config.save(data, tmp_path / "saved.yaml")
    assert config.load(tmp_path / "saved.yaml") == data
