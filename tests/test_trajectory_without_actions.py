"""Logs whose actions are missing: values of states as with them, and a clear word wherever actions are needed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

import icrl_gym as icrl
from icrl_gym.context.off_policy import reweight
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.rivals.neural import FittedQEvaluation

GAMMA = 0.9
ARRAYS = ("observations", "rewards", "next_observations", "terminated", "truncated", "episode_ends")


def full(length=80, seed=0, **more) -> Trajectory:
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(length + 1, 2))
    terminated = np.arange(length) % 13 == 12
    return Trajectory(
        states[:-1], generator.integers(2, size=length), generator.normal(size=length), states[1:], terminated,
        np.zeros(length, bool), **{"env_id": "room", "policy": "walker", **more},
    )  # fmt: skip


def without(log: Trajectory) -> Trajectory:
    labels = {name: getattr(log, name) for name in ("env_id", "policy", "importance_ratios")}
    return Trajectory(actions=None, **{name: getattr(log, name) for name in ARRAYS}, **labels)


def alike(first: Trajectory, second: Trajectory) -> bool:
    arrays = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ARRAYS)
    labels = (first.env_id, first.policy, first.space_inferred) == (second.env_id, second.policy, second.space_inferred)
    return arrays and labels and first.observation_space == second.observation_space


def test_a_log_needs_no_actions():
    log = without(full())
    assert log.actions is None
    assert len(log) == log.num_transitions == 80
    assert log.num_complete_episodes == 6


def test_lengths_are_still_checked():
    with pytest.raises(ValueError, match="one length"):
        replace(without(full()), rewards=np.zeros(79), episode_ends=None)
    with pytest.raises(ValueError, match="trajectory is empty"):
        Trajectory(np.zeros((0, 2)), None, [], np.zeros((0, 2)), [], [])


def test_a_stretch_of_it_has_none_either():
    log = full()
    assert without(log)[10:40].actions is None
    assert alike(without(log)[10:40], log[10:40])


def test_two_of_them_are_joined():
    log = full()
    joined = without(log[:30]).append(without(log[30:]))
    assert joined.actions is None
    assert alike(joined, log[:30].append(log[30:]))


def test_one_is_not_joined_to_a_log_with_actions():
    log = full()
    for first, second in ((without(log[:30]), log[30:]), (log[:30], without(log[30:]))):
        with pytest.raises(ValueError, match=r"append.*actions"):
            first.append(second)


@pytest.mark.parametrize("ratios", [None, np.linspace(0.5, 2.0, 80)])
def test_to_disk_and_back(tmp_path, ratios):
    log = without(full(importance_ratios=ratios))
    path = log.save(tmp_path / "log")
    back = Trajectory.load(path)
    assert back.actions is None
    assert alike(back, log)
    np.testing.assert_equal(back.importance_ratios, ratios)
    with np.load(path) as file:
        assert "actions" not in file.files
        assert json.loads(str(file["header"]))["schema_version"] == 3


def test_a_file_that_lost_its_actions_is_damaged(tmp_path):
    path = full().save(tmp_path / "log")
    with np.load(path) as file:
        stored = dict(file)
    del stored["actions"]
    np.savez(path, **stored)
    with pytest.raises(ValueError, match="actions"):
        Trajectory.load(path)


@pytest.mark.parametrize("name", ["constructed", "generalist"])
def test_values_are_those_of_states_and_rewards(name):
    log = full()
    queries = log.observations[:5]
    found = icrl.InContextEvaluator.from_pretrained(name).fit(without(log), GAMMA).predict(queries)
    same = icrl.InContextEvaluator.from_pretrained(name, imagination=False).fit(log, GAMMA).predict(queries)
    np.testing.assert_array_equal(found.values, same.values)
    np.testing.assert_array_equal(found.stderr, same.stderr)
    np.testing.assert_array_equal(found.attribution(), same.attribution())


def test_more_of_it_can_be_appended_to_a_context():
    log = without(full())
    evaluator = icrl.InContextEvaluator.from_pretrained().fit(log[:40], GAMMA).update(log[40:])
    assert np.isfinite(evaluator.predict(log.observations[:3]).values).all()


def test_what_needs_actions_says_so():
    log = without(full(policy=None))
    evaluator = icrl.InContextEvaluator.from_pretrained().fit(log, GAMMA)
    needs = r"needs the logged actions, and this trajectory has actions=None"
    with pytest.raises(ValueError, match=f"predict_q {needs}"):
        evaluator.predict_q(log.observations[:2], np.zeros(2, int))
    with pytest.raises(ValueError, match=f"policy.* {needs}"):
        icrl.InContextEvaluator.from_pretrained().fit(log, GAMMA, policy=lambda states: np.zeros(len(states), int))
    with pytest.raises(ValueError, match=f"policy.* {needs}"):
        evaluator.update(log, policy="random")
    with pytest.raises(ValueError, match=f"reweight {needs}"):
        reweight(log, "random", "random", spaces.Discrete(2))
    with pytest.raises(ValueError, match=f"FittedQEvaluation {needs}"):
        FittedQEvaluation().fit(log, GAMMA)
