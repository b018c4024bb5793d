"""Which off-screen GL draws: EGL, or OSMesa where there is no EGL. Knows no MuJoCo.

>>> choose(None, {"OSMesa": "libOSMesa.so.8"}.get)
'osmesa'
"""

from __future__ import annotations

import os
from collections.abc import Callable
from ctypes.util import find_library

from vla_prune.errors import MissingError, did_you_mean

VARIABLE = "MUJOCO_GL"
LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}  # the first that is installed draws
HINT = (
    "install one (Debian: `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri`, or `libosmesa6`)"
)


def choose(given: str | None, found: Callable[[str], str | None]) -> str:
    """The back end to draw with, `egl` or `osmesa`.

    Args:
        given: what the user asked for in ``MUJOCO_GL``; empty for no wish.
        found: file name of a shared library by its bare name, None where it is not installed.
    """
    if given:
        name = given.lower()
        if name not in LIBRARIES:
            raise did_you_mean(VARIABLE, "off-screen back end", given, LIBRARIES)
        if not found(LIBRARIES[name]):
            raise MissingError(
                f"{VARIABLE} is {given!r}, but lib{LIBRARIES[name]} is not installed; {HINT},"
                f" and unset {VARIABLE}."
            )
        return name
    for name, library in LIBRARIES.items():
        if found(library):
            return name
    raise MissingError(
        f"vla_prune_sim.libero draws with libEGL or libOSMesa, and neither is installed; {HINT}."
    )


def ensure() -> str:
    """Choose, and set ``MUJOCO_GL``, which MuJoCo and robosuite read when first imported."""
    os.environ[VARIABLE] = name = choose(os.environ.get(VARIABLE), find_library)
    return name
