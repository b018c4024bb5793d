"""What all our nodes share: parameters from the table, clock, status, diagnostics, life cycle.

Imports rclpy. A node file adds what it listens to and what it says.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import rclpy
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from rosidl_runtime_py.utilities import get_message

from vla_prune.errors import VlaPruneError
from vla_prune_ros import params
from vla_prune_ros.memory import keep_memory, reserve_memory
from vla_prune_ros.qos import OUT, Qos
from vla_prune_ros.ros_messages import message
from vla_prune_ros.status import Health, machine
from vla_prune_ros.worker import Worker

DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
STATUS = "vla_prune_msgs/msg/PruneStatus"
OVERRIDABLE = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
    QoSPolicyKind.DEADLINE,
    QoSPolicyKind.LIFESPAN,
)
SWITCH_S = 0.0005  # in place of 5 ms: a picture's thread must not wait that long for the others
BETWEEN = ("configuring", "cleaningup", "errorprocessing", "shuttingdown")


class NodeClock:
    """The runtime's clock: message time is the node's (simulated, if so), deadlines are steady."""

    def __init__(self, node: Node) -> None:
        self._clock = node.get_clock()

    def now(self) -> float:
        """Seconds of ROS time."""
        return self._clock.now().nanoseconds / 1e9

    def steady(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()


def profile(qos: Qos) -> QoSProfile:
    """Our quality of service as rclpy's."""
    made = QoSProfile(
        depth=qos.depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE
        if qos.reliability == "reliable"
        else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL
        if qos.durability == "transient_local"
        else DurabilityPolicy.VOLATILE,
    )
    if qos.deadline_ms:
        made.deadline = Duration(nanoseconds=int(1e6 * qos.deadline_ms))
    if qos.lifespan_ms:
        made.lifespan = Duration(nanoseconds=int(1e6 * qos.lifespan_ms))
    return made


