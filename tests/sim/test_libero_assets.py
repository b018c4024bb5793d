"""Where assets are looked for, what is said when they are not there, and what each task needs."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from vla_prune_sim.libero import assets
from vla_prune_sim.libero.env import LiberoEnv, problem_file

from vla_prune.errors import MissingError

PROBLEM = """
(define (problem LIBERO_Living_Room_Tabletop_Manipulation)
  (:regions (bin_region (:target living_room_table) (:ranges ((-0.01 0.25 0.01 0.27)))))
  (:fixtures
    living_room_table - living_room_table
  )
  (:objects
    milk_1 milk_2 - milk
    basket_1 - basket
  )
  (:goal (And (In milk_1 basket_1_contain_region))))
"""


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """Three places, none with assets yet, and no way to the network."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a download was started that nobody asked for")

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=refuse)
    )
    monkeypatch.delenv(assets.VARIABLE, raising=False)
    monkeypatch.setattr(assets, "package_dir", lambda: tmp_path / "package")
    monkeypatch.setattr(assets, "cache_dir", lambda: tmp_path / "cache")
    return {
        "variable": tmp_path / "own",
        "package": tmp_path / "package" / "assets",
        "cache": tmp_path / "cache",
    }


def fill(path: Path) -> Path:
    for name in assets.FOLDERS:
        (path / name).mkdir(parents=True)
    return path


def test_the_variable_comes_first_then_the_package_then_the_cache(places, monkeypatch):
    fill(places["cache"])
    assert assets.find_assets() == places["cache"]
    fill(places["package"])
    assert assets.find_assets() == places["package"]
    monkeypatch.setenv(assets.VARIABLE, str(fill(places["variable"])))
    assert assets.find_assets() == places["variable"]


def test_a_wrong_variable_is_an_error_even_where_other_places_have_assets(places, monkeypatch):
    fill(places["cache"])
    monkeypatch.setenv(assets.VARIABLE, "/nowhere")
    with pytest.raises(MissingError, match=r"VLA_PRUNE_LIBERO_ASSETS: '/nowhere' is not .*point"):
        assets.find_assets()


def test_no_assets_anywhere_names_the_places_the_variable_and_the_download(places):
    with pytest.raises(MissingError) as caught:
        assets.find_assets()
    for part in (places["package"], places["cache"], assets.VARIABLE, "download=True"):
        assert str(part) in str(caught.value)


def test_the_originals_are_fetched_into_the_cache_only_on_request(places, monkeypatch):
    asked = []
    hub = types.SimpleNamespace(snapshot_download=lambda *a, **k: asked.append((a, k)))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert assets.find_assets(download=True) == places["cache"]
    wanted = {"repo_type": "dataset", "local_dir": places["cache"]}
    assert asked == [(("lerobot/libero-assets",), wanted)]
    fill(places["cache"])
    assets.find_assets(download=True)
    assert len(asked) == 1


def test_a_download_without_the_hub_package_says_how_to_get_it(places, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingError, match="pip install huggingface_hub"):
        assets.find_assets(download=True)


@pytest.mark.parametrize("name", assets.PACKAGES)
def test_an_absent_package_is_named_with_the_command_that_brings_it(name, monkeypatch):
    there = types.SimpleNamespace(submodule_search_locations=["/x"], origin="/x/__init__.py")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked: None if asked == name else there
    )
    with pytest.raises(MissingError) as caught:
        assets.package_dir()
    for part in (f"package {name} is not installed", "make libero", "pip install 'vla-prune[lib"):
        assert part in str(caught.value)


def test_a_problem_tells_its_scene_and_what_stands_in_it():
    assert assets.read_problem(PROBLEM) == (
        "living_room_tabletop",
        ["living_room_table", "milk", "basket"],
    )
    with pytest.raises(ValueError, match="not a BDDL problem"):
        assets.read_problem("(define (problem kitchen))")


def test_the_hash_tells_contents_and_names_but_not_hidden_files(tmp_path):
    def tree(name: str, file: str = "a.xml", text: str = "a") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_text(text)
        return assets.tree_hash(folder)

    first = tree("one")
    (tmp_path / "two" / ".cache").mkdir(parents=True)
    (tmp_path / "two" / ".cache" / "note").write_text("1970")
    (tmp_path / "two" / "a.xml").write_text("a")
    assert assets.tree_hash(tmp_path / "two") == first
    assert len({first, tree("three", text="b"), tree("four", file="b.xml")}) == 3


def test_the_configuration_is_written_once_and_a_users_own_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "package_dir", lambda: tmp_path / "package")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "config"))
    file = tmp_path / "config" / "config.yaml"
    assets.configure_libero()
    assert f"bddl_files: {tmp_path / 'package' / 'bddl_files'}\n" in file.read_text()
    assert list(file.parent.iterdir()) == [file]
    file.write_text("mine")
    assets.configure_libero()
    assert file.read_text() == "mine"


@pytest.mark.libero
@pytest.mark.parametrize(("suite", "count"), [("libero_spatial", 31), ("libero_object", 39)])
def test_every_file_that_the_ten_tasks_need_is_known(suite, count):
    root = assets.find_assets()
    needed = {
        name for task in range(10) for name in assets.needed_files(problem_file(suite, task), root)
    }
    # Counted once by watching which files were opened.
    assert len(needed) == count
    assert all((root / name).is_file() for name in needed)


@pytest.fixture
def few(tmp_path) -> Path:
    """A tree that has what task 3 of libero_object needs, and nothing else."""
    root = assets.find_assets()
    for name in assets.needed_files(problem_file("libero_object", 3), root):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(root / name)
    return tmp_path


@pytest.mark.libero
def test_what_is_needed_is_enough_to_build_a_task(few, monkeypatch):
    monkeypatch.setenv(assets.VARIABLE, str(few))
    LiberoEnv("libero_object", 3, images=False).close()


@pytest.mark.libero
@pytest.mark.parametrize(
    "lost", ["stable_hope_objects/ketchup/ketchup.xml", "textures/light-gray-plaster.png"]
)
def test_an_absent_file_is_named_before_anything_is_built(few, lost, monkeypatch):
    (few / lost).unlink()
    monkeypatch.setenv(assets.VARIABLE, str(few))
    monkeypatch.setattr("vla_prune_sim.libero.env._build", None)
    with pytest.raises(MissingError) as caught:
        LiberoEnv("libero_object", 3)
    for part in (f"{few} lack {lost}, which", "libero_object task", "set VLA_PRUNE_LIBERO_ASSETS"):
        assert part in str(caught.value)


@pytest.mark.libero
def test_many_absent_files_are_counted(few):
    for file in few.glob("stable_*/*/*.xml"):
        file.unlink()
    with pytest.raises(MissingError, match=r"lack [^,]+, [^,]+, [^,]+ and 4 more, which"):
        assets.check_assets(problem_file("libero_object", 3), few)
