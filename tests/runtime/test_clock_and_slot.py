"""Clocks, newest-frame slots and camera sets: what is dropped, and why."""

import pytest

from vla_prune.errors import ConfigError
from vla_prune.runtime import ClockWatch, FrameSync, ManualClock, NewestSlot, SystemClock


def test_manual_time_passes_exactly_and_jumps_only_in_message_time() -> None:
    clock = ManualClock(100.0)
    for _ in range(1000):
        clock.advance(0.1)
    assert (clock.now(), clock.steady()) == (200.0, 100.0)
    clock.jump(7.0)
    assert (clock.now(), clock.steady()) == (7.0, 100.0)
    with pytest.raises(ConfigError, match="backwards"):
        clock.advance(-0.1)


def test_system_time_is_monotonic() -> None:
    clock = SystemClock()
    first = clock.steady()
    assert clock.steady() >= first
    assert clock.now() > 1e9


def test_the_watch_tells_a_looped_bag_and_nothing_else() -> None:
    clock, watch = ManualClock(50.0), ClockWatch(forward_s=1.0, back_s=0.05)
    assert watch.check(clock) is None
    clock.advance(30.0)  # a long pause between two looks is no jump
    assert watch.check(clock) is None
    clock.jump(clock.now() - 0.01)  # a slewed clock
    assert watch.check(clock) is None
    clock.jump(50.0)
    assert watch.check(clock).by_s == pytest.approx(-29.99)
    assert watch.check(clock) is None  # told once
    clock.jump(55.0)
    jump = watch.check(clock)
    assert jump.by_s == pytest.approx(5.0)
    assert "forward by 5.000 s" in str(jump)
    assert watch.jumps == 2


def test_fast_replay_is_no_jump_if_it_is_allowed() -> None:
    for rate, jumps in ((1.0, 1), (10.0, 0)):
        clock, watch = ManualClock(), ClockWatch(rate=rate)
        watch.check(clock)
        clock.advance(1.0)
        clock.jump(10.0)
        watch.check(clock)
        assert watch.jumps == jumps


def test_a_slot_holds_the_newest_and_gives_it_once() -> None:
    slot = NewestSlot(0.5)
    assert slot.take(0.0) is None
    assert slot.put("a", 1.0)
    assert slot.put("b", 1.1)
    assert not slot.put("late", 1.05)
    assert not slot.put("nan", float("nan"))
    assert slot.take(1.2) == "b"
    assert slot.take(1.2) is None
    assert (slot.drops.overwritten, slot.drops.out_of_order, slot.drops.too_old) == (1, 2, 0)


def test_a_frame_over_the_age_limit_is_never_given_out() -> None:
    slot = NewestSlot(0.5)
    slot.put("a", 1.0)
    assert slot.take(1.51) is None
    assert slot.drops.too_old == 1


def test_a_stamp_from_the_future_is_dropped_and_blocks_nobody() -> None:
    slot = NewestSlot(0.5)
    slot.put("future", 99.0)
    assert slot.take(1.0) is None
    assert slot.drops.ahead == 1
    assert slot.put("now", 1.1)
    assert slot.take(1.2) == "now"


def test_after_a_reset_older_stamps_are_welcome() -> None:
    slot = NewestSlot(0.5)
    slot.put("a", 9.0)
    slot.reset()
    assert slot.take(9.0) is None
    assert slot.put("b", 1.0)


def test_sets_hold_frames_that_belong_together_and_the_oldest_stamp() -> None:
    sync = FrameSync(["left", "right"], tolerance_s=0.02, max_age_s=1.0)
    sync.put("left", "l0", 0.00)
    assert sync.take(0.01) is None
    sync.put("left", "l1", 0.10)
    sync.put("left", "l2", 0.20)
    sync.put("right", "r1", 0.11)
    found = sync.take(0.25)  # l2 came without a partner
    assert found.frames == {"left": "l1", "right": "r1"}
    assert found.stamp_s == 0.10
    assert sync.take(0.25) is None  # once
    sync.put("right", "r2", 0.19)
    assert sync.take(0.25).frames == {"left": "l2", "right": "r2"}


def test_of_two_complete_sets_the_newer_one_is_taken() -> None:
    sync = FrameSync(["a", "b"], 0.02, 1.0)
    for stamp in (0.0, 0.1):
        for name in ("a", "b"):
            sync.put(name, f"{name}{stamp}", stamp)
    assert sync.take(0.1).stamp_s == 0.1
    assert sync.drops["a"].overwritten == 1
    assert not sync.put("a", "again", 0.1)


def test_a_silent_camera_is_named_and_no_set_is_made_of_old_frames() -> None:
    sync = FrameSync(["a", "b"], 0.05, {"a": 0.2, "b": 0.5})
    sync.put("a", "a0", 0.0)
    sync.put("b", "b0", 0.0)
    assert sync.take(0.3) is None
    assert sync.drops["a"].too_old == 1
    assert sync.silent(0.3) == ("a",)
    assert sync.ages(0.3) == {"a": pytest.approx(0.3), "b": pytest.approx(0.3)}


def test_a_camera_ahead_is_told_until_a_frame_of_now_comes() -> None:
    sync = FrameSync(["a", "b"], 0.05, 0.2)
    sync.put("a", "a0", 1.5)
    sync.put("b", "b0", 1.0)
    assert sync.take(1.0) is None
    assert sync.ahead() == {"a": pytest.approx(0.5)}
    sync.put("a", "a1", 1.02)
    assert sync.take(1.02) is not None
    assert sync.ahead() == {}


def test_cameras_out_of_phase_are_told_after_the_age_limit() -> None:
    sync, told = FrameSync(["a", "b"], 0.02, 0.2), []
    for i in range(8):
        now = 0.05 * i
        sync.put("ab"[i % 2], i, now)
        assert sync.take(now) is None
        told.append(sync.apart(now))
    assert told[:5] == [0.0] * 5
    assert told[5:] == [pytest.approx(0.05)] * 3
    sync.put("a", 8, 0.41)
    sync.put("b", 9, 0.41)
    assert sync.take(0.41) is not None
    assert sync.apart(0.41) == 0.0


def test_frames_without_partners_do_not_pile_up() -> None:
    sync = FrameSync(["a", "b"], 0.01, 100.0)
    for number in range(50):
        sync.put("a", number, number * 0.1)
    assert sync.drops["a"].overwritten == 42


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NewestSlot(0.0), "max_age_s is 0.0"),
        (lambda: FrameSync([], 0.1, 1.0), "no cameras"),
        (lambda: FrameSync(["a"], -0.1, 1.0), "tolerance_s"),
        (lambda: FrameSync(["front"], 0.1, {"fronr": 1.0}), "did you mean 'front'"),
        (lambda: FrameSync(["a", "b"], 0.1, {"a": 1.0}), "'b' has no max_age_s"),
        (lambda: FrameSync(["a"], 0.1, 1.0).put("b", 0, 0.0), "camera 'b' is unknown"),
        (lambda: ClockWatch(rate=0.0), "rate 0"),
    ],
)
def test_bad_settings_get_one_sentence(make, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()
