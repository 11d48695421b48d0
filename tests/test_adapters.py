"""Observations with parts that are no arrays, vector rewards, and telling an environment's failure from ours."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import icrl_gym as icrl
from icrl_gym import cli
from icrl_gym.acting.adapters import ArrayObservations, WeightedReward, adapted, left_out_parts
from icrl_gym.acting.environments import environment_spec, make_environment
from icrl_gym.acting.failures import find_failure

SMALL = ("--context-length", "40", "--num-queries", "4", "--num-rollouts", "2", "--gamma", "0.7", "--no-tensorboard")
RANDOM = ("--policy", "random", *SMALL)


class Mission(gymnasium.Env):
    """Counts its steps, says so in words too, and ends after a few."""

    observation_space = spaces.Dict(
        {
            "time": spaces.Box(0, 20, (1,), np.float64),
            "mission": spaces.Text(8),
            "both": spaces.Tuple((spaces.Discrete(30), spaces.Text(8))),
        }
    )
    action_space = spaces.Discrete(2)

    def __init__(self, num_rewards: int | None = None) -> None:
        self._num_rewards = num_rewards

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._length, self._time = int(self.np_random.integers(6, 14)), 0
        return self._seen(), {}

    def step(self, action):
        self._time += 1
        reward = 1.0 if self._num_rewards is None else np.arange(1.0, self._num_rewards + 1)
        return self._seen(), reward, self._time >= self._length, False, {}

    def _seen(self):
        return {"time": np.array([self._time], float), "mission": "count", "both": (self._time, str(self._time))}


class Failing(gymnasium.Env):
    """Raises an exception of its own at the stage that it is told."""

    observation_space = spaces.Box(-1, 1, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, stage: str = "make") -> None:
        self._stage = stage
        self._fail("make")

    def _fail(self, stage: str) -> None:
        if stage == self._stage:
            raise ValueError(f"no\n  {stage} today")
        if stage == self._stage.removesuffix(" silently"):
            raise AssertionError

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._fail("reset")
        return np.zeros(1), {}

    def step(self, action):
        self._fail("step")
        return np.zeros(1), 0.0, False, False, {}


@pytest.fixture(autouse=True)
def environments(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    registered = {"Mission-v0": Mission, "Failing-v0": Failing}
    for name, entry in registered.items():
        gymnasium.register(name, entry, disable_env_checker=True)
    yield
    for name in registered:
        gymnasium.registry.pop(name)


# --- parts that are no arrays ---------------------------------------------------------------------------------------


def test_text_is_left_out_of_observations_and_the_name_says_so():
    trajectory = icrl.collect("Mission-v0", "random", 30, seed=0)
    assert set(trajectory.observations) == {"time", "both"}
    assert isinstance(trajectory.observations["both"], tuple)
    assert len(trajectory.observations["both"]) == 1
    assert trajectory.observations["time"][:3, 0].tolist() == [0, 1, 2]
    assert trajectory.env_id == "Mission-v0 + ArrayObservations"
    truth = icrl.monte_carlo_values("Mission-v0", "random", num_queries=3, num_rollouts=2, gamma=0.7)
    assert truth.estimand.env == trajectory.env_id
    evaluator = icrl.InContextEvaluator.from_pretrained("constructed").fit(trajectory, 0.7)
    assert np.isfinite(evaluator.predict(truth.observations).values).all()


def test_an_environment_that_was_passed_in_is_adapted_and_left_open():
    class Closing(Mission):
        closed = False

        def close(self):
            self.closed = True

    env = Closing()
    assert set(icrl.collect(env, "random", 10).observations) == {"time", "both"}
    assert not env.closed
    assert icrl.monte_carlo_values(env, "random", num_queries=2, num_rollouts=2, gamma=0.5).observations.keys() == {
        "time",
        "both",
    }


def test_minigrids_missions_do_not_stand_in_the_way():
    pytest.importorskip("minigrid")
    with make_environment("minigrid:MiniGrid-Empty-5x5-v0") as env:
        assert left_out_parts(env) == ("['mission'] (MissionSpace)",)
    trajectory = icrl.collect("minigrid:MiniGrid-Empty-5x5-v0", "random", 20)
    assert set(trajectory.observations) == {"direction", "image"}


def test_environments_of_arrays_alone_are_not_wrapped():
    env = gymnasium.make("CartPole-v1")
    assert adapted(env) is env
    assert left_out_parts(env) == ()


def test_an_environment_of_text_alone_is_refused():
    class Words(Mission):
        observation_space = spaces.Dict({"mission": spaces.Text(8)})  # type: ignore[assignment]

    env = Words()
    assert adapted(env) is env
    with pytest.raises(TypeError, match="has no part that is an array"):
        ArrayObservations(env)
    with pytest.raises(TypeError, match=r"has no array form.*ArrayObservations leaves such parts"):
        icrl.RecordTrajectory(Mission())


def test_the_command_line_notes_what_is_left_out(capsys):
    assert cli.main(["evaluate", "Mission-v0", *RANDOM, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes[0] == "left out of the observations, as no arrays: ['both'][1] (Text), ['mission'] (Text)"


# --- vector rewards -------------------------------------------------------------------------------------------------


def test_a_vector_of_rewards_asks_for_weights(capsys):
    arguments = ["evaluate", "Mission-v0", *RANDOM, "--env-kwargs", '{"num_rewards": 3}']
    assert cli.main(arguments) == 2
    assert "the environment's reward is a vector of 3 numbers" in (said := capsys.readouterr().err)
    assert "--reward-weights 1,0,0 " in said
    assert cli.main([*arguments, "--reward-weights", "1,0,0.5", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["estimand"]["env"].startswith('Mission-v0 {"num_rewards": 3} + WeightedReward {"weights"')
    assert cli.main([*arguments, "--reward-weights", "1,0"]) == 2
    assert "reward_weights are 2 numbers, but the environment's reward has 3" in capsys.readouterr().err
    assert cli.main([*arguments, "--reward-weights", "one"]) == 2
    assert "reward_weights must be numbers with commas between, as in \"1,0.5\", got 'one'" in capsys.readouterr().err


def test_weighted_rewards_are_the_weighted_sum_in_context_and_in_truth():
    spec = environment_spec("Mission-v0", {"num_rewards": 3}, reward_weights=[1, 0, 0.5])
    assert set(icrl.collect(spec, "random", 30).rewards) == {2.5}
    truth = icrl.monte_carlo_values(spec, "random", num_queries=4, num_rollouts=2, gamma=0.0)
    assert truth.values.tolist() == [2.5] * 4


@pytest.mark.parametrize("weights", [[], [np.nan], [[1.0]]])
def test_weights_that_are_no_numbers_are_refused(weights):
    with pytest.raises((ValueError, TypeError)):
        WeightedReward(Mission(2), weights)


def test_a_vector_of_one_reward_is_a_number():
    class One(Mission):
        def step(self, action):
            observation, _, *flags = super().step(action)
            return (observation, np.array([4.0]), *flags)

    assert set(icrl.collect(One(), "random", 5).rewards) == {4.0}


# --- failures of the environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["make", "reset", "step"])
def test_an_environment_that_raises_is_one_line_in_its_own_words_and_exit_code_3(capsys, stage):
    arguments = ["evaluate", "Failing-v0", *RANDOM, "--env-kwargs", json.dumps({"stage": stage})]
    assert cli.main(arguments) == 3
    out, err = capsys.readouterr()
    assert out == ""
    line = f"icrl-gym: error: the environment failed in {stage}: ValueError: no {stage} today (--debug shows where)"
    assert err.rstrip("\n").splitlines()[-1] == line
    with pytest.raises(ValueError, match=f"no\n  {stage} today"):
        cli.main([*arguments, "--debug"])


def test_an_exception_without_words_is_shown_by_its_line(capsys):
    assert cli.main(["evaluate", "Failing-v0", *RANDOM, "--env-kwargs", '{"stage": "step silently"}']) == 3
    assert "failed in step: AssertionError: at `raise AssertionError`" in capsys.readouterr().err


def test_arguments_that_the_environment_does_not_take_are_the_callers_fault(capsys):
    assert cli.main(["evaluate", "Failing-v0", *RANDOM, "--env-kwargs", '{"colour": 1}']) == 2
    assert "colour" in capsys.readouterr().err


def test_an_error_of_ours_is_no_failure_of_an_environment():
    with pytest.raises(ValueError, match="num_transitions") as caught:
        icrl.collect("CartPole-v1", "random", 0)
    assert find_failure(caught.value) is None


# --- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Panda_Reach-v9", "did you mean panda_gym:Panda_Reach-v9?"),
        ("ALE/Nowhere-v5", "did you mean ale_py:ALE/Nowhere-v5?"),
        ("BabyAI-Nothing-v0", "did you mean minigrid:BabyAI-Nothing-v0?"),
        ("highway-slow-v7", "did you mean highway_env:highway-slow-v7?"),
        ("icrl/Nothing-v0", "did you mean icrl_envs:icrl/Nothing-v0?"),
    ],
)
def test_ids_of_modules_that_were_not_imported_name_the_module(env_id, message):
    with pytest.raises(ValueError, match="unknown environment id") as caught:
        environment_spec(env_id)
    assert message in str(caught.value)


def test_an_id_of_a_vector_only_says_how_to_make_it():
    gymnasium.register("Many-v0", vector_entry_point=Mission)
    try:
        with pytest.raises(
            ValueError, match=r"registered as a vector environment only: make it with gymnasium\.make_vec"
        ):
            icrl.collect("Many-v0", "random", 5)
    finally:
        gymnasium.registry.pop("Many-v0")


def test_a_module_that_is_not_installed_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"did you mean popgym:popgym-X-v0\? \(there is no module popgym here"):
        environment_spec("popgym-X-v0")


def test_pettingzoo_is_told_how_to_convert(monkeypatch):
    module = ModuleType("pettingzoo.nowhere")
    monkeypatch.setitem(sys.modules, "pettingzoo", ModuleType("pettingzoo"))
    monkeypatch.setitem(sys.modules, "pettingzoo.nowhere", module)
    several = type("ParallelEnv", (), {"__module__": "pettingzoo.utils.env"})()
    with pytest.raises(TypeError, match=r"PettingZoo's ParallelEnv; .*supersuit.pettingzoo_env_to_vec_env_v1"):
        icrl.collect(several, "random", 5)
    with pytest.raises(ValueError, match=r"several agents; .*supersuit.pettingzoo_env_to_vec_env_v1"):
        environment_spec("pettingzoo.nowhere:chess_v6")
