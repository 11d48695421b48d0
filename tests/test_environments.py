"""Making environments, and naming what is estimated."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace

import gymnasium
import pytest
from gymnasium import spaces, wrappers
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor

from icrl_gym.acting.environments import environment_identity, environment_spec, make_environment
from icrl_gym.context.wrappers import RecordTrajectory


class Unregistered(gymnasium.Env):
    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)


def scaled(env: gymnasium.Env) -> gymnasium.Env:
    return wrappers.TransformReward(env, double)


def double(reward):
    return 2 * reward


SCALED = f"{__name__}:scaled"


# --- making ---------------------------------------------------------------------------------------------------------


def test_ids_arguments_and_wrappers_make_an_environment():
    assert make("FrozenLake-v1", map_name="8x8").observation_space.n == 64
    env = make("minigrid:MiniGrid-Empty-5x5-v0", wrapper="minigrid.wrappers:ImgObsWrapper")
    assert env.observation_space.shape == (7, 7, 3)
    made = gymnasium.make("CartPole-v1")
    assert make_environment(made) is made


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"unknown environment id 'CartPol-v1'; nearest known: CartPole-v1"),
        ("CartPole-v7", r"nearest known: CartPole-v1"),
        ("qqqqqq", r"no similar name is known; ids of other packages are written module:Env-v0"),
        ("Cart Pole!", r"malformed environment id 'Cart Pole!'; nearest known: CartPole"),
        ("no_such_module:Env-v0", r"'no_such_module:Env-v0': there is no module 'no_such_module'"),
        ("icrl_envs.nothing:Env-v0", r"there is no module 'icrl_envs.nothing'"),
        ("icrl_envs:icrl/BoyanChian-v0", r"nearest known: icrl/BoyanChain-v0"),
    ],
)
def test_unknown_ids_are_answered_with_the_nearest_names(env_id, message):
    with pytest.raises(ValueError, match=message) as error:
        make_environment(env_id)
    assert "\n" not in str(error.value)


def test_a_module_that_breaks_on_import_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "broken_environments.py").write_text("import a_dependency_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_missing"):
        make_environment("broken_environments:Env-v0")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("CartPole-v1", {"nonsense": 1}), TypeError, "nonsense"),
        (("CartPole-v1", None, "minigrid.wrappers"), ValueError, "must be written 'module:Class'"),
        (("CartPole-v1", None, "minigrid.wrappers:Nothing"), ValueError, "cannot be imported"),
        (("CartPole-v1", None, "nothing_here:Nothing"), ValueError, "cannot be imported"),
        (("CartPole-v1", None, f"{__name__}:three"), TypeError, "must return a gymnasium.Env, got int"),
    ],
)
def test_arguments_that_make_no_environment_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make_environment(environment_spec(*arguments))


def three(env: gymnasium.Env) -> int:
    return 3


def test_what_is_neither_id_nor_environment_nor_specification_is_refused():
    with pytest.raises(TypeError, match=r"env must be an environment id, a gymnasium.Env or an EnvSpec, got int"):
        make_environment(3)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*out of date.*")
def test_an_id_without_a_version_is_the_latest_one_and_an_old_version_is_taken_with_a_warning():
    assert environment_spec("CartPole").id == "CartPole-v1"
    assert environment_spec("CartPole-v0").id == "CartPole-v0"
    with pytest.warns(DeprecationWarning, match="CartPole-v0 is out of date"):
        environment_spec("CartPole-v0")


def test_a_specification_says_how_long_episodes_are():
    limits = [environment_spec("CartPole-v1", {"max_episode_steps": steps}).max_episode_steps for steps in (7, -1)]
    assert limits == [7, None]
    assert environment_spec("CartPole-v1").max_episode_steps == 500
    assert make("CartPole-v1", max_episode_steps=7).spec.max_episode_steps == 7
    assert not any(isinstance(env, wrappers.TimeLimit) for env in stack_of(make("CartPole-v1", max_episode_steps=-1)))


def stack_of(env: gymnasium.Env) -> list[gymnasium.Env]:
    return [env, *stack_of(env.env)] if isinstance(env, gymnasium.Wrapper) else [env]


def test_the_specification_of_a_wrapped_environment_makes_it_again():
    env = wrappers.ClipReward(wrappers.FlattenObservation(make("Pendulum-v1", g=5.0)), -1.0, 1.0)
    again = make_environment(env.spec)
    assert environment_identity(again) == environment_identity(env)
    assert [type(level) for level in stack_of(again)] == [type(level) for level in stack_of(env)]


def wrapped_from_the_start(**arguments) -> gymnasium.Env:
    return wrappers.FlattenObservation(Unregistered(**arguments))


def test_wrappers_that_the_constructor_adds_are_not_added_twice():
    spec = EnvSpec("Wrapped-v0", entry_point=wrapped_from_the_start, disable_env_checker=True, order_enforce=False)
    env = make_environment(spec)
    clipped = make_environment(wrappers.ClipReward(env, -1.0, 1.0).spec)
    assert [type(level) for level in stack_of(clipped)] == [
        wrappers.ClipReward,
        wrappers.FlattenObservation,
        Unregistered,
    ]
    outer = make_environment(
        replace(spec, additional_wrappers=environment_spec("CartPole-v1", None, SCALED).additional_wrappers)
    )
    assert [type(level) for level in stack_of(outer)] == [
        wrappers.TransformReward,
        wrappers.FlattenObservation,
        Unregistered,
    ]


# --- identity -------------------------------------------------------------------------------------------------------


def make(env_id: str, wrapper: str | None = None, **arguments) -> gymnasium.Env:
    return make_environment(environment_spec(env_id, arguments, wrapper))


@pytest.mark.parametrize(
    ("env", "identity"),
    [
        (make("CartPole-v1"), "CartPole-v1"),
        (make("icrl_envs:icrl/BoyanChain-v0", mrp_seed=3), 'icrl/BoyanChain-v0 {"mrp_seed": 3}'),
        (make("FrozenLake-v1", is_slippery=False), 'FrozenLake-v1 {"is_slippery": false}'),
        (make("FrozenLake-v1", is_slippery=True, map_name="4x4"), "FrozenLake-v1"),
        (make("FrozenLake8x8-v1", map_name="4x4"), 'FrozenLake8x8-v1 {"map_name": "4x4"}'),
        (make("FrozenLake8x8-v1", map_name="8x8"), "FrozenLake8x8-v1"),
        (make("CartPole-v1", render_mode="rgb_array", max_episode_steps=7), "CartPole-v1"),
        (Monitor(make("CartPole-v1")), "CartPole-v1"),
        (RecordTrajectory(wrappers.RecordEpisodeStatistics(make("CartPole-v1"))), "CartPole-v1"),
        (
            make("minigrid:MiniGrid-Empty-5x5-v0", wrapper="minigrid.wrappers:ImgObsWrapper"),
            "MiniGrid-Empty-5x5-v0 + ImgObsWrapper",
        ),
        (
            wrappers.ClipReward(wrappers.FlattenObservation(make("Pendulum-v1", g=5.0)), -1.0, 1.0),
            'Pendulum-v1 {"g": 5.0} + FlattenObservation + ClipReward {"max_reward": 1.0, "min_reward": -1.0}',
        ),
        (make("CartPole-v1", SCALED), 'CartPole-v1 + TransformReward {"func": "test_environments.double"}'),
        (Unregistered(), "test_environments.Unregistered"),
    ],
)
def test_identity_names_what_changes_the_decision_process_and_nothing_else(env, identity):
    assert environment_identity(env) == identity


def test_identity_holds_no_addresses():
    env = wrappers.TransformObservation(make("CartPole-v1"), object().__eq__, make("CartPole-v1").observation_space)
    assert "0x" not in environment_identity(env)


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_a_vector_is_named_like_its_members(mode):
    vector = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode=mode, sutton_barto_reward=True)
    assert environment_identity(vector) == 'CartPole-v1 {"sutton_barto_reward": true}'
    vector.close()


def test_worker_processes_are_named_like_the_environments_that_they_run():
    for maker, identity in (
        (lambda: make("FrozenLake-v1", is_slippery=True), "FrozenLake-v1"),
        (Unregistered, "test_environments.Unregistered"),
    ):
        for vector in (gymnasium.vector.SyncVectorEnv([maker] * 2), gymnasium.vector.AsyncVectorEnv([maker] * 2)):
            assert environment_identity(vector) == identity
            vector.close()


def test_wrappers_inside_and_around_a_vector_are_named():
    vector = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync", wrappers=[scaled])
    inside = 'CartPole-v1 + TransformReward {"func": "test_environments.double"}'
    assert environment_identity(vector) == inside
    outside = wrappers.vector.RecordEpisodeStatistics(wrappers.vector.ClipReward(vector, -1, 1))
    assert environment_identity(outside) == f"{inside} + ClipReward"


def test_a_vector_of_different_members_says_so():
    members = [lambda: make("FrozenLake-v1"), lambda: make("FrozenLake-v1", is_slippery=False)]
    vector = gymnasium.vector.SyncVectorEnv(members)
    assert environment_identity(vector) == 'FrozenLake-v1 | FrozenLake-v1 {"is_slippery": false}'


def test_a_name_taken_by_a_module_in_memory_can_be_used(monkeypatch):
    module = types.ModuleType("wrappers_in_memory")
    module.scaled = scaled
    monkeypatch.setitem(sys.modules, "wrappers_in_memory", module)
    assert isinstance(make("CartPole-v1", "wrappers_in_memory:scaled"), wrappers.TransformReward)


def test_a_named_wrapper_is_imported_before_the_environment_is_made():
    # minigrid registers its environments on import, and the wrapper's module imports it.
    code = (
        "from icrl_gym.acting.environments import environment_spec, make_environment;"
        "spec = environment_spec('MiniGrid-Empty-5x5-v0', wrapper='minigrid.wrappers:ImgObsWrapper');"
        "env = make_environment(spec);"
        "print(env.observation_space.shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(7, 7, 3)"