class Gate:
    """Calls a function until it is closed; then nothing, whoever still calls.

    A transition runs beside the callbacks. Closing waits for a call that is under way.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._lock, self._open = function, threading.Lock(), True

    def __call__(self, *given: Any) -> None:
        """The function, while open."""
        with self._lock:
            if self._open:
                self._function(*given)

    def close(self) -> None:
        """No call from now on."""
        with self._lock:
            self._open = False


class ManagedNode(LifecycleNodeMixin, Node):
    """A life-cycle node around one loop.

    Args:
        kind: its table in :mod:`vla_prune_ros.params`, and its name.
        options: of rclpy's node.

    Raises:
        ConfigError: a parameter file's value that it cannot take.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        Node.__init__(self, kind, **options)
        # Reentrant, so that get_state is answered while a long configure runs.
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self.kind, self.clock = kind, NodeClock(self)
        self.health = Health(kind)
        self.steady_clock = RosClock(clock_type=ClockType.STEADY_TIME)
        self.inputs = MutuallyExclusiveCallbackGroup()
        self.work = MutuallyExclusiveCallbackGroup()
        self.stack = ExitStack()
        self._said = ""
        self._telling = threading.RLock()  # the heartbeat and the work tell from two threads
        self._is_active = False
        self._work: list[Gate | Worker] = []
        self._ends: list[Callable[[], Any]] = []
        self._crashes: list[Exception] = []
        self._alarm = self.create_guard_condition(self._raise)
        given = {  # rclpy has no public word for what is not declared yet
            name: list(p.value) if hasattr(p.value, "tolist") else p.value
            for name, p in self._parameter_overrides.items()
        }
        for sentence in params.check_given(kind, given):
            self.get_logger().warning(sentence)
        for p in params.PARAMETERS[kind]:
            self.declare_parameter(p.name, p.default, _descriptor(p))
        self.add_on_set_parameters_callback(self._on_set)

    # What a node file fills in.

    def configure(self, values: Mapping[str, Any]) -> None:
        """Build the loop and warm it up; a :class:`VlaPruneError` is the user's to mend."""

    def activate(self, values: Mapping[str, Any]) -> None:
        """Begin to listen and to speak."""

    def deactivate(self) -> None:
        """The last word before the node falls silent; nothing of its work runs any more."""

    def changed(self, name: str, value: Any) -> None:
        """A live parameter has a new value. Raises :class:`VlaPruneError` to refuse it."""

    # What a node file uses.

    def values(self) -> dict[str, Any]:
        """Name -> value of every parameter."""
        found = {}
        for name in params.table(self.kind):
            value = self.get_parameter(name).value
            found[name] = list(value) if hasattr(value, "tolist") else value
        return found

    def listen(
        self, kind: str, topic: str, qos: Qos, callback: Callable[[Any], Any], **options: Any
    ) -> None:
        """Subscribe until deactivated; the quality of service can be overridden by parameters."""
        made = self.create_subscription(
            get_message(kind),
            topic,
            callback,
            profile(qos),
            callback_group=options.pop("group", self.inputs),
            qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
            **options,
        )
        self._ends.append(partial(self.destroy_subscription, made))

    def speak(self, kind: str, topic: str, qos: Qos = OUT) -> Callable[[Any], None]:
        """A function that publishes fields, or bytes as they are, while the node is active."""
        made = self.create_publisher(
            get_message(kind),
            topic,
            profile(qos),
            qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
        )
        self._ends.append(partial(self.destroy_publisher, made))

        def publish(given: Any) -> None:
            made.publish(given if isinstance(given, bytes) else message(kind, given))

        mouth = Gate(publish)
        self._ends.append(mouth.close)
        return mouth

    def every(self, period_s: float, callback: Callable[[], Any]) -> None:
        """Work: call until deactivated, in steady time, which no paused simulation stops."""
        self._timer(period_s, self._gated(callback), self.work)

    def worker(self, callback: Callable[[], Any], period_s: float) -> Worker:
        """A function that has work done at once, in a thread of its own; see :class:`Worker`.

        It begins when all topics are open.
        """
        made = Worker(callback, period_s, self._crash)
        self._work.append(made)
        return made

    def serve(self, kind: type, name: str, callback: Callable[[Any, Any], Any]) -> None:
        """A service until deactivated."""
        made = self.create_service(kind, name, callback, callback_group=self.inputs)
        self._ends.append(partial(self.destroy_service, made))

    def tell(self) -> None:
        """Send status and diagnostics now, and log a reason that is new."""
        with self._telling:
            if not self._is_active:
                return
            now, steady = self.clock.now(), self.clock.steady()
            self._status(self.health.message(now, steady))
            self._diagnostics(self.health.diagnostics(now, steady, machine()))
            self.log_news()

    def tell_if_new(self) -> None:
        """Send status at once when the state or its reason changed: a fault does not wait."""
        if self.health.news != self._said:
            self.tell()

    def log_news(self) -> None:
        """Notes and new reasons, once each."""
        while self.health.notes:
            self.get_logger().info(self.health.notes.popleft())
        news = self.health.news
        if news != self._said:
            # rclpy refuses one line of code that logs at two levels.
            if self.health.reason:
                self.get_logger().warning(f"{self.health.state}: {self.health.reason}")
            else:
                self.get_logger().info(self.health.state)
        self._said = news

    # The life cycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Build and warm up."""
        self.stack = ExitStack()
        try:
            values = self.values()
            params.check_all(self.kind, values)
            self.configure(values)
        except VlaPruneError as error:
            self.stack.close()
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:  # rclpy would swallow it
            self.stack.close()
            self.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open all topics."""
        reserve_memory()
        values = self.values()
        self._status = self.speak(STATUS, "~/status")
        self._diagnostics = self.speak(DIAGNOSTICS, "/diagnostics")
        try:
            self.activate(values)
        except VlaPruneError as error:
            self._close()
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:  # rclpy would swallow it
            self._close()
            self.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        self._is_active = True
        for work in self._work:
            if isinstance(work, Worker):
                work.start()
        self._timer(1.0 / values["heartbeat_hz"], self.tell, self.inputs)  # also while work runs
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Fall silent."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the loop."""
        self.stack.close()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state."""
        self._stop()
        self.stack.close()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured: a new configure may mend it."""
        return self.on_shutdown(state)

    def _gated(self, callback: Callable[[], Any]) -> Gate:
        gate = Gate(callback)
        self._work.append(gate)
        return gate

    def _crash(self, error: Exception) -> None:
        """An exception of a worker is one of a callback: the executor's."""
        self._crashes.append(error)
        self._alarm.trigger()

    def _raise(self) -> None:
        raise self._crashes[0]

    def _timer(self, period_s: float, callback: Callable[[], Any], group: Any) -> None:
        made = self.create_timer(period_s, callback, callback_group=group, clock=self.steady_clock)
        self._ends.append(partial(self.destroy_timer, made))

    def _stop(self) -> None:
        for gate in self._work:
            gate.close()
        if self._is_active:
            self.deactivate()
        self._is_active = False
        self._close()

    def _close(self) -> None:
        for gate in self._work:
            gate.close()
        for end in reversed(self._ends):
            end()
        self._work.clear()
        self._ends.clear()

    def _on_set(self, changes: Sequence[Any]) -> SetParametersResult:
        known = params.table(self.kind)
        state = self._state_machine.current_state[1]
        configured = state != "unconfigured"
        wished = {  # others are ROS's own, such as use_sim_time
            c.name: list(c.value) if hasattr(c.value, "tolist") else c.value
            for c in changes
            if c.name in known
        }
        if wished and state in BETWEEN:
            reason = f"{self.kind} is {state}; try again when that is over."
            return SetParametersResult(successful=False, reason=reason)
        try:
            for name, value in wished.items():
                params.check(self.kind, name, value, configured)
            if configured:
                params.apply(wished, self.values(), self.changed)
        except VlaPruneError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)


