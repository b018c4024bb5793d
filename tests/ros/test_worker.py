"""The thread behind a policy: told or in time, one at a time, and over when it is closed."""

from __future__ import annotations

import threading

import pytest
from vla_prune_ros.worker import Worker

LONG_S = 30.0


class Work:
    """Counts its calls; each takes until it is let go."""

    def __init__(self) -> None:
        self.calls, self.most, self.now = 0, 0, 0
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self) -> None:
        self.calls, self.now = self.calls + 1, self.now + 1
        self.most = max(self.most, self.now)
        self.begun.release()
        assert self.go.acquire(timeout=LONG_S)
        self.now -= 1


@pytest.fixture
def work():
    return Work()


def made(work, period_s: float = LONG_S, crashed=lambda error: None) -> Worker:
    worker = Worker(work, period_s, crashed)
    worker.start()
    return worker


def test_what_comes_while_it_works_is_one_more_call(work) -> None:
    worker = made(work)
    worker()
    assert work.begun.acquire(timeout=LONG_S)
    for _ in range(5):
        worker()
    work.go.release()
    assert work.begun.acquire(timeout=LONG_S)
    work.go.release()
    worker.close()
    assert work.calls == 2
    assert work.most == 1


def test_it_works_without_a_call_too(work) -> None:
    worker = made(work, period_s=0.001)
    for _ in range(3):
        assert work.begun.acquire(timeout=LONG_S)
        work.go.release()
    work.go.release(100)
    worker.close()
    assert work.calls >= 3


def test_closing_waits_for_the_work_and_ends_it(work) -> None:
    worker = made(work)
    worker()
    assert work.begun.acquire(timeout=LONG_S)
    closer = threading.Thread(target=worker.close)
    closer.start()
    closer.join(timeout=0.05)
    assert closer.is_alive()
    work.go.release()
    closer.join(timeout=LONG_S)
    assert not closer.is_alive()
    worker()
    assert not work.begun.acquire(timeout=0.05)


def test_a_crash_is_told_and_ends_it() -> None:
    told, known = [], threading.Event()

    def broken() -> None:
        raise RuntimeError("no")

    worker = made(broken, crashed=lambda error: (told.append(error), known.set()))
    worker()
    assert known.wait(LONG_S)
    worker()
    worker.close()
    assert [str(error) for error in told] == ["no"]


def test_one_that_never_began_can_be_closed(work) -> None:
    Worker(work, LONG_S, lambda error: None).close()
    assert work.calls == 0


def test_a_call_that_hangs_does_not_keep_it_from_closing(work) -> None:
    worker = Worker(work, LONG_S, lambda error: None, wait_s=0.01)
    worker.start()
    worker()
    assert work.begun.acquire(timeout=LONG_S)
    worker.close()
    work.go.release()
