"""What a config file says is read against a dataclass's fields: names, types, what is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from vla_prune.errors import ConfigError
from vla_prune.fields import check_keys


@dataclass
class Any_:
    """One field of each kind."""

    count: int
    share: float = 1.0
    name: str = ""
    on: bool = False
    limit_s: float | None = None
    ladder: Sequence[float] = ()
    ends: tuple[float, float] | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str | None] = field(default_factory=dict)
    other: Any = None


@pytest.mark.parametrize(
    "data",
    [
        {"count": 3, "share": 2, "name": "x", "on": True, "limit_s": None, "other": object()},
        {"count": 3, "share": 0.5, "limit_s": 1, "ladder": [1, 0.5], "ends": (0.1, 2)},
        {"count": 0, "limits": {"a": 1.0, "b": 2}, "ends": None},
        {"count": 0, "names": {"a": "b", "c": None}},
    ],
)
def test_what_fits_is_taken(data: dict) -> None:
    check_keys("here", Any_, data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"count": "2"}, "here: count is '2'; it takes a whole number."),
        ({"count": 2.0}, "count is 2.0; it takes a whole number"),
        ({"count": True}, "count is True; it takes a whole number"),
        ({"count": 1, "share": "half"}, "share is 'half'; it takes a number"),
        ({"count": 1, "share": None}, "share is None; it takes a number"),
        ({"count": 1, "name": 3}, "name is 3; it takes a text"),
        ({"count": 1, "on": 1}, "on is 1; it takes true or false"),
        ({"count": 1, "limit_s": "1s"}, "limit_s is '1s'; it takes a number or null"),
        ({"count": 1, "ladder": 0.5}, "ladder is 0.5; it takes a list of numbers"),
        ({"count": 1, "ladder": ["a"]}, "it takes a list of numbers"),
        ({"count": 1, "limits": 5.0}, "limits is 5.0; it takes a mapping of numbers"),
        ({"count": 1, "limits": {"a": "b"}}, "it takes a mapping of numbers"),
        ({"count": 1, "names": {"a": 2}}, "names is {'a': 2}; it takes a mapping"),
        ({"count": 1, "names": None}, "names is None; it takes a mapping"),
        ({"count": 1, "nam": ""}, "did you mean 'name'"),
        ({}, "field 'count' is missing"),
        ([1], "is no mapping; give its fields"),
        (None, "None is no mapping"),
    ],
)
def test_what_does_not_gets_one_sentence(data: Any, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        check_keys("here", Any_, data)
    assert said in str(told.value)
