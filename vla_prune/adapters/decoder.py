"""Cut visual tokens inside a transformers decoder, and read chosen rows of attention.

Works on any decoder whose layers take ``attention_mask``, ``position_embeddings`` and
``position_ids`` as keywords and whose attention goes through ``AttentionInterface`` (Llama, Gemma,
Qwen2, Mistral and kin).

Reads: queries and keys of the layers that a scorer asks for, at the rows that it asks for.
Changes: while attached, the name of the attention function in the decoder's config; while a call
    runs,
hidden states, masks and position embeddings from the cut on.
Checked with transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vla_prune.errors import UnsupportedError
from vla_prune.ops import gather_tokens, received_attention
from vla_prune.pruner import Cut, PruneCall, Site
from vla_prune.tokens import Rows, TokenLayout, TokenView

_PREFIX = "vla_prune_"
_numbers = count()


@dataclass(frozen=True)
class RowSet:
    """Query rows of one kind.

    Attributes:
        rows: a slice of the sequence, or ``[B, R]`` positions where they differ between samples.
        weight: ``[B, R]``, 0 for padding; None if all count.
    """

    rows: slice | Tensor
    weight: Tensor | None = None

    def positions(self, device: torch.device) -> Tensor:
        """``[B or 1, R]`` positions in the sequence."""
        if isinstance(self.rows, slice):
            return torch.arange(self.rows.start, self.rows.stop, device=device)[None]
        return self.rows

    def take(self, x: Tensor, dim: int) -> Tensor:
        """The rows of ``x`` along ``dim`` (1 or 2)."""
        if isinstance(self.rows, slice):
            return x.narrow(dim, self.rows.start, self.rows.stop - self.rows.start)
        shape = [self.rows.shape[0], *x.shape[1:]]
        shape[dim] = self.rows.shape[1]
        view = [self.rows.shape[0]] + [1] * (x.dim() - 1)
        view[dim] = self.rows.shape[1]
        return x.expand(shape[0], *x.shape[1:]).gather(dim, self.rows.view(view).expand(shape))


@dataclass(frozen=True)
class Sequence:
    """Where things are in the sequence that a decoder is about to run.

    Attributes:
        start: place of the first visual token.
        index: ``[B, N]`` grid indices of the visual tokens, ascending.
        counts: visual tokens of each view, None where the samples of a batch differ.
        features: ``[B, N, D]`` the visual tokens as they left the projector.
        rows: row kind (``last``, ``prompt``, ``prefill``, ``action``) -> where they are.
        causal: whether rows see only what stands before them.
        gaps: other tokens between the visual tokens of one view and those of the next; none unless
            given. They stay.
        layout: what ``index`` counts over; needed with gaps.
    """

    start: int
    index: Tensor
    counts: tuple[int, ...] | None
    features: Tensor
    rows: Mapping[str, RowSet]
    causal: bool = True
    gaps: tuple[int, ...] = ()
    layout: TokenLayout | None = None

    @property
    def stop(self) -> int:
        """The place behind the last visual token."""
        return self.start + self.index.shape[1] + sum(self.gaps)

    @property
    def visual(self) -> RowSet:
        """The visual tokens' places. Samples differ in them if views do between gaps."""
        if not any(self.gaps):
            return RowSet(slice(self.start, self.stop))
        device, gaps = self.index.device, [0, *self.gaps]
        ahead = torch.tensor(gaps, device=device).cumsum(0)[self.layout.view_of(self.index)]
        return RowSet(self.start + torch.arange(self.index.shape[1], device=device) + ahead)

    def after(self, columns: Tensor, counts: tuple[int, ...] | None, keep: Tensor) -> Sequence:
        """The same sequence when only ``columns`` ``[B, K]`` of the visual tokens are left.

        Args:
            columns: kept visual tokens, counted from ``start``.
            counts: how many that makes per view, None where samples differ.
            keep: ``[B, S']`` kept places of the whole sequence.
        """
        stop, removed = self.stop, self.index.shape[1] - columns.shape[1]
        rows: dict[str, RowSet] = {}
        for kind, rowset in self.rows.items():
            if isinstance(
                rowset.rows, Tensor
            ):  # prompt or action rows, all behind the visual tokens
                rows[kind] = RowSet(rowset.rows - removed, rowset.weight)
                continue
            first, last = rowset.rows.start, rowset.rows.stop
            shifted = slice(first - removed if first >= stop else first, last - removed)
            weight = rowset.weight
            if weight is not None and first == 0:
                weight = gather_tokens(weight, keep[:, : shifted.stop])
            rows[kind] = RowSet(shifted, weight)
        return replace(
            self,
            index=self.index.gather(1, columns),
            counts=counts,
            features=gather_tokens(self.features, columns),
            rows=rows,
        )


