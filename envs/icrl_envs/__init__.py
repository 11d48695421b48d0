"""Environments of the icrl_gym project, registered as ``icrl/...-v0``.

    gymnasium.make("icrl_envs:icrl/BoyanChain-v0", mrp_seed=3)

The tabular ones have a time limit of 1,000 steps, which is not part of their decision process; ``max_episode_steps=-1``
takes it away.
"""

from gymnasium.envs.registration import register

from icrl_envs.body import Body
from icrl_envs.boyan_chain import BoyanChain
from icrl_envs.cartpole_family import CartPoleFamily, CartPolePhysics
from icrl_envs.loop import Loop
from icrl_envs.point_goal import PointGoal
from icrl_envs.random_mrp import RandomMRP
from icrl_envs.tabular import TabularMRP

__all__ = ["Body", "BoyanChain", "CartPoleFamily", "CartPolePhysics", "Loop", "PointGoal", "RandomMRP", "TabularMRP"]

register(id="icrl/BoyanChain-v0", entry_point="icrl_envs.boyan_chain:BoyanChain", max_episode_steps=1000)
register(id="icrl/Loop-v0", entry_point="icrl_envs.loop:Loop", max_episode_steps=1000)
register(id="icrl/RandomMRP-v0", entry_point="icrl_envs.random_mrp:RandomMRP", max_episode_steps=1000)
register(id="icrl/CartPoleFamily-v0", entry_point="icrl_envs.cartpole_family:CartPoleFamily", max_episode_steps=500)
register(id="icrl/Body-v0", entry_point="icrl_envs.body:Body", max_episode_steps=1000)
register(id="icrl/PointGoal-v0", entry_point="icrl_envs.point_goal:PointGoal", max_episode_steps=150)
