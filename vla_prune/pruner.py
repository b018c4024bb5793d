"""A recipe made executable: which cuts happen at which site, and what is remembered between calls.

Knows no model. An adapter asks the :class:`PruneCall` of the running call which attention rows to
read, hands it a :class:`TokenView` at every site, and gathers whatever it says stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vla_prune import difficulty
from vla_prune.budgets import Budget
from vla_prune.clock import StageClock
from vla_prune.errors import ConfigError, ShapeError, UnsupportedError
from vla_prune.scorers import Scorer
from vla_prune.selectors import Floors, Selector
from vla_prune.selectors.floors import fill, lift
from vla_prune.tokens import History, TokenLayout, TokenView
from vla_prune.types import PolicyState

DRAW_CALLS = 1 << 20  # policy calls between two sequences of random draws
ACTION = "action_attention"  # the key of PolicyState.history under which action attention is kept


@dataclass(frozen=True)
class Site:
    """A place in a model where visual tokens can be cut, and what it can offer a scorer."""

    name: str
    offers: frozenset[str]


@dataclass(frozen=True)
class Cut:
    """One cut: where, by which signals, how many, which set, and what is kept whatever it says."""

    site: str
    scorers: tuple[Scorer, ...]
    selector: Selector
    budget: Budget
    floors: Floors = field(default_factory=Floors)

    @property
    def layer(self) -> int:
        """The decoder layer in front of which it cuts; 0 at the projector."""
        return int(self.site.partition(".")[2] or 0)

    @property
    def needs(self) -> frozenset[str]:
        """What its scorers read."""
        return frozenset().union(*(scorer.needs for scorer in self.scorers))


@dataclass(frozen=True)
class ActionHistory:
    """What to remember of the action rows' attention.

    Attributes:
        window: how many policy calls are kept.
        layer: decoder layer whose action rows are read; None for ``L // 2 - 1`` (layer 15 of 32,
            as in the VLA-Pruner release).
        warmup: run dense until the window is full, as the release does.
        refresh: run dense at every so many calls, the first included, so that the actions look at
            every token again; 0 for never.
    """

    window: int = 3
    layer: int | None = None
    warmup: bool = False
    refresh: int = 0

    def __post_init__(self) -> None:
        """Refuse windows that hold nothing, and refreshes that never or always come."""
        if self.window < 1:
            raise ConfigError(f"history: window {self.window} remembers nothing; give 1 or more.")
        if self.refresh < 0 or self.refresh == 1:
            raise ConfigError(
                f"history: refresh {self.refresh} cannot be; give 2 or more calls from one dense "
                "call to the next, or 0 for none."
            )


@dataclass(frozen=True)
class Pruner:
    """A recipe: cuts in the order in which the model meets them, and what is remembered.

    Attributes:
        cuts: at most one per site.
        history: needed when a scorer reads ``history``.
        name: for tables and messages.
    """

    cuts: tuple[Cut, ...] = ()
    history: ActionHistory | None = None
    name: str = "dense"

    def __post_init__(self) -> None:
        """Refuse cuts that cannot work wherever they are attached."""
        sites = [cut.site for cut in self.cuts]
        if len(set(sites)) != len(sites):
            raise ConfigError(f"recipe {self.name!r}: two cuts at one site ({', '.join(sites)}).")
        for cut in self.cuts:
            least, most = cut.selector.signals
            if not least <= len(cut.scorers) <= most:
                raise ConfigError(
                    f"recipe {self.name!r}, site {cut.site!r}: "
                    f"{type(cut.selector).__name__} works with "
                    f"{least} to {most} scorers, {len(cut.scorers)} are given."
                )
            if "history" in cut.needs and self.history is None:
                raise ConfigError(
                    f"recipe {self.name!r}, site {cut.site!r}: a scorer needs 'history', "
                    "but the recipe keeps none; add a 'history' section."
                )

    def check(self, model: str, sites: Iterable[Site], layout: TokenLayout) -> None:
        """Raise one sentence if a model cannot serve this recipe."""
        if layout.total == 0:
            raise ShapeError(f"{model} has no visual tokens, so there is nothing to prune.")
        offers = {site.name: site.offers for site in sites}
        layers = 1 + sum(name.startswith("decoder.") for name in offers)  # layer 0 has no site
        read = None if self.history is None else self.history.layer
        if read is not None and not 0 <= read < layers:
            raise UnsupportedError(
                f"recipe {self.name!r}: history reads layer {read}, but {model} has layers 0 to "
                f"{layers - 1}; nothing would ever be remembered."
            )
        for cut in self.cuts:
            if cut.site not in offers:
                raise UnsupportedError(
                    f"recipe {self.name!r}: {model} has no site {cut.site!r}; "
                    f"it has {_short(offers)}."
                )
            for need in sorted(cut.needs):
                self._check_need(need, cut, offers[cut.site], model)
            cut.budget.keep(layout)

    def _check_need(self, need: str, cut: Cut, offers: frozenset[str], model: str) -> None:
        kind, _, layer = need.partition("@")
        if kind not in offers:
            raise UnsupportedError(
                f"recipe {self.name!r}: a scorer needs {need!r}, but site {cut.site!r} of "
                f"{model} offers {', '.join(sorted(offers)) or 'tokens alone'}; "
                "use another site or scorer."
            )
        if layer.isdigit() and int(layer) >= cut.layer:
            raise UnsupportedError(
                f"recipe {self.name!r}: a scorer reads attention at layer {layer}, which runs "
                f"behind the cut at {cut.site!r}; read an earlier layer, or cut later."
            )

    def warming_up(self, state: PolicyState) -> bool:
        """Whether this state's next call runs dense: its history is too short, or is refreshed."""
        if self.history is None:
            return False
        if self.history.refresh and state.tick % self.history.refresh == 0:
            return True
        return self.history.warmup and len(state.history.get(ACTION, ())) < self.history.window

    def begin(
        self,
        states: Sequence[PolicyState],
        layout: TokenLayout,
        device: torch.device | str = "cpu",
        clock: StageClock | None = None,
        signals: bool = False,
    ) -> PruneCall:
        """The pruning side of one policy call for states that all warm up or all do not."""
        dense = bool(states) and self.warming_up(states[0])
        if any(self.warming_up(state) != dense for state in states):
            raise ShapeError("states that warm up and states that do not cannot share one call.")
        cuts = () if dense else self.cuts
        return PruneCall(self, cuts, states, layout, device, clock, signals)


