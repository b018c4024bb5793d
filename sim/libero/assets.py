"""Where LIBERO's meshes and textures lie, and how hf-libero is told so before it is imported.

hf-libero asks a question on the terminal when it has no configuration file, and downloads meshes
when it finds none. Neither happens here: the configuration is written first, and a download is
made only when asked for. Knows nothing of environments or policies.

    >>> from vla_prune_sim.libero.assets import find_assets, tree_hash
    >>> tree_hash(find_assets())  # doctest: +SKIP
    '9f2c...'
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from vla_prune.errors import MissingError

VARIABLE = "VLA_PRUNE_LIBERO_ASSETS"
ORIGINALS = "lerobot/libero-assets"  # a dataset on the Hugging Face hub
FOLDERS = ("scenes", "stable_hope_objects", "stable_scanned_objects", "textures")
PACKAGES = ("libero", "robosuite", "bddl", "mujoco")
# Scene, floor and wall of each kind of problem, as hf-libero's problem classes set them.
SCENES = {
    "coffee_table": ("coffee_table_base_style", "wood-plank", "light-gray-plaster"),
    "floor": ("floor_base_style", "light-gray", "light-gray-plaster"),
    "kitchen_tabletop": ("kitchen_tabletop_base_style", "gray-ceramic", "yellow-linen"),
    "living_room_tabletop": (
        "living_room_tabletop_base_style",
        "wood-plank",
        "light-gray-plaster",
    ),
    "study_tabletop": ("study_base_style", "light-gray", "light-gray-plaster"),
    "tabletop": ("tabletop_base_style", "light-gray", "light-gray-plaster"),
}
# The module that defines an object's class tells where its file is.
OBJECT_FILES = {
    "articulated_objects": "articulated_objects/{0}.xml",
    "google_scanned_objects": "stable_scanned_objects/{0}/{0}.xml",
    "hope_objects": "stable_hope_objects/{0}/{0}.xml",
    "turbosquid_objects": "turbosquid_objects/{0}/{0}.xml",
}


def package_dir() -> Path:
    """The folder of the installed `libero.libero`, found without importing it."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        # A bare folder of that name on the path has no origin.
        if spec is None or not spec.submodule_search_locations or not spec.origin:
            raise MissingError(
                f"vla_prune_sim.libero needs hf-libero, whose package {name} is not installed; on"
                " Linux, `make libero` (in a checkout) or `pip install 'vla-prune[libero]'` brings"
                " it."
            )
        if name == "libero":
            root = Path(next(iter(spec.submodule_search_locations))) / "libero"
    return root


def cache_dir() -> Path:
    """Where hf-libero, too, keeps downloaded assets."""
    return Path("~/.cache/libero/assets").expanduser()


def is_asset_tree(path: Path) -> bool:
    """Whether the folders that every suite needs are there."""
    return all((path / name).is_dir() for name in FOLDERS)


def find_assets(download: bool = False) -> Path:
    """The asset folder: the variable, then the package's own, then LIBERO's cache.

    Args:
        download: fetch the originals (Hugging Face dataset ``lerobot/libero-assets``) into
            LIBERO's cache when none of the three has them.
    """
    given = os.environ.get(VARIABLE)
    if given:
        path = Path(given).expanduser()
        if not is_asset_tree(path):
            raise MissingError(
                f"{VARIABLE}: {given!r} is not a LIBERO asset folder; it must hold"
                f" {', '.join(FOLDERS)}, so point it at the folder `assets` of a LIBERO checkout."
            )
        return path.resolve()
    places = (package_dir() / "assets", cache_dir())
    for path in places:
        if is_asset_tree(path):
            return path.resolve()
    if download:
        return _download(places[-1])
    raise MissingError(
        f"LIBERO assets were looked for in {places[0]} and {places[1]} and are in neither; set"
        f" {VARIABLE} to a folder that has {', '.join(FOLDERS)}, or fetch the originals with"
        ' `python -c "from vla_prune_sim.libero.assets import find_assets;'
        ' find_assets(download=True)"`.'
    )


def _download(target: Path) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingError(
            "find_assets(download=True) needs huggingface_hub; `pip install huggingface_hub`."
        ) from error
    snapshot_download(ORIGINALS, repo_type="dataset", local_dir=target)
    return target.resolve()


