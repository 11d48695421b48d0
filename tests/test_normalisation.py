"""Models that trained in a VecNormalize or behind wrappers, and what is said where these are missing."""

import json
import re
import shlex

import gymnasium
import minigrid  # noqa: F401 - registers its environments
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from icrl_gym import cli
from icrl_gym.acting.environments import environment_spec, make_environment
from icrl_gym.acting.normalisation import statistics_beside
from icrl_gym.acting.policies import as_policy, normalised
from icrl_gym.acting.policies.missing_wrappers import missing_action_wrapper, missing_observation_wrapper
from icrl_gym.acting.policy_source import find_policy
from icrl_gym.configuration import EvaluateConfig
from icrl_gym.rivals.critics import sb3_critic_values

CARTPOLE = environment_spec("CartPole-v1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A PPO of three environments in a VecNormalize, with its statistics under a usual name."""
    folder = tmp_path_factory.mktemp("trained")
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 3))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0)
    model.learn(48)
    model.save(folder / "model.zip")
    env.save(str(folder / "vecnormalize.pkl"))
    return folder, env


@pytest.mark.parametrize("env", [CARTPOLE, None])
def test_statistics_fit_a_model_of_several_environments(trained, env):
    folder, training = trained
    source = find_policy(str(folder / "model.zip"), env, trust=True, vec_normalize=folder / "vecnormalize.pkl")
    raw = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(normalised(source.model, raw), training.normalize_obs(raw))
    assert source.notes == ()


def test_a_model_that_trained_normalised_says_so_when_its_statistics_are_not_given(trained, tmp_path):
    folder, _ = trained
    (note,) = find_policy(str(folder / "model.zip"), CARTPOLE, trust=True).notes
    assert f"--vec-normalize {folder / 'vecnormalize.pkl'}" in note
    assert "sees raw observations" in note
    alone = tmp_path / "alone.zip"
    alone.write_bytes((folder / "model.zip").read_bytes())
    (note,) = find_policy(str(alone), CARTPOLE, trust=True).notes
    assert "--vec-normalize FILE" in note


def test_the_critic_of_such_a_model_says_so_in_python_too(trained):
    folder, training = trained
    model = PPO.load(folder / "model.zip")
    seen = np.zeros((2, 4), np.float32)
    assert any("VecNormalize that it is without" in note for note in sb3_critic_values(model, seen).notes)
    with_statistics = PPO.load(folder / "model.zip", env=training)
    assert not any("without" in note for note in sb3_critic_values(with_statistics, seen).notes)


def test_a_model_that_trained_on_raw_observations_needs_none(tmp_path):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, seed=0)
    model.learn(16)
    model.save(tmp_path / "model.zip")
    assert find_policy(str(tmp_path / "model.zip"), CARTPOLE, trust=True).notes == ()
    (tmp_path / "my_vec_normalize.pkl").write_text("")
    (note,) = find_policy(str(tmp_path / "model.zip"), CARTPOLE, trust=True).notes
    assert "if it trained with them" in note


def test_the_command_line_says_it_beside_the_numbers(trained, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = trained
    small = ("--context-length", "60", "--num-queries", "4", "--num-rollouts", "2", "--no-tensorboard", "--json")
    small = (*small, "--estimator", "constructed")
    notes = []
    for statistics in ((), ("--vec-normalize", str(folder / "vecnormalize.pkl"))):
        model = str(folder / "model")  # without .zip
        assert cli.main(["evaluate", "--policy", model, "--trust-model", *small, *statistics]) == 0
        notes.append(" ".join(json.loads(capsys.readouterr().out)["notes"]))
    assert "trained in a VecNormalize" in notes[0]
    assert "trained in a VecNormalize" not in notes[1]


def test_statistics_of_the_same_checkpoint_come_first(tmp_path):
    for name in ("run_100_steps.zip", "run_vecnormalize_100_steps.pkl", "run_vecnormalize_20_steps.pkl"):
        (tmp_path / name).touch()
    assert statistics_beside(tmp_path / "run_100_steps.zip").name == "run_vecnormalize_100_steps.pkl"
    (tmp_path / "zoo").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "zoo" / "vecnormalize.pkl").touch()
    assert statistics_beside(tmp_path / "deep" / "other.zip") is None
    (tmp_path / "deep" / "zoo").mkdir()
    (tmp_path / "deep" / "zoo" / "vecnormalize.pkl").touch()
    assert statistics_beside(tmp_path / "deep" / "zoo.zip").parent.name == "zoo"


