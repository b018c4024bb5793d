"""Synchronised cameras in, kept visual tokens out: the first half of the split form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_prune_msgs.srv import Reset, SetBudget

from vla_prune_ros import assemble
from vla_prune_ros.node import ManagedNode, run
from vla_prune_ros.policy_node import WATCH_S, answer_budget, listen_to_contract
from vla_prune_ros.qos import OUT


class PrunerNode(ManagedNode):
    """A thin shell over ``PrunerLoop``."""

    def __init__(self, **options: Any) -> None:
        super().__init__("pruner_node", **options)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Load, attach, warm up."""
        model = assemble.open_model(values, self.stack)
        self.loop = assemble.pruner_loop(values, self.clock, model)
        self.health = self.loop.health

    def activate(self, values: Mapping[str, Any]) -> None:
        """Open the topics of the contract."""
        self.loop.begin()
        self.wake = self.worker(self.turn, WATCH_S)
        self.tokens = self.speak("vla_prune_msgs/msg/VisualTokens", "visual_tokens")
        kind = "vla_prune_msgs/msg/TokenScores"
        self.listen(kind, "token_scores", OUT, self.loop.put_scores)
        listen_to_contract(self, self.loop.senses.contract, self.loop.senses, self.wake)
        self.serve(SetBudget, "~/set_budget", self.on_budget)
        self.serve(Reset, "~/reset", self.on_reset)

    def deactivate(self) -> None:
        """Say that nothing more comes, so that the policy holds at once."""
        self.health.holds("the pruner node was deactivated.")
        self.tell()

    def changed(self, name: str, value: Any) -> None:
        """Live parameters."""
        if name == "keep_ratio":
            self.loop.set_budget(value)
        elif name == "max_rate_hz":
            self.loop.pace.rate_hz = value
        elif name == "instruction":
            self.loop.senses.put_task(value)

    def turn(self) -> None:
        """Look, if there is something to look at."""
        made = self.loop.turn()
        if made is not None:
            self.tokens(made)
        self.tell_if_new()

    def on_budget(self, request: Any, response: Any) -> Any:
        """Another budget from the next observation on."""
        return answer_budget(self, request, response)

    def on_reset(self, request: Any, response: Any) -> Any:
        """A new episode, here and, by its tokens, in the policy node."""
        response.episode_id = self.loop.senses.reset(request.episode_id)
        response.success = True
        return response


def main(args: list[str] | None = None) -> None:
    """Run the node."""
    run(lambda: [PrunerNode()], args)
