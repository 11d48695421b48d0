"""Random chains of capsules with motors, stepped by MuJoCo; only where `mujoco` is installed.

Shapes: B copies, J motors, P positions and as many velocities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.shaped import Dynamics

MAX_SPEED = 30.0  # velocities are held within it between steps
TIME_STEP = 0.005

_PAGE = """<mujoco>
<option timestep="{time_step}" integrator="implicitfast" iterations="20"/>
<default><geom type="capsule" friction="{friction} 0.1 0.1"/><joint armature="0.05"/></default>
<worldbody><geom type="plane" size="40 40 1" pos="0 0 {floor}"/>{bodies}</worldbody>
<actuator>{motors}</actuator>
</mujoco>"""
_ROOT = """<joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
<joint type="hinge" axis="0 1 0" damping="0.1"/>"""


def is_installed() -> bool:
    """Whether `mujoco` can be imported."""
    return find_spec("mujoco") is not None


@dataclass(frozen=True, eq=False)
class Tree(Dynamics):
    """State: positions (forward, height, pitch where the root is free; joints), velocities.

    Features: all of it but the forward position.

    Attributes:
        page: the model in MuJoCo's language.
        free: whether the root moves in a vertical plane above a floor; else it is held high above it.
        num_joints: J.
        frame_skip: MuJoCo steps per step.
        start: size of the uniform noise on positions and velocities at a reset.
    """

    page: str
    free: bool
    num_joints: int
    frame_skip: int
    start: float
    is_random: bool = field(default=False, init=False)
    most_rollouts: int = field(default=8, init=False)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """One to three motors, a trunk and as many limbs below one another."""
        num_joints, free = int(rng.integers(1, 4)), chance(rng, 0.7)
        lengths = log_uniform(rng, 0.15, 0.5, num_joints + 1)
        leans = rng.normal(0.0, 0.25, num_joints + 1)
        if free and chance(rng, 0.5):
            leans[-1] = np.pi / 2 * rng.uniform(0.6, 1.0)  # a foot
        ends = np.stack([np.sin(leans) * lengths, -np.cos(leans) * lengths], axis=1)
        masses, thick = log_uniform(rng, 0.5, 4.0, num_joints + 1), rng.uniform(0.03, 0.07)
        inner = ""
        for link in range(num_joints, -1, -1):
            place = ends[link - 1] if link else np.zeros(2)
            bound = rng.uniform(30.0, 100.0)
            hinge = f'<joint name="j{link}" type="hinge" axis="0 1 0" limited="true" range="{-bound} {bound}" '
            hinge += f'damping="{log_uniform(rng, 0.2, 2.0)}" stiffness="{pick(rng, (0.0, rng.uniform(0.0, 5.0)))}"/>'
            joints = hinge if link else _ROOT * free
            shape = f'<geom fromto="0 0 0 {ends[link][0]} 0 {ends[link][1]}" size="{thick}" mass="{masses[link]}"/>'
            inner = f'<body pos="{place[0]} 0 {place[1]}">{joints}{shape}{inner}</body>'
        weight = 9.8 * masses.sum() * lengths.mean()
        gears = weight * log_uniform(rng, 0.2, 1.0, num_joints)
        page = _PAGE.format(
            time_step=TIME_STEP,
            friction=rng.uniform(0.5, 1.5),
            floor=-float(-ends[:, 1].clip(max=0.0).sum()) - thick if free else -10.0,
            bodies=inner,
            motors="".join(f'<motor joint="j{i + 1}" gear="{gear}"/>' for i, gear in enumerate(gears)),
        )
        return cls(page, free, num_joints, int(rng.integers(3, 7)), log_uniform(rng, 0.005, 0.2))

    @property
    def num_inputs(self) -> int:
        return self.num_joints

    @property
    def num_positions(self) -> int:
        """P."""
        return self.num_joints + 3 * self.free

    @property
    def num_features(self) -> int:
        return 2 * self.num_positions - self.free

    @cached_property
    def _engine(self) -> tuple[Any, Any]:
        mujoco: Any = import_module("mujoco")
        model = mujoco.MjModel.from_xml_string(self.page)
        return model, mujoco.MjData(model)

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-self.start, self.start, (batch, 2 * self.num_positions))

    def advance(self, states: np.ndarray, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        del rng
        rollout: Any = import_module("mujoco.rollout")
        model, data = self._engine
        timed = np.concatenate([np.zeros((len(states), 1)), states], axis=1)
        controls = np.repeat(inputs[:, None], self.frame_skip, axis=1)
        path, _ = rollout.rollout(model, data, timed, controls, nstep=self.frame_skip)
        after = path[:, -1, 1:].copy()
        after[:, self.num_positions :] = after[:, self.num_positions :].clip(-MAX_SPEED, MAX_SPEED)
        return after

    def features(self, states: np.ndarray) -> np.ndarray:
        return states[:, 1:] if self.free else states

    def forward(self, rng: np.random.Generator) -> np.ndarray:
        """The root's forward speed, or a joint's rate where the root is held."""
        joint = 0 if self.free else int(rng.integers(self.num_joints))
        return np.eye(self.num_features)[self.num_positions - self.free + joint]

    def feedback(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Gains towards a random posture, and against the pitch where the root is free."""
        gains = np.zeros((self.num_features, self.num_joints))
        joints = np.arange(self.num_joints)
        first = 2 if self.free else 0
        rates = self.num_positions - self.free + 3 * self.free
        gains[first + joints, joints] = -log_uniform(rng, 0.3, 5.0, self.num_joints)
        gains[rates + joints, joints] = log_uniform(rng, 0.02, 0.3) * pick(rng, (-1.0, 1.0), (0.8, 0.2))
        if self.free:
            gains[1] = rng.normal(0.0, 1.0, self.num_joints)
        return gains, rng.normal(0.0, 0.5, self.num_joints)
