"""What a policy costs on a machine: stage times of single calls, bucket by bucket. Numpy only.

Raw times are kept, so that a simulation can draw calls instead of averages. The stages of a call
add up to the call (``other`` is what no stage claims). :mod:`vla_prune.tune.measure` makes
profiles.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_prune import config, report
from vla_prune.errors import ConfigError, MissingError

VERSION = 2
NEEDED = ("vision", "selection", "prefill")  # stages of every profile, zero where there is none
COMMITS = ("warn", "refuse", "ignore")  # what to do with a profile of another commit
MAX_ROUNDS = 2000
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Subject:
    """What was measured. Two profiles with the same subject may be compared.

    Attributes:
        policy: name of the policy config.
        config_hash: of its contents, but for device and dtype.
        weights_hash: of all weights, whatever dtype they are loaded in.
        recipe: whose buckets were measured, by the name or path that it was asked for.
        recipe_hash: of its contents.
        cut_layer: where its decoder cut was moved; None for the recipe's own layer.
        device: ``cpu`` or ``cuda``.
        dtype: of the weights, such as ``float32``.
        attention: kernel that dense and pruned calls share.
        threads: CPU threads of torch.
        commit: of this library.
        signals: whether the controller's score signals were read, too.
    """

    policy: str
    config_hash: str
    weights_hash: str
    recipe: str
    recipe_hash: str
    cut_layer: int | None
    device: str
    dtype: str
    attention: str
    threads: int
    commit: str
    signals: bool = False


@dataclass(frozen=True)
class Bucket:
    """The calls of one budget.

    Attributes:
        recipe: ``dense`` or the subject's recipe.
        keep_ratio: fraction kept.
        tokens: visual tokens behind the last cut.
        kept: site -> visual tokens that stayed.
        samples_ms: stage -> ``[R]`` milliseconds, round by round.
        memory_mb: highest at its calls: allocated on the device on CUDA, the process elsewhere.
    """

    recipe: str
    keep_ratio: float
    tokens: int
    kept: Mapping[str, int]
    samples_ms: Mapping[str, np.ndarray]
    memory_mb: float = 0.0

    @property
    def rounds(self) -> int:
        """Calls."""
        return len(next(iter(self.samples_ms.values())))

    def total_ms(self) -> np.ndarray:
        """``[R]`` whole calls."""
        return np.sum(list(self.samples_ms.values()), axis=0)

    def summary(self) -> dict[str, dict[str, float]]:
        """Stage, and ``total`` -> median, percentiles and jitter (99th percentile less median)."""
        return {
            stage: _summary(times)
            for stage, times in {**self.samples_ms, "total": self.total_ms()}.items()
        }


@dataclass(frozen=True)
class Profile:
    """All buckets of one policy on one machine.

    Attributes:
        subject: what was measured.
        machine: what it was measured on, clocks seen included; for people.
        visual_tokens: of an uncut call.
        buckets: dense first, then most tokens first.
        scaled_by: constant by which all times were multiplied; 1.0 as measured.
        chunk_rows: actions in a chunk; 0 if not known.
    """

    subject: Subject
    machine: Mapping[str, Any]
    visual_tokens: int
    buckets: tuple[Bucket, ...]
    scaled_by: float = 1.0
    chunk_rows: int = 0

    @property
    def stages(self) -> tuple[str, ...]:
        """In the order of a call."""
        return tuple(self.buckets[0].samples_ms)

    @property
    def dense(self) -> Bucket:
        """The policy without a recipe."""
        return self.buckets[0]

    @property
    def ladder(self) -> tuple[Bucket, ...]:
        """The recipe's buckets, most tokens first."""
        return self.buckets[1:]

    def bucket(self, keep_ratio: float, recipe: str | None = None) -> Bucket:
        """A measured bucket; of the subject's recipe if none is named.

        Raises:
            ConfigError: it was not measured.
        """
        wanted = recipe or self.subject.recipe
        for bucket in self.buckets:
            if bucket.recipe == wanted and abs(bucket.keep_ratio - keep_ratio) < 1e-6:
                return bucket
        known = ", ".join(f"{b.recipe} {b.keep_ratio:g}" for b in self.buckets)
        raise ConfigError(
            f"profile of {self.subject.policy}: {wanted} at keep ratio {keep_ratio:g} was not "
            f"measured; there is {known}."
        )

    def scaled(self, factor: float) -> Profile:
        """A device that does everything ``factor`` times as long: every stage, no exception."""
        if not factor > 0:
            raise ConfigError(f"profile: factor {factor:g}; a device takes more than no time.")
        buckets = tuple(
            replace(b, samples_ms={s: t * factor for s, t in b.samples_ms.items()})
            for b in self.buckets
        )
        return replace(self, buckets=buckets, scaled_by=self.scaled_by * factor)

    def check(
        self, now: Subject, other_device: bool = False, commit: str = "warn"
    ) -> tuple[str, ...]:
        """Refuse to speak for something else.

        Args:
            now: what is to be run.
            other_device: the profile stands for another device, which is simulated here: device,
                dtype, attention kernel and threads are that device's own.
            commit: ``warn`` or ``refuse`` a profile of another commit; the code that does not
                touch this policy changes too, so it is no refusal by itself.

        Returns:
            Sentences to tell the user.

        Raises:
            ConfigError: the first difference, in a sentence.
        """
        if commit not in COMMITS:
            raise ConfigError(
                f"profile: commit {commit!r} is unknown; choose warn, refuse or ignore."
            )
        same = ["policy", "config_hash", "weights_hash", "recipe", "recipe_hash", "cut_layer"]
        same += [] if other_device else ["device", "dtype", "attention", "threads"]
        for name in same:
            ours, theirs = getattr(self.subject, name), getattr(now, name)
            if ours != theirs:
                own = name in ("device", "dtype", "attention", "threads")
                raise ConfigError(
                    f"profile: it was measured with {_WORDS[name]} {ours}, and {theirs} is to be "
                    "run; profile that"
                    + (", or say that the profile stands for another device." if own else ".")
                )
        # Two trees with changes at one commit need not have the same ones.
        unchanged = self.subject.commit == now.commit and not now.commit.endswith(report.CHANGES)
        if unchanged or commit == "ignore":
            return ()
        said = (
            f"profile: it was measured at commit {self.subject.commit}, this is {now.commit}; "
            "profile again if what a call does has changed."
        )
        if commit == "refuse":
            raise ConfigError(said)
        return (said,)

    def save(self, path: Path, **more: Any) -> None:
        """Write it as JSON, whole or not at all; ``more`` stands beside it for readers."""
        buckets = [{**_plain(bucket), "summary_ms": bucket.summary()} for bucket in self.buckets]
        document = {
            "version": VERSION,
            "subject": asdict(self.subject),
            "machine": dict(self.machine),
            "visual_tokens": self.visual_tokens,
            "stages": list(self.stages),
            "scaled_by": self.scaled_by,
            "chunk_rows": self.chunk_rows,
            "buckets": buckets,
            **more,
        }
        writable(path)
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(
        cls,
        path: Path | str,
        now: Subject | None = None,
        other_device: bool = False,
        commit: str = "warn",
    ) -> Profile:
        """Read and validate; with ``now`` also :meth:`check`, whose sentences are dropped.

        Raises:
            MissingError: no such file.
            ConfigError: it is no profile, is incomplete, or speaks for something else.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingError(
                f"profile {path}: no such file; 'vla-prune profile POLICY --out {path}' makes it."
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ConfigError(f"profile {path}: not readable as JSON: {error}") from error
        profile = _parsed(str(path), data)
        if now is not None:
            profile.check(now, other_device, commit)
        return profile


def writable(path: Path) -> None:
    """Make the folder of a profile that is to be written.

    Raises:
        ConfigError: the path is a folder, or lies below a file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"profile {path}: its folder cannot be made: {error}.") from error
    if path.is_dir():
        raise ConfigError(f"profile {path}: this is a folder; name a file in it.")


