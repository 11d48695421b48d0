"""The world in context: a model of transitions and endings read off the prompt, and what is taken from it.

Transitions in expectation over the policy's action (variates.py), and walks under the policy (imagination.py).
"""

from icrl_gym.evaluator.world.imagination import ImaginedValues
from icrl_gym.evaluator.world.scene import Scene
from icrl_gym.evaluator.world.variates import ExpectedValues

__all__ = ["ExpectedValues", "ImaginedValues", "Scene"]
