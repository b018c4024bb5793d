"""The running chunk: which row at which time, how chunks follow each other, what is refused."""

import numpy as np
import pytest

from vla_prune.errors import ConfigError
from vla_prune.runtime import Brake, ChunkPlayer, ContinueChunk, Hold
from vla_prune.types import ActionChunk

DT = 0.1
ZERO = Hold((0.0,))


def chunk(stamp: float, start: float = 1.0, rows: int = 6, dt: float = DT) -> ActionChunk:
    """Rows that count: start, start + 1, ..."""
    actions = start + np.arange(rows, dtype=np.float32)[:, None]
    return ActionChunk(actions, dt, stamp)


def played(player: ChunkPlayer, times) -> list[float]:
    return [float(player.action(t).action[0]) for t in times]


def test_without_latency_every_tick_gets_the_row_of_the_frozen_world() -> None:
    player, made = ChunkPlayer(execute=3, hold=ZERO), []
    for tick in range(9):
        now = tick * DT
        if player.wants_next(now):
            player.offer(chunk(now, start=100.0 * tick), now)
        made.append(player.action(now))
    assert [m.action[0] for m in made] == [0, 1, 2, 300, 301, 302, 600, 601, 602]
    assert [m.index for m in made] == [0, 1, 2] * 3
    assert [m.source for m in made] == ["chunk"] * 9
    assert made[5].age_s == pytest.approx(2 * DT)


def test_rows_come_out_bit_for_bit() -> None:
    actions = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    player = ChunkPlayer(execute=4, hold=Hold())
    player.offer(ActionChunk(actions, 0.05, 0.0), 0.0)
    got = np.stack([player.action(n * 0.05).action for n in range(4)])
    assert got.dtype == np.float32
    assert np.array_equal(got, actions)


def test_a_late_chunk_skips_the_rows_whose_time_has_passed() -> None:
    player = ChunkPlayer(execute=2, hold=ZERO)
    offer = player.offer(chunk(0.0), 0.2)
    assert (offer.taken, offer.skipped) == (True, 2)
    assert played(player, (0.2, 0.3, 0.4)) == [3, 4, 0]


def test_aligned_by_arrival_no_row_is_skipped() -> None:
    player = ChunkPlayer(execute=2, hold=ZERO, align="arrival")
    player.offer(chunk(0.0), 0.25)
    assert played(player, (0.25, 0.35, 0.45)) == [1, 2, 0]
    assert player.action(0.35).age_s == pytest.approx(0.35)


def test_aligned_by_what_was_played_a_hold_skips_no_row() -> None:
    """The picture shows an arm that then moves by one more row, stands, and goes on with row 1."""
    player = ChunkPlayer(execute=2, hold=ZERO, align="played")
    player.offer(chunk(0.0), 0.0)
    assert played(player, (0.0, 0.1, 0.2, 0.3)) == [1, 2, 0, 0]
    offer = player.offer(chunk(0.1, start=50.0), 0.4)
    assert (offer.taken, offer.skipped) == (True, 1)
    assert played(player, (0.4, 0.5, 0.6)) == [51, 52, 0]
    # A picture of the hold: nothing was played since.
    player.offer(chunk(0.65, start=90.0), 0.8)
    assert played(player, (0.8, 0.9, 1.0)) == [90, 91, 0]
    assert player.action(0.9).age_s == pytest.approx(0.25)


def test_aligned_by_what_was_played_a_chunk_in_time_skips_as_many_rows_as_time() -> None:
    played_, observed = (
        ChunkPlayer(execute=4, hold=ZERO, align=align) for align in ("played", "observation")
    )
    for player in (played_, observed):
        player.offer(chunk(0.0), 0.0)
        played(player, (0.0, 0.1, 0.2))
        assert player.offer(chunk(0.1, start=50.0), 0.3).skipped == 2
    assert played(played_, (0.3, 0.4)) == played(observed, (0.3, 0.4)) == [52, 53]


