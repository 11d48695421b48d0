"""Policies asked at imagined states: their own distributions by inversion, and what is said of those that cannot be."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from scipy import stats
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import icrl_gym as icrl
from icrl_gym.acting.policies import AskedPolicy, as_policy
from icrl_gym.acting.policies.acting import ActingPolicy
from icrl_gym.acting.policies.inversion import index_by_inversion
from icrl_gym.context.asked import asked_policy

LEVEL = 1e-4  # false alarms of each statistical test
DRAWS = 4000


class Room(gymnasium.Env):
    """Observations of three numbers, any action space."""

    observation_space = spaces.Box(-3.0, 3.0, (3,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        del action
        return self._observation(), 0.0, False, False, {}

    def _observation(self):
        return self.np_random.uniform(-3, 3, 3).astype(np.float32)


BOX = spaces.Box(np.float32([-1.0, -0.5]), np.float32([2.0, 0.5]))
STATES = np.random.default_rng(0).uniform(-3, 3, (300, 3))


def small(**more) -> dict:
    return {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0, **more}


def room_log(action_space, length=40) -> icrl.Trajectory:
    return icrl.collect(Room(action_space), "random", length, seed=0)


def uniform(asked: AskedPolicy, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, asked.num_noise)) * (1 - 2e-12) + 1e-12


def asked_of(model, action_space) -> AskedPolicy:
    log = room_log(action_space).with_importance_ratios(None, None)
    asked, notes = asked_policy(model, log)
    assert asked is not None
    assert notes == ()
    return asked


def dqn() -> DQN:
    model = DQN("MlpPolicy", Room(spaces.Discrete(3)), **small(buffer_size=10))
    model.exploration_rate = 0.3
    return model


def spread(model):
    """The model with larger last weights, so that its distribution varies with the state."""
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)
    return model


MODELS = {
    "PPO discrete": lambda: spread(PPO("MlpPolicy", Room(spaces.Discrete(3)), **small(n_steps=8, batch_size=8))),
    "PPO Gaussian": lambda: spread(PPO("MlpPolicy", Room(BOX), **small(n_steps=8, batch_size=8))),
    "PPO gSDE": lambda: PPO("MlpPolicy", Room(BOX), **small(n_steps=8, batch_size=8, use_sde=True)),
    "PPO squashed gSDE": lambda: PPO(
        "MlpPolicy", Room(BOX), n_steps=8, batch_size=8, use_sde=True, device="cpu", seed=0,
        policy_kwargs={"net_arch": [8], "squash_output": True},
    ),
    "A2C MultiDiscrete": lambda: spread(A2C("MlpPolicy", Room(spaces.MultiDiscrete([2, 4])), **small())),
    "A2C MultiBinary": lambda: spread(A2C("MlpPolicy", Room(spaces.MultiBinary(3)), **small())),
    "SAC": lambda: SAC("MlpPolicy", Room(BOX), **small(buffer_size=10)),
    "SAC gSDE": lambda: SAC("MlpPolicy", Room(BOX), **small(buffer_size=10, use_sde=True)),
    "TQC": lambda: TQC("MlpPolicy", Room(BOX), **small(buffer_size=10)),
    "TD3": lambda: TD3("MlpPolicy", Room(BOX), **small(buffer_size=10)),
    "DQN": dqn,
    "QRDQN": lambda: QRDQN("MlpPolicy", Room(spaces.Discrete(3)), **small(buffer_size=10)),
    "CrossQ": lambda: CrossQ("MlpPolicy", Room(BOX), **small(buffer_size=10)),
    "MaskablePPO MultiDiscrete": lambda: spread(
        MaskablePPO("MlpPolicy", Room(spaces.MultiDiscrete([2, 4])), **small(n_steps=8, batch_size=8))
    ),
}  # fmt: skip


def check_same_distribution(first: np.ndarray, second: np.ndarray) -> None:
    """Two samples (n,) or (n, d): chi-square where the values are few, else Kolmogorov and Smirnov, each number."""
    for one, other in zip(first.reshape(len(first), -1).T, second.reshape(len(second), -1).T, strict=True):
        values = np.unique(np.concatenate([one, other]))
        if len(values) == 1:
            continue
        if len(values) < 20:
            table = [[np.sum(sample == value) for value in values] for sample in (one, other)]
            found = stats.chi2_contingency(table).pvalue
        else:
            found = stats.ks_2samp(one, other).pvalue
        assert found > LEVEL


@pytest.mark.parametrize("name", MODELS)
def test_actions_are_distributed_as_the_models_own(name):
    model = MODELS[name]()
    asked, own = asked_of(model, model.action_space), as_policy(model, model.action_space, seed=1)
    for state in STATES[:2].astype(np.float32):
        many = np.repeat(state[None], DRAWS, axis=0)
        found = asked.actions(many, uniform(asked, DRAWS))
        assert found.shape == (DRAWS, *model.action_space.shape)
        check_same_distribution(found, own.act(many))
        if isinstance(model.action_space, spaces.MultiDiscrete | spaces.MultiBinary):  # the numbers together, too
            digits = 10 ** np.arange(found.shape[1])
            check_same_distribution(found @ digits, own.act(many) @ digits)
        elif isinstance(model.action_space, spaces.Box) and name != "TD3":
            check_same_distribution(found.sum(axis=1), own.act(many).sum(axis=1))


def test_the_statistical_check_notices_another_policy():
    model, other = MODELS["PPO Gaussian"](), MODELS["PPO Gaussian"]()
    with torch.no_grad():
        other.policy.log_std.add_(0.2)
    asked = asked_of(other, BOX)
    many = np.repeat(STATES[:1].astype(np.float32), DRAWS, axis=0)
    with pytest.raises(AssertionError):
        check_same_distribution(asked.actions(many, uniform(asked, DRAWS)), as_policy(model, BOX, seed=1).act(many))


@pytest.mark.parametrize("name", MODELS)
def test_a_rows_answer_depends_on_its_state_and_noise_alone(name):
    model = MODELS[name]()
    asked = asked_of(model, model.action_space)
    noise = uniform(asked, len(STATES))
    together = asked.actions(STATES, noise)
    np.testing.assert_array_equal(asked.actions(STATES, noise), together)
    order = np.random.default_rng(1).permutation(len(STATES))
    np.testing.assert_array_equal(asked.actions(STATES[order], noise[order]), together[order])
    alone = np.concatenate([asked.actions(STATES[i : i + 1], noise[i : i + 1]) for i in range(40)])
    np.testing.assert_array_equal(alone, together[:40])
    if asked.probabilities(STATES) is not None:
        stated = asked.probabilities(STATES)
        np.testing.assert_array_equal(stated[order], asked.probabilities(STATES[order]))
        np.testing.assert_array_equal(together, index_by_inversion(stated, noise[:, 0]))


@pytest.mark.parametrize("name", ["PPO Gaussian", "SAC", "A2C MultiDiscrete", "PPO discrete", "DQN"])
def test_a_deterministic_policy_takes_its_mode_whatever_the_noise(name):
    model = MODELS[name]()
    acting = as_policy(model, model.action_space, Room.observation_space, deterministic=True)
    asked = asked_of(acting, model.action_space)
    assert asked.identity.endswith(" (deterministic)")
    first, second = (asked.actions(STATES, uniform(asked, len(STATES), seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, acting.act(STATES), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=5),
        spaces.Box(-2.0, 1.0, (2, 3), np.float32),
        spaces.Box(np.array([-np.inf, 0.0, -np.inf]), np.array([np.inf, np.inf, 2.0]), dtype=np.float64),
        spaces.Box(-2, 5, (2,), np.int32),
        spaces.MultiDiscrete([2, 5], start=[1, -3]),
        spaces.MultiBinary(4),
    ],
)
def test_random_chooses_as_the_space_samples(space):
    asked = AskedPolicy(as_policy("random", space))
    found = asked.actions(np.zeros((DRAWS, 1)), uniform(asked, DRAWS))
    assert all(space.contains(action if space.shape else int(action)) for action in found)
    space.seed(0)
    check_same_distribution(found, np.stack([space.sample() for _ in range(DRAWS)]))
    probabilities = asked.probabilities(np.zeros((2, 1)))
    assert (probabilities is not None) == isinstance(space, spaces.Discrete)


def test_a_table_draws_by_its_rows_and_never_what_has_probability_zero():
    table = np.array([[0.0, 0.2, 0.8, 0.0], [0.5, 0.0, 0.5, 0.0]])
    log = icrl.Trajectory([0, 1], [1, 2], [0.0, 0.0], [1, 0], [False, False], [False, False])
    asked, _ = asked_policy(table, log)
    assert asked is not None
    assert asked.action_space == spaces.Discrete(4)  # although the log holds no action 3
    states = np.repeat([0, 1], DRAWS)
    drawn = asked.actions(states, uniform(asked, 2 * DRAWS))
    for state in (0, 1):
        counts = np.bincount(drawn[states == state], minlength=4)
        assert (counts[table[state] == 0] == 0).all()
        kept = table[state] > 0
        assert stats.chisquare(counts[kept], DRAWS * table[state][kept]).pvalue > LEVEL
    edges = asked.actions(np.array([0, 0]), np.array([[1e-300], [np.nextafter(1.0, 0.0)]]))
    assert edges.tolist() == [1, 2]
    np.testing.assert_array_equal(asked.probabilities(np.array([1, 0])), table[[1, 0]])


def test_an_object_with_probabilities_has_as_many_actions_as_it_states():
    class Stating:
        def action_probabilities(self, observations):
            return np.tile([0.5, 0.25, 0.25], (len(observations), 1))

    log = icrl.Trajectory(np.zeros((2, 1)), [0, 1], [0.0, 0.0], np.zeros((2, 1)), [False] * 2, [False] * 2)
    asked, notes = asked_policy(Stating(), log)
    assert asked is not None
    assert (asked.action_space, notes) == (spaces.Discrete(3), ())


def test_normalised_and_discrete_observations_are_asked_as_the_model_predicts():
    venv = VecNormalize(DummyVecEnv([lambda: Room(BOX)]))
    venv.obs_rms.mean[:] = [1.0, -2.0, 0.5]
    model = TD3("MlpPolicy", venv, **small(buffer_size=10))
    venv.training = False
    asked = asked_of(model, BOX)
    found = asked.actions(STATES, uniform(asked, len(STATES)))
    expected = model.predict(venv.normalize_obs(STATES), deterministic=True)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found - model.predict(STATES, deterministic=True)[0]).max() > 1e-3
    lake = PPO("MlpPolicy", gymnasium.make("FrozenLake-v1"), **small(n_steps=8, batch_size=8))
    log = icrl.Trajectory([0, 1, 2], [0, 1, 2], [0.0] * 3, [1, 2, 4], [False] * 3, [False] * 3)  # 5 ids of 16 seen
    asked, _ = asked_policy(lake, log)
    assert asked is not None
    assert asked.probabilities(np.arange(16)).shape == (16, 4)


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize("name", ["PPO Gaussian", "SAC gSDE", "DQN", "TD3"])
def test_global_generators_are_left_alone(name):
    model = MODELS[name]()
    before = global_states()
    asked = asked_of(model, model.action_space)
    asked.actions(STATES, uniform(asked, len(STATES)))
    asked.probabilities(STATES)
    assert global_states() == before


def zero(observations):
    return np.zeros(len(observations), int)


def test_a_repeatable_callable_is_asked():
    log = icrl.collect("CartPole-v1", "random", 40, seed=0).with_importance_ratios(None, None)
    asked, notes = asked_policy(lambda observations: (observations[:, 0] > 0).astype(int), log)
    assert asked is not None
    assert notes == ()
    assert asked.probabilities(log.observations) is None
    found = asked.actions(log.observations, uniform(asked, 40))
    np.testing.assert_array_equal(found, log.observations[:, 0] > 0)


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (lambda observations: GENERATOR.integers(2, size=len(observations)), "answers differently"),
        (lambda observations: np.random.randint(2, size=len(observations)), "answers differently"),  # noqa: NPY002
        (lambda observations: (observations[:, 0] > observations[:, 0].mean()).astype(int), "answers differently"),
        (lambda observations: torch.rand(1) and zero(observations), "draws from a global random generator"),
    ],
    ids=["own generator", "global generator", "batch", "seldom"],
)
def test_a_callable_that_is_no_function_of_the_state_is_known_by_the_log(policy, reason):
    log = icrl.collect("CartPole-v1", "random", 60, seed=0).with_importance_ratios(None, None)
    before = global_states()
    asked, (note,) = asked_policy(policy, log)
    assert global_states() == before
    assert asked is None
    assert reason in note
    assert note.endswith(": its actions are taken from the log instead")
    others = icrl.collect("CartPole-v1", "random", 60, seed=0)
    with pytest.raises(ValueError, match=rf"{reason}.* values of the behaviour 'random', not of the policy"):
        asked_policy(policy, others)


def test_a_recurrent_model_is_known_by_the_log():
    model = RecurrentPPO("MlpLstmPolicy", Room(BOX), n_steps=8, batch_size=8, device="cpu", seed=0,
                         policy_kwargs={"lstm_hidden_size": 4})  # fmt: skip
    asked, (note,) = asked_policy(model, room_log(BOX).with_importance_ratios(None, None))
    assert asked is None
    assert "is recurrent" in note
    with pytest.raises(ValueError, match="is recurrent"):
        AskedPolicy(as_policy(model, BOX))


def test_no_policy_is_the_one_that_acted():
    assert asked_policy(None, room_log(BOX)) == (None, ())


def test_random_is_asked_among_the_actions_seen_and_needs_bounds_for_others():
    log = icrl.collect("CartPole-v1", "random", 40, seed=0)
    asked, (note,) = asked_policy("random", log)
    assert asked is not None
    assert "Discrete(2)" in note
    with pytest.raises(ValueError, match="policy 'random' needs an action space"):
        asked_policy("random", room_log(BOX))
    asked, notes = asked_policy(as_policy("random", BOX), room_log(BOX))
    assert asked is not None
    assert (asked.action_space, notes) == (BOX, ())


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda observations: np.full((len(observations), 2), np.nan), r"must return finite actions, got nan at index"),
        (lambda observations: np.zeros((len(observations), 3)), r"policy .* must return actions of shape .*, got"),
        (lambda observations: np.zeros((len(observations) + 1, 2)), r"policy .* must return actions of shape .*, got"),
        (lambda observations: 1 / 0, r"policy .* raised ZeroDivisionError when asked for actions"),
        (np.ones((2, 3)) / 3, "a table needs Discrete observations"),
    ],
    ids=["NaN", "shape", "rows", "raises", "table"],
)
def test_a_policy_that_fails_at_states_of_the_log_is_named(policy, message):
    with pytest.raises(ValueError, match=message):
        asked_policy(policy, room_log(BOX, 20).with_importance_ratios(None, None))


def test_a_policy_of_another_environment_is_refused():
    model = MODELS["PPO discrete"]()
    with pytest.raises(ValueError, match=r"policy: its observation space .* does not fit"):
        asked_policy(model, icrl.collect("CartPole-v1", "random", 20))
    with pytest.raises(ValueError, match=r"policy: its action space Discrete\(3\) does not hold .*actions\[\d+\] = 3"):
        asked_policy(model, room_log(spaces.Discrete(4)))
    with pytest.raises(ValueError, match=r"policy: its action space Discrete\(3\) is not that of the log"):
        asked_policy(model, room_log(BOX))
    wide = room_log(spaces.Box(-9, 9, (2,)))
    with pytest.raises(ValueError, match=r"policy: its action space Box.* does not hold the log's actions"):
        asked_policy(MODELS["TD3"](), wide)
    with pytest.raises(TypeError, match=r"policy must be 'random', an .* got int"):
        asked_policy(3, wide)


def test_ratios_of_another_policy_are_refused():
    log = icrl.collect("CartPole-v1", "random", 20).with_importance_ratios(np.ones(20), "another")
    with pytest.raises(ValueError, match="policy is 'random', but the log's ratios are those of 'another'"):
        asked_policy("random", log)


def test_noise_that_does_not_fit_is_refused():
    asked = AskedPolicy(as_policy("random", BOX))
    with pytest.raises(ValueError, match=r"noise_BU must have shape \(3, 2\), got \(3, 1\)"):
        asked.actions(STATES[:3], np.full((3, 1), 0.5))
    with pytest.raises(ValueError, match=r"noise_BU must lie in \(0, 1\)"):
        asked.actions(STATES[:3], np.ones((3, 2)))
    assert asked.actions(STATES[:0], np.zeros((0, 2))).shape == (0, 2)


def test_ones_own_adapter_is_asked_by_what_it_states():
    class Own(ActingPolicy):
        identity = "own"
        action_space = spaces.Discrete(2, start=1)

        def act(self, observations):
            raise NotImplementedError

        def action_probabilities(self, observations):
            return np.tile([0.25, 0.75], (len(observations), 1))

    asked = AskedPolicy(Own())
    assert asked.actions(np.zeros((2, 1)), np.array([[0.2], [0.3]])).tolist() == [1, 2]
