"""What SB3's critics say, against their own networks read by hand."""

import io
import json
import zipfile

import gymnasium
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces

from icrl_gym.acting.demo_policy import DEMO_CARD, export_demo_policy, load_demo_policy
from icrl_gym.acting.policies import as_policy
from icrl_gym.acting.sb3_models import ALGORITHMS, load_sb3_model
from icrl_gym.ground_truth.values import monte_carlo_values, query_histories
from icrl_gym.rivals.critics import recurrent_critic_states, sb3_action_values, sb3_critic_values

ON_POLICY = {"n_steps": 32}
OFF_POLICY = {"learning_starts": 20, "batch_size": 16, "buffer_size": 500, "policy_kwargs": {"net_arch": [16, 16]}}
OPTIONS = {
    "PPO": {**ON_POLICY, "batch_size": 32, "n_epochs": 2},
    "A2C": ON_POLICY,
    "TRPO": {**ON_POLICY, "batch_size": 32},
    "RecurrentPPO": {**ON_POLICY, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"lstm_hidden_size": 8}},
    "ARS": {"n_delta": 1},
}
CARTPOLE = np.random.default_rng(0).normal(0, 0.5, (7, 4)).astype(np.float32)
PENDULUM = np.random.default_rng(1).uniform(-1, 1, (7, 3)).astype(np.float32)
_MODELS = {}


class Masked(gymnasium.Wrapper):
    def action_masks(self):
        return np.ones(2, dtype=bool)


def trained(name):
    """A model that has seen some 64 steps (made once)."""
    if name not in _MODELS:
        env = "Pendulum-v1" if name in ("SAC", "TD3", "DDPG", "TQC", "CrossQ") else "CartPole-v1"
        env = Masked(gymnasium.make(env)) if name == "MaskablePPO" else env
        options = OPTIONS.get(name, OPTIONS["PPO"] if name == "MaskablePPO" else OFF_POLICY)
        kind = getattr({"stable_baselines3": stable_baselines3, "sb3_contrib": sb3_contrib}[ALGORITHMS[name]], name)
        network = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
        model = kind(network, env, gamma=0.97, seed=0, device="cpu", **json.loads(json.dumps(options))) if (
            name != "ARS") else kind("LinearPolicy", env, seed=0, device="cpu", **options)  # fmt: skip
        _MODELS[name] = model.learn(64)
        model.policy.set_training_mode(False)
    return _MODELS[name]


def tensor(array):
    return torch.as_tensor(array)


@pytest.mark.parametrize("name", ["PPO", "A2C", "TRPO", "MaskablePPO"])
def test_v_heads_are_read_directly(name):
    model = trained(name)
    critic = sb3_critic_values(model, CARTPOLE)
    with torch.no_grad():
        expected = model.policy.predict_values(tensor(CARTPOLE))[:, 0].numpy()
    np.testing.assert_array_equal(critic.values, expected.astype(np.float64))
    assert critic.values.dtype == np.float64
    assert critic.values.std() > 0
    assert critic.stderr is None


def lstm_states(batch, seed=0):
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(size=(1, batch, 8)).astype(np.float32) for _ in range(2))


def test_recurrent_v_heads_need_and_use_their_state():
    model = trained("RecurrentPPO")
    states, starts = lstm_states(7), np.array([True, False, False, True, False, False, False])
    critic = sb3_critic_values(model, CARTPOLE, states, starts)
    with torch.no_grad():
        expected = model.policy.predict_values(
            tensor(CARTPOLE), tuple(map(tensor, states)), tensor(starts.astype(np.float32))
        )
    np.testing.assert_array_equal(critic.values, expected[:, 0].double().numpy())
    forgotten = sb3_critic_values(model, CARTPOLE, lstm_states(7, seed=1), starts)
    np.testing.assert_array_equal(critic.values == forgotten.values, starts)  # a start forgets what came before
    both = sb3_contrib.common.recurrent.type_aliases.RNNStates(pi=lstm_states(7, seed=2), vf=states)
    np.testing.assert_array_equal(sb3_critic_values(model, CARTPOLE, both, starts).values, critic.values)


