"""Several LIBERO environments at once, each in a process of its own. Knows no policy.

Processes are spawned, not forked: a GL context does not survive a fork. So a script that calls
this needs the usual ``if __name__ == "__main__"``.

    >>> envs = vector_env("libero_object", tasks=[0, 1, 2], image_size=144)  # doctest: +SKIP
    >>> obs, info = envs.reset(seed=[0, 1, 2], options={"init": 30})  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from gymnasium.vector import AsyncVectorEnv

from .env import LiberoEnv


def vector_env(suite: str, tasks: Sequence[int], **options: Any) -> AsyncVectorEnv:
    """One environment for each entry of `tasks`; a task may come more than once.

    Args:
        suite: name of the suite.
        tasks: indices within the suite.
        options: further arguments of `LiberoEnv`, the same for all.
    """
    makers = [partial(LiberoEnv, suite, task, **options) for task in tasks]
    # Through shared memory, Gymnasium 1.4 would hand out the text of before the first reset.
    return AsyncVectorEnv(makers, context="spawn", shared_memory=False)
