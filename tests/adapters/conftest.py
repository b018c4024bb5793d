"""The matrix of model families; each is built once."""

from __future__ import annotations

from functools import cache

import pytest

from .hosts import HOSTS, Host


@cache
def _made(name: str) -> Host:
    return HOSTS[name]()


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    """Every model family in turn. Tests leave it as it was: that is one of the properties."""
    return _made(request.param)


@pytest.fixture
def made():
    """``made("causal")``: one model family by name."""
    return _made