def test_one_state_and_many_observations_are_a_sequence():
    model = trained("RecurrentPPO")
    states, starts = tuple(np.zeros((1, 1, 8), np.float32) for _ in range(2)), np.arange(7) == 4
    sequence = sb3_critic_values(model, CARTPOLE, states, starts)
    critic, singly = model.policy.lstm_critic, []
    memory = tuple(map(tensor, states))
    with torch.no_grad():
        for observation, start in zip(CARTPOLE, starts, strict=True):
            memory = tuple(part * (1.0 - start) for part in memory)
            out, memory = critic(tensor(observation[None, None]), memory)
            singly.append(model.policy.value_net(model.policy.mlp_extractor.forward_critic(out[0])).item())
    np.testing.assert_allclose(sequence.values, singly, rtol=1e-5)


def test_the_critics_state_at_monte_carlo_queries_comes_from_their_histories():
    model = trained("RecurrentPPO")
    options = {"num_queries": 6, "seed": 4}
    truth = monte_carlo_values("CartPole-v1", model, num_rollouts=2, gamma=0.97, **options)
    histories = query_histories("CartPole-v1", model, **options)
    np.testing.assert_array_equal([history[-1] for history in histories], truth.observations)
    states = recurrent_critic_states(model, histories)
    assert states[0].shape == states[1].shape == (1, 6, 8)
    critic = sb3_critic_values(model, truth.observations, states, np.zeros(6))
    zero = tuple(np.zeros((1, 1, 8), np.float32) for _ in range(2))
    whole = [sb3_critic_values(model, history, zero, np.arange(len(history)) == 0).values[-1] for history in histories]
    np.testing.assert_allclose(critic.values, whole, rtol=1e-5)
    critic.estimand.check_matches(truth.estimand)
    forgetful = sb3_critic_values(model, truth.observations, states, np.ones(6))
    assert np.abs(forgetful.values - critic.values).max() > 1e-4
    with pytest.raises(ValueError, match="PPO is not recurrent"):
        recurrent_critic_states(trained("PPO"), histories)
    with pytest.raises(ValueError, match="is not recurrent: its values depend on no history"):
        query_histories("CartPole-v1", "random")


@pytest.mark.parametrize("deterministic", [False, True])
def test_discrete_q_heads_give_the_expectation_over_the_policys_actions(deterministic):
    model = trained("DQN")
    model.exploration_rate = 0.2
    with torch.no_grad():
        q = model.q_net(tensor(CARTPOLE)).double().numpy()
    greedy = q.max(axis=1)
    expected = greedy if deterministic else 0.8 * greedy + 0.2 * q.mean(axis=1)
    np.testing.assert_allclose(
        sb3_critic_values(model, CARTPOLE, deterministic=deterministic).values, expected, rtol=1e-6
    )
    assert (greedy > q.mean(axis=1) + 1e-4).all()


def test_quantiles_are_averaged():
    model = trained("QRDQN")
    model.exploration_rate = 0.0
    with torch.no_grad():
        q = model.quantile_net(tensor(CARTPOLE)).numpy().mean(axis=1)
    np.testing.assert_allclose(sb3_critic_values(model, CARTPOLE).values, q.max(axis=1), rtol=1e-5)


@pytest.mark.parametrize("name", ["TD3", "DDPG"])
def test_deterministic_actors_are_asked_once_and_the_lower_head_is_believed(name):
    model = trained(name)
    with torch.no_grad():
        heads = model.critic(tensor(PENDULUM), model.actor(tensor(PENDULUM)))
    assert len(heads) == {"TD3": 2, "DDPG": 1}[name]
    expected = np.min([head[:, 0].numpy() for head in heads], axis=0)
    critic = sb3_critic_values(model, PENDULUM)
    np.testing.assert_allclose(critic.values, expected, rtol=1e-4, atol=1e-5)
    assert critic.notes[0] == {"TD3": "minimum of 2 Q heads", "DDPG": "one Q head"}[name]