def needed_files(problem: Path, assets: Path) -> list[str]:
    """Files that a task loads, relative to the asset folder; those of an absent XML are unknown.

    Args:
        problem: the task's BDDL file.
        assets: the asset folder, whose XML files name meshes and textures.
    """
    from libero.libero.envs.arenas.style import get_texture_filename
    from libero.libero.envs.objects import get_object_dict

    kind, categories = read_problem(problem.read_text(encoding="utf-8"))
    scene, floor, wall = SCENES[kind]
    models = [f"scenes/libero_{scene}.xml"]
    for category in categories:
        # Tables and floors belong to the scene.
        cls = get_object_dict().get(category)
        if cls is not None:
            name = inspect.signature(cls).parameters["obj_name"].default
            models.append(OBJECT_FILES[cls.__module__.rsplit(".", 1)[-1]].format(name))
    styles = (("floor", floor), ("wall", wall))
    files = models + [f"textures/{get_texture_filename(type=p, style=s)}" for p, s in styles]
    for model in models:
        if (assets / model).is_file():
            files += _files_of(model, assets)
    return list(dict.fromkeys(files))


def read_problem(text: str) -> tuple[str, list[str]]:
    """Kind of scene and categories of fixtures and objects of a BDDL text."""
    kind = re.search(r"\(problem\s+LIBERO_(\w+)_Manipulation\)", text, re.IGNORECASE)
    listed = re.findall(r"\(:(?:fixtures|objects)([^()]*)\)", text)
    if kind is None or not listed:
        raise ValueError("not a BDDL problem of LIBERO")
    categories = re.findall(r"-\s+(\w+)", " ".join(listed))
    return kind[1].lower(), list(dict.fromkeys(categories))


def _files_of(model: str, assets: Path) -> Iterator[str]:
    # hf-libero sets the files of floor and wall itself.
    taken = {("texture", "texplane"), ("texture", "tex-wall")}
    for element in ElementTree.parse(assets / model).getroot().iterfind("asset/*[@file]"):
        key = (element.tag, element.get("name"))
        # Of two entries of one name, robosuite takes the first.
        if key not in taken:
            taken.add(key)
            yield os.path.normpath(Path(model).parent / element.get("file"))


def check_assets(problem: Path, assets: Path) -> None:
    """Refuse a task whose files are not all there, before anything is built.

    Args:
        problem: the task's BDDL file.
        assets: the asset folder.
    """
    lost = [name for name in needed_files(problem, assets) if not (assets / name).is_file()]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise MissingError(
            f"LIBERO assets in {assets} lack {', '.join(lost[:3])}{more}, which"
            f" {problem.parent.name} task {problem.stem!r} loads; set {VARIABLE} to a folder that"
            f" has every file, such as the Hugging Face dataset {ORIGINALS}."
        )


def configure_libero() -> None:
    """Write the configuration hf-libero reads at import, unless the user has one of their own."""
    folder = os.environ.get("LIBERO_CONFIG_PATH")
    own = Path(folder or "~/.libero").expanduser() / "config.yaml"
    if own.exists():
        return
    root = package_dir()
    if folder is None:
        folder = str(Path(tempfile.gettempdir()) / f"vla_prune_libero_{os.getuid()}")
        os.environ["LIBERO_CONFIG_PATH"] = folder
    lines = [
        f"assets: {root / 'assets'}",
        f"bddl_files: {root / 'bddl_files'}",
        f"benchmark_root: {root}",
        f"datasets: {root.parent / 'datasets'}",
        f"init_states: {root / 'init_files'}",
    ]
    target = Path(folder) / "config.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Several workers may start at once; a rename never leaves half a file behind.
    part = target.with_suffix(f".{os.getpid()}")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(target)


@cache
def tree_hash(path: Path) -> str:
    """SHA-256 over names and contents of all files below `path`, first 16 digits.

    It tells original assets from stand-ins, so every result carries it. Hidden files do not count:
    a download leaves its own notes in some.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if any(part.startswith(".") for part in name.parts):
            continue
        digest.update(name.as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
