"""Policies of every kind behind one face: actions, probabilities, identities, randomness that is theirs alone."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from icrl_gym.acting.demo_policy import DEMO_CARD
from icrl_gym.acting.environments import environment_spec
from icrl_gym.acting.policies import as_policy
from icrl_gym.acting.policy_source import PolicySource, find_policy

CARTPOLE = gymnasium.make("CartPole-v1")
PENDULUM = gymnasium.make("Pendulum-v1")
STATES = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
ANGLES = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def small() -> dict:
    """Arguments of a small model; new ones each time, because some algorithms write into them."""
    return {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}


def cartpole_policy(model, **options):
    return as_policy(model, CARTPOLE.action_space, CARTPOLE.observation_space, **options)


def stated_by(model, inputs: np.ndarray) -> np.ndarray:
    """Probabilities of a model's own distribution (an object that it reuses) for inputs as it wants them."""
    with torch.no_grad():
        return model.policy.get_distribution(torch.as_tensor(inputs)).distribution.probs.numpy().copy()


def frequencies(policy, observations, num_actions: int, repeats: int) -> np.ndarray:
    counts = np.zeros((len(observations), num_actions))
    for _ in range(repeats):
        counts[np.arange(len(observations)), policy.act(observations)] += 1
    return counts / repeats


@pytest.fixture(scope="module")
def ppo() -> PPO:
    return PPO("MlpPolicy", CARTPOLE, n_steps=8, batch_size=8, **small())


@pytest.fixture(scope="module")
def dqn() -> DQN:
    model = DQN("MlpPolicy", CARTPOLE, **small())
    model.exploration_rate = 0.3
    return model


