"""Made-up bodies of links and motors that fall, run or swim, stepped by MuJoCo."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from gymnasium import Env
from gymnasium.spaces import Box

KINDS = ("falls", "falls", "runs", "swims")  # of the bodies 0, 1, 2, 3, and again
MAX_SPEED = 10.0  # velocities are observed within it


class Body(Env):
    """A body that is drawn by number: every number is another one.

    ## Description
    Bodies 0, 1, 4, 5, 8, ... *fall*: a trunk on one to three legs of two or three links, whose episodes end when it is
    too low or leans too far. Bodies 2, 6, 10, ... *run*: the same without an end. Bodies 3, 7, 11, ... *swim*: a chain
    of three to five links in a dense medium, seen from above, without an end. Lengths, masses, joint limits, motors,
    friction and costs are drawn. They stand for walking robots that nobody has tuned anything on.

    ## Action Space
    `Box(-1, 1, (J,), float32)`: torques of the J motors.

    ## Observation Space
    `Box(-inf, inf, (N,), float64)`: positions without the forward one (of swimmers without both), then velocities, cut
    at 10.

    ## Rewards
    Forward speed, less a cost of the squared torques; plus 1 for every step of a body that can fall.

    ## Starting State
    Uniform noise on positions and velocities.

    ## Episode End
    Of bodies that fall as above; the registered id truncates all after 1,000 steps.

    ## Arguments
    `body` (default 0): the number.

    Raises:
        ValueError: ``body`` is negative.
        ImportError: `mujoco` is not installed.

    ## Version History
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, body: int = 0) -> None:
        if body < 0:
            raise ValueError(f"body must be an integer >= 0, got {body}")
        rng, self.kind = np.random.default_rng([5, body]), KINDS[body % len(KINDS)]
        page, self._height = self._swimmer(rng) if self.kind == "swims" else self._walker(rng)
        self._model = _mujoco().MjModel.from_xml_string(page)
        self._data = _mujoco().MjData(self._model)
        self._frame_skip = int(rng.integers(4, 7)) if self.kind == "swims" else 4
        self._start, self._cost = rng.uniform(0.005, 0.1), 10 ** rng.uniform(-3, -1)
        self._lowest, self._farthest = rng.uniform(0.6, 0.8) * self._height, rng.uniform(0.4, 1.0)
        self._hidden = 2 if self.kind == "swims" else 1  # positions that are not observed
        size = self._model.nq + self._model.nv - self._hidden
        self.action_space = Box(-1.0, 1.0, (self._model.nu,), np.float32)
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed, options=options)
        _mujoco().mj_resetData(self._model, self._data)
        self._data.qpos[:] = self.np_random.uniform(-self._start, self._start, self._model.nq)
        self._data.qvel[:] = self.np_random.uniform(-self._start, self._start, self._model.nv)
        if self.kind != "swims":
            self._data.qpos[1] = abs(self._data.qpos[1])
        _mujoco().mj_forward(self._model, self._data)
        return self._observed(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        torques, before = np.clip(action, -1.0, 1.0), self._data.qpos[0]
        self._data.ctrl[:] = torques
        _mujoco().mj_step(self._model, self._data, self._frame_skip)
        speed = (self._data.qpos[0] - before) / (self._frame_skip * self._model.opt.timestep)
        reward, fell = speed - self._cost * np.square(torques).sum(), False
        if self.kind == "falls":
            reward += 1.0
            low, leaning = self._height + self._data.qpos[1] < self._lowest, abs(self._data.qpos[2]) > self._farthest
            fell = bool(low or leaning)
        return self._observed(), float(reward), fell, False, {}

    def _observed(self) -> np.ndarray:
        velocities = np.clip(self._data.qvel, -MAX_SPEED, MAX_SPEED)
        return np.concatenate([self._data.qpos[self._hidden :], velocities])

    def _swimmer(self, rng: np.random.Generator) -> tuple[str, float]:
        """A page in MuJoCo's language, and the height of the trunk."""
        num_links, length = int(rng.integers(2, 5)), rng.uniform(0.7, 1.2)
        links, motors = _links(rng, num_links, "a", (-length / 2, 0.0), 0.0, swims=True)
        page = f"""<mujoco><option timestep="0.01" integrator="RK4" density="{rng.uniform(2000, 5000)}" viscosity="0.1"
            gravity="0 0 0"/><default><geom type="capsule" contype="0" conaffinity="0"/><joint armature="0.1"/>
            </default><worldbody><body><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/>
            <joint type="hinge" axis="0 0 1"/>
            <geom fromto="{length / 2} 0 0 {-length / 2} 0 0" size=".1" density="1000"/>
            {links}</body></worldbody><actuator>{motors}</actuator></mujoco>"""
        return page, 0.0

    def _walker(self, rng: np.random.Generator) -> tuple[str, float]:
        """A page in MuJoCo's language, and the height of the trunk where the lowest link touches the floor."""
        num_legs, num_links = int(rng.integers(1, 4)), int(rng.integers(2, 4))
        length = rng.uniform(0.3, 0.9)
        upright = rng.random() < 0.5 and self.kind == "falls"
        legs, motors = "", ""
        for leg in range(num_legs):
            place = (0.0, -length / 2) if upright else (rng.uniform(-length / 2, length / 2), 0.0)
            links, more = _links(rng, num_links, "abc"[leg], place, rng.normal(0.0, 0.2), swims=False)
            legs, motors = legs + links, motors + more
        trunk = f"0 0 {-length / 2} 0 0 {length / 2}" if upright else f"{-length / 2} 0 0 {length / 2} 0 0"
        page = f"""<mujoco><option timestep="0.005" integrator="implicitfast"/><default>
            <geom type="capsule" friction="{rng.uniform(0.6, 1.5)} .1 .1" contype="1" conaffinity="0"/>
            <joint armature="0.02"/></default><worldbody>
            <geom name="floor" type="plane" size="40 40 1" conaffinity="1"/><body pos="0 0 {{height}}">
            <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/><joint type="hinge" axis="0 1 0"/>
            <geom fromto="{trunk}" size="0.05" mass="{rng.uniform(2, 6)}"/>{legs}</body></worldbody>
            <actuator>{motors}</actuator></mujoco>"""
        high = 3.0
        model = _mujoco().MjModel.from_xml_string(page.format(height=high))
        data = _mujoco().MjData(model)
        _mujoco().mj_forward(model, data)
        upwards = np.abs(data.geom_xmat[1:].reshape(-1, 3, 3)[:, 2, 2])
        lowest = (data.geom_xpos[1:, 2] - model.geom_size[1:, 0] - upwards * model.geom_size[1:, 1]).min()
        height = high - lowest + 0.005
        return page.format(height=height), float(height)


def _mujoco() -> Any:
    return import_module("mujoco")


def _links(
    rng: np.random.Generator, count: int, name: str, place: tuple[float, float], lean: float, *, swims: bool
) -> tuple[str, str]:
    """Links that hang on one another, and their motors."""
    drawn = []
    for index in range(count):
        length, angle = rng.uniform(0.2, 0.5), rng.normal(0.0, 0.15) + (lean if index == 0 else 0.0)
        end = (np.sin(angle) * length, -np.cos(angle) * length)
        if swims:
            end = (-1.2 * length, 0.0)
        elif index == count - 1 and rng.random() < 0.8:
            end = (rng.uniform(0.12, 0.25), -0.02)  # a foot
        drawn.append((end, rng.uniform(0.5, 3.0), rng.uniform(0.03, 0.06)))
    links, motors = "", ""
    places = [place, *(end for end, _, _ in drawn[:-1])]
    for index in reversed(range(count)):
        ((x, z), mass, thick), bound = drawn[index], rng.uniform(40, 90)
        gear = rng.uniform(60, 150) if swims else rng.uniform(15, 60)
        damping = 0.0 if swims else rng.uniform(0.5, 2.0)
        axis, size = ("0 0 1", 'size="0.1" density="1000"') if swims else ("0 1 0", f'size="{thick}" mass="{mass}"')
        links = f"""<body pos="{places[index][0]} 0 {places[index][1]}">
            <joint name="{name}{index}" type="hinge" axis="{axis}" range="{-bound} {bound}" limited="true"
            damping="{damping}"/><geom fromto="0 0 0 {x} 0 {z}" {size}/>{links}</body>"""
        motors += f'<motor joint="{name}{index}" gear="{gear}" ctrlrange="-1 1" ctrllimited="true"/>'
    return links, motors
