"""A thread that works when it is told to, and now and then anyway. Imports no rclpy.

An executor of rclpy builds its wait set anew for every event and hands each to another thread:
milliseconds between a picture and the policy that a condition variable does not take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """Calls a function, never twice at once. Several calls that come while it works are one.

    Args:
        function: the work.
        period_s: it is done that long after the last time, also if nobody calls.
        crashed: told of an exception, which ends the worker.
        wait_s: closing waits so long for a call that is under way.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        period_s: float,
        crashed: Callable[[Exception], Any],
        wait_s: float = 10.0,
    ) -> None:
        self._function, self._period_s, self._crashed = function, period_s, crashed
        self._wait_s = wait_s
        self._due, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; calls that came before are not lost."""
        self._thread.start()

    def __call__(self) -> None:
        """Have the work done as soon as possible."""
        self._due.set()

    def close(self) -> None:
        """No work from now on; waits for what is under way, but not for ever for what hangs."""
        self._over = True
        self._due.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(self._wait_s)

    def _run(self) -> None:
        while True:
            self._due.wait(self._period_s)
            self._due.clear()
            if self._over:
                return
            try:
                self._function()
            except Exception as error:
                self._crashed(error)
                return
