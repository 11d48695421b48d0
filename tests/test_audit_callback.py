"""The critic audit inside real trainings: it changes nothing, logs what it says, and never stops a training."""

import csv
import json
import math
import warnings
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Image, KVWriter, Logger, configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import icrl_gym as icrl
from icrl_gym.audit.record import COLUMNS
from icrl_gym.audit.verdict import Call

contrib = pytest.importorskip("sb3_contrib")


class Remembering(KVWriter):
    """Keeps what a logger is given."""

    def __init__(self):
        self.written: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values, key_excluded, step=0):
        self.written.append((step, dict(key_values)))

    def close(self):
        """Nothing."""

    def of(self, name):
        return [(step, values[name]) for step, values in self.written if name in values]


class Pictures(gymnasium.Env):
    """Images of one bright pixel that walks; reward where it is."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 18
        return self._image(), {}

    def step(self, action):
        self.place += 2 * int(action) - 1
        return self._image(), self.place / 36, self.place in (0, 35), False, {}

    def action_masks(self):
        return [self.place > 10, True]

    def _image(self):
        image = np.zeros((36, 36, 1), np.uint8)
        image[self.place] = 255
        return image


class Zeros(gymnasium.Env):
    """One state, no reward, no end: all that an entropy critic can count is entropy."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Unreadable(gymnasium.Env):
    """Dict observations of which one part is no number to an evaluator; the model reads the other."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.full(2, np.nan, np.float32), 0.0, False, False, {}


def chain(seed=0, **options):
    return gymnasium.make("icrl_envs:icrl/BoyanChain-v0", mrp_seed=seed, **options)


def small(kind, env_id="CartPole-v1", count=1, **options):
    settings = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return kind("MlpPolicy", make_vec_env(env_id, count, seed=0), **(settings | options))


def noise():
    return NormalActionNoise(np.zeros(1), np.full(1, 0.1))


OFF_POLICY = {"learning_starts": 50, "train_freq": 4}
ON_POLICY = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
MODELS = {
    "PPO": partial(small, PPO, count=2, **ON_POLICY),
    "DQN": partial(small, DQN, **OFF_POLICY),
    "A2C": partial(small, A2C, count=2),
    "SAC": partial(small, SAC, "Pendulum-v1", **OFF_POLICY),
    "TD3": lambda: small(TD3, "Pendulum-v1", action_noise=noise(), **OFF_POLICY),
    "DDPG": partial(small, DDPG, "Pendulum-v1", **OFF_POLICY),
    "SAC with gSDE": partial(small, SAC, "Pendulum-v1", use_sde=True, **OFF_POLICY),
    "PPO with gSDE": partial(small, PPO, "Pendulum-v1", use_sde=True, **ON_POLICY),
    "TQC": partial(small, contrib.TQC, "Pendulum-v1", **OFF_POLICY),
    "CrossQ": partial(small, contrib.CrossQ, "Pendulum-v1", **OFF_POLICY),
    "QRDQN": partial(small, contrib.QRDQN, **OFF_POLICY),
    "TRPO": partial(small, contrib.TRPO, n_steps=64, batch_size=32),
    "RecurrentPPO": lambda: contrib.RecurrentPPO(
        "MlpLstmPolicy", make_vec_env("CartPole-v1", 2, seed=0), seed=0, device="cpu", **ON_POLICY,
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": [8]},
    ),
}  # fmt: skip
FAST = ("PPO", "DQN")


def learned(model, steps=700, **options):
    """The model after a training with an audit, or without where there are no options."""
    callback = icrl.CriticAuditCallback(**options) if options else None
    model.learn(steps, callback=callback)
    return model, callback


@pytest.mark.parametrize("name", [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in MODELS])
def test_the_same_seed_gives_the_same_weights_with_the_audit_and_without_it(name):
    plain, _ = learned(MODELS[name]())
    audited, callback = learned(MODELS[name](), every=300, window=128)
    assert len(callback.audits) == 2
    theirs = audited.policy.state_dict()
    for key, value in plain.policy.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    numbers = [value for audit in callback.audits for value in (audit.rmse, audit.bias, audit.returns_bias)]
    assert np.isfinite(numbers).all()


def test_the_global_generators_and_the_modes_of_modules_are_left_alone():
    model = MODELS["PPO"]()
    stream, states = [], []

    class Watching(icrl.CriticAuditCallback):
        def _audit(self, copied):
            model.policy.mlp_extractor.train()
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
            super()._audit(copied)
            after = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
            states.append(all(np.array_equal(one, two) for one, two in zip(before, after, strict=True)))
            stream.append(model.policy.mlp_extractor.training)

    model.learn(400, callback=Watching(every=300, window=128))
    assert (states, stream) == ([True], [True])


def test_an_audit_is_logged_under_its_tags_at_its_step():
    memory, model = Remembering(), MODELS["PPO"]()
    model.set_logger(Logger(None, [memory]))
    _, callback = learned(model, every=300, window=128)
    steps = [audit.step for audit in callback.audits]
    assert steps == [384, 768]
    for name in ("rmse", "bias", "returns_bias", "interval_width", "seconds", "alarm"):
        assert [step for step, _ in memory.of(f"audit/{name}")] == steps
    assert [text for _, text in memory.of("audit/verdict")] == [audit.verdict.sentence for audit in callback.audits]
    picture = memory.of("audit/values")[0][1]
    assert isinstance(picture, Image)
    assert picture.image.shape[2] == 3


@pytest.mark.slow
def test_every_format_of_the_logger_takes_an_audit(tmp_path, capsys):
    model = MODELS["PPO"]()
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json", "tensorboard"]))
    _, callback = learned(model, every=300, window=128)
    assert callback.audits[0].verdict.sentence[:20] in capsys.readouterr().out
    assert "audit/returns_bias" in (tmp_path / "progress.csv").read_text(encoding="utf-8").splitlines()[0]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    model.logger.close()


def test_without_figures_none_is_drawn():
    memory, model = Remembering(), MODELS["PPO"]()
    model.set_logger(Logger(None, [memory]))
    learned(model, every=300, window=128, figures=False)
    assert not memory.of("audit/values")


def test_audits_are_saved_as_csv_and_as_json(tmp_path):
    _, callback = learned(MODELS["PPO"](), every=300, window=128, figures=False)
    with open(callback.save(tmp_path / "audits.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == [384, 768]
    assert float(rows[0]["returns_bias"]) == callback.audits[0].returns_bias
    entries = json.loads(callback.save(tmp_path / "audits.json").read_text(encoding="utf-8"))
    assert entries[0]["verdict"]["call"] == str(callback.audits[0].verdict.call)
    with pytest.raises(ValueError, match=r"path must end in \.csv or \.json"):
        callback.save(tmp_path / "audits.txt")


def with_table(model, table, divisor=lambda: 1.0):
    """The model with a table of values by state in place of its critic; nothing is learned."""
    model.policy.predict_values = lambda obs: torch.as_tensor(table / divisor())[obs.long().reshape(-1)].reshape(-1, 1)
    model.train = lambda: None
    return model


def chain_model(seed=2, wrap=lambda env: env, limit=20, **options):
    env = wrap(make_vec_env(partial(chain, seed, max_episode_steps=limit), 1, seed=0))
    return PPO("MlpPolicy", env, n_steps=2_049, batch_size=2_049, gamma=0.95, seed=0, device="cpu", **options)


def audited_table(table, **options):
    model = with_table(chain_model(**options), table)
    _, callback = learned(model, 2_049, every=2_049, figures=False)
    return callback.audits[0]


def test_an_exact_critic_agrees_and_planted_faults_raise_the_alarm():
    exact = chain(2).unwrapped.exact_values(0.95)
    assert audited_table(exact).verdict.call is Call.AGREES
    assert audited_table(chain(2).unwrapped.exact_values(0.8)).verdict.call is Call.BIASED
    assert audited_table(np.random.default_rng(0).permutation(exact)).verdict.call is Call.UNINFORMATIVE


@pytest.mark.slow
def test_limits_taken_for_ends_and_a_critic_at_its_start_raise_the_alarm():
    assert audited_table(chain(2).unwrapped.exact_values(0.95 * 0.95)).verdict.call is Call.BIASED
    assert audited_table(np.zeros(10)).verdict.alarm


def test_values_are_compared_in_units_of_the_environment_under_vec_normalize():
    model = chain_model(wrap=lambda env: VecNormalize(env, norm_obs=False, gamma=0.95))
    scale = model.get_vec_normalize_env()
    exact = chain(2).unwrapped.exact_values(0.95)
    with_table(model, exact, lambda: np.sqrt(scale.ret_rms.var + scale.epsilon))
    _, callback = learned(model, 2_049, every=2_049, figures=False)
    assert callback.audits[0].verdict.call is Call.AGREES
    assert callback.audits[0].rmse < 0.2 * np.abs(exact).mean()


def test_entropy_that_a_critic_counts_is_counted_in_context_too():
    model = SAC("MlpPolicy", make_vec_env(Zeros, 1), ent_coef=0.5, gamma=0.9, learning_starts=0, seed=0, device="cpu")
    with torch.no_grad():
        entropy = -float(model.policy.actor.action_log_prob(torch.zeros(20_000, 2))[1].mean())
    value = 0.9 * 0.5 * entropy / (1 - 0.9)
    model.policy.critic.forward = lambda obs, actions: (torch.full((len(obs), 1), value),)
    model.train = lambda *arguments, **options: None
    _, callback = learned(model, 400, every=300, window=256, figures=False)
    audit = callback.audits[0]
    assert audit.bias == pytest.approx(0.0, abs=0.05 * abs(value))
    assert audit.returns_bias == pytest.approx(0.0, abs=0.05 * abs(value))


@pytest.mark.parametrize(
    "env",
    [
        lambda: VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0)),
        lambda: VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1", 2, seed=0), 2)),
        lambda: VecFrameStack(make_vec_env("CartPole-v1", 3, seed=0), 2),
    ],
)
def test_wrapped_vector_environments_are_audited(env):
    model = PPO("MlpPolicy", env(), n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    _, callback = learned(model, 400, every=300, window=128, figures=False)
    assert math.isfinite(callback.audits[0].rmse)


def test_images_are_audited():
    options = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}, "n_epochs": 1}
    model = PPO("CnnPolicy", make_vec_env(Pictures, 1), n_steps=128, batch_size=64, seed=0, device="cpu", **options)
    _, callback = learned(model, 256, every=200, window=128, figures=False)
    assert math.isfinite(callback.audits[0].rmse)


def test_a_policy_with_masks_is_known_by_its_actions():
    model = contrib.MaskablePPO("MlpPolicy", make_vec_env(Pictures, 1), n_steps=64, batch_size=64, n_epochs=1, seed=0)
    _, callback = learned(model, 256, every=200, window=128, figures=False)
    assert any("known by its actions alone, as its masks" in note for note in callback.audits[0].notes)


@pytest.mark.slow
def test_several_updates_of_a_recurrent_policy_inside_a_window_are_audited():
    model = MODELS["RecurrentPPO"]()
    _, callback = learned(model, 900, every=600, window=512, figures=False)
    assert callback.audits[0].num_policies == 3
    assert math.isfinite(callback.audits[0].returns_bias)


def test_a_note_says_which_policy_the_steps_and_the_values_are_of():
    _, of_ppo = learned(MODELS["PPO"](), 400, every=300, window=128, figures=False)
    assert "which made all the steps" in of_ppo.audits[0].notes[0]
    assert of_ppo.audits[0].num_policies == 1
    _, of_dqn = learned(MODELS["DQN"](), 400, every=300, window=128, figures=False)
    assert "(deterministic); the steps are those of the training" in of_dqn.audits[0].notes[0]


def test_audits_go_on_over_several_calls_of_learn():
    model, callback = MODELS["PPO"](), icrl.CriticAuditCallback(every=300, window=128, figures=False)
    model.learn(256, callback=callback)
    assert not callback.audits
    model.learn(256, callback=callback, reset_num_timesteps=False)
    model.learn(512, callback=callback)
    assert [audit.step for audit in callback.audits] == [384, 384]


class Failing:
    """An evaluator that cannot."""

    def fit(self, trajectory, gamma, policy=None):
        raise RuntimeError("no kernel today\nand a second line")

    def predict(self, observations):
        raise AssertionError


def said(model, steps=700, **options):
    """Warnings of a training, which must reach its end; and its audits."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, callback = learned(model, steps, **({"every": 200, "window": 128} | options))
    assert model.num_timesteps >= steps
    return [str(one.message) for one in caught if "critic audit" in str(one.message)], callback.audits