# --- "random" -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=5),
        spaces.Box(-2.0, 1.0, (2, 3), np.float32),
        spaces.Box(-np.inf, np.inf, (2,), np.float64),
        spaces.MultiDiscrete([2, 5]),
        spaces.MultiBinary(4),
    ],
)
def test_random_actions_lie_in_every_space_and_follow_the_seed(space):
    first, again, other = (as_policy("random", space, seed=seed) for seed in (1, 1, 2))
    draws = [[policy.act(np.zeros((size, 4))) for size in (7, 3, 7)] for policy in (first, again, other)]
    assert draws[0][0].shape == (7, *space.shape)
    assert all(space.contains(action) for batch in draws[0] for action in batch)
    assert all(np.array_equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert not np.array_equal(draws[0][0], draws[0][2])
    assert first.identity == "random"


def test_random_covers_the_actions_and_says_so():
    policy = as_policy("random", spaces.Discrete(4), seed=0)
    counts = np.bincount(policy.act(np.zeros(4000)), minlength=4)
    assert np.abs(counts / 4000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)  # false alarms below 3e-6
    assert np.array_equal(policy.action_probabilities(np.zeros((2, 3))), np.full((2, 4), 0.25))


def test_the_policys_draws_are_not_those_of_an_environment_with_the_same_seed():
    fine = as_policy(np.full((1, 1000), 0.001), spaces.Discrete(1000), spaces.Discrete(1), seed=3)
    uniform = fine.act(np.zeros(50, int)) / 1000
    assert np.abs(uniform - np.random.default_rng(3).random(50)).max() > 0.1


def test_random_continuous_actions_have_no_probabilities_and_no_mode():
    with pytest.raises(ValueError, match="needs a Discrete action space"):
        as_policy("random", PENDULUM.action_space).action_probabilities(ANGLES)
    with pytest.raises(ValueError, match="deterministic"):
        as_policy("random", spaces.Discrete(2), deterministic=True)


# --- tables and probability objects ---------------------------------------------------------------------------------

TABLE = np.array([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])


def test_a_table_acts_by_its_rows():
    states = np.array([0, 1, 2, 2])
    policy = as_policy(TABLE, spaces.Discrete(3), spaces.Discrete(3), seed=0)
    assert np.array_equal(policy.action_probabilities(states), TABLE[states])
    measured = frequencies(policy, states, 3, 2000)
    assert np.abs(measured - TABLE[states]).max() < 0.06  # over 5 standard errors
    assert (measured[TABLE[states] == 0] == 0).all()


def test_a_table_counts_from_the_first_id_of_both_spaces():
    policy = as_policy(np.eye(3)[[2, 0, 1]], spaces.Discrete(3, start=10), spaces.Discrete(3, start=4), seed=0)
    assert policy.act(np.array([4, 5, 6])).tolist() == [12, 10, 11]


def test_a_deterministic_table_takes_the_likeliest_action():
    policy = as_policy(TABLE, spaces.Discrete(3), spaces.Discrete(3), deterministic=True)
    assert policy.act(np.array([0, 1, 2])).tolist() == [1, 0, 0]
    assert np.array_equal(policy.action_probabilities(np.array([0, 2])), [[0, 1, 0], [1, 0, 0]])


def test_tables_are_known_by_their_content():
    names = [
        as_policy(table, spaces.Discrete(3), spaces.Discrete(3), deterministic=greedy).identity
        for table, greedy in ((TABLE, False), (TABLE.tolist(), False), (TABLE[::-1], False), (TABLE, True))
    ]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("table:")
    assert names[3] == f"{names[0]} (deterministic)"


@pytest.mark.parametrize(
    ("table", "actions", "observations", "message"),
    [
        (TABLE, spaces.Discrete(4), spaces.Discrete(3), "the table has 3 actions"),
        (TABLE, spaces.Discrete(3), spaces.Discrete(5), r"must have shape \(5, 3\), got \(3, 3\)"),
        (TABLE, spaces.Discrete(3), CARTPOLE.observation_space, "needs Discrete observations"),
        (TABLE, PENDULUM.action_space, spaces.Discrete(3), "needs a Discrete action space"),
        (TABLE * 2, spaces.Discrete(3), spaces.Discrete(3), "sum to 1 in each row; row 0"),
        (TABLE * np.nan, spaces.Discrete(3), spaces.Discrete(3), "sum to 1 in each row; row 0"),
        ([[1.0], [1.5]], spaces.Discrete(1), spaces.Discrete(2), "row 1"),
        ([[1.5, -0.5]], spaces.Discrete(2), spaces.Discrete(1), "row 0"),
        ([0.5, 0.5], spaces.Discrete(2), spaces.Discrete(1), r"must have shape \(S, A\)"),
    ],
)
def test_tables_that_do_not_fit_are_refused(table, actions, observations, message):
    with pytest.raises(ValueError, match=message):
        as_policy(table, actions, observations)


class LeansRight:
    """Goes right with probability sigmoid(angle)."""

    def action_probabilities(self, observations):
        right = 1 / (1 + np.exp(-observations[:, 2]))
        return np.stack([1 - right, right], axis=1)


def test_probability_objects_act_as_they_say():
    policy = cartpole_policy(LeansRight(), seed=0)
    assert np.abs(frequencies(policy, STATES, 2, 2000) - policy.action_probabilities(STATES)).max() < 0.06
    assert policy.identity == "test_policies.LeansRight"
    greedy = cartpole_policy(LeansRight(), deterministic=True)
    assert greedy.act(STATES).tolist() == (STATES[:, 2] > 0).astype(int).tolist()


def test_probability_objects_are_held_to_their_word():
    class Broken:
        def action_probabilities(self, observations):
            return np.full((len(observations), 2), 0.4)

    with pytest.raises(ValueError, match="sum to 1"):
        cartpole_policy(Broken()).act(STATES)


# --- callables ------------------------------------------------------------------------------------------------------


def push_right(observations):
    return np.ones(len(observations), dtype=int)


class Pusher:
    identity = "pusher-3"

    def __call__(self, observations):
        return push_right(observations)


def test_callables_see_the_batch_and_are_named():
    assert cartpole_policy(push_right).act(STATES).tolist() == [1] * 6
    assert cartpole_policy(push_right).identity == "test_policies.push_right"
    assert cartpole_policy(Pusher()).identity == "pusher-3"
    assert cartpole_policy(functools.partial(push_right, 3)).identity == "test_policies.push_right((3,), {})"
    assert cartpole_policy(functools.partial(push_right, Pusher())).identity == "test_policies.push_right"
    assert "deterministic" not in cartpole_policy(push_right, deterministic=True).identity


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda observations: 1, r"must return actions of shape \(6,\), got \(\)"),
        (lambda observations: np.ones((6, 1), int), r"must return actions of shape \(6,\), got \(6, 1\)"),
        (lambda observations: np.full(6, 2), r"must return actions in Discrete\(2\)"),
        (lambda observations: np.full(6, -1), r"must return actions in Discrete\(2\)"),
        (lambda observations: np.full(6, 0.5), r"must return actions in Discrete\(2\)"),
    ],
)
def test_callables_that_return_no_batch_of_actions_are_told(function, message):
    with pytest.raises(ValueError, match=message):
        cartpole_policy(function).act(STATES)