class PruneCall:
    """One forward pass of one batch, from the first site to the updated states."""

    def __init__(
        self,
        pruner: Pruner,
        cuts: Sequence[Cut],
        states: Sequence[PolicyState],
        layout: TokenLayout,
        device: torch.device | str,
        clock: StageClock | None,
        signals: bool = False,
    ) -> None:
        self.pruner = pruner
        self.layout = layout
        self.cuts: Mapping[str, Cut] = {cut.site: cut for cut in cuts}
        self.clock = clock or StageClock()
        self.kept: dict[str, Tensor] = {}
        self.signals: dict[str, Tensor] | None = {} if signals else None
        self.device = torch.device(device)
        ticks = [(state.tick + DRAW_CALLS * state.draw) % 2**31 for state in states]
        self.tick = torch.tensor(ticks, device=device)
        self._history = self._stack(states)
        self._seen: tuple[Tensor, Tensor] | None = (
            None  # action attention sum [B, N], grid index [B, N]
        )
        self._rows: int | Tensor = 0
        self._finite: list[tuple[str, Tensor]] = []

    @property
    def reads_actions(self) -> bool:
        """Whether the adapter should read the action rows' attention."""
        return self.pruner.history is not None

    def cut(self, site: str, view: TokenView) -> tuple[Tensor | None, tuple[int, ...] | None]:
        """Decide what stays at a site.

        Returns:
            Columns ``[B, K]`` of the view, ascending, or None if all stay; and the new counts per
            view, None where the rows of the batch may differ in them.
        """
        cut = self.cuts[site]
        wanted, least = cut.budget.keep(self.layout), cut.budget.least(self.layout)
        counts, present = None, view.index.shape[1]
        if view.counts is not None and wanted == least:
            counts = tuple(min(k, n) for k, n in zip(wanted, view.counts, strict=True))
        total = min(sum(wanted), present) if counts is None else sum(counts)
        if total == present:
            self.kept[site] = view.index
            if self.signals is not None and total:
                with self.clock.stage("selection"):
                    self._scores(cut, view)
            return None, view.counts
        with self.clock.stage("selection"):
            scores = self._scores(cut, view) if total else None
            if scores is None:
                columns = torch.zeros_like(view.index[:, :0])
            elif counts is None:
                columns = _pooled(cut, scores, view, total, least)
            else:
                columns = _view_by_view(cut, scores, view, counts)
            self.kept[site] = view.index.gather(1, columns)
        return columns, counts

    def history_at(self, index: Tensor) -> History | None:
        """The remembered action attention of tokens at grid indices ``[B, N]``."""
        if self._history is None:
            return None
        values, observed = self._history
        where = index[:, None, :].expand(-1, values.shape[1], -1)
        return History(values.gather(2, where), observed.gather(2, where))

    def record_actions(self, total: Tensor, rows: int | Tensor, index: Tensor) -> None:
        """Add what ``rows`` action rows looked at.

        Args:
            total: ``[B, N]`` attention of the rows, summed, mean over heads.
            rows: how many rows were summed, a number or ``[B, 1]``; at least one over all calls.
            index: ``[B, N]`` grid indices of the columns.
        """
        self._seen = (total if self._seen is None else self._seen[0] + total, index)
        self._rows += rows

    def finish(self, states: Sequence[PolicyState]) -> None:
        """Write what was seen into the states. Raises if a score was not finite."""
        for name, finite in self._finite:
            if not bool(finite):
                raise ShapeError(
                    f"recipe {self.pruner.name!r}, site {name!r}: a scorer gave NaN or infinite "
                    "scores; check the weights and the images, or use another scorer."
                )
        if self.pruner.history is None or self._seen is None:
            return
        total, index = self._seen
        shape = (total.shape[0], self.layout.total)
        values = torch.zeros(shape, device=total.device).scatter(1, index, total / self._rows)
        observed = torch.zeros(shape, dtype=torch.bool, device=total.device).scatter(
            1, index, True
        )
        for row, state in enumerate(states):
            entries = state.history.setdefault(ACTION, [])
            entries.append((values[row], observed[row]))
            del entries[: -self.pruner.history.window]

    def _scores(self, cut: Cut, view: TokenView) -> Tensor:
        """``[S, B, N]`` of all tokens at once."""
        scores = [scorer.score(view).float() for scorer in cut.scorers]
        stacked = torch.stack(scores) if scores else view.tokens.new_zeros((0, *view.index.shape))
        self._finite.append((cut.site, torch.isfinite(stacked).all()))
        if self.signals is not None:
            self.signals |= difficulty.signals(stacked)
        return stacked

    def _stack(self, states: Sequence[PolicyState]) -> tuple[Tensor, Tensor] | None:
        """Histories as ``[B, W, M]`` values and observed flags, newest last, empty ones first."""
        if self.pruner.history is None:
            return None
        shape = (len(states), self.pruner.history.window, self.layout.total)
        values = torch.zeros(shape, device=self.device)
        observed = torch.zeros(shape, dtype=torch.bool, device=self.device)
        for row, state in enumerate(states):
            entries = state.history.get(ACTION, [])
            for back, (value, seen) in enumerate(reversed(entries[-shape[1] :]), start=1):
                values[row, -back] = value
                observed[row, -back] = seen
        return values, observed


