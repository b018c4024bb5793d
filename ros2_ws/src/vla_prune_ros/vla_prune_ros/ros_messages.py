"""Plain fields into the messages of rclpy. Needs a ROS 2 installation, but no rclpy."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from rosidl_runtime_py.utilities import get_message

CODES = {
    "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i",
    "uint64": "Q", "int64": "q", "float": "f", "double": "d",
}  # fmt: skip


def message(kind: str, fields: Mapping[str, Any] | None = None) -> Any:
    """A message of type ``pkg/msg/Name``."""
    made = get_message(kind)()
    fill(made, fields or {})
    return made


def fill(made: Any, fields: Mapping[str, Any]) -> None:
    """Set fields, nested ones too; numeric arrays in one copy, never element by element."""
    kinds = made.get_fields_and_field_types()
    for name, value in fields.items():
        kind = kinds[name]
        if isinstance(value, Mapping):
            fill(getattr(made, name), value)
        elif kind in ("octet", "byte"):
            setattr(made, name, bytes([value]))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            element = _element(kind)
            setattr(made, name, [_filled(element, item) for item in value])
        elif isinstance(value, np.ndarray):
            code = CODES[kind.removeprefix("sequence<").split(">")[0].split(",")[0]]
            data = array(code)
            data.frombytes(np.ascontiguousarray(value, np.dtype(code)).data.cast("B"))
            setattr(made, name, data)
        else:
            setattr(made, name, value)


def _filled(element: type, fields: Mapping[str, Any]) -> Any:
    made = element()
    fill(made, fields)
    return made


def _element(kind: str) -> type:
    """The class of a sequence's elements, from ``sequence<pkg/Name>``."""
    package, name = kind.removeprefix("sequence<").split(">")[0].split(",")[0].split("/")
    return get_message(f"{package}/msg/{name}")
