"""What is broken in one scene's data ends that scene's episodes, and not the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shapely.errors import ShapelyError

from vla_prune.errors import ShapeError, VlaPruneError

ODD = (ArithmeticError, AttributeError, LookupError, ShapelyError, TypeError, ValueError)


@contextmanager
def scene_data(where: str, remedy: str) -> Iterator[None]:
    """Data that makes no scene is named by where it stands, whatever stumbled over it.

    Args:
        where: the file or scene that is read.
        remedy: what to do about it.

    Raises:
        ShapeError: for anything that odd data can lead to; our own errors pass as they are.
    """
    try:
        yield
    except VlaPruneError:
        raise
    except ODD as error:
        told = f"what it holds makes no scene ({type(error).__name__}: {error})"
        if isinstance(error, KeyError):
            told = f"it lacks {error}"
        raise ShapeError(f"{where}: {told}; {remedy}.") from error
