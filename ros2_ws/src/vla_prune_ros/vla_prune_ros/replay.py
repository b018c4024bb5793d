"""The replay node without ROS: a rosbag2 recording as messages that are due at steady times.

Reads with rosbags (sqlite3 and MCAP), as raw bytes: nothing is decoded, so nothing can change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_prune.errors import ConfigError, MissingError

TIMES = ("/clock", "/tf", "/tf_static")  # whatever else is played


@dataclass(frozen=True)
class Recorded:
    """One message of a recording.

    Attributes:
        due_s: seconds after the start of the replay, steady time, at which it is sent.
        time_s: recorded time: what ``/clock`` says then.
        topic: its topic.
        type: of its message.
        data: its CDR bytes.
        round: how often the recording had begun anew.
    """

    due_s: float
    time_s: float
    topic: str
    type: str
    data: bytes
    round: int


class Recording:
    """One rosbag2 folder.

    Args:
        folder: of the recording.
        rate: recorded seconds per second.
        loop: begin again at the end.
        only: absolute topics that are played, besides clock and frames; None for all. What was
            commanded when the recording was made must reach no controller of today.
    """

    def __init__(
        self,
        folder: str | Path,
        rate: float = 1.0,
        loop: bool = False,
        only: Collection[str] | None = None,
    ) -> None:
        if not str(folder):
            raise MissingError("replay: parameter 'bag' is empty; name a rosbag2 folder.")
        if not Path(folder).is_dir():
            raise MissingError(f"replay: {folder} is no folder; give that of a rosbag2 recording.")
        if not rate > 0:
            raise ConfigError(f"replay: rate is {rate:g}; give seconds per second above 0.")
        try:
            from rosbags.rosbag2 import Reader, ReaderError
        except ImportError as error:
            raise MissingError(
                "replay: the package rosbags is missing; pip install 'vla-prune[dds]'."
            ) from error
        self._reader, self.folder, self.rate, self.loop = Reader, Path(folder), rate, loop
        try:
            self._recorded()
        except (ReaderError, FileNotFoundError) as error:
            raise MissingError(
                f"replay: {folder} is no rosbag2 recording that can be read ({error}); give the "
                "folder of one."
            ) from error
        self.only = None if only is None else {*only, *TIMES}
        if only is not None and not set(only) & set(self.topics()):
            raise ConfigError(
                f"replay: {folder} holds no observation of the contract; it has "
                f"{', '.join(self._recorded()) or 'nothing'}. Name the contract that it was "
                "recorded with, or set topics to 'all' where no robot listens."
            )

    def topics(self) -> dict[str, str]:
        """Topic -> message type of what is played."""
        return {t: kind for t, kind in self._recorded().items() if self._played(t)}

    def messages(self) -> Iterator[Recorded]:
        """Everything, in the order of recorded time; for ever if it loops."""
        round_, begun = 0, 0.0
        while True:
            with self._reader(self.folder) as bag:
                first, last = bag.start_time, bag.start_time
                for connection, time_ns, data in bag.messages():
                    last = time_ns
                    if not self._played(connection.topic):
                        continue
                    due = begun + (time_ns - first) / 1e9 / self.rate
                    yield Recorded(
                        due, time_ns / 1e9, connection.topic, connection.msgtype, data, round_
                    )
            if not self.loop or last == first:
                return
            round_, begun = round_ + 1, begun + (last - first) / 1e9 / self.rate

    def _recorded(self) -> dict[str, str]:
        with self._reader(self.folder) as bag:
            return {c.topic: c.msgtype for c in bag.connections}

    def _played(self, topic: str) -> bool:
        return self.only is None or topic in self.only


class Replay:
    """Hands out what is due.

    Args:
        recording: of what.
    """

    def __init__(self, recording: Recording) -> None:
        self._messages = recording.messages()
        self._next: Recorded | None = next(self._messages, None)

    @property
    def over(self) -> bool:
        """Whether all was handed out."""
        return self._next is None

    @property
    def next_due_s(self) -> float | None:
        """When the next one is due."""
        return None if self._next is None else self._next.due_s

    def due(self, since_start_s: float) -> list[Recorded]:
        """All that is due by now and was not handed out."""
        found = []
        while self._next is not None and self._next.due_s <= since_start_s:
            found.append(self._next)
            self._next = next(self._messages, None)
        return found