def test_what_was_played_before_a_jump_of_time_or_a_reset_counts_nothing() -> None:
    for stop in (lambda player: player.restart(0.05), ChunkPlayer.reset):
        player = ChunkPlayer(execute=4, hold=ZERO, align="played")
        player.offer(chunk(0.0), 0.0)
        played(player, (0.0, 0.1))
        stop(player)
        assert player.offer(chunk(0.0, start=50.0), 0.2).skipped == 0


def test_a_chunk_whose_rows_are_all_past_is_refused_and_counted() -> None:
    player = ChunkPlayer(execute=2, hold=ZERO)
    offer = player.offer(chunk(0.0), 0.6)
    assert not offer.taken
    assert "too late" in offer.refused
    assert offer.late
    assert player.action(0.6).source == "hold"


def test_the_hold_comes_after_execute_rows_until_the_next_chunk() -> None:
    player = ChunkPlayer(execute=2, hold=ZERO)
    player.offer(chunk(0.0), 0.0)
    assert played(player, (0.0, 0.1, 0.2, 5.0)) == [1, 2, 0, 0]
    command = player.action(0.3)
    assert (command.source, command.index) == ("hold", -1)
    player.offer(chunk(0.3, start=50.0), 0.4)
    assert played(player, (0.4,)) == [51]


def test_continue_chunk_plays_on_and_says_that_this_is_stale() -> None:
    player = ChunkPlayer(execute=2, hold=ContinueChunk(then=ZERO))
    player.offer(chunk(0.0), 0.0)
    assert played(player, np.arange(8) * DT) == [1, 2, 3, 4, 5, 6, 0, 0]
    assert player.action(0.2).source == "hold"


def test_no_row_is_played_beyond_the_age_limit_whatever_the_rule() -> None:
    for rule in (ZERO, ContinueChunk(then=ZERO)):
        player = ChunkPlayer(execute=4, hold=rule, max_age_s=0.25)
        player.offer(chunk(0.0), 0.0)
        assert played(player, (0.0, 0.1, 0.2, 0.25, 0.26, 0.3)) == [1, 2, 3, 3, 0, 0]
        assert player.action(0.29).source == "hold"


def test_the_next_chunk_is_wanted_lead_rows_before_the_end() -> None:
    player = ChunkPlayer(execute=3, hold=ZERO, lead=1)
    assert player.wants_next(0.0)
    player.offer(chunk(0.0), 0.0)
    assert [player.wants_next(t) for t in (0.0, 0.1, 0.2, 0.3)] == [False, False, True, True]
    always = ChunkPlayer(execute=3, hold=ZERO, lead=3)
    always.offer(chunk(0.0), 0.0)
    assert always.wants_next(0.0)


def test_replace_takes_over_at_once_and_append_when_the_rows_are_over() -> None:
    for join, expected in (("replace", [51, 52]), ("append", [2, 52])):
        player = ChunkPlayer(execute=2, hold=ZERO, join=join)
        player.offer(chunk(0.0), 0.0)
        player.offer(chunk(0.0, start=50.0), 0.1)
        assert played(player, (0.1, 0.2)) == expected


def test_blend_goes_from_old_to_new() -> None:
    player = ChunkPlayer(execute=4, hold=ZERO, join="blend", blend_rows=3)
    player.offer(chunk(0.0, start=0.0), 0.0)
    player.action(0.0)
    player.offer(chunk(0.1, start=9.0), 0.1)  # 8 more than the old one says, at every time
    assert played(player, (0.1, 0.2, 0.3, 0.4)) == [1 + 2, 2 + 4, 3 + 6, 12]
    assert player.action(0.3).age_s == pytest.approx(0.3)  # an old image is still behind it
    assert player.action(0.4).age_s == pytest.approx(0.3)
    assert list(player.seam_jumps) == [2.0]