def test_what_is_no_policy_is_refused():
    with pytest.raises(TypeError, match=r"policy must be 'random'.*got int"):
        cartpole_policy(3)
    with pytest.raises(ValueError, match="only policy known by name is 'random', got 'greedy'"):
        cartpole_policy("greedy")
    with pytest.raises(ValueError, match="cannot give action probabilities"):
        cartpole_policy(push_right).action_probabilities(STATES)
    acting = cartpole_policy(push_right)
    assert cartpole_policy(acting) is acting


# --- Stable-Baselines3 models ---------------------------------------------------------------------------------------


def test_a_model_acts_like_its_own_predict_under_the_same_torch_seed(ppo):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = [ppo.predict(STATES)[0] for _ in range(8)]
    policy = cartpole_policy(ppo, seed=5)
    assert np.array_equal([policy.act(STATES) for _ in range(8)], expected)
    assert len(np.unique(expected, axis=0)) > 1


@pytest.mark.parametrize("seed", [5, np.int64(5)])
def test_torchs_global_generator_is_neither_read_nor_moved(ppo, seed):
    policies = [cartpole_policy(ppo, seed=seed) for _ in range(2)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [policies[0].act(STATES) for _ in range(8)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert np.array_equal(first, [policies[1].act(STATES) for _ in range(8)])


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO])
def test_categorical_models_act_with_the_probabilities_that_they_state(algorithm):
    model = algorithm("MlpPolicy", CARTPOLE, **small())
    with torch.no_grad():
        model.policy.action_net.weight.mul_(200)  # an untrained policy is nearly uniform: any mistake would pass
    policy = cartpole_policy(model, seed=0)
    stated = policy.action_probabilities(STATES)
    assert np.abs(stated - 0.5).max() > 0.1
    assert np.abs(stated.sum(axis=1) - 1).max() < 1e-12
    assert np.abs(frequencies(policy, STATES, 2, 1500) - stated).max() < 0.07  # over 5 standard errors
    with torch.no_grad():
        tensor = torch.as_tensor(STATES)
        log_probabilities = [model.policy.evaluate_actions(tensor, torch.full((6,), a))[1] for a in (0, 1)]
    assert np.allclose(stated, torch.stack(log_probabilities, 1).exp().numpy(), atol=1e-6)


def test_a_deterministic_model_puts_everything_on_one_action_and_says_so(ppo):
    policy = cartpole_policy(ppo, deterministic=True)
    actions = ppo.predict(STATES, deterministic=True)[0]
    assert np.array_equal(policy.act(STATES), actions)
    assert np.array_equal(policy.action_probabilities(STATES), np.eye(2)[actions])
    assert policy.identity == f"{cartpole_policy(ppo).identity} (deterministic)"


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_epsilon_greedy_models_explore_row_by_row(algorithm):
    model = algorithm("MlpPolicy", CARTPOLE, **small())
    model.exploration_rate = 0.4
    policy = cartpole_policy(model, seed=0)
    greedy = model.predict(STATES, deterministic=True)[0]
    assert np.allclose(policy.action_probabilities(STATES), 0.6 * np.eye(2)[greedy] + 0.2)
    drawn = np.array([policy.act(STATES) for _ in range(1500)])
    explored = drawn != greedy
    assert np.abs(explored.mean(axis=0) - 0.2).max() < 0.055  # over 5 standard errors
    assert np.abs(np.corrcoef(explored[:, 0], explored[:, 1])[0, 1]) < 0.13  # one coin for the batch would give 0.375


