"""How well scores find foreground tokens, on demonstrations that nobody was trained on.

Each row is one scorer in one domain: ours, its ablations where their weights are there, and scores
that need no training. All see the same frames, and all tokens: nothing is cut before a scorer has
looked. Precision is within a policy call, over all its cameras, because there tokens compete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from vla_prune_sim.train.frames import FrameSet

from vla_prune import config, report
from vla_prune.adapters.base import Adapter
from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.budgets import ConstantBudget
from vla_prune.build import build_adapter
from vla_prune.draw import views_side_by_side
from vla_prune.errors import ConfigError, MissingError, did_you_mean
from vla_prune.policy import attach
from vla_prune.pruner import Cut, Pruner
from vla_prune.recon.frames import BACKGROUND, FOREGROUND, IGNORE
from vla_prune.recon.metrics import average_precision, recall_at
from vla_prune.scorers import ForegroundScorer, NormScorer, RandomScorer, Scorer, SemanticScorer
from vla_prune.selectors import SELECTORS
from vla_prune.tokens import TokenView
from vla_prune.types import Observation

BATCH = 16
OURS = "foreground"
FIGURE_SHARE = 0.25
ATTENTION = {
    "received_attention": "prefill",
    "text_attention": "prompt",
    "last_row_attention": "last",
}
FREE = ("random", "norm", "text_similarity", *ATTENTION)  # rows that need no training


@dataclass(frozen=True)
class DomainConfig:
    """One policy and its demonstrations.

    Attributes:
        policy: of ``configs/policy``.
        demos: folder of demonstrations.
        foreground: patch classes that are foreground.
        ignore: patch classes that are not counted.
        layer: decoder site whose attention is read, one layer before it.
        trained: row name -> weights of a reconstructor; None takes the shipped ones.
    """

    policy: str
    demos: str
    foreground: tuple[str, ...]
    ignore: tuple[str, ...] = ()
    layer: int = 2
    trained: Mapping[str, str | None] = field(default_factory=lambda: {OURS: None})


@dataclass(frozen=True)
class EvaluateConfig:
    """All of ``configs/run/foreground.yaml``.

    Attributes:
        domains: name -> domain.
        results: JSON to write.
        figure: PNG to write.
        frames: held-out policy calls of each domain, evenly spread.
        shares: of the tokens, at which recall is told.
    """

    domains: Mapping[str, DomainConfig]
    results: str
    figure: str
    frames: int = 300
    shares: tuple[float, ...] = (0.125, 0.25, 0.5)


def load(name: str, overrides: Sequence[str] = ()) -> EvaluateConfig:
    """From a YAML file."""
    data = config.load(name, overrides, kind="run")
    config.check_keys(name, EvaluateConfig, data)
    domains = {}
    for domain, part in data["domains"].items():
        config.check_keys(f"{name}: domains.{domain}", DomainConfig, part)
        domains[domain] = DomainConfig(**part)
    return EvaluateConfig(**(data | {"domains": domains}))


@dataclass
class Tap:
    """A scorer that keeps what other scorers, and a look at the features, give for all tokens."""

    scorers: Mapping[str, Scorer]
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    features: list[Tensor] = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        """What they all read."""
        return frozenset().union(*(scorer.needs for scorer in self.scorers.values()))

    def score(self, view: TokenView) -> Tensor:
        """Zeros; what matters is kept."""
        for name, scorer in self.scorers.items():
            self.seen.setdefault(name, []).append(scorer.score(view).float().cpu())
        self.features.append(view.features)
        return torch.zeros(view.index.shape, device=view.index.device)


@dataclass(frozen=True)
class Domain:
    """What was seen of one domain.

    Attributes:
        scores: row name -> ``[F, N]``.
        labels: ``[F, N]`` 0 background, 1 foreground, 2 ignore.
        frames: the policy calls.
        adapter: of the policy.
        left_out: rows that could not be made, in a sentence each.
    """

    scores: dict[str, Tensor]
    labels: Tensor
    frames: list[Observation]
    adapter: Adapter
    left_out: list[str]


def run(settings: EvaluateConfig, update: Callable[[float], None] | None = None) -> dict[str, Any]:
    """All domains; writes results and figure, and returns the results."""
    rows, left_out, pictures, encoders = [], [], [], {}
    for number, (name, domain) in enumerate(settings.domains.items()):
        seen = score_domain(name, domain, settings.frames)
        left_out += seen.left_out
        encoders[name] = seen.adapter.encoder().fingerprint
        made = [
            _row(name, scorer, scores, seen.labels, settings.shares)
            for scorer, scores in seen.scores.items()
        ]
        rows += made
        pictures.append(panels(seen))
        if update:
            update((number + 1) / len(settings.domains))
    document = report.provenance(RandomScorer().seed) | {
        "what": "foreground tokens found, within a policy call, on held-out demonstrations",
        "frames": settings.frames,
        "encoders": encoders,
        "rows": rows,
        "left_out": left_out,
        "bars": {name: _bar([r for r in rows if r["domain"] == name]) for name in encoders},
    }
    report_file = Path(settings.results)
    report_file.parent.mkdir(parents=True, exist_ok=True)
    report_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 8), (0, width - p.shape[1]), (0, 0))) for p in pictures]
    Path(settings.figure).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(settings.figure)
    return document


def score_domain(name: str, domain: DomainConfig, frames: int) -> Domain:
    """Every row's scores on the same frames."""
    adapter = build_adapter(domain.policy)
    observations, labels = _frames(name, domain, frames)
    if labels.shape[1] != adapter.layout.total:
        raise ConfigError(
            f"{name}: demonstrations label {labels.shape[1]} patches of a policy call, "
            f"{domain.policy} has {adapter.layout.total} tokens; name the policy of these "
            "demonstrations."
        )
    early: dict[str, Scorer] = {"random": RandomScorer(), "norm": NormScorer()}
    left_out = []
    for row, weights in domain.trained.items():
        try:
            early[row] = _trained(weights, adapter)
        except MissingError as error:
            left_out.append(f"{name}: row {row!r} is left out: {error}")
    late = {row: SemanticScorer(rows) for row, rows in ATTENTION.items()}
    tap = _look(adapter, "projector", early, observations)
    scores = {row: torch.cat(parts) for row, parts in tap.seen.items()}
    if hasattr(adapter, "word_embeddings"):
        scores["text_similarity"] = _similarity(adapter, tap.features, observations)
    tap = _look(adapter, f"decoder.{domain.layer}", late, observations)
    scores |= {row: torch.cat(parts) for row, parts in tap.seen.items()}
    return Domain(scores, labels, observations, adapter, left_out)


