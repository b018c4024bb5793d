"""ROS 2 messages without ROS: types, CDR bytes and type hashes, by rosbags.

Our own message types are read from the ``.msg`` files of vla_prune_msgs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune.errors import ConfigError, MissingError, did_you_mean

OURS = "vla_prune_msgs"


@lru_cache(maxsize=1)
def types() -> Any:
    """The types of Jazzy and our own.

    Raises:
        MissingError: rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError as error:
        raise MissingError("rosbags is missing; pip install 'vla-prune[dds]'.") from error
    store = get_typestore(Stores.ROS2_JAZZY)
    found: dict[str, Any] = {}
    for path in sorted(definitions().glob("*.msg")):
        name = f"{OURS}/msg/{path.stem}"
        found |= get_types_from_msg(path.read_text(encoding="utf-8"), name)
    store.register(found)
    return store


def definitions() -> Path:
    """The folder with our ``.msg`` files: of a sourced workspace, of the wheel, or of a checkout.

    Raises:
        MissingError: none is found.
    """
    here = Path(__file__).resolve()
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    places = [Path(p) / "share" / OURS / "msg" for p in prefixes]
    places += [here.parent / "interfaces" / "msg", here.parents[2] / OURS / "msg"]
    for place in places:
        if place.is_dir():
            return place
    raise MissingError(
        f"the definitions of {OURS} are not found; source the workspace, or install vla-prune."
    )


def make(kind: str, fields: Mapping[str, Any] | None = None) -> Any:
    """A message of type ``pkg/msg/Name``; fields not given are zero or empty.

    Raises:
        ConfigError: an unknown type or field.
    """
    store, fields = types(), dict(fields or {})
    if kind not in store.types:
        raise did_you_mean("message", "type", kind, store.types)
    described = dict(store.fielddefs[kind][1])
    for name in fields:
        if name not in described:
            raise did_you_mean(kind, "field", name, described)
    values = {name: _value(kind, name, d, fields.get(name)) for name, d in described.items()}
    return store.types[kind](**values)


def encode(message: Any, kind: str) -> memoryview:
    """CDR bytes, little endian, header of four bytes in front."""
    return types().serialize_cdr(message, kind, little_endian=True)


def decode(data: bytes | memoryview, kind: str) -> Any:
    """A message out of CDR bytes."""
    return types().deserialize_cdr(data, kind)


def type_hash(kind: str) -> str:
    """The hash of a type as ROS 2 gives it in discovery: ``RIHS01_`` and 64 digits."""
    return types().hash_rihs01(kind)


def _value(kind: str, name: str, described: Any, given: Any) -> Any:
    """One field's value; ``described`` is rosbags' description of it."""
    nature, detail = described[0].name, described[1]
    if nature == "NAME":
        return make(detail, given) if given is None or isinstance(given, Mapping) else given
    if nature == "BASE":
        base = detail[0]
        if given is None:
            return {"string": "", "bool": False}.get(base, 0.0 if "float" in base else 0)
        return given
    element, length = detail
    if element[0].name == "NAME":
        items = [] if given is None else given
        return [make(element[1], i) if isinstance(i, Mapping) else i for i in items]
    if element[1][0] == "string":
        return [""] * length if given is None else list(given)
    dtype = np.dtype(
        {"byte": "uint8", "char": "uint8", "octet": "uint8"}.get(element[1][0], element[1][0])
    )
    if given is None:
        return np.zeros(length if nature == "ARRAY" else 0, dtype)
    if isinstance(given, bytes | bytearray | memoryview) or hasattr(given, "frombytes"):
        return np.frombuffer(given, dtype)
    made = np.asarray(given, dtype)
    if nature == "ARRAY" and len(made) != length:
        raise ConfigError(f"{kind}: {name} has {len(made)} entries, it takes {length}.")
    return made
