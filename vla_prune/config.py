"""YAML to plain data: ``extends``, ``--set a.b=c``, unknown keys refused. Nothing else.

Names in a config become objects in :mod:`vla_prune.build` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vla_prune.errors import ConfigError, MissingError, did_you_mean
from vla_prune.fields import check_keys as check_keys

PLAIN = ("dense", "blind")  # recipes without a keep ratio


def configs_folder() -> Path:
    """The shipped configs: ``configs/`` of the checkout, or of the installed wheel."""
    return Path(str(resources.files("vla_prune_configs")))


def find(name: str | Path, kind: str = "") -> Path:
    """A config by path, or by name among the shipped ones of a kind (``recipe``, ``policy``, ...).

    Raises:
        MissingError: no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = configs_folder()
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    for candidate in (shipped.joinpath(*parts), shipped / kind / f"{name}.yaml"):
        if parts and candidate.is_file():
            return candidate
    if kind and path.suffix == "":
        raise did_you_mean(
            "config", kind, str(name), [p.stem for p in (shipped / kind).glob("*.yaml")]
        )
    raise MissingError(f"{name}: no such config file; 'vla-prune list' shows the shipped ones.")


def load(name: str | Path, overrides: Sequence[str] = (), kind: str = "") -> dict[str, Any]:
    """A config as plain data, bases merged and overrides applied.

    Args:
        name: path, or name of a shipped config.
        overrides: ``a.b=c`` strings, later ones win; ``a.0.b=c`` in the first entry of a list.
            Only keys that exist or whose parent does.
        kind: where to look for a bare name.
    """
    path = find(name, kind)
    config = _merged(path, ())
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item!r} has no '='; write --set a.b=value.")
        try:
            if OmegaConf.select(config, key.rpartition(".")[0] or key, default=None) is None:
                raise did_you_mean(f"{path}: --set", "key", key, _paths(config))
            given = OmegaConf.from_dotlist([f"value={value}"])["value"]
            OmegaConf.update(config, key, given)
        except (OmegaConfBaseException, YAMLError, TypeError, ValueError, IndexError) as error:
            told = str(error).splitlines()[0]
            raise ConfigError(f"{path}: --set {item!r} cannot be: {told}.") from error
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error


def save(config: Mapping[str, Any], path: Path) -> None:
    """Write the resolved config beside a result."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")


def _merged(path: Path, above: tuple[Path, ...]) -> DictConfig:
    if path in above:
        raise ConfigError(f"{path}: extends itself through {', '.join(map(str, above))}.")
    try:
        config = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: a config is a mapping of keys; this is a list or empty.")
    bases = config.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else list(bases)
    merged = OmegaConf.create({})
    for base in bases:
        where = path.parent / base
        merged = OmegaConf.merge(
            merged, _merged(where if where.is_file() else find(base), (*above, path))
        )
    return OmegaConf.merge(merged, config)


def _paths(config: DictConfig, prefix: str = "") -> list[str]:
    paths = []
    for key in config:
        paths.append(f"{prefix}{key}")
        if isinstance(config[key], DictConfig):
            paths += _paths(config[key], f"{prefix}{key}.")
    return paths


def resolve_weights(name: str) -> Path:
    """A weights folder: a path, or ``pocket_libero_spatial`` and kin inside the package.

    Raises:
        MissingError: no such folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    shipped = Path(str(resources.files("vla_prune"))) / "models" / name
    if shipped.is_dir():
        return shipped
    raise MissingError(
        f"weights {name!r}: no such folder here, and none shipped by that name; give the folder "
        "that holds config.json and model.safetensors."
    )