def _trained(weights: str | None, adapter: Any) -> ForegroundScorer:
    from vla_prune.recon.checkpoint import find_reconstructor, load_reconstructor

    encoder: EncoderSpec = adapter.encoder()
    folder = find_reconstructor(weights, encoder)
    network = load_reconstructor(folder, encoder, torch.float32, adapter.device)
    return ForegroundScorer(weights, network)


def _look(
    adapter: Adapter, site: str, scorers: Mapping[str, Scorer], observations: list[Observation]
) -> Tap:
    tap = Tap(scorers)
    cut = Cut(site, (tap,), SELECTORS["topk"](), ConstantBudget(0.5))
    with attach(Pruner((cut,), name="look"), adapter) as policy:
        for start in range(0, len(observations), BATCH):
            part = observations[start : start + BATCH]
            states = [policy.new_state() for _ in part]
            for offset, state in enumerate(states):
                state.tick = start + offset  # so that random scores differ between frames
            policy.act(part, states)
    return tap


def _similarity(adapter: Any, features: list[Tensor], observations: list[Observation]) -> Tensor:
    """Cosine of each visual token with the mean of the instruction's word embeddings."""
    found = []
    with torch.inference_mode():
        for number, tokens in enumerate(features):
            part = observations[number * BATCH : (number + 1) * BATCH]
            words, mask = adapter.word_embeddings(part)
            weight = torch.ones(words.shape[:2]) if mask is None else mask.float().cpu()
            weight = weight.to(words)[..., None]
            mean = (words * weight).sum(1) / weight.sum(1)
            found.append(torch.cosine_similarity(tokens, mean[:, None], dim=-1).float().cpu())
    return torch.cat(found)


