"""Training runs: snapshots, cards, interruption."""

import json

import numpy as np
import pytest

from icrl_gym.acting.sb3_models import load_sb3_model
from icrl_gym.rivals.critic_training import read_snapshot, run_folder, train
from icrl_gym.rivals.critics import sb3_critic_values
from icrl_gym.rivals.recipes import RECIPES, Recipe, find_recipes

OPTIONS = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
SMALL = Recipe("CartPole-v1", "PPO", (64, 128), num_envs=2, options=OPTIONS)
OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def values_of(path):
    return sb3_critic_values(load_sb3_model(path, trust=True), OBSERVATIONS).values


def test_snapshots_are_taken_along_one_training_run(tmp_path):
    first, last = train(SMALL, 3, tmp_path, num_evaluation_episodes=4, command="the command")
    assert [first.num_steps, last.num_steps] == [64, 128]
    assert sorted(path.name for path in run_folder(SMALL, 3, tmp_path).iterdir()) == [
        "steps128.json", "steps128.zip", "steps64.json", "steps64.zip"]  # fmt: skip
    assert not np.allclose(values_of(first.path), values_of(last.path), atol=1e-5)
    card = json.loads(last.path.with_suffix(".json").read_text())
    assert (card["seed"], card["gamma"], card["num_steps_taken"], card["command"]) == (3, 0.99, 128, "the command")
    assert card["options"] == {**OPTIONS, "policy_kwargs": {"net_arch": [8]}}
    assert 8 < card["mean_return"] < 500
    assert card["num_evaluation_episodes"] >= 4


def test_training_is_reproducible_and_depends_on_the_seed(tmp_path):
    paths = [train(SMALL, seed, tmp_path / name, num_evaluation_episodes=2)[-1].path
             for seed, name in ((0, "a"), (0, "b"), (1, "c"))]  # fmt: skip
    values = [values_of(path) for path in paths]
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).any()


def test_what_is_there_is_not_trained_again_and_what_is_missing_is(tmp_path):
    new = []
    options = {"num_evaluation_episodes": 2, "progress": lambda snapshot: new.append(snapshot.num_steps)}
    first, last = train(SMALL, 0, tmp_path, **options)
    assert new == [64, 128]
    train(SMALL, 0, tmp_path, **options)
    assert new == [64, 128]
    kept = first.path.read_bytes()
    last.path.with_suffix(".json").unlink()  # as if it had been interrupted between the two files
    train(SMALL, 0, tmp_path, **options)
    assert new == [64, 128, 128]
    assert first.path.read_bytes() == kept
    card = json.loads(last.path.with_suffix(".json").read_text())
    assert (card["resumed_from"], card["num_steps_taken"]) == (64, 128)


def test_a_snapshot_missing_in_the_middle_is_made_again_as_it_was(tmp_path):
    first, last = train(SMALL, 0, tmp_path, num_evaluation_episodes=2)
    values, last_bytes = values_of(first.path), last.path.read_bytes()
    first.path.unlink()
    first.path.with_suffix(".json").unlink()
    train(SMALL, 0, tmp_path, num_evaluation_episodes=2)
    np.testing.assert_array_equal(values_of(first.path), values)
    assert last.path.read_bytes() == last_bytes
    assert json.loads(first.path.with_suffix(".json").read_text())["num_steps_taken"] == 64


def test_recipes_may_share_settings_although_sb3_writes_into_what_it_is_given(tmp_path):
    shared = {"learning_starts": 5, "buffer_size": 50, "policy_kwargs": {"net_arch": [8]}}
    for algorithm in ("SAC", "TD3"):
        recipe = Recipe("Pendulum-v1", algorithm, (10,), num_envs=1, options=shared)
        (snapshot,) = train(recipe, 0, tmp_path, num_evaluation_episodes=2)
        assert json.loads(snapshot.path.with_suffix(".json").read_text())["options"] == shared
    assert shared["policy_kwargs"] == {"net_arch": [8]}


def test_recipes_are_found_by_environment_and_algorithm():
    assert [recipe.algorithm for recipe in find_recipes(("CartPole-v1",))] == ["PPO"]
    assert [recipe.algorithm for recipe in find_recipes(("CartPole-v1",), ("DQN", "A2C"))] == ["A2C", "DQN"]
    assert len({(recipe.env, recipe.algorithm) for recipe in RECIPES}) == len(RECIPES)
    with pytest.raises(ValueError, match="no recipe for 'CartPole-v7'; there are recipes for CartPole-v1"):
        find_recipes(("CartPole-v7",))
    with pytest.raises(ValueError, match="no recipe for TD3 on CartPole-v1"):
        find_recipes(("CartPole-v1",), ("TD3",))


def test_bad_recipes_and_missing_snapshots_are_refused(tmp_path):
    with pytest.raises(ValueError, match="algorithm must be one of"):
        Recipe("CartPole-v1", "POP", (10,))
    with pytest.raises(ValueError, match="snapshots must be positive and increasing"):
        Recipe("CartPole-v1", "PPO", (10, 10))
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\)"):
        Recipe("CartPole-v1", "PPO", (10,), gamma=1.0)
    with pytest.raises(FileNotFoundError, match=r"steps1\.zip is missing"):
        read_snapshot(tmp_path / "steps1.zip")
