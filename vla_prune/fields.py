"""Reads what a config file says against the fields of a dataclass. Plain Python, numpy-free.

Knows no YAML. Example::

    check_keys("run", RunConfig, {"world": "drive", ...})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from vla_prune.errors import ConfigError, did_you_mean

PLAIN = {"bool": bool, "int": int, "float": (int, float), "str": str}
LISTS = ("Sequence", "list", "tuple")
MAPPINGS = ("Mapping", "dict")
WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "None": "null",
    **dict.fromkeys(LISTS, "a list"),
    **dict.fromkeys(MAPPINGS, "a mapping"),
}


def check_keys(where: str, cls: type, data: Mapping[str, Any], extra: Sequence[str] = ()) -> None:
    """Refuse a mapping that does not fit a dataclass.

    Args:
        where: for messages.
        cls: the dataclass; annotations other than numbers, texts, lists and mappings are not
            looked at.
        data: as read.
        extra: keys that are known beside its fields.

    Raises:
        ConfigError: no mapping, an unknown key, one that is needed and lacks, or a value of
            another type than the field's.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: {data!r} is no mapping; give its fields as 'name: value'.")
    known = [f.name for f in fields(cls) if f.init] + list(extra)
    for key in data:
        if key not in known:
            raise did_you_mean(where, "field", str(key), known)
    for f in fields(cls):
        needed = f.init and f.default is MISSING and f.default_factory is MISSING
        if needed and f.name not in data:
            raise ConfigError(f"{where}: field {f.name!r} is missing; it has no default.")
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "")
        if f.name in data and not _fits(kind, data[f.name]):
            raise ConfigError(f"{where}: {f.name} is {data[f.name]!r}; it takes {_spoken(kind)}.")


def _fits(kind: str, value: Any) -> bool:
    """Whether a value is what an annotation says."""
    return any(_is(option, value) for option in _split(kind, "|"))


def _is(kind: str, value: Any) -> bool:
    name, _, inner = kind.partition("[")
    if name == "None":
        return value is None
    if name in PLAIN:
        return isinstance(value, PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
    parts = _split(inner.removesuffix("]"), ",")
    if name in LISTS:
        return isinstance(value, list | tuple) and all(_fits(parts[0], item) for item in value)
    if name in MAPPINGS:
        return isinstance(value, Mapping) and all(_fits(parts[-1], v) for v in value.values())
    return True


def _spoken(kind: str) -> str:
    words = []
    for option in _split(kind, "|"):
        name, _, inner = option.partition("[")
        of = _split(inner.removesuffix("]"), ",")[0 if name in LISTS else -1]
        words.append(WORDS.get(name, name) + (" of numbers" if of in ("int", "float") else ""))
    return " or ".join(words)


def _split(kind: str, sign: str) -> list[str]:
    """An annotation's parts at a sign, those inside of brackets apart."""
    parts, depth = [""], 0
    for letter in kind:
        depth += (letter == "[") - (letter == "]")
        if letter == sign and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
