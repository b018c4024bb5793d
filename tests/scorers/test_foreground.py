"""The foreground scorer, from a recipe to the tokens that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.recon.conftest import tiny_adapter
from vla_prune.adapters.projector import PROJECTOR
from vla_prune.budgets import ConstantBudget
from vla_prune.build import build_recipe
from vla_prune.errors import CheckpointError, MissingError, UnsupportedError
from vla_prune.policy import attach
from vla_prune.pruner import Cut, Pruner
from vla_prune.recon.bind import bind
from vla_prune.recon.checkpoint import save_reconstructor
from vla_prune.recon.model import ReconConfig, ReconPruner, grid_places
from vla_prune.scorers import ForegroundScorer
from vla_prune.selectors import SELECTORS
from vla_prune.tokens import TokenLayout, TokenView, ViewGrid


@pytest.fixture(scope="module")
def adapter():
    return tiny_adapter()


@pytest.fixture
def weights(adapter, tmp_path: Path) -> tuple[Path, ReconPruner]:
    torch.manual_seed(3)
    pruner = ReconPruner(ReconConfig(16, ffn=24, heads=2, kv_heads=1, query_std=1.0))
    save_reconstructor(tmp_path / "recon", pruner, adapter.encoder())
    return tmp_path / "recon", pruner


def recipe(weights: str | None, keep: float = 0.25) -> Pruner:
    scorer = ForegroundScorer(weights)
    return Pruner((Cut("projector", (scorer,), SELECTORS["topk"](), ConstantBudget(keep)),))


def test_the_best_tokens_of_each_camera_stay(adapter, weights):
    folder, pruner = weights
    observation = adapter.example_observation(0)
    with attach(recipe(str(folder)), adapter) as policy:
        chunk = policy.act_one(observation, policy.new_state())
    features = adapter.encode(list(observation.images.values()))  # [2, 16, 16]
    scores = pruner(features, grid_places(2, 4, 4))
    best = scores.topk(4).indices.sort().values + torch.tensor([[0], [16]])
    assert chunk.kept["projector"].tolist() == best.flatten().tolist()


def test_a_recipe_of_another_encoder_is_refused_when_it_is_attached(weights):
    other = tiny_adapter(seed=1)
    with (
        pytest.raises(CheckpointError, match="for an encoder with fingerprint"),
        attach(recipe(str(weights[0])), other),
    ):
        pass
    with attach(Pruner(), other):  # nothing of the failed recipe is left
        pass


def test_without_weights_the_sentence_says_what_to_do(adapter):
    with (
        pytest.raises(MissingError, match="train one with 'vla-prune train recon'"),
        attach(recipe(None), adapter),
    ):
        pass


def test_random_weights_are_for_speed_and_always_the_same(adapter):
    observation, kept = adapter.example_observation(0), []
    for _ in range(2):
        with attach(recipe("random"), adapter) as policy:
            kept.append(policy.act_one(observation, policy.new_state()).kept["projector"])
    assert kept[0].tolist() == kept[1].tolist()


def test_recipes_of_several_budgets_share_one_network(adapter, weights):
    bound = bind([recipe(str(weights[0]), keep) for keep in (0.5, 0.25)], adapter)
    networks = {id(pruner.cuts[0].scorers[0].network) for pruner in bound}
    assert len(networks) == 1
    plain = Pruner()
    assert bind([plain], adapter) == (plain,)


def test_a_model_that_does_not_pass_on_its_features_is_refused():
    layout = TokenLayout((ViewGrid("image", 4, 4),))
    with pytest.raises(UnsupportedError, match="needs 'encoded', but site 'projector' of pi0"):
        recipe(None).check("pi0", (PROJECTOR,), layout)


def test_an_unattached_scorer_says_so():
    view = TokenView(*[torch.zeros(1, 1, 1)] * 2, torch.zeros(1, 1).long(), None, (1,))
    with pytest.raises(UnsupportedError, match="not attached to a model"):
        ForegroundScorer().score(view)


def test_fastdrive_is_one_global_top_k_at_the_projector():
    [cut] = build_recipe("fastdrive", keep_ratio=0.125).cuts
    assert cut.site == "projector"
    assert cut.scorers == (ForegroundScorer(),)
    assert cut.budget.keep_ratio == 0.125
    assert cut.budget.floor == 0.0