def run(make: Callable[[], Sequence[ManagedNode]], args: Sequence[str] | None = None) -> None:
    """Spin nodes on one executor until SIGINT or SIGTERM, however often it comes.

    They stop in reverse order: what moves the machine is made last and holds first.

    The handlers only set an event, so that a second Ctrl-C (a launched node gets two) interrupts
    no clean-up. Commands stop, their lifespan and the receiver's own watchdog end the motion.
    """
    keep_memory()
    sys.setswitchinterval(SWITCH_S)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    executor = MultiThreadedExecutor(num_threads=4)
    nodes: list[ManagedNode] = []
    crashes: list[BaseException] = []
    try:
        try:
            nodes = list(make())
        except VlaPruneError as error:  # a parameter file that cannot be
            sys.stderr.write(f"{error}\n")
            raise SystemExit(2) from None
        for node in nodes:
            executor.add_node(node)
        spinner = threading.Thread(target=_spin, args=(executor, stop, crashes), daemon=True)
        spinner.start()
        stop.wait()
        # Commands first, while the executor still ticks: a policy's call may take long to end.
        for node in reversed(nodes):
            node._stop()
        executor.shutdown(timeout_sec=2.0)
        spinner.join(timeout=2.0)
        for node in nodes:
            node.stack.close()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    if crashes:
        raise crashes[0]


def _spin(executor: MultiThreadedExecutor, stop: threading.Event, crashes: list) -> None:
    try:
        while not stop.is_set():
            # A topic that closes while its callback runs is no fault.
            with suppress(InvalidHandle):
                executor.spin()
    except ExternalShutdownException:
        pass
    except Exception as error:  # of a callback: the process ends, and whoever launched it decides
        crashes.append(error)
    finally:
        stop.set()


def _descriptor(p: params.Parameter) -> ParameterDescriptor:
    made = ParameterDescriptor(name=p.name, description=p.description)
    if p.choices:
        made.additional_constraints = f"one of {p.range}"
    # A parameter that is not live is refused by _on_set while configured; ROS's own read_only
    # would forbid a change even before configure.
    made.additional_constraints += "" if p.live else " changes with a new configure alone"
    if p.low is not None and p.type == "double":
        high = p.high if p.high is not None else 1e308
        made.floating_point_range = [FloatingPointRange(from_value=p.low, to_value=high)]
    if p.low is not None and p.type == "integer":
        made.integer_range = [IntegerRange(from_value=int(p.low), to_value=int(p.high))]
    return made