@pytest.mark.parametrize("name", ["SAC", "CrossQ", "TQC"])
def test_stochastic_actors_are_averaged_over(name):
    model = trained(name)
    torch.manual_seed(0)
    draws = []
    with torch.no_grad():
        for _ in range(400):
            heads = model.critic(tensor(PENDULUM), model.actor(tensor(PENDULUM)))
            draws.append(joined_by_hand(model, heads))
    expected, stderr = np.mean(draws, axis=0), np.std(draws, axis=0) / np.sqrt(200)  # of the difference of two means
    critic = sb3_critic_values(model, PENDULUM, num_action_samples=400)
    assert (np.abs(critic.values - expected) < 5 * stderr).all()  # false alarm below 1e-5
    assert not np.allclose(critic.values, sb3_critic_values(model, PENDULUM, num_action_samples=1).values, rtol=1e-6)
    assert any("entropy" in note for note in critic.notes)


def joined_by_hand(model, heads):
    if not isinstance(model, sb3_contrib.TQC):
        return np.min([head[:, 0].numpy() for head in heads], axis=0)
    dropped = 2 * model.top_quantiles_to_drop_per_net
    return np.array([np.mean(sorted(row.ravel())[:-dropped]) for row in heads.numpy()])


@pytest.mark.parametrize("name", ["DQN", "QRDQN"])
def test_actions_that_were_taken_have_their_own_entry_of_the_q_network(name):
    model, actions = trained(name), np.array([0, 1, 1, 0, 1, 0, 0])
    with torch.no_grad():
        every = model.policy.q_net(tensor(CARTPOLE)) if name == "DQN" else (
            model.policy.quantile_net(tensor(CARTPOLE)).mean(dim=1))  # fmt: skip
    values = sb3_action_values(model, CARTPOLE, actions)
    np.testing.assert_allclose(values.values, every.numpy()[np.arange(7), actions], rtol=1e-6)
    assert values.estimand.env == "CartPole-v1 (state-action pairs)"


@pytest.mark.parametrize("name", ["TD3", "SAC", "TQC"])
def test_actions_of_the_environment_are_scaled_as_the_q_network_knows_them(name):
    model, actions = trained(name), np.linspace(-2, 2, 7, dtype=np.float32)[:, None]
    with torch.no_grad():
        by_hand = joined_by_hand(model, model.policy.critic(tensor(PENDULUM), tensor(actions / 2)))
    np.testing.assert_allclose(sb3_action_values(model, PENDULUM, actions).values, by_hand, rtol=1e-5)


def test_action_values_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="PPO has no Q critic"):
        sb3_action_values(trained("PPO"), CARTPOLE, np.zeros(7, int))
    with pytest.raises(ValueError, match=r"as many as observations \(7\), got 2"):
        sb3_action_values(trained("DQN"), CARTPOLE, np.zeros(2, int))
    with pytest.raises(TypeError, match="must be a Stable-Baselines3 model"):
        sb3_action_values(3, CARTPOLE, np.zeros(7, int))


def test_a_deterministic_sac_is_read_at_its_mode():
    model = trained("SAC")
    with torch.no_grad():
        heads = model.critic(tensor(PENDULUM), model.actor(tensor(PENDULUM), deterministic=True))
    expected = np.min([head[:, 0].numpy() for head in heads], axis=0)
    critic = sb3_critic_values(model, PENDULUM, deterministic=True)
    np.testing.assert_allclose(critic.values, expected, rtol=1e-4, atol=1e-5)
    assert critic.estimand.policy.endswith("(deterministic)")


def test_reading_a_critic_is_repeatable_and_leaves_the_global_randomness_alone():
    model = trained("SAC")
    before = torch.get_rng_state()
    first = sb3_critic_values(model, PENDULUM, seed=3).values
    torch.testing.assert_close(torch.get_rng_state(), before)
    np.testing.assert_array_equal(sb3_critic_values(model, PENDULUM, seed=3).values, first)
    assert (sb3_critic_values(model, PENDULUM, seed=4).values != first).any()