def test_an_evaluator_that_raises_is_said_once_and_the_training_goes_on():
    messages, audits = said(MODELS["PPO"](), evaluator=Failing())
    going_on = "the training goes on without this audit"
    assert messages == [f"critic audit: RuntimeError: no kernel today; {going_on}"]
    assert not audits


def test_a_discount_of_one_and_observations_that_are_not_finite_are_said_once():
    messages, _ = said(small(PPO, count=2, gamma=1.0, **ON_POLICY))
    assert len(messages) == 1
    assert "gamma must be in [0, 1)" in messages[0]
    model = small(DQN, Unreadable, **OFF_POLICY)
    model.policy.train = model.policy.q_net.train
    messages, _ = said(model)
    assert len(messages) == 1
    assert "must be finite" in messages[0]


def test_a_model_without_a_critic_is_said_once():
    model = contrib.ARS("LinearPolicy", make_vec_env("CartPole-v1", 1, seed=0), n_delta=2, seed=0, device="cpu")
    messages, audits = said(model, 300)
    assert messages == ["critic audit: ValueError: model: ARS has no critic; the training goes on without this audit"]
    assert not audits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1 step, got 0"),
        ({"window": 10}, "window must be at least 64 transitions, got 10"),
        ({"evaluator": "crystal_ball"}, "crystal_ball"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        icrl.CriticAuditCallback(**options)


def test_something_that_cannot_evaluate_is_refused():
    with pytest.raises(TypeError, match=r"evaluator must be a name of icrl_gym\.estimators"):
        icrl.CriticAuditCallback(evaluator=3)