def test_the_prefix_is_frozen_until_the_new_chunk_may_join() -> None:
    player = ChunkPlayer(execute=4, hold=ZERO, lead=4)
    player.offer(chunk(0.0), 0.0)
    prefix = player.running_prefix(0.1, 2)
    assert prefix[:, 0].tolist() == [2, 3]  # will be played at 0.1 and 0.2
    offer = player.offer(chunk(0.1, start=50.0), 0.2, not_before=0.3)  # earlier than was thought
    assert offer.at_s == 0.3
    assert played(player, (0.2, 0.3, 0.4)) == [3, 52, 53]


def test_the_prefix_of_a_short_chunk_is_what_the_hold_rule_would_play() -> None:
    player = ChunkPlayer(execute=2, hold=ZERO)
    assert player.running_prefix(0.0, 2) is None
    player.offer(chunk(0.0), 0.0)
    assert player.running_prefix(0.1, 4)[:, 0].tolist() == [2, 0, 0, 0]


def test_a_newer_chunk_replaces_one_that_waits() -> None:
    player = ChunkPlayer(execute=3, hold=ZERO, join="append")
    player.offer(chunk(0.0), 0.0)
    player.offer(chunk(0.1, start=50.0), 0.1)
    player.offer(chunk(0.2, start=90.0), 0.2)
    assert played(player, (0.2, 0.3)) == [3, 91]


def test_chunks_that_wait_for_different_times_take_over_one_after_the_other() -> None:
    """Each is frozen for 0.4 s and a new one comes every 0.1 s: none makes another one void."""
    player = ChunkPlayer(execute=6, hold=ZERO)
    said = []
    for n in range(8):
        now = round(0.1 * n, 1)
        player.offer(chunk(now, start=100.0 * (n + 1)), now, not_before=now + 0.4)
        said += played(player, (now,))
    assert said[4:] == [104, 204, 304, 404]


def test_seam_jumps_are_measured_where_chunks_meet() -> None:
    player = ChunkPlayer(execute=2, hold=ZERO)
    player.offer(chunk(0.0), 0.0)
    played(player, (0.0, 0.1))
    assert not player.seam_jumps
    player.offer(chunk(0.1, start=2.5), 0.1)  # the old one says 2 at this time
    played(player, (0.1, 0.2))
    assert (player.switches, list(player.seam_jumps)) == (1, [0.5])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (ActionChunk(np.array([[np.nan]]), DT, 2.0), "NaN or infinite"),
        (ActionChunk(np.zeros((0, 1)), DT, 2.0), "no chunk"),
        (ActionChunk(np.zeros((2, 1)), 0.0, 2.0), "no chunk"),
        (ActionChunk(np.zeros((2, 3)), DT, 2.0), "3 numbers, those before had 1"),
        (ActionChunk(np.zeros((2, 1)), DT, 0.5), "older than that of the last chunk"),
        (ActionChunk(np.zeros((2, 1)), DT, float("nan")), "older"),
    ],
)
def test_what_cannot_be_played_is_refused_by_a_sentence_and_the_old_one_goes_on(bad, said) -> None:
    player = ChunkPlayer(execute=6, hold=ZERO)
    player.offer(chunk(2.0), 2.0)
    player.action(2.0)
    offer = player.offer(bad, 2.1)
    assert not offer.taken
    assert said in offer.refused
    assert played(player, (2.1,)) == [2]


def test_a_hold_of_another_machine_is_refused() -> None:
    player = ChunkPlayer(execute=2, hold=Hold((0.0, 0.0)))
    assert "the hold action has 2 numbers" in player.offer(chunk(0.0), 0.0).refused


def test_halt_holds_until_the_next_chunk() -> None:
    player = ChunkPlayer(execute=6, hold=ContinueChunk(then=ZERO))
    player.offer(chunk(0.0), 0.0)
    assert played(player, (0.0, 0.1)) == [1, 2]
    player.halt(0.2)
    assert played(player, (0.2, 0.3)) == [0, 0]
    assert player.wants_next(0.2)
    player.offer(chunk(0.3, start=50.0), 0.3)
    assert played(player, (0.3,)) == [50]


