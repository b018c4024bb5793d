"""Names become objects here and nowhere else: recipes to pruners, policy configs to adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from math import log
from typing import Any

from vla_prune import config
from vla_prune.budgets import BUDGETS
from vla_prune.errors import ConfigError, did_you_mean
from vla_prune.pruner import ActionHistory, Cut, Pruner
from vla_prune.scorers import SCORERS
from vla_prune.selectors import SELECTORS, Floors

ADAPTERS = {
    "bare_decoder": "vla_prune.adapters.bare:build",
    "openvla": "vla_prune.adapters.openvla:build",
    "pi0": "vla_prune.adapters.pi0:build",
    "qwen2_5_vl": "vla_prune.adapters.qwen_vl:build",
}

COMMON = ("selector", "floors")  # keys of a cut that a recipe may give for all of its cuts


def build_recipe(
    name: str,
    keep_ratio: float | None = None,
    overrides: Sequence[str] = (),
    cut_layer: int | None = None,
) -> Pruner:
    """A recipe by name or path.

    ``cuts`` is a list, or a mapping of any names to cuts, so that a recipe that extends another
    can change one of them, or take it out with ``null``. A ``selector`` or ``floors`` beside
    ``cuts`` holds for every cut that has none of its own.

    Args:
        name: a file of ``configs/recipe`` or a path.
        keep_ratio: what the last cut keeps. Earlier ones do the same part of the way there, in
            powers, so that each cuts at every ratio below 1: if the recipe says 0.5 and then
            0.25, 0.64 makes it 0.8 and 0.64. Budgets without a ratio stay.
        overrides: ``a.b=c`` strings on the recipe's keys.
        cut_layer: moves the decoder cut of the recipe to this layer, for decoders of another
            depth.
    """
    data = config.load(name, overrides, kind="recipe")
    where = f"recipe {name!r}"
    _known(where, data, ("name", "cuts", "history", *COMMON))
    entries = data.get("cuts") or []
    named = entries if isinstance(entries, Mapping) else dict(enumerate(entries))
    common = {key: data[key] for key in COMMON if key in data}
    cuts = [
        _cut(f"{where}: cuts[{key}]", {**common, **entry}, cut_layer)
        for key, entry in named.items()
        if entry is not None
    ]
    if keep_ratio is not None:
        cuts = _kept(cuts, keep_ratio)
    history = data.get("history")
    if history is not None:
        config.check_keys(f"{where}: history", ActionHistory, history)
        history = ActionHistory(**history)
    return Pruner(tuple(cuts), history, data.get("name", str(name)))


def _kept(cuts: Sequence[Cut], keep_ratio: float) -> list[Cut]:
    """The same cuts, but the last one that has a ratio keeps this one."""
    ratios = [getattr(cut.budget, "keep_ratio", None) for cut in cuts]
    last = next((ratio for ratio in reversed(ratios) if ratio is not None), None)
    made = []
    for cut, ratio in zip(cuts, ratios, strict=True):
        if ratio is not None:
            part = log(ratio) / log(last) if last < 1.0 else 1.0
            cut = replace(cut, budget=replace(cut.budget, keep_ratio=keep_ratio**part))
        made.append(cut)
    return made


def _cut(where: str, entry: Mapping[str, Any], layer: int | None) -> Cut:
    _known(where, entry, ("site", "scorers", "selector", "budget", "floors"))
    for key in ("site", "selector", "budget"):
        if key not in entry:
            raise ConfigError(
                f"{where}: {key!r} is missing; a cut has a site, a selector and a budget."
            )
    scorers = [
        make(f"{where}.scorers[{i}]", "scorer", SCORERS, item)
        for i, item in enumerate(entry.get("scorers") or [])
    ]
    budget = make(f"{where}.budget", "budget", BUDGETS, entry["budget"])
    site = str(entry["site"])
    if layer is not None and site.startswith("decoder."):
        site = f"decoder.{layer}"
    selector = make(f"{where}.selector", "selector", SELECTORS, entry["selector"])
    floors = entry.get("floors") or {}
    config.check_keys(f"{where}.floors", Floors, floors)
    return Cut(site, tuple(scorers), selector, budget, Floors(**floors))


def make(where: str, kind: str, classes: Mapping[str, type], item: Any) -> Any:
    """An object from ``{name: ..., its fields}`` or from a bare name."""
    data = {"name": item} if isinstance(item, str) else dict(item)
    name = data.pop("name", None)
    if name not in classes:
        raise did_you_mean(where, kind, str(name), classes)
    config.check_keys(f"{where} ({name})", classes[name], data)
    return classes[name](**data)


def build_adapter(name: str, overrides: Sequence[str] = ()) -> Any:
    """A model family from a policy config: ``{adapter: NAME, its arguments}``.

    ``prompt_layer`` may stand in any: the decoder layer whose prompt rows look at what the prompt
    names, for recipes that ask for the policy's. ``action_names`` say what each number of an
    action is, so that no robot takes it for something else. So may ``onnx``, a folder of
    ``vla-prune export`` or the fields of :class:`vla_prune.recon.ort.OrtConfig`: the policy then
    sees by ONNX Runtime.
    """
    data = config.load(name, overrides, kind="policy")
    kind = data.pop("adapter", None)
    if kind not in ADAPTERS:
        raise did_you_mean(str(name), "adapter", str(kind), ADAPTERS)
    data.pop("name", None)
    layer, onnx = data.pop("prompt_layer", None), data.pop("onnx", None)
    names = data.pop("action_names", [])
    if layer is not None and not (isinstance(layer, int) and layer >= 0):
        raise ConfigError(
            f"policy {name!r}: prompt_layer {layer!r} is no decoder layer; "
            "give a number from 0 on."
        )
    adapter = import_object(ADAPTERS[kind])(data)
    adapter.prompt_layer = layer
    adapter.action_names = tuple(str(n) for n in names)
    return adapter if onnx is None else _by_onnx(f"policy {name!r}: onnx", adapter, onnx)


def _by_onnx(where: str, adapter: Any, given: Any) -> Any:
    from vla_prune.recon.ort import OrtConfig, see_by_onnx

    data = {"folder": given} if isinstance(given, str) else given
    config.check_keys(where, OrtConfig, data)
    return see_by_onnx(adapter, OrtConfig(**data))


def import_object(path: str) -> Any:
    """What ``module:name`` names."""
    module, name = path.split(":")
    return getattr(import_module(module), name)


def _known(where: str, data: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in data:
        if key not in keys:
            raise did_you_mean(where, "field", str(key), keys)
