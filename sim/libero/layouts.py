"""Seeded layouts that differ from the shipped ones, so that a policy needs its eyes and ears.

The shipped initial states leave each object within one or two centimetres of its place; a policy
can learn the ten places by heart. These start from a shipped state and move things. Knows no
policy.

    >>> layout = RandomLayout(seed=5)
    >>> obs, info = env.reset(seed=5, options={"init": 3, "layout": layout})  # doctest: +SKIP
    >>> layout.intact(env.unwrapped)  # doctest: +SKIP
    True
"""

from __future__ import annotations

import json

import numpy as np

from vla_prune.errors import UnsupportedError

# The ten places of libero_spatial, in the order of its tasks.
PLACES = (
    "between plate and ramekin",
    "next to ramekin",
    "table centre",
    "on cookie box",
    "in drawer",
    "on ramekin",
    "next to cookie box",
    "on stove",
    "next to plate",
    "on cabinet",
)
PLATE, RAMEKIN, BOX = "plate_1", "glazed_rim_porcelain_ramekin_1", "cookies_1"
BOWLS = ("akita_black_bowl_1", "akita_black_bowl_2")
DRAWER, OPEN_M = "wooden_cabinet_1_top_level", -0.154
# Height at which a bowl is let go of, metres: just above where it comes to rest.
HEIGHT = {
    "on cookie box": 0.93,
    "on ramekin": 0.955,
    "in drawer": 1.09,
    "on stove": 0.945,
    "on cabinet": 1.145,
}
RADIUS = {PLATE: 0.072, RAMEKIN: 0.045, BOX: 0.05, BOWLS[0]: 0.056, BOWLS[1]: 0.056}