def test_epsilon_greedy_models_leave_numpys_global_generator_alone(dqn):
    np.random.seed(0)  # noqa: NPY002 - the global generator is what this test watches
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = [cartpole_policy(dqn, seed=4).act(STATES) for _ in range(2)]
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert np.array_equal(first[0], first[1])


def test_a_deterministic_dqn_is_greedy(dqn):
    policy = cartpole_policy(dqn, deterministic=True, seed=0)
    greedy = dqn.predict(STATES, deterministic=True)[0]
    assert all(np.array_equal(policy.act(STATES), greedy) for _ in range(20))
    assert np.array_equal(policy.action_probabilities(STATES), np.eye(2)[greedy])


@pytest.mark.parametrize("algorithm", [SAC, TD3, PPO])
def test_continuous_models_stay_within_the_action_space(algorithm):
    model = algorithm("MlpPolicy", PENDULUM, **small())
    policy = as_policy(model, PENDULUM.action_space, PENDULUM.observation_space, seed=0)
    actions = policy.act(ANGLES)
    assert actions.shape == (6, 1)
    assert all(PENDULUM.action_space.contains(action) for action in actions)
    with pytest.raises(ValueError, match=r"Discrete|probabilities"):
        policy.action_probabilities(ANGLES)


def test_state_dependent_exploration_draws_fresh_noise_and_puts_the_models_back():
    model = PPO("MlpPolicy", PENDULUM, use_sde=True, **small())
    held = model.policy.action_dist.exploration_mat.clone()
    policy = as_policy(model, PENDULUM.action_space, PENDULUM.observation_space, seed=0)
    same_state = np.repeat(ANGLES[:1], 6, axis=0)
    draws = np.array([policy.act(same_state) for _ in range(3)])
    assert len(np.unique(draws)) == draws.size
    assert torch.equal(model.policy.action_dist.exploration_mat, held)
    again = as_policy(model, PENDULUM.action_space, PENDULUM.observation_space, seed=0)
    assert np.array_equal(draws, [again.act(same_state) for _ in range(3)])


def test_observations_reach_a_model_as_it_was_trained_on_them():
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    vector.obs_rms.mean, vector.obs_rms.var = np.array([3.0, -1.0, 0.5, 2.0]), np.array([4.0, 0.1, 9.0, 1.0])
    model = PPO("MlpPolicy", vector, **small())
    with torch.no_grad():
        model.policy.action_net.weight.mul_(200)
    expected, wrong = (stated_by(model, batch) for batch in (vector.normalize_obs(STATES), STATES))
    policy = cartpole_policy(model, seed=0)
    stated = policy.action_probabilities(STATES)
    assert np.allclose(stated, expected, atol=1e-6)
    assert not np.allclose(stated, wrong, atol=1e-2)
    assert np.abs(frequencies(policy, STATES, 2, 1500) - stated).max() < 0.07
    name = policy.identity
    vector.obs_rms.mean = np.zeros(4)
    assert cartpole_policy(model).identity != name


def test_identity_follows_parameters_and_exploration(ppo, dqn):
    name = cartpole_policy(ppo).identity
    assert name == cartpole_policy(ppo, seed=9).identity
    assert len(name) == len("PPO:") + 8
    with torch.no_grad():
        ppo.policy.value_net.bias.add_(1.0)
    assert cartpole_policy(ppo).identity != name
    greedier = cartpole_policy(dqn).identity
    dqn.exploration_rate = 0.1
    assert cartpole_policy(dqn).identity != greedier


def test_models_of_other_spaces_are_refused(ppo):
    with pytest.raises(ValueError, match=r"its action space Discrete\(2\) does not fit the environment's Box"):
        as_policy(ppo, PENDULUM.action_space, PENDULUM.observation_space)
    with pytest.raises(
        ValueError, match=r"its action space Discrete\(2\) does not fit the environment's Discrete\(3\)"
    ):
        as_policy(ppo, spaces.Discrete(3), CARTPOLE.observation_space)
    with pytest.raises(ValueError, match=r"its observation space Box.* does not fit the environment's Box"):
        as_policy(ppo, CARTPOLE.action_space, spaces.Box(-1.0, 1.0, (5,)))
    model = SAC("MlpPolicy", PENDULUM, **small())
    with pytest.raises(ValueError, match="does not fit"):
        as_policy(model, spaces.Box(-1.0, 1.0, (1,)), PENDULUM.observation_space)