def suggested(message):
    """The wrapper and its arguments that a message names, as the command line would take them."""
    words = shlex.split(re.search(r"--wrapper .*", message)[0])
    arguments = words[words.index("--wrapper-kwargs") + 1] if "--wrapper-kwargs" in words else "{}"
    config = EvaluateConfig(wrapper=words[1], wrapper_kwargs=arguments)
    return config.wrapper, config.wrapper_arguments()


def test_the_suggested_frame_stack_shows_what_the_model_saw():
    stacked = VecFrameStack(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]), n_stack=4)
    model = PPO("MlpPolicy", stacked, n_steps=16, batch_size=16)
    with pytest.raises(ValueError, match="does not fit the environment's") as caught:
        as_policy(model, stacked.action_space, gymnasium.make("CartPole-v1").observation_space)
    assert "\n" not in str(caught.value)
    env = make_environment(environment_spec("CartPole-v1", None, *suggested(str(caught.value))))
    stacked.seed(3)
    theirs, (ours, _) = stacked.reset(), env.reset(seed=3)
    as_policy(model, env.action_space, env.observation_space)
    for _ in range(6):
        np.testing.assert_array_equal(theirs[0], ours)
        theirs, _, done, _ = stacked.step(np.array([0]))
        ours = env.step(0)[0]
        assert not done[0]


def box(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def real(*shape):
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


SUGGESTIONS = {
    "time": ("CartPole-v1", real(5), "TimeAwareObservation"),
    "stack of vectors": ("CartPole-v1", real(3, 4), "FrameStackObservation"),
    "ids": ("FrozenLake-v1", real(16), "FlattenObservation"),
    "structure": ("Blackjack-v1", real(45), "FlattenObservation"),
    "rows": ("minigrid:MiniGrid-Empty-5x5-v0", box(7, 7, 3), "ImgObsWrapper"),
}


@pytest.mark.parametrize("case", SUGGESTIONS)
def test_what_is_suggested_fits(case):
    env_id, wanted, name = SUGGESTIONS[case]
    message = missing_observation_wrapper(wanted, gymnasium.make(env_id).observation_space)
    assert name in message
    fitted = make_environment(environment_spec(env_id, None, *suggested(message)))
    assert fitted.observation_space.shape == wanted.shape


@pytest.mark.parametrize(
    ("wanted", "shown", "words"),
    [
        (box(4, 84, 84), box(210, 160, 3), "AtariPreprocessing,gymnasium.wrappers:FrameStackObservation"),
        (box(1, 84, 84), box(210, 160, 3), "--wrapper gymnasium.wrappers:AtariPreprocessing"),
        (box(3, 64, 64), box(96, 96, 3), '"shape": [64, 64]'),
        (box(1, 96, 96), box(96, 96, 3), "GrayscaleObservation"),
        (box(12, 96, 96), box(96, 96, 3), "a stack of 4 frames along the channels"),
        (real(6), real(4), ""),
        (spaces.Discrete(3), spaces.Discrete(4), ""),
        (real(12), real(3, 4), "FlattenObservation"),
    ],
)
def test_pictures_and_what_nothing_is_known_about(wanted, shown, words):
    found = missing_observation_wrapper(wanted, shown)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.filterwarnings("ignore:.*precision lowered")  # gymnasium's wrapper computes bounds in float64
def test_other_bounds_of_actions_ask_for_rescaling():
    model, env = spaces.Box(-1.0, 1.0, (1,)), gymnasium.make("Pendulum-v1").action_space
    wrapper, arguments = suggested(missing_action_wrapper(model, env))
    fitted = make_environment(environment_spec("Pendulum-v1", None, wrapper, arguments))
    assert fitted.action_space == model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrapper_kwargs": "{"}, "wrapper_kwargs must be a JSON object, or a list of objects"),
        ({"wrapper_kwargs": "3"}, "wrapper_kwargs must be a JSON object, or a list of objects"),
        ({"wrapper_kwargs": '{"a": 1}'}, "need a wrapper"),
    ],
)
def test_arguments_of_wrappers_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**options).check()


def test_wrappers_and_their_arguments_are_counted():
    two = "gymnasium.wrappers:TimeAwareObservation,gymnasium.wrappers:FlattenObservation"
    with pytest.raises(ValueError, match="one object for each of 2 wrappers, got 1"):
        environment_spec("CartPole-v1", None, two, [{}])
    with pytest.raises(TypeError, match=r"wrapper 'FrameStackObservation': .*stack_size.*wrapper_kwargs"):
        make_environment(environment_spec("CartPole-v1", None, "gymnasium.wrappers:FrameStackObservation"))