def test_vec_normalize_is_applied_to_observations_and_undone_in_values():
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    normalised = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0), gamma=0.97)
    model = stable_baselines3.PPO("MlpPolicy", normalised, n_steps=64, batch_size=32, gamma=0.97, seed=0, device="cpu")
    model.learn(256)
    critic = sb3_critic_values(model, CARTPOLE)
    moments = normalised.obs_rms
    by_hand = ((CARTPOLE - moments.mean) / np.sqrt(moments.var + 1e-8)).clip(-10, 10).astype(np.float32)
    with torch.no_grad():
        inner = model.policy.predict_values(tensor(by_hand))[:, 0].numpy()
    np.testing.assert_allclose(critic.values, inner * np.sqrt(normalised.ret_rms.var + 1e-8), rtol=1e-5)
    assert not np.allclose(critic.values, inner, rtol=0.1)
    assert any("VecNormalize" in note for note in critic.notes)
    assert critic.estimand.env == "CartPole-v1"


class Pictures(gymnasium.Env):
    observation_space, action_space = spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def test_images_are_taken_with_their_channels_last_as_the_environment_shows_them():
    network = {"normalize_images": False}
    model = stable_baselines3.PPO(
        "MlpPolicy", Pictures(), seed=0, device="cpu", n_steps=8, batch_size=8, policy_kwargs=network
    )
    seen = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model.policy.predict_values(tensor(seen.transpose(0, 3, 1, 2).copy()).float())[:, 0]
    np.testing.assert_allclose(sb3_critic_values(model, seen).values, expected.double().numpy(), rtol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_critic_and_truth_speak_of_the_same_quantity(deterministic):
    model = trained("PPO")
    truth = monte_carlo_values(
        "CartPole-v1", model, num_queries=3, num_rollouts=2, gamma=0.97, deterministic=deterministic
    )
    critic = sb3_critic_values(model, truth.observations, deterministic=deterministic)
    critic.estimand.check_matches(truth.estimand)  # a warning about an unknown side would be an error here
    other = sb3_critic_values(model, truth.observations, deterministic=not deterministic)
    with pytest.raises(ValueError, match="differ in policy"):
        other.estimand.check_matches(truth.estimand)


@pytest.mark.parametrize("name", ["PPO", "DQN", "SAC", "TQC"])
def test_a_loaded_model_says_the_same(name, tmp_path):
    model = trained(name)
    model.save(tmp_path / "model.zip")
    loaded = load_sb3_model(tmp_path / "model.zip", trust=True)
    observations = PENDULUM if name in ("SAC", "TQC") else CARTPOLE
    critic = sb3_critic_values(model, observations)
    again = sb3_critic_values(loaded, observations, env=critic.estimand.env)
    np.testing.assert_array_equal(again.values, critic.values)
    assert again.estimand == critic.estimand
    assert sb3_critic_values(loaded, observations).estimand.env is None


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "ARS"])
def test_the_algorithm_of_a_file_is_told_without_being_told(name, tmp_path):
    trained(name).save(tmp_path / "model.zip")
    assert type(load_sb3_model(tmp_path / "model", trust=True)).__name__ == name
    (tmp_path / "model.json").write_text(json.dumps({"algorithm": name}))
    assert type(load_sb3_model(str(tmp_path / "model.zip"), trust=True)).__name__ == name


def test_files_are_refused_with_the_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.zip: no such file"):
        load_sb3_model(tmp_path / "absent.zip", trust=True)
    trained("PPO").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="pickles, which run code when loaded; pass trust=True"):
        load_sb3_model(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="algorithm must be one of A2C"):
        load_sb3_model(tmp_path / "model.zip", algo="PPPO", trust=True)
    with pytest.raises(ValueError, match="cannot be loaded as SAC"):
        load_sb3_model(tmp_path / "model.zip", algo="sac", trust=True)
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data", "[1, 2]")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme", "hello")
    for name in ("text", "other", "empty"):
        with pytest.raises(ValueError, match=f"{name}.zip: not a Stable-Baselines3 model zip") as caught:
            load_sb3_model(tmp_path / f"{name}.zip", trust=True)
        assert "\n" not in str(caught.value)


