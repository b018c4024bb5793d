"""How well scores find foreground tokens, on frames that nobody was trained on.

Each row is one scorer in one domain: ours, its ablations where their weights are there, scores
that need no training, and ``position_prior``: how often each place was foreground in the frames
of training, which sees no image. Attention is read at every layer that a cut can
follow, a row each (``received_attention@0``). All see the same frames, and all tokens: nothing is
cut before a scorer has looked. Precision is within a policy call, over all its cameras, because
there tokens compete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from vla_prune_sim.train.frames import FrameSet, patch_labels

from vla_prune import config, report
from vla_prune.adapters.base import Adapter
from vla_prune.adapters.encoder import encoder_of
from vla_prune.budgets import ConstantBudget
from vla_prune.build import build_adapter
from vla_prune.draw import views_side_by_side
from vla_prune.errors import ConfigError, MissingError, check_least
from vla_prune.policy import attach
from vla_prune.pruner import Cut, Pruner
from vla_prune.recon.bind import load_network
from vla_prune.recon.frames import (
    BACKGROUND,
    FOREGROUND,
    IGNORE,
    class_kinds,
    index_rows,
    read_mask,
    read_picture,
    token_labels,
)
from vla_prune.recon.metrics import precisions, recall_at
from vla_prune.scorers import (
    ForegroundScorer,
    GridScorer,
    NormScorer,
    RandomScorer,
    Scorer,
    SemanticScorer,
)
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
FREE = ("random", "grid", "norm", "text_similarity", *ATTENTION)  # rows that need no training
PRIOR = "position_prior"


@dataclass(frozen=True)
class DomainConfig:
    """One policy, and labelled frames: its demonstrations, or an index of masks.

    Attributes:
        policy: of ``configs/policy``.
        demos: folder of demonstrations, whose patches bring their classes.
        foreground: patch classes that are foreground.
        ignore: patch classes that are not counted.
        index: what ``vla-prune masks make`` wrote, in the place of demonstrations; cameras are
            called as the policy's views. The robot's state is not in it, and given as zeros.
        instruction: what the policy is told on frames of an index.
        least_share: share of a token's counted pixels from which on it is foreground in an index.
        trained: row name -> weights of a reconstructor; None takes the shipped ones.
    """

    policy: str
    demos: str = ""
    foreground: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    index: str = ""
    instruction: str = ""
    least_share: float = 0.5
    trained: Mapping[str, str | None] = field(default_factory=lambda: {OURS: None})

    def __post_init__(self) -> None:
        """Refuse names of trained rows that other rows have, and frames of no or two sources."""
        if bool(self.demos) == bool(self.index):
            raise ConfigError(
                f"masks evaluate: {self.policy} has demos {self.demos!r} and index "
                f"{self.index!r}; give one of the two."
            )
        if self.index and not self.instruction:
            raise ConfigError(
                f"masks evaluate: index {self.index!r} holds no instructions; give 'instruction', "
                "what the policy is told."
            )
        unread = ("foreground", "ignore") if self.index else ("instruction",)
        for name in unread:
            if getattr(self, name):
                raise ConfigError(
                    f"masks evaluate: {name!r} means nothing to "
                    f"{'an index' if self.index else 'demonstrations'}; leave it out."
                )
        for name in self.trained:
            if name in (*FREE, PRIOR):
                raise ConfigError(
                    f"masks evaluate: a trained row is called {name!r}, as a row without training "
                    "is; give it another name."
                )


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

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to tell."""
        if not self.domains:
            raise ConfigError("masks evaluate: 'domains' names none; give at least one.")
        check_least("masks evaluate", 1, frames=self.frames)
        for share in self.shares:
            if not 0.0 < share <= 1.0:
                raise ConfigError(
                    f"masks evaluate: shares has {share}; a share of the tokens is in (0, 1]."
                )


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
class Labelled:
    """Held-out frames.

    Attributes:
        frames: policy calls.
        labels: ``[F, N]`` uint8 0 background, 1 foreground, 2 ignore.
        prior: ``[N]`` share of foreground in the frames of training.
        rule: what makes a token foreground.
    """

    frames: list[Observation]
    labels: np.ndarray
    prior: np.ndarray
    rule: str