def _view_by_view(cut: Cut, scores: Tensor, view: TokenView, counts: tuple[int, ...]) -> Tensor:
    """Columns ``[B, K]``: a fixed number of each camera view."""
    picks, start = [], 0
    for number, (n, k) in enumerate(zip(view.counts, counts, strict=True)):
        part = view.columns(start, start + n, number)
        if k == n:
            columns = torch.arange(n, device=view.index.device).expand(view.index.shape[0], n)
        else:
            taken = cut.floors.take(part, k)
            columns = fill(cut.selector, taken, scores[:, :, start : start + n], part, k)
        picks.append(columns + start)
        start += n
    return torch.cat(picks, dim=1)


def _pooled(
    cut: Cut, scores: Tensor, view: TokenView, total: int, least: tuple[int, ...]
) -> Tensor:
    """Columns ``[B, total]``: one choice over all camera views, none below its least."""
    taken = cut.floors.take(view, total)
    columns = fill(cut.selector, taken, scores, view, total)
    return lift(columns, taken, scores, view, least) if any(least) else columns


def _short(offers: Mapping[str, frozenset[str]]) -> str:
    """Site names for a message, ``decoder.1 ... decoder.31`` folded."""
    names = list(offers)
    return ", ".join(names) if len(names) < 5 else f"{names[0]}, {names[1]} to {names[-1]}"