def _frames(name: str, domain: DomainConfig, frames: int) -> tuple[list[Observation], Tensor]:
    held = FrameSet(domain.demos, held_out=True)
    if not len(held):
        raise MissingError(
            f"{name}: {domain.demos} has no held-out demonstrations; make more of them."
        )
    kinds = np.full(len(held.classes), BACKGROUND, np.uint8)
    for kind, names in ((FOREGROUND, domain.foreground), (IGNORE, domain.ignore)):
        for one in names:
            if one not in held.classes:
                raise did_you_mean(f"domains.{name}", "patch class", one, held.classes)
            kinds[held.classes.index(one)] = kind
    picks = np.unique(np.linspace(0, len(held) - 1, min(frames, len(held))).round().astype(int))
    observations = [
        Observation(
            dict(zip(held.views, held.images[i], strict=True)),
            held.sentences[i],
            held.rows[i][0].astype(np.float32),
        )
        for i in picks
    ]
    labels = np.stack([kinds[held.rows[i][2]] for i in picks])
    return observations, torch.from_numpy(labels)


def _row(
    domain: str, scorer: str, scores: Tensor, labels: Tensor, shares: Sequence[float]
) -> dict[str, Any]:
    recalls = {f"{share:g}": recall_at(scores, labels, share) for share in shares}
    return {
        "domain": domain,
        "scorer": scorer,
        "average_precision": average_precision(scores, labels),
        "recall_at_k": {share: recall for share, (recall, _) in recalls.items()},
        "best_recall_at_k": {share: best for share, (_, best) in recalls.items()},
        "frames": len(labels),
        "foreground_share": float((labels == FOREGROUND).float().mean()),
    }


def _bar(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Ours against the best score that needs no training: the share of its error that is left."""
    precision = {row["scorer"]: row["average_precision"] for row in rows}
    free = {name: value for name, value in precision.items() if name in FREE}
    best = max(free, key=free.get)
    error = 1.0 - free[best]
    ours = precision.get(OURS)
    left = None if ours is None or error <= 0 else (1.0 - ours) / error
    return {"best_free": best, "best_free_ap": free[best], "ours": ours, "error_left": left}


def panels(domain: Domain, scale: int = 2) -> np.ndarray:
    """One policy call: pictures, mask, scores, kept patches, one below the other."""
    share = (domain.labels == FOREGROUND).float().mean(dim=1)
    number = int((share - share.median()).abs().argmin())  # an ordinary one
    layout, images = domain.adapter.layout, domain.frames[number].images
    row = OURS if OURS in domain.scores else next(iter(domain.scores))
    scores = domain.scores[row][number]
    everything = np.arange(layout.total)
    wanted = (domain.labels[number] == FOREGROUND).nonzero()[:, 0].numpy()
    kept = scores.topk(max(1, round(layout.total * FIGURE_SHARE))).indices.sort().values.numpy()
    heat = (scores - scores.min()) / (scores.max() - scores.min()).clamp_min(1e-9)
    drawn, start = {}, 0
    for view in layout.views:
        part = heat[start : start + view.size].view(view.rows, view.cols).numpy()
        red = np.stack([part, 0.3 * part, 1.0 - part], axis=-1)
        size = images[view.name].shape[1], images[view.name].shape[0]
        picture = Image.fromarray((255 * red).astype(np.uint8))
        drawn[view.name] = np.asarray(picture.resize(size, Image.Resampling.NEAREST))
        start += view.size
    shown = ((images, everything), (images, wanted), (drawn, everything), (images, kept))
    parts = [views_side_by_side(layout, pictures, which, scale) for pictures, which in shown]
    return np.concatenate([np.pad(p, ((0, 4), (0, 0), (0, 0))) for p in parts])