@dataclass(frozen=True)
class Domain:
    """What was seen of one domain.

    Attributes:
        scores: row name -> ``[F, N]``.
        labels: ``[F, N]`` 0 background, 1 foreground, 2 ignore.
        frames: the policy calls.
        adapter: of the policy.
        rule: what makes a token foreground.
        left_out: rows that could not be made, in a sentence each.
    """

    scores: dict[str, Tensor]
    labels: Tensor
    frames: list[Observation]
    adapter: Adapter
    rule: str
    left_out: list[str]


def run(settings: EvaluateConfig, update: Callable[[float], None] | None = None) -> dict[str, Any]:
    """All domains; writes results and figure, and returns the results."""
    rows, left_out, pictures, encoders, bars = [], [], [], {}, {}
    for number, (name, domain) in enumerate(settings.domains.items()):
        seen = score_domain(name, domain, settings.frames)
        left_out += seen.left_out
        encoders[name] = seen.adapter.encoder().fingerprint
        found = {row: precisions(scores, seen.labels) for row, scores in seen.scores.items()}
        rows += [
            {"domain": name, "scorer": scorer}
            | _row(found[scorer], scores, seen.labels, settings.shares)
            | {"label_rule": seen.rule}
            for scorer, scores in seen.scores.items()
        ]
        bars[name] = _bar(found)
        pictures.append(panels(seen))
        if update:
            update((number + 1) / len(settings.domains))
    document = report.provenance(RandomScorer().seed) | {
        "what": "foreground tokens found, within a policy call, on held-out frames",
        "frames": settings.frames,
        "encoders": encoders,
        "rows": rows,
        "left_out": left_out,
        "bars": bars,
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
    encoder_of(adapter)
    read = _indexed if domain.index else _demonstrated
    found = read(f"domains.{name}", domain, frames, adapter)
    observations, labels = found.frames, torch.from_numpy(found.labels)
    if not ((labels == FOREGROUND).any(1) & (labels == BACKGROUND).any(1)).any():
        raise ConfigError(
            f"domains.{name}: no frame shows both foreground and background, so there is nothing "
            f"to find; the labels are {found.rule}."
        )
    early: dict[str, Scorer] = {
        "random": RandomScorer(),
        "grid": GridScorer(),
        "norm": NormScorer(),
    }
    left_out = []
    for row, weights in domain.trained.items():
        try:
            early[row] = ForegroundScorer(weights, load_network(weights, adapter))
        except MissingError as error:
            left_out.append(f"{name}: row {row!r} is left out: {error}")
    last = sum(site.name.startswith("decoder.") for site in adapter.sites())
    late = {
        f"{row}@{layer}": SemanticScorer(rows, layer=layer)
        for row, rows in ATTENTION.items()
        for layer in range(last)
    }
    tap = _look(adapter, "projector", early, observations)
    scores = {row: torch.cat(parts) for row, parts in tap.seen.items()}
    if hasattr(adapter, "word_embeddings"):
        scores["text_similarity"] = _similarity(adapter, tap.features, observations)
    tap = _look(adapter, f"decoder.{last}", late, observations)
    scores |= {row: torch.cat(parts) for row, parts in tap.seen.items()}
    scores[PRIOR] = torch.from_numpy(found.prior).float().expand(len(labels), -1)
    return Domain(scores, labels, observations, adapter, found.rule, left_out)


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


def _demonstrated(where: str, domain: DomainConfig, frames: int, adapter: Adapter) -> Labelled:
    held = FrameSet(domain.demos, held_out=True)
    if not len(held):
        raise MissingError(
            f"{where}: {domain.demos} has no held-out demonstrations; make more of them."
        )
    kinds = class_kinds(where, held.classes, domain.foreground, domain.ignore)
    picks = _spread(len(held), frames)
    observations = [
        Observation(
            dict(zip(held.views, held.images[i], strict=True)),
            held.sentences[i],
            held.rows[i][0].astype(np.float32),
        )
        for i in picks
    ]
    labels = np.stack([kinds[held.rows[i][2]] for i in picks])
    if labels.shape[1] != adapter.layout.total:
        raise ConfigError(
            f"{where}: demonstrations label {labels.shape[1]} patches of a policy call, "
            f"{domain.policy} has {adapter.layout.total} tokens; name the policy of these "
            "demonstrations."
        )
    seen = np.concatenate([kinds[part] for part in patch_labels(domain.demos, held_out=False)])
    rule = f"patch classes of demonstrations ({', '.join(held.classes)})"
    return Labelled(observations, labels, _prior(seen), rule)


def _indexed(where: str, domain: DomainConfig, frames: int, adapter: Adapter) -> Labelled:
    trained, held = (_calls(domain.index, held_out, adapter) for held_out in (False, True))
    if not trained or not held:
        raise MissingError(
            f"{where}: {domain.index} has no {'held-out' if trained else 'training'} frame of all "
            f"views of {domain.policy} "
            f"({', '.join(view.name for view in adapter.layout.views)}); make masks of those "
            "cameras, and of more scenes."
        )
    picks = [held[i] for i in _spread(len(held), frames)]
    plain = replace(adapter.example_observation(0), instruction=domain.instruction)
    observations = [
        replace(plain, images={view: read_picture(row["image"]) for view, row in call.items()})
        for call in picks
    ]
    labels, seen = (
        np.stack([_labels(call, adapter, domain.least_share) for call in calls])
        for calls in (picks, trained)
    )
    rule = f"masks, foreground from {domain.least_share:g} of a token's counted pixels on"
    return Labelled(observations, labels, _prior(seen), rule)


def _calls(index: str, held_out: bool, adapter: Adapter) -> list[dict[str, dict]]:
    """Policy calls of an index: view -> row, for each frame that has all of the policy's views."""
    frames: dict[str, dict[str, dict]] = {}
    for row in index_rows(Path(index), held_out):
        frames.setdefault(row["frame"], {})[row["camera"]] = row
    views = [view.name for view in adapter.layout.views]
    return [{v: frame[v] for v in views} for frame in frames.values() if set(views) <= set(frame)]


def _labels(call: Mapping[str, dict], adapter: Adapter, least_share: float) -> np.ndarray:
    """``[N]`` of one policy call, from its masks."""
    return np.concatenate(
        [
            token_labels(read_mask(call[view.name]["mask"]), view.rows, view.cols, least_share)
            for view in adapter.layout.views
        ]
    )


def _spread(count: int, wanted: int) -> np.ndarray:
    """Evenly spread indices, at most ``wanted`` of ``count``."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int))


def _prior(labels: np.ndarray) -> np.ndarray:
    """``[F, N]`` -> ``[N]`` share of foreground among the frames that count."""
    return (labels == FOREGROUND).sum(0) / np.maximum((labels != IGNORE).sum(0), 1)


def _row(
    precision: np.ndarray,
    scores: Tensor,
    labels: Tensor,
    shares: Sequence[float],
) -> dict[str, Any]:
    recalls = {f"{share:g}": recall_at(scores, labels, share) for share in shares}
    return {
        "average_precision": float(np.nanmean(precision)),
        "recall_at_k": {share: recall for share, (recall, _) in recalls.items()},
        "best_recall_at_k": {share: best for share, (_, best) in recalls.items()},
        "frames": len(labels),
        "foreground_share": float((labels == FOREGROUND).float().mean()),
    }


def _bar(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Ours against what needs no training, and against what sees no image.

    Args:
        found: row -> precision of every frame ``[F]``.

    Returns:
        The best score without training (attention at its best layer), the share of its error that
        ours leaves, and how much more than ``position_prior`` ours finds, paired over frames.
    """
    means = {row: float(np.nanmean(values)) for row, values in found.items()}
    best = max((row for row in means if row.partition("@")[0] in FREE), key=means.get)
    told = {"best_free": best, "best_free_ap": means[best], "ours": means.get(OURS)}
    told |= {PRIOR: means[PRIOR], "error_left": None}
    if OURS not in found:
        return told
    counted = ~np.isnan(found[OURS])
    difference, interval = report.paired_interval(found[OURS][counted], found[PRIOR][counted])
    if means[best] < 1.0:
        told["error_left"] = (1.0 - means[OURS]) / (1.0 - means[best])
    return told | {"over_position_prior": difference, "over_position_prior_ci": list(interval)}


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