@pytest.mark.parametrize(("sent", "held"), [((0.0, 0.1, 0.2), 3), ((0.0, 0.1), 2)])
def test_halt_goes_on_from_the_row_that_was_sent_last(sent, held: float) -> None:
    """Position control stays where it was sent, in the middle of a row, too."""
    player = ChunkPlayer(execute=6, hold=Hold())
    player.offer(chunk(0.0), 0.0)
    played(player, sent)
    player.halt(0.25)
    assert played(player, (0.25, 0.3, 0.9)) == [held] * 3
    assert player.action(0.3).source == "hold"


def test_halt_brakes_from_the_speed_that_the_machine_has() -> None:
    rows = np.array([[0.1], [0.4], [0.4], [0.4]], np.float32)  # 1 m/s, then 4 m/s
    player = ChunkPlayer(execute=4, hold=Brake(deceleration=10.0, size=1))
    player.offer(ActionChunk(rows, DT, 0.0), 0.0)
    played(player, (0.0, 0.1))
    player.halt(0.15)
    assert played(player, (0.15, 0.2)) == pytest.approx([0.35, 0.25])


@pytest.mark.parametrize("stop", [ChunkPlayer.halt, ChunkPlayer.restart, None])
def test_a_hold_goes_on_from_what_limits_let_through(stop) -> None:
    """With no stop: when the chunk's rows are over."""
    player = ChunkPlayer(execute=2, hold=Hold())
    player.offer(chunk(0.0, start=8.0), 0.0)
    for now, sent in ((0.0, 1.0), (0.1, 2.0)):
        player.action(now)
        player.sent(np.array([sent], np.float32))
        player.plan(now)  # a look at the plan changes nothing
    if stop is not None:
        stop(player, 0.1)
    assert played(player, (0.2, 0.3, 0.9)) == [2, 2, 2]


def test_a_row_that_was_refused_was_never_sent() -> None:
    player = ChunkPlayer(execute=6, hold=Hold())
    player.offer(chunk(0.0), 0.0)
    assert played(player, (0.0, 0.1)) == [1, 2]
    player.plan(0.1)
    player.halt(0.1, refused=True)
    assert played(player, (0.1, 0.2)) == [1, 1]
    late = ChunkPlayer(execute=6, hold=Hold())
    late.offer(chunk(0.0), 0.3)
    assert played(late, (0.3,)) == [4]
    late.halt(0.3, refused=True)  # nothing was sent before it
    assert late.action(0.3).action is None


def test_rows_that_were_never_played_are_not_held_on_to() -> None:
    """Position control must not go to them."""
    for stop in (ChunkPlayer.halt, ChunkPlayer.restart):
        player = ChunkPlayer(execute=6, hold=Hold())
        player.offer(chunk(0.0), 0.0)
        stop(player, 0.0)
        assert player.action(0.0).action is None
        assert player.wants_next(0.0)
    player = ChunkPlayer(execute=6, hold=Hold(), max_age_s=0.25)
    player.offer(chunk(0.0), 0.0)
    player.action(0.0)
    assert played(player, (0.4,)) == [1]  # row 4 is too old, rows 1 to 3 were never sent


def test_halt_drops_a_chunk_that_waits() -> None:
    player = ChunkPlayer(execute=6, hold=ZERO)
    player.offer(chunk(0.0), 0.0, not_before=0.2)
    player.halt(0.1)
    assert played(player, (0.1, 0.2, 0.3)) == [0, 0, 0]
    assert player.wants_next(0.1)


