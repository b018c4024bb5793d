"""Choosing the GL back end; no GL needed."""

from __future__ import annotations

import pytest
from vla_prune_sim.libero.gl import choose

from vla_prune.errors import ConfigError, MissingError

BOTH = {"EGL": "libEGL.so.1", "OSMesa": "libOSMesa.so.8"}
ONLY_OSMESA = {"OSMesa": "libOSMesa.so.8"}


@pytest.mark.parametrize(
    ("given", "installed", "chosen"),
    [
        (None, BOTH, "egl"),
        ("", BOTH, "egl"),
        (None, ONLY_OSMESA, "osmesa"),
        ("osmesa", BOTH, "osmesa"),
        ("EGL", BOTH, "egl"),
    ],
)
def test_egl_is_taken_unless_it_is_absent_or_unwanted(given, installed, chosen):
    assert choose(given, installed.get) == chosen


def test_neither_library_is_an_error_that_says_what_to_install():
    with pytest.raises(MissingError, match=r"neither is installed; .*libegl1.*libosmesa6"):
        choose(None, {}.get)


def test_a_wish_that_cannot_be_met_is_an_error():
    with pytest.raises(MissingError, match="MUJOCO_GL is 'egl', but libEGL is not installed"):
        choose("egl", ONLY_OSMESA.get)


def test_a_back_end_with_windows_is_refused():
    with pytest.raises(ConfigError, match=r"MUJOCO_GL: .*'glfw' is unknown.*Known: egl, osmesa"):
        choose("glfw", BOTH.get)
