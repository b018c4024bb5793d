"""What only a simulator knows: poses, shapes and contacts. For experts, layouts and labels.

A policy under test never sees any of this.

    >>> scene = env.unwrapped.scene()  # doctest: +SKIP
    >>> scene.position("plate_1"), scene.holds("akita_black_bowl_1")  # doctest: +SKIP
"""

from __future__ import annotations

import mujoco
import numpy as np


class Scene:
    """Read access to the state of one built LIBERO environment.

    Args:
        env: the inner LIBERO environment (`BDDLBaseDomain`).
    """

    def __init__(self, env) -> None:
        self.env = env
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        self.objects = tuple(env.objects_dict)
        self.fixtures = tuple(env.fixtures_dict)
        model = self.model
        root = model.body_rootid.copy()
        names = [model.body(i).name for i in range(model.nbody)]
        self._body = {
            n: int(env.obj_body_id[n])
            for n in self.objects + self.fixtures
            if n in env.obj_body_id
        }
        solid = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
        # A fixture may have jointed parts, so that a geom belongs to an object by its root body.
        self.geom_owner = np.full(model.ngeom, "", dtype=object)
        for name, body in self._body.items():
            self.geom_owner[root[model.geom_bodyid] == root[body]] = name
        robot = [n.startswith(("robot0", "gripper0", "mount0")) for n in names]
        self.geom_owner[np.array(robot)[model.geom_bodyid]] = "robot"
        # Rays pass through what is fully transparent, as the cookie box's collision shape is;
        # shapes of group 0 are never drawn, so that this changes no picture.
        model.geom_rgba[solid & (model.geom_group == 0), 3] = 1.0
        self.solid_geoms = {n: np.flatnonzero(solid & (self.geom_owner == n)) for n in self._body}
        finger = [model.body(b).name for b in model.geom_bodyid]
        self._left = {
            i
            for i, n in enumerate(finger)
            if n.startswith("gripper0_leftfinger") or n == "gripper0_finger_joint1_tip"
        }
        self._right = {
            i
            for i, n in enumerate(finger)
            if n.startswith("gripper0_rightfinger") or n == "gripper0_finger_joint2_tip"
        }
        self._site = model.site("gripper0_grip_site").id
        self._hand = model.body(env.robots[0].robot_model.eef_name).id
        self._grip_qpos = [model.joint(f"gripper0_finger_joint{i}").qposadr[0] for i in (1, 2)]

    def position(self, name: str) -> np.ndarray:
        """Origin of an object or fixture, ``[3]`` metres."""
        return self.data.xpos[self._body[name]].copy()

    def rotation(self, name: str) -> np.ndarray:
        """Rotation of an object or fixture, ``[3, 3]``."""
        return self.data.xmat[self._body[name]].reshape(3, 3).copy()

    @property
    def hand(self) -> np.ndarray:
        """Grip point between the finger tips, ``[3]`` metres."""
        return self.data.site_xpos[self._site].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """Frame of the grip point, ``[3, 3]``; the fingers move along column 0."""
        return self.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def hand_quat(self) -> np.ndarray:
        """Orientation that LIBERO reports for the hand, ``[4]`` x, y, z, w."""
        return self.data.xquat[self._hand][[1, 2, 3, 0]]

    @property
    def gripper(self) -> np.ndarray:
        """Joint positions of the two fingers, ``[2]`` metres; 0.04 and -0.04 is open."""
        return self.data.qpos[self._grip_qpos].copy()

    @property
    def opening(self) -> float:
        """Distance between the fingers, metres."""
        return float(np.abs(self.gripper).sum())

    def corners(self, name: str) -> np.ndarray:
        """Corners of the collision boxes of an object in the world, ``[N, 3]`` metres."""
        geoms = self.solid_geoms[name]
        size = self.half_sizes(geoms)
        sign = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        local = size[:, None] * sign
        rot = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        world = np.einsum("gij,gkj->gki", rot, local) + self.data.geom_xpos[geoms][:, None]
        return world.reshape(-1, 3)

    def half_sizes(self, geoms: np.ndarray) -> np.ndarray:
        """Half sides of the boxes (or of the boxes around cylinders), ``[G, 3]`` metres."""
        size, kind = self.model.geom_size[geoms], self.model.geom_type[geoms]
        # Cylinders keep (radius, half length).
        round_ = (kind == mujoco.mjtGeom.mjGEOM_CYLINDER)[:, None]
        return np.where(round_, size[:, [0, 0, 1]], size)

    def touching(self, name: str) -> tuple[bool, bool]:
        """Whether the left and the right finger touch an object."""
        left = right = False
        for a, b in self.data.contact.geom[: self.data.ncon]:
            for geom, other in ((a, b), (b, a)):
                if self.geom_owner[other] == name:
                    left |= int(geom) in self._left
                    right |= int(geom) in self._right
        return left, right

    def holds(self, name: str) -> bool:
        """Whether both fingers touch an object."""
        return all(self.touching(name))