class Pictures(gymnasium.Env):
    observation_space = spaces.Box(0, 255, (40, 36, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_pictures_are_taken_with_channels_last_as_the_environment_gives_them():
    env = Pictures()
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0)
    assert model.observation_space.shape == (3, 40, 36)
    batch = np.random.default_rng(0).integers(256, size=(4, 40, 36, 3)).astype(np.uint8)
    policy = as_policy(model, env.action_space, env.observation_space, deterministic=True)
    transposed = np.moveaxis(batch, -1, 1)
    assert np.array_equal(policy.act(batch), model.predict(transposed, deterministic=True)[0])
    stated = as_policy(model, env.action_space, env.observation_space).action_probabilities(batch)
    assert np.allclose(stated, stated_by(model, transposed), atol=1e-6)


def test_a_recurrent_model_carries_its_state_and_forgets_it_at_starts():
    model = RecurrentPPO("MlpLstmPolicy", CARTPOLE, policy_kwargs={"lstm_hidden_size": 8}, device="cpu", seed=0)
    policy = cartpole_policy(model, deterministic=True)
    assert policy.recurrent
    state, expected_state = policy.initial_state(6), None
    starts = np.ones(6, bool)
    for _ in range(4):
        actions, state = policy.act_recurrent(STATES, state, starts)
        expected, expected_state = model.predict(STATES, expected_state, starts, deterministic=True)
        assert np.array_equal(actions, expected)
        starts = np.zeros(6, bool)
    assert np.array_equal(state[0], expected_state[0])
    assert np.abs(state[0]).max() > 0
    restarted = policy.act_recurrent(STATES, state, np.array([True] + [False] * 5))[1]
    fresh = policy.act_recurrent(STATES, policy.initial_state(6), np.ones(6, bool))[1]
    assert np.allclose(restarted[0][:, 0], fresh[0][:, 0], atol=1e-6)
    assert not np.allclose(restarted[0][:, 1], fresh[0][:, 1], atol=1e-6)
    kept = policy.take_state(state, np.array([2, 4]))
    assert np.array_equal(kept[1], state[1][:, [2, 4]])
    with pytest.raises(ValueError, match="recurrent"):
        policy.act(STATES)
    with pytest.raises(ValueError, match="cannot give action probabilities"):
        policy.action_probabilities(STATES)


def test_policies_without_memory_answer_the_recurrent_call_too(ppo):
    policy = cartpole_policy(ppo, seed=1)
    actions, state = policy.act_recurrent(STATES, policy.initial_state(6), np.ones(6, bool))
    assert state is None
    assert np.array_equal(actions, cartpole_policy(ppo, seed=1).act(STATES))
    assert policy.take_state(state, slice(2)) is None
    assert not policy.recurrent


# --- found by name ----------------------------------------------------------------------------------------------------


def test_a_policy_found_by_name_tells_how_long_its_critic_was_trained(tmp_path):
    spec = environment_spec("CartPole-v1")
    shipped = find_policy("demo", spec)
    assert shipped.training_steps == json.loads(DEMO_CARD.read_text())["num_steps_taken"]
    assert shipped.critic_name == "PPO critic"
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").learn(24)
    model.save(tmp_path / "model.zip")
    loaded = find_policy(str(tmp_path / "model.zip"), spec, trust=True)
    assert loaded.training_steps == 24
    assert find_policy("random", spec).training_steps is None
    untrained = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert PolicySource(untrained, untrained).training_steps is None


def test_a_policy_is_found_where_it_plays():
    with pytest.raises(ValueError, match=r'policy "demo" plays CartPole-v1 only; for .Pendulum-v1. give --policy'):
        find_policy("demo", environment_spec("Pendulum-v1"))
    with pytest.raises(ValueError, match="vec_normalize belongs to a Stable-Baselines3 model file; policy is 'random'"):
        find_policy("random", environment_spec("CartPole-v1"), vec_normalize=Path("statistics.pkl"))
    with pytest.raises(ValueError, match=r"policy must be .* got 'nobody'"):
        find_policy("nobody", environment_spec("CartPole-v1"))