def recipe_hash(name: str) -> str:
    """Of the contents of a recipe's file, whatever it is called."""
    data = config.load(name, kind="recipe")
    told = json.dumps({k: v for k, v in data.items() if k != "name"}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


_WORDS = {
    "policy": "policy",
    "config_hash": "a policy config whose hash is",
    "weights_hash": "weights whose hash is",
    "recipe": "recipe",
    "recipe_hash": "a recipe whose hash is",
    "cut_layer": "cut layer",
    "device": "device",
    "dtype": "dtype",
    "attention": "attention kernel",
    "threads": "CPU threads",
}


def _summary(times: np.ndarray) -> dict[str, float]:
    median, p95, p99 = (float(value) for value in np.percentile(times, PERCENTILES))
    return {"median": median, "p95": p95, "p99": p99, "jitter": p99 - median}


def _plain(bucket: Bucket) -> dict[str, Any]:
    samples = {s: [round(float(t), 5) for t in times] for s, times in bucket.samples_ms.items()}
    return {
        "recipe": bucket.recipe,
        "keep_ratio": bucket.keep_ratio,
        "tokens": bucket.tokens,
        "kept": dict(bucket.kept),
        "memory_mb": round(bucket.memory_mb, 1),
        "samples_ms": samples,
    }


def _parsed(where: str, data: Any) -> Profile:
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise ConfigError(
            f"profile {where}: version {version} is unknown, this library reads {VERSION}; make "
            "the profile again with 'vla-prune profile'."
        )
    try:
        subject = Subject(**{f.name: data["subject"][f.name] for f in fields(Subject)})
        buckets = tuple(_bucket(where, entry, data["stages"]) for entry in data["buckets"])
        profile = Profile(
            subject,
            data["machine"],
            int(data["visual_tokens"]),
            buckets,
            float(data["scaled_by"]),
            int(data["chunk_rows"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"profile {where}: {error} is missing or has another form; make the profile again."
        ) from error
    if not buckets or buckets[0].recipe != "dense":
        raise ConfigError(f"profile {where}: its first bucket is not dense; make it again.")
    for bucket in buckets:
        if not 0 <= bucket.tokens <= profile.visual_tokens:
            raise ConfigError(
                f"profile {where}: bucket {bucket.recipe} {bucket.keep_ratio:g} keeps "
                f"{bucket.tokens} of {profile.visual_tokens} visual tokens; make it again."
            )
    return profile


def _bucket(where: str, entry: Mapping[str, Any], stages: list[str]) -> Bucket:
    name = f"profile {where}: bucket {entry['recipe']} {entry['keep_ratio']:g}"
    for stage in (*NEEDED, *stages):
        if stage not in entry["samples_ms"] or stage not in stages:
            raise ConfigError(f"{name}: stage {stage!r} is missing; make the profile again.")
    samples = {stage: np.asarray(entry["samples_ms"][stage], dtype=float) for stage in stages}
    rounds = next(iter(samples.values())).size
    same = {times.shape for times in samples.values()} == {(rounds,)}
    sound = all(np.isfinite(times).all() and (times >= 0).all() for times in samples.values())
    if not rounds or not same or not sound:
        raise ConfigError(
            f"{name}: its stages do not have one list each of as many times of 0 ms or more; make "
            "the profile again."
        )
    return Bucket(
        entry["recipe"],
        float(entry["keep_ratio"]),
        int(entry["tokens"]),
        entry["kept"],
        samples,
        float(entry["memory_mb"]),
    )
