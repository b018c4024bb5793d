"""Camera images or visual tokens, state and instruction in; action chunks out.

Fused (``input: images``) it prunes and acts in one process, and no token is ever serialised. Split
(``input: tokens``) it takes a pruner's ``VisualTokens``, and sends ``TokenScores`` back.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from vla_prune_msgs.srv import Reset, SetBudget

from vla_prune.errors import VlaPruneError
from vla_prune_ros import assemble
from vla_prune_ros.contract import Contract
from vla_prune_ros.node import STATUS, ManagedNode, run
from vla_prune_ros.qos import OUT, SENSOR_IN

WATCH_S = 0.02  # how often silence is looked for while nothing comes


class PolicyNode(ManagedNode):
    """A thin shell over ``PolicyLoop`` or ``TokenPolicyLoop``."""

    def __init__(self, **options: Any) -> None:
        super().__init__("policy_node", **options)

    def configure(self, values: Mapping[str, Any]) -> None:
        """Load, attach, warm up."""
        model = assemble.open_model(values, self.stack)
        self.split = values["input"] == "tokens"
        make = assemble.token_loop if self.split else assemble.policy_loop
        self.loop = make(values, self.clock, model)
        self.health = self.loop.health

    def activate(self, values: Mapping[str, Any]) -> None:
        """Open the topics of the contract."""
        contract = self.loop.contract if self.split else self.loop.senses.contract
        self.loop.begin()
        self.wake = self.worker(self.turn, WATCH_S)
        self.chunks = self.speak("vla_prune_msgs/msg/ActionChunk", "action_chunk")
        if self.split:
            self.scores = self.speak("vla_prune_msgs/msg/TokenScores", "token_scores")
            kind = "vla_prune_msgs/msg/VisualTokens"
            self.listen(kind, "visual_tokens", SENSOR_IN, self.on_tokens)
            self.listen(STATUS, "pruner_node/status", OUT, self.on_status)
            for source in contract.states:
                put = partial(self.loop.put_state, source)
                self.listen(source.type, source.topic, source.qos, put)
        else:
            listen_to_contract(self, contract, self.loop.senses, self.wake)
        self.serve(SetBudget, "~/set_budget", self.on_budget)
        self.serve(Reset, "~/reset", self.on_reset)

    def deactivate(self) -> None:
        """Say that nothing more comes, so that the command node holds at once."""
        self.health.holds("the policy node was deactivated.")
        self.tell()

    def changed(self, name: str, value: Any) -> None:
        """Live parameters."""
        if self.split:
            assemble.refuse_in_split(name, value)
        if name == "keep_ratio":
            self.loop.set_budget(value)
        elif name == "max_rate_hz":
            self.loop.pace.rate_hz = value
        elif name == "deadline_ms" and not self.split:
            self.loop.set_deadline(value / 1e3)
        elif name == "instruction" and not self.split:
            self.loop.senses.put_task(value)

    def on_tokens(self, message: Any) -> None:
        """A pruner's tokens."""
        self.loop.put_tokens(message)
        self.wake()

    def on_status(self, message: Any) -> None:
        """The pruner's, in the split form: whoever hears this node hears of its faults."""
        self.loop.put_status(message)
        self.wake()

    def turn(self) -> None:
        """Act, if there is something to act on."""
        made = self.loop.turn()
        if made is not None and self.split:
            chunk, scores = made
            self.chunks(chunk)
            if scores is not None:
                self.scores(scores)
        elif made is not None:
            self.chunks(made)
        self.tell_if_new()

    def on_budget(self, request: Any, response: Any) -> Any:
        """Another budget from the next call on."""
        return answer_budget(self, request, response)

    def on_reset(self, request: Any, response: Any) -> Any:
        """A new episode; in the split form all is forgotten, and the episode is the pruner's."""
        if self.split:
            response.episode_id = self.loop.reset()
            response.success = request.episode_id in ("", response.episode_id)
            if not response.success:
                response.message = (
                    "the episode is the pruner's; ask the pruner_node for a new one."
                )
            return response
        response.episode_id = self.loop.senses.reset(request.episode_id)
        response.success = True
        return response


def listen_to_contract(node: ManagedNode, contract: Contract, senses: Any, wake: Any) -> None:
    """Subscribe to cameras, states and task."""

    def on_image(camera: str, message: Any) -> None:
        if senses.put_image(camera, message):
            wake()

    for source in contract.cameras:
        node.listen(source.type, source.topic, source.qos, partial(on_image, source.camera))
    for source in contract.states:
        node.listen(source.type, source.topic, source.qos, partial(senses.put_state, source))
    if contract.task is not None:
        task = contract.task
        node.listen(task.type, task.topic, task.qos, lambda m: senses.put_task(m.data))


def answer_budget(node: Any, request: Any, response: Any) -> Any:
    """``SetBudget`` of a node whose loop has a budget."""
    try:
        response.keep_ratio = float(node.loop.set_budget(request.keep_ratio))
        response.success = True
    except VlaPruneError as error:
        response.keep_ratio = float(node.health.keep_ratio)
        response.success, response.message = False, str(error)
    return response


def main(args: list[str] | None = None) -> None:
    """Run the node."""
    run(lambda: [PolicyNode()], args)