class RandomLayout:
    """One random arrangement; the same seed on the same shipped state is the same arrangement.

    Args:
        seed: fixes everything.
        any_target: in libero_object, ask for any object that is there, not only the task's own.
        arm_rad: each arm joint starts up to this far from the shipped pose.
    """

    def __init__(self, seed: int, any_target: float = 0.7, arm_rad: float = 0.06) -> None:
        self.seed, self.any_target, self.arm_rad = seed, any_target, arm_rad
        self.goal: list | None = None
        self.instruction = ""
        self.about: dict = {"seed": seed}
        self.places: dict[str, str] = {}
        self._wanted: dict[str, np.ndarray] = {}
        self._objects: list[str] = []

    def apply(self, env) -> None:
        """Move things in `env`, which has just been put into a shipped state."""
        rng = np.random.default_rng(self.seed)
        self._scene = env.scene()
        self.instruction = env.instruction
        if env.suite == "libero_spatial":
            self._spatial(rng, env.task)
        elif env.suite == "libero_object":
            self._object(rng, env)
        else:
            raise UnsupportedError(
                f"RandomLayout cannot arrange {env.suite}; it knows libero_spatial and"
                " libero_object, so use shipped initial states for other suites."
            )
        self._scene.data.qpos[:7] += rng.uniform(-self.arm_rad, self.arm_rad, 7)
        env._inner.sim.forward()

    def intact(self, env) -> bool:
        """Whether all things came to rest where they were put."""
        scene = env.scene()
        for name, wanted in self._wanted.items():
            # In the shipped states too, a bowl on the ramekin slides a little and leans.
            leans = self.places.get(name) == "on ramekin"
            away = np.linalg.norm(scene.position(name)[:2] - wanted)
            tilt = scene.rotation(name)[2] @ self._up[name]
            if away > (0.05 if leans else 0.02) or tilt < (0.9 if leans else 0.97):
                return False
            if leans and scene.position(name)[2] < 0.92:
                return False
        return True

    def choices(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Things that could be asked for here and the words for it, in random order."""
        if not self._objects:
            return [(self.goal[0][1], self.instruction)]
        return [(name, _basket(name)) for name in rng.permutation(self._objects).tolist()]

    def describe(self) -> str:
        """All that was drawn, as JSON."""
        return json.dumps(self.about)

    def _put(self, name: str, xy: np.ndarray, z: float | None = None) -> None:
        scene = self._scene
        adr = scene.model.joint(f"{name}_joint0").qposadr[0]
        scene.data.qpos[adr : adr + 2] = xy
        if z is not None:
            scene.data.qpos[adr + 2] = z
        self._wanted[name] = np.asarray(xy)

    def _remember_up(self, names) -> None:
        # The object axis that points up in the shipped state.
        self._up = {n: self._scene.rotation(n).T @ np.array([0, 0, 1.0]) for n in names}
        self._up = {n: np.round(v) for n, v in self._up.items()}

    def _spatial(self, rng: np.random.Generator, task: int) -> None:
        scene, target = self._scene, PLACES[task]
        names = (PLATE, RAMEKIN, BOX, *BOWLS)
        self._remember_up(names)
        base = {n: scene.position(n)[:2] for n in names}
        other = PLACES[int(rng.choice([i for i in range(10) if i != task]))]
        drawer = "in drawer" in (target, other) or rng.random() < 0.15
        scene.data.qpos[scene.model.joint(DRAWER).qposadr[0]] = OPEN_M if drawer else 0.0
        scene.env.sim.forward()
        for _ in range(200):
            at = {n: base[n] + rng.uniform(-0.05, 0.05, 2) for n in names[:3]}
            # Further out the arm does not reach.
            at[PLATE] = np.minimum(at[PLATE], [0.09, 0.24])
            for bowl, place in zip(BOWLS, (target, other), strict=True):
                # On the ramekin and the box a bowl balances only in the middle.
                loose = 0.001 if place.startswith("on ra") else 0.012
                at[bowl] = self._place(place, at) + rng.uniform(-loose, loose, 2)
            if self._apart(at, {target, other}):
                break
        self.places = dict(zip(BOWLS, (target, other), strict=True))
        for name in names:
            self._put(name, at[name], HEIGHT.get(self.places.get(name), 0.91))
        self.goal = [["on", BOWLS[0], PLATE]]
        self.about |= {"other": other, "drawer": bool(drawer)}

    def _place(self, place: str, at: dict) -> np.ndarray:
        scene = self._scene
        site = {
            "on stove": "flat_stove_1_cook_region",
            "on cabinet": "wooden_cabinet_1_top_side",
            "in drawer": "wooden_cabinet_1_top_region",
        }.get(place)
        if site is not None:
            return scene.data.site_xpos[scene.model.site(site).id][:2].copy()
        return {
            "between plate and ramekin": (at[PLATE] + at[RAMEKIN]) / 2 + [0.018, 0.0],
            "next to ramekin": at[RAMEKIN] + [0.02, 0.12],
            "table centre": np.array([-0.075, 0.0]),
            "on cookie box": at[BOX],
            "on ramekin": at[RAMEKIN],
            "next to cookie box": at[BOX] + [0.062, -0.10],
            "next to plate": at[PLATE] + [-0.052, 0.109],
        }[place]

    def _apart(self, at: dict, used: set[str]) -> bool:
        names = list(at)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                gap = np.linalg.norm(at[a] - at[b])
                # A bowl that stands on the box or ramekin shares its place.
                if gap < 0.02 and {a, b} & {BOX, RAMEKIN}:
                    continue
                slack = 0.012 if {a, b} == {PLATE, RAMEKIN} else 0.0
                if gap < RADIUS[a] + RADIUS[b] - slack:
                    return False
        return at[BOX][1] > -0.02

    def _object(self, rng: np.random.Generator, env) -> None:
        scene = self._scene
        names = [n for n in scene.objects if n != "basket_1"]
        self._remember_up([*names, "basket_1"])
        slots = np.array([scene.position(n)[:2] for n in names])
        basket = scene.position("basket_1")[:2]
        for _ in range(200):
            xy = slots[rng.permutation(len(names))] + rng.uniform(-0.035, 0.035, slots.shape)
            gap = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + np.eye(len(xy))
            if gap.min() > 0.105:
                break
        else:
            xy = slots
        for name, place in zip(names, xy, strict=True):
            self._put(name, place)
        self._put("basket_1", basket + rng.uniform(-0.03, 0.03, 2))
        target = env.goal[0][1]
        if rng.random() < self.any_target:
            target = names[int(rng.integers(len(names)))]
        self.goal = [["in", target, "basket_1_contain_region"]]
        self.instruction = _basket(target)
        self._objects = names
        self.about |= {"target": target}


def _basket(target: str) -> str:
    thing = target.removesuffix("_1").replace("_", " ")
    return f"pick up the {thing} and place it in the basket"
