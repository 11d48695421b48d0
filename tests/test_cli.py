"""The command line: results on stdout, one line on stderr for bad input, exit code 2, nothing left behind."""

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import icrl_gym
from icrl_gym import cli
from icrl_gym.configuration import EvaluateConfig

ROOT = Path(__file__).parents[1]
SMALL = ("--context-length", "60", "--num-queries", "4", "--num-rollouts", "2", "--gamma", "0.7")
RANDOM = ("--policy", "random", *SMALL, "--no-tensorboard")


class Spoilt(gymnasium.Env):
    """Emits one bad number after a few steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, field="observation", value=np.nan):
        if field not in ("observation", "reward"):
            raise ValueError(f"field must be\n  'observation' or 'reward', got\n  {field!r}")
        self.field, self.value, self.steps = field, value, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action):
        self.steps += 1
        observation, reward = np.full(2, float(self.steps)), 1.0
        if self.steps == 5:
            if self.field == "observation":
                observation[1] = self.value
            else:
                reward = self.value
        return observation, reward, self.steps >= 9, False, {}


class WordsOnly(Spoilt):
    """Its observations have no array form."""

    observation_space = spaces.Text(8)  # type: ignore[assignment]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "word", {}


def wrong_shape(observations):
    return np.zeros((len(observations), 3))


def outside(observations):
    return np.full(len(observations), 7)


def good(observations):
    return (observations[:, 2] > 0).astype(int)


not_a_policy = 3.5


@pytest.fixture(autouse=True)
def environments(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    registered = {"Spoilt-v0": Spoilt, "WordsOnly-v0": WordsOnly}
    for name, entry in registered.items():
        gymnasium.register(name, entry, disable_env_checker=True)
    yield
    for name in registered:
        gymnasium.registry.pop(name)


def refusal(capsys, *arguments):
    """Exit code 2, an empty stdout, and the one line of stderr."""
    code = cli.main(["evaluate", *arguments])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    last = err.rstrip("\n").splitlines()[-1]
    assert last.startswith("icrl-gym: error: ")
    assert "Traceback" not in err
    return last


BAD_INPUT = {
    "unknown id": (("CartPol-v1", *RANDOM), "nearest known: CartPole-v"),
    "malformed id": (("no such env", *RANDOM), "malformed environment id 'no such env'"),
    "unknown module": (("nowhere:Env-v0", *RANDOM), "there is no module 'nowhere'"),
    "gamma 1": (("--policy", "random", "--gamma", "1"), "gamma must be in [0, 1), got 1.0"),
    "gamma below 0": (("--policy", "random", "--gamma", "-0.1"), "gamma must be in [0, 1), got -0.1"),
    "gamma nan": (("--policy", "random", "--gamma", "nan"), "gamma must be in [0, 1), got nan"),
    "no context": (("--policy", "random", "--context-length", "0"), "context_length must be an integer of at least 1"),
    "no queries": (("--policy", "random", "--num-queries", "0"), "num_queries must be an integer of at least 1"),
    "unknown policy": (("--policy", "nonsense"), "policy must be"),
    "missing zip": (("--policy", "missing.zip"), "missing.zip: no such file"),
    "missing module": (("--policy", "nowhere:policy"), "cannot be imported: No module named 'nowhere'"),
    "missing attribute": (("--policy", f"{__name__}:nothing"), "has no attribute 'nothing'"),
    "no policy at all": (("--policy", f"{__name__}:not_a_policy", *SMALL), "policy must be 'random'"),
    "actions of a wrong shape": (("--policy", f"{__name__}:wrong_shape", *SMALL), "must return actions of shape (1,)"),
    "actions outside": (("--policy", f"{__name__}:outside", *SMALL), "must return actions in Discrete(2)"),
    "demo elsewhere": (("Acrobot-v1",), 'policy "demo" plays CartPole-v1 only'),
    "unknown estimator": ((*RANDOM, "--estimator", "nonsense"), "estimator must be one of"),
    "unknown device": ((*RANDOM, "--device", "abacus"), "device 'abacus' cannot be used here"),
    "arguments not JSON": ((*RANDOM, "--env-kwargs", "{"), "env_kwargs must be a JSON object"),
    "unknown argument": ((*RANDOM, "--env-kwargs", '{"colour": 1}'), "colour"),
    "unknown wrapper": ((*RANDOM, "--wrapper", "nowhere:Wrapper"), "wrapper 'nowhere:Wrapper' cannot be imported"),
    "nan observation": (("Spoilt-v0", *RANDOM), "observations[5, 1] is nan"),
    "infinite reward": (
        ("Spoilt-v0", *RANDOM, "--env-kwargs", '{"field": "reward", "value": 1e999}'),
        "rewards[4] is inf",
    ),
    "no array form": (("WordsOnly-v0", *RANDOM), "Text"),
    "a file as parent": ((*RANDOM, "--run-dir", "file/run"), "run_dir: cannot make the folder"),
    "an existing folder": ((*RANDOM, "--run-dir", "taken"), "exists already; name one that does not"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, tmp_path, case):
    arguments, message = BAD_INPUT[case]
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    assert message in refusal(capsys, *arguments)
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "taken", "runs"}
    assert not list(tmp_path.glob("runs/*"))
    assert not list(tmp_path.glob("taken/*"))


@pytest.mark.parametrize("kind", ["text", "other zip", "folder"])
def test_a_model_that_is_not_sb3s_is_refused(capsys, tmp_path, kind):
    path = tmp_path / "model.zip"
    if kind == "text":
        path.write_text("not a zip")
    elif kind == "folder":
        path.mkdir()
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello", "world")
    assert "model.zip" in refusal(capsys, "--policy", "model.zip", "--trust-model", *SMALL)


@pytest.fixture
def saved_model(tmp_path):
    icrl_gym.load_demo_policy().save(tmp_path / "model.zip")
    return "model.zip"


def test_a_pickle_is_not_loaded_without_trust(capsys, saved_model):
    line = refusal(capsys, "--policy", saved_model, *SMALL)
    assert "--trust-model" in line
    assert "pickle" in line


def test_an_algorithm_given_by_hand_is_taken_at_its_word(capsys, saved_model):
    common = ("--policy", saved_model, "--trust-model", *SMALL, "--algo")
    assert "algorithm must be one of" in refusal(capsys, *common, "nonsense")
    assert "cannot be loaded as SAC" in refusal(capsys, *common, "SAC")


def test_a_policy_of_another_action_space_is_refused(capsys, saved_model):
    line = refusal(capsys, "Acrobot-v1", "--policy", saved_model, "--trust-model", *SMALL)
    assert "action space Discrete(2) does not fit the environment's Discrete(3)" in line


def test_statistics_that_are_not_vecnormalizes_are_refused(capsys, saved_model, tmp_path):
    (tmp_path / "stats.pkl").write_text("no pickle")
    common = ("--policy", saved_model, "--trust-model", *SMALL, "--vec-normalize")
    assert "vec_normalize stats.pkl: cannot be used" in refusal(capsys, *common, "stats.pkl")
    assert "vec_normalize missing.pkl: No such file" in refusal(capsys, *common, "missing.pkl")


def test_a_saved_model_with_its_statistics_is_evaluated(capsys, saved_model, tmp_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    statistics = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]), gamma=0.99)
    statistics.obs_rms.mean, statistics.ret_rms.var = np.ones(4), np.array(25.0)
    statistics.save(str(tmp_path / "stats.pkl"))
    common = ("evaluate", "--policy", saved_model, "--trust-model", *SMALL[:-2], "--no-tensorboard", "--json")
    summaries = []
    for extra in ((), ("--vec-normalize", "stats.pkl")):
        assert cli.main([*common, *extra]) == 0
        summaries.append(json.loads(capsys.readouterr().out))
    plain, normalised = summaries
    assert set(plain["scores"]) == {"generalist", "PPO critic"}
    assert plain["estimand"]["policy"] != normalised["estimand"]["policy"]  # other inputs, another policy
    assert any("VecNormalize undone: the critic's values times 5" in note for note in normalised["notes"])


def test_an_unwritable_folder_is_refused_before_any_work(capsys, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("icrl_gym.main_job.subject.collect", lambda *a, **k: pytest.fail("work was started"))
    monkeypatch.setattr("icrl_gym.tracking.tempfile.TemporaryFile", refuse)
    line = refusal(capsys, "--policy", "random", *SMALL, "--run-dir", "mine")
    assert "log_dir: cannot write to the folder" in line
    assert "Permission denied" in line
    assert not list(tmp_path.iterdir())


def test_a_table_a_verdict_and_what_to_try_next(capsys, tmp_path):
    assert cli.main(["evaluate", "--policy", f"{__name__}:good", *SMALL, "--run-dir", "mine"]) == 0
    out, _ = capsys.readouterr()
    assert "generalist" in out
    assert "standard deviation" in out
    assert "tensorboard --logdir ." in out
    assert f"icrl-gym evaluate CartPole-v1 --policy {__name__}:good --context-length 240" in out
    assert (tmp_path / "mine" / "scores.csv").is_file()
    assert max(len(line) for line in out.splitlines() if "RMSE/std" in line) <= 80


def test_no_column_is_cut_in_a_narrow_terminal_and_the_table_has_a_legend(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "30")
    assert cli.main(["evaluate", "FrozenLake-v1", *RANDOM, "--run-dir", "mine"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    (heading,) = (line for line in out.splitlines() if "RMSE/std" in line and "Spearman" in line)
    assert heading.split() == ["estimator", "RMSE", "RMSE/std", "bias", "expl.var", "Spearman", "90%cover", "steps"]
    assert "RMSE/std: 1 = the best constant" in out


def test_the_column_that_a_note_refers_to_is_printed(capsys):
    arguments = (
        "--num-rollouts",
        "2",
        "--policy",
        "random",
        "--gamma",
        "0.5",
        "--num-queries",
        "4",
        "--no-tensorboard",
    )
    assert cli.main(["evaluate", "CartPole-v1", *arguments, "--context-length", "60"]) == 0
    out = capsys.readouterr().out
    assert ("mean magnitude" in out) == ("RMSE/magnitude" in out)
    assert "judge by RMSE / mean magnitude" in out


@pytest.mark.parametrize(
    "config",
    [
        EvaluateConfig(),
        EvaluateConfig(env="icrl_envs:icrl/Loop-v0", policy="a b.zip", trust_model=True, tensorboard=False, gamma=0.5),
        EvaluateConfig(
            env_kwargs='{"a": "b c"}', run_dir=Path("x y"), vec_normalize=Path("s.pkl"), truth="exact", seed=3
        ),
    ],
)
def test_a_suggested_command_gives_the_configuration_that_it_was_made_from(config, monkeypatch):
    program, *arguments = shlex.split(cli.command_line(config))
    assert program == "icrl-gym"
    parsed = []
    monkeypatch.setitem(cli.COMMANDS, "evaluate", (cli.EvaluateCommand, parsed.append))
    assert cli.main(arguments) == 0
    (found,) = parsed
    assert cli.evaluate_config(found) == config


def command(*arguments, cwd, **environment):
    clean = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "icrl_gym", *arguments], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )


def test_json_on_stdout_is_one_object_and_nothing_else(tmp_path):
    result = command("evaluate", "FrozenLake-v1", *RANDOM, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["scores"]["generalist"]["n"] == 11
    assert summary["estimand"]["gamma"] == 0.7
    assert Path(summary["run_dir"]).parent == tmp_path / "runs"
    assert (Path(summary["run_dir"]) / "estimates.csv").is_file()


def test_a_real_process_says_one_line_and_exits_with_2(tmp_path):
    result = command("evaluate", "CartPol-v1", "--policy", "random", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("icrl-gym: error: unknown environment id 'CartPol-v1'")
    assert list(tmp_path.iterdir()) == []


def test_help_loads_neither_torch_nor_scipy(tmp_path):
    result = command("evaluate", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert all(flag in result.stdout for flag in ("--policy", "--env-kwargs", "--trust-model", "--json"))
    code = "import sys, icrl_gym.cli; print('torch' in sys.modules, 'scipy' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["False", "False"]


def test_a_message_of_several_lines_becomes_one(capsys):
    cli.main(["evaluate", "Spoilt-v0", *RANDOM, "--env-kwargs", '{"field": "nothing"}'])
    (line,) = capsys.readouterr().err.splitlines()
    assert "field must be 'observation' or 'reward', got 'nothing'" in line


def test_a_policy_module_is_found_in_the_working_directory(capsys, tmp_path):
    (tmp_path / "lefty_of_the_test.py").write_text("def act(observations):\n    return [0] * len(observations)\n")
    assert cli.main(["evaluate", "--policy", "lefty_of_the_test:act", *SMALL, "--no-tensorboard", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimand"]["policy"] == "lefty_of_the_test.act"
    assert str(tmp_path) not in sys.path


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("ICRL_GYM_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown environment id"):
        cli.main(["evaluate", "CartPol-v1", "--policy", "random"])


@pytest.mark.parametrize("arguments", [["bogus"], [], ["evaluate", "--bogus"], ["evaluate", "--gamma", "much"]])
def test_flags_that_do_not_parse_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_an_interrupted_run_says_so(capsys, monkeypatch, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("icrl_gym.main_job.subject.collect", interrupt)
    assert cli.main(["evaluate", *RANDOM, "--run-dir", "mine"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_info_names_versions_checkpoints_and_estimators(capsys):
    assert cli.main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["versions"]["packages"]["icrl-gym"] == icrl_gym.__version__
    assert set(info["estimators"]) == set(icrl_gym.estimators())
    files = {path.stem for path in (ROOT / "icrl_gym" / "checkpoints").glob("*.safetensors")}
    assert files
    assert files <= set(info["checkpoints"])
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert icrl_gym.__version__ in out
    assert "generalist (default)" in out
    assert all(name in out for name in files)
    assert len(out.splitlines()) <= 14
    assert "sha256" in json.dumps(info["checkpoints"])
