"""LIBERO for tests: skipped with the reason where it cannot run, built once where it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from functools import cache
from typing import Any

import pytest
from vla_prune_sim.libero import assets, gl
from vla_prune_sim.libero.env import LiberoEnv, problem_file

from vla_prune.errors import MissingError


@cache
def libero_missing() -> str:
    """Why tests marked `libero` cannot run here; empty where they can."""
    try:
        gl.choose(os.environ.get(gl.VARIABLE), find_library)
        root = assets.find_assets()
        for suite in ("libero_spatial", "libero_object"):
            assets.check_assets(problem_file(suite, 0), root)
        from vla_prune_sim.libero.camera import gl_context

        gl_context(16, 16).free()
    except MissingError as error:
        return str(error)
    return ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip before any fixture is made."""
    if item.get_closest_marker("libero") and libero_missing():
        pytest.skip(libero_missing())


@pytest.fixture(scope="session")
def open_env() -> Iterator[Callable[..., LiberoEnv]]:
    """``open_env("libero_object", 3, images=False)``: built at the first call, then shared.

    A reset leaves nothing of what an earlier test did (`test_a_reset_equals_a_fresh_environment`).
    """
    made: dict[Any, LiberoEnv] = {}

    def get(suite: str, task: int, **options: Any) -> LiberoEnv:
        key = (suite, task, *sorted(options.items()))
        if key not in made:
            made[key] = LiberoEnv(suite, task, **options)
        return made[key]

    yield get
    for env in made.values():
        env.close()