def test_a_chunk_that_was_replaced_before_it_was_played_makes_no_seam() -> None:
    player = ChunkPlayer(execute=6, hold=ZERO)
    player.offer(chunk(0.0), 0.0)
    played(player, (0.0, 0.1))
    player.offer(chunk(0.1, start=50.0), 0.2)
    player.offer(chunk(0.2, start=3.5), 0.2)  # the running one says 3
    played(player, (0.2,))
    assert (player.switches, list(player.seam_jumps)) == (1, [0.5])
    first = ChunkPlayer(execute=6, hold=ZERO)
    first.offer(chunk(0.0), 0.0)
    first.offer(chunk(0.0, start=50.0), 0.0)
    played(first, (0.0,))
    assert not first.seam_jumps


def test_after_a_jump_of_the_clock_it_holds_and_takes_chunks_with_earlier_stamps() -> None:
    player = ChunkPlayer(execute=6, hold=Brake(deceleration=10.0, size=1))
    player.offer(ActionChunk(np.full((6, 1), 0.2), DT, 90.0), 90.0)  # 2 m/s
    played(player, (90.0, 90.1))
    player.restart(5.0)
    assert played(player, (5.0, 5.1, 5.2)) == pytest.approx([0.15, 0.05, 0.0])
    assert player.action(5.1).age_s == float("inf")
    assert player.wants_next(5.1)
    assert player.offer(ActionChunk(np.full((6, 1), 0.3), DT, 5.1), 5.2).taken
    assert played(player, (5.2,)) == [0.3]


@pytest.mark.parametrize("stop", [ChunkPlayer.halt, ChunkPlayer.restart])
def test_a_hold_that_is_asked_for_again_and_again_is_one_hold(stop) -> None:
    """It neither brakes harder than the rule says nor grows."""
    player = ChunkPlayer(execute=6, hold=Brake(deceleration=10.0, size=1))
    player.offer(ActionChunk(np.full((6, 1), 0.4), DT, 0.0), 0.0)
    made = played(player, (0.0,))
    for tick in range(1, 100):
        stop(player, tick * DT)
        made += played(player, (tick * DT,))
    assert made[:7] == pytest.approx([0.4, 0.35, 0.25, 0.15, 0.05, 0.0, 0.0])
    assert len(player.plan(10.0).actions) <= 7


def test_a_reset_forgets_the_chunk_and_the_last_action() -> None:
    player = ChunkPlayer(execute=2, hold=Hold())
    player.offer(chunk(5.0), 5.0)
    player.action(5.0)
    player.reset()
    assert player.action(5.0).action is None
    assert player.offer(ActionChunk(np.zeros((2, 3)), DT, 0.0), 0.0).taken


def test_a_plan_holds_the_whole_path_and_the_hold_rules_end() -> None:
    player = ChunkPlayer(execute=2, hold=Brake(deceleration=2.0))
    assert player.plan(0.0) is None
    rows = np.tile([[1.0, 0.0]], (6, 1))  # 2 m/s
    player.offer(ActionChunk(rows, 0.5, 0.0), 0.0)
    plan = player.plan(0.3)
    assert plan.elapsed_s == pytest.approx(0.3)
    assert plan.source == "chunk"
    assert plan.actions[:, 0] == pytest.approx([1.0, 1.0, 0.75, 0.25, 0.0])
    assert player.plan(1.0).source == "hold"


def test_times_that_differ_by_rounding_are_the_same_row() -> None:
    player = ChunkPlayer(execute=6, hold=ZERO)
    player.offer(chunk(0.1 + 0.2), 0.1 + 0.2)
    assert played(player, (0.3, 0.3 + 3 * 0.1 - 1e-12)) == [1, 4]


@pytest.mark.parametrize(
    "options", [{"execute": 0}, {"lead": 3}, {"max_age_s": 0.0}, {"join": "repalce"}]
)
def test_bad_settings_get_one_sentence(options) -> None:
    with pytest.raises(ConfigError, match="chunks"):
        ChunkPlayer(**{"execute": 2, "hold": ZERO} | options)