class DecoderRun:
    """One forward pass through a hooked decoder: the prefill and, with a cache, its decode steps.

    Args:
        sequence: what the prefill will see.
        call: decides at the sites and receives the action attention.
        action_layer: layer whose action rows are read.
        step_rows: action rows of every later pass; the one row of a decode step unless given. An
            action expert that reads the cache takes part by hooks of its own on the same run.
    """

    def __init__(
        self,
        sequence: Sequence,
        call: PruneCall,
        action_layer: int | None,
        step_rows: RowSet | None = None,
    ) -> None:
        self.sequence = sequence
        self.call = call
        self.action_layer = action_layer if call.reads_actions else None
        self.step_rows = step_rows or RowSet(slice(0, 1))
        self.passes = 0
        self.attention: dict[str, Rows] = {}
        self.reads = _reads(call.cuts)
        self.keep: Tensor | None = (
            None  # [B, S'] places of the prefill that are left at this layer
        )
        self.kept_from: dict[int, Tensor] = {}  # layer of a cut -> its places, for decode steps
        self.sequence_at: dict[int, Sequence] = {}  # layer -> what it saw in the prefill
        self.prefill_length = 0
        self._fitted: tuple[tuple, tuple] | None = None  # what layers are given, and its kept part

    def enter_layer(self, layer: int, hidden: Tensor, kwargs: dict) -> Tensor:
        """Cut if a cut is due, and fit masks and positions to what is left. Changes ``kwargs``."""
        if layer == 0:
            self.passes += 1
            if self.passes == 1:
                self.prefill_length = hidden.shape[1]
        if self.passes > 1:
            self._slice_cache_columns(layer, kwargs)
            return hidden
        if f"decoder.{layer}" in self.call.cuts:
            hidden = self._cut(layer, hidden)
        if self.keep is not None:
            self._gather_kwargs(kwargs)
        self.sequence_at[layer] = self.sequence
        return hidden

    def wanted(self, layer: int) -> Mapping[str, RowSet]:
        """Row kinds whose attention a later cut or the history reads at this layer."""
        if self.passes > 1:
            return {"action": self.step_rows} if layer == self.action_layer else {}
        kinds = set(self.reads.get(layer, ()))
        if layer == self.action_layer and "action" in self.sequence.rows:
            kinds.add("action")
        return {kind: self.sequence.rows[kind.partition("@")[0]] for kind in kinds}

    def observe(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scale: float
    ) -> None:
        """Read what is wanted of a layer's queries ``[B, H, Q, d]``, keys ``[B, Hk, S, d]``."""
        sequence = self.sequence_at[layer]
        for kind, rowset in self.wanted(layer).items():
            with self.call.clock.stage("selection"):
                rows = self._rows(sequence, rowset, query, key, mask, scale)
            if layer == self.action_layer and kind == "action":
                self.call.record_actions(rows.total, _row_count(rowset), sequence.index)
            self.attention[kind] = rows

    @staticmethod
    def _rows(
        sequence: Sequence,
        rowset: RowSet,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> Rows:
        positions = rowset.positions(query.device)
        chosen = rowset.take(query, dim=2)
        if mask is not None:
            mask = (
                mask
                if mask.shape[0] == query.shape[0]
                else mask.expand(query.shape[0], -1, -1, -1)
            )
            mask = rowset.take(mask[..., : key.shape[2]], dim=2)
        causal = sequence.causal and query.shape[2] > 1
        total = received_attention(chosen, key, scale, positions, causal, mask, rowset.weight)
        visual = sequence.visual
        ones = torch.ones_like(positions, dtype=total.dtype)
        weight = ones if rowset.weight is None else rowset.weight.to(total.dtype)
        if mask is not None:
            sees = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            share = weight / sees[:, 0].sum(-1).clamp_min(1)  # [B, R] of one row on each key
            expected = (visual.take(sees[:, 0], dim=2) * share[..., None]).sum(1)
        elif causal:
            places = visual.positions(query.device)[:, None]  # [B or 1, 1, N]
            sees = positions[..., None] >= places  # [B or 1, R, N]
            expected = (sees * (weight / (positions + 1))[..., None]).sum(1)
        else:
            share = weight.sum(1, keepdim=True) / key.shape[2]
            expected = share.expand(-1, sequence.index.shape[1])
        return Rows(visual.take(total, dim=1), weight.sum(1, keepdim=True), expected)

    def _cut(self, layer: int, hidden: Tensor) -> Tensor:
        sequence, visual = self.sequence, self.sequence.visual
        site = f"decoder.{layer}"
        asked = self.call.cuts[site].needs  # rows read for the history alone are not shown
        view = TokenView(
            tokens=visual.take(hidden, dim=1),
            features=sequence.features,
            index=sequence.index,
            layout=self.call.layout,
            counts=sequence.counts,
            attention={k: v for k, v in self.attention.items() if f"attention:{k}" in asked},
            history=self.call.history_at(sequence.index),
            tick=self.call.tick,
        )
        columns, counts = self.call.cut(site, view)
        self.attention = {kind: rows for kind, rows in self.attention.items() if "@" in kind}
        if columns is None:
            return hidden
        with self.call.clock.stage("selection"):
            batch, length = hidden.shape[:2]
            where = visual.positions(hidden.device).expand(batch, -1)
            stays = torch.ones(batch, length, dtype=torch.long, device=hidden.device)
            stays = stays.scatter(1, where, 0).scatter(1, where.gather(1, columns), 1)
            left = length - where.shape[1] + columns.shape[1]
            keep = stays.argsort(dim=1, descending=True, stable=True)[:, :left]
            self.sequence = sequence.after(columns, counts, keep)
            self.keep = keep if self.keep is None else self.keep.gather(1, keep)
            self.kept_from[layer] = self.keep
            self.attention = {k: rows.take(columns) for k, rows in self.attention.items()}
            self._fitted = None
            return gather_tokens(hidden, keep)

    def _gather_kwargs(self, kwargs: dict) -> None:
        """Masks and positions of the kept places. Each layer is handed the full ones anew.

        A decoder hands the same tensors to all its layers, so they are gathered once per cut.
        """
        names = ("position_embeddings", "position_ids", "attention_mask")
        given = tuple(kwargs.get(name) for name in names)
        if self._fitted is None or any(
            a is not b for a, b in zip(self._fitted[0], given, strict=True)
        ):
            (cos, sin), places, mask = given
            keep = self.keep
            fitted = (
                (_gather_rows(cos, keep), _gather_rows(sin, keep)),
                None if places is None else _gather_rows(places, keep),
                None if mask is None else _gather_square(mask, keep),
            )
            self._fitted = (given, fitted)
        kwargs.update(zip(names, self._fitted[1], strict=True))

    def _slice_cache_columns(self, layer: int, kwargs: dict) -> None:
        """In a decode step the mask is sized by layer 0's cache; layers behind a cut hold less."""
        mask = kwargs.get("attention_mask")
        cuts = [at for at in self.kept_from if at <= layer]
        if mask is None or not cuts:
            return
        keep = self.kept_from[max(cuts)]
        new = torch.arange(self.prefill_length, mask.shape[3], device=keep.device)
        columns = torch.cat([keep, new.expand(keep.shape[0], -1)], dim=1)
        mask = mask.expand(keep.shape[0], -1, -1, -1)
        columns = columns[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
        kwargs["attention_mask"] = mask.gather(3, columns)


def _reads(cuts: Mapping[str, Cut]) -> dict[int, set[str]]:
    """Layer -> row kinds that decoder cuts read there, ``ROWS`` or ``ROWS@LAYER``."""
    reads: dict[int, set[str]] = {}
    for cut in cuts.values():
        for need in cut.needs:
            name, _, kind = need.partition(":")
            if name == "attention":
                named = kind.partition("@")[2]
                layer = int(named) if named.isdigit() else cut.layer - 1
                reads.setdefault(layer, set()).add(kind)
    return reads


class DecoderHooks:
    """Hooks on one decoder. They do nothing but while a :class:`DecoderRun` is active.

    Args:
        decoder: a module with ``layers`` and ``config``, such as ``LlamaModel``.
        text_rows: row kinds that its sequences can offer to scorers.
    """

    def __init__(self, decoder: nn.Module, text_rows: tuple[str, ...]) -> None:
        self.decoder = decoder
        self.text_rows = text_rows
        self.active: DecoderRun | None = None

    def sites(self) -> tuple[Site, ...]:
        """``decoder.1`` to the last layer; layer 0 is the site ``projector``."""
        offers = frozenset({"history"} | {f"attention:{rows}" for rows in self.text_rows})
        return tuple(Site(f"decoder.{k}", offers) for k in range(1, len(self.decoder.layers)))

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on; closing ``stack`` takes them off and leaves nothing behind."""
        config = self.decoder.config
        base = config._attn_implementation
        if str(base).startswith(_PREFIX):
            raise UnsupportedError(
                "the model already carries a pruner, attached through another adapter; leave its "
                "'with attach(...)' first."
            )
        if base not in ALL_ATTENTION_FUNCTIONS:
            raise UnsupportedError(
                f"attention {base!r} cannot be read beside a fused kernel; load the model with "
                "attn_implementation='sdpa'."
            )
        name = f"{_PREFIX}{base}_{next(_numbers)}"
        AttentionInterface.register(name, self._attention(ALL_ATTENTION_FUNCTIONS[base]))
        stack.callback(AttentionInterface._global_mapping.pop, name)
        # Without the mask name transformers builds no mask at all and padding is silently seen.
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        stack.callback(AttentionMaskInterface._global_mapping.pop, name)
        stack.callback(setattr, config, "_attn_implementation", base)
        config._attn_implementation = name
        for number, layer in enumerate(self.decoder.layers):
            handle = layer.register_forward_pre_hook(self._pre_hook(number), with_kwargs=True)
            stack.callback(handle.remove)

    @contextmanager
    def running(self, run: DecoderRun) -> Iterator[DecoderRun]:
        """Make ``run`` the active one for the body, also if the body raises."""
        self.active = run
        try:
            yield run
        finally:
            self.active = None

    def _pre_hook(self, number: int):
        def enter(_module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
            if self.active is None:
                return None
            return (self.active.enter_layer(number, args[0], kwargs), *args[1:]), kwargs

        return enter

    def _attention(self, kernel):
        def attention(module, query, key, value, attention_mask, **kwargs):
            output = kernel(module, query, key, value, attention_mask, **kwargs)
            if self.active is not None:
                self.active.observe(module.layer_idx, query, key, attention_mask, module.scaling)
            return output

        return attention


def _gather_rows(x: Tensor, keep: Tensor) -> Tensor:
    """``[B or 1, S, ...]`` at places ``[B, S']``."""
    return gather_tokens(x.expand(keep.shape[0], *x.shape[1:]), keep)


def _gather_square(mask: Tensor, keep: Tensor) -> Tensor:
    """``[B or 1, 1, S, S]`` at rows and columns ``[B, S']``."""
    mask = mask.expand(keep.shape[0], -1, -1, -1)
    rows = keep[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    columns = keep[:, None, None, :].expand(-1, mask.shape[1], keep.shape[1], -1)
    return mask.gather(2, rows).gather(3, columns)


def _row_count(rowset: RowSet) -> int | Tensor:
    """Rows of a set: a number, or ``[B, 1]`` where some do not count."""
    if rowset.weight is not None:
        return rowset.weight.sum(1, keepdim=True)
    if isinstance(rowset.rows, slice):
        return rowset.rows.stop - rowset.rows.start
    return rowset.rows.shape[1]