def test_an_untrusted_file_is_never_unpickled(tmp_path):
    buffer = io.BytesIO()
    trained("PPO").save(buffer)
    with zipfile.ZipFile(buffer) as archive:
        settings = json.loads(archive.read("data"))
    settings["policy_class"][":serialized:"] = "bm90IGEgcGlja2xl"  # would fail if it were read
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data", json.dumps(settings))
    with pytest.raises(ValueError, match="pass trust=True"):
        load_sb3_model(tmp_path / "model.zip")


def test_models_and_arguments_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="must be a Stable-Baselines3 model, got str"):
        sb3_critic_values("model", CARTPOLE)
    with pytest.raises(ValueError, match="ARS has no critic"):
        sb3_critic_values(trained("ARS"), CARTPOLE)
    with pytest.raises(ValueError, match="RecurrentPPO needs states and episode_starts"):
        sb3_critic_values(trained("RecurrentPPO"), CARTPOLE)
    with pytest.raises(ValueError, match="PPO takes neither states nor episode_starts"):
        sb3_critic_values(trained("PPO"), CARTPOLE, lstm_states(7), np.zeros(7))
    with pytest.raises(ValueError, match=r"episode_starts must have shape \(7,\), got \(3,\)"):
        sb3_critic_values(trained("RecurrentPPO"), CARTPOLE, lstm_states(7), np.zeros(3))
    with pytest.raises(ValueError, match=r"observations must have shape \(B, 4\)"):
        sb3_critic_values(trained("PPO"), PENDULUM)
    bad = CARTPOLE.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"observations\[2, 1\] is nan"):
        sb3_critic_values(trained("PPO"), bad)


def test_the_demo_policy_is_the_one_on_its_card_and_leaves_the_randomness_alone():
    before = torch.get_rng_state()
    model = load_demo_policy()
    torch.testing.assert_close(torch.get_rng_state(), before)
    card = json.loads(DEMO_CARD.read_text())
    shapes = {name: list(part.shape) for name, part in model.policy.state_dict().items()}
    assert shapes == card["architecture"]
    assert (model.gamma, card["env"], model.num_timesteps) == (0.99, "CartPole-v1", card["num_steps_taken"])
    env = gymnasium.make("CartPole-v1")
    policy = as_policy(model, env.action_space, env.observation_space, seed=0)
    returns = []
    for episode in range(20):
        observation, _ = env.reset(seed=episode)
        total = 0.0
        while True:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation[None])[0])
            total += reward
            if terminated or truncated:
                break
        returns.append(total)
    stderr = np.hypot(np.std(returns, ddof=1) / np.sqrt(20), card["stderr_return"])
    assert abs(np.mean(returns) - card["mean_return"]) < 4 * stderr  # false alarm 1e-4; a new network gets 25 or so


def test_an_exported_policy_is_the_original_bit_by_bit(tmp_path):
    from icrl_gym.rivals.critic_training import train
    from icrl_gym.rivals.recipes import Recipe

    recipe = Recipe("CartPole-v1", "PPO", (64,), num_envs=1, gamma=0.9, options={"n_steps": 32, "batch_size": 32})
    (snapshot,) = train(recipe, 0, tmp_path, num_evaluation_episodes=2)
    card = export_demo_policy(snapshot.path, tmp_path / "demo.json", command="test")
    rebuilt, original = load_demo_policy(tmp_path / "demo.json"), load_sb3_model(snapshot.path, trust=True)
    assert card["gamma"] == rebuilt.gamma == 0.9
    values = [sb3_critic_values(model, CARTPOLE, env="CartPole-v1") for model in (rebuilt, original)]
    assert values[0].values.tobytes() == values[1].values.tobytes()
    assert values[0].estimand == values[1].estimand
    for model in (rebuilt, original):
        torch.manual_seed(5)
        model.drawn = [model.predict(CARTPOLE)[0].tolist() for _ in range(5)]
    assert rebuilt.drawn == original.drawn
    weights = (tmp_path / "demo.safetensors").read_bytes()
    (tmp_path / "demo.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ValueError, match="do not have the sha256"):
        load_demo_policy(tmp_path / "demo.json")
    (tmp_path / "demo.json").write_text(json.dumps({**card, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version must be 1, got 99"):
        load_demo_policy(tmp_path / "demo.json")
