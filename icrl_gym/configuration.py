"""Typed configuration of the main job. Flags, ``--help`` and a run folder's config.json all come from these fields.

This module loads nothing heavy, so that ``icrl-gym --help`` answers at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

DEFAULT_ESTIMATOR = "generalist"
DEFAULT_GAMMA = 0.99  # where neither the user nor the model says
DEMO_ENVIRONMENT = "CartPole-v1"


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a policy in context, and compare with the truth and with its own critic.

    Collects one stretch of the policy's experience, lets the estimator read off the values of other states from it,
    measures the true values (Monte Carlo, or exactly in tabular environments), and scores estimator and critic.
    """

    env: Annotated[str, tyro.conf.Positional] = DEMO_ENVIRONMENT
    """Environment id, also "module:Env-v0"."""
    policy: str = "demo"
    """"demo" (a small PPO for CartPole-v1 that ships with the package), "random", a Stable-Baselines3 model.zip (needs
    --trust-model), or "module:callable" from (B,) + observation shape to (B,) + action shape."""
    trust_model: bool = False
    """Load the model file although it contains pickled Python code, which can do anything. For files you trust."""
    algo: str = "auto"
    """Class of the Stable-Baselines3 model, such as "PPO"; "auto" finds it out."""
    vec_normalize: Path | None = None
    """VecNormalize statistics saved beside the model (pickled too)."""
    deterministic: bool = False
    """Take the most likely action instead of sampling. Another policy, hence another value function."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as a JSON object."""
    wrapper: str | None = None
    """Wrapper around the environment, as "module:Class"; several separated by commas, the innermost first."""
    wrapper_kwargs: str = "{}"
    """Keyword arguments of the wrapper, as a JSON object; of several wrappers, a JSON list of objects."""
    reward_weights: str | None = None
    """Weights of the rewards where an environment gives several, as in "1,0.5": their weighted sum is evaluated."""
    estimator: str = DEFAULT_ESTIMATOR
    """Who estimates the values; `icrl-gym info` lists the names."""
    context_length: int = 512
    """Transitions that the estimator gets to see."""
    gamma: float | None = None
    """Discount in [0, 1). Default: the model's own, else 0.99."""
    truth: Literal["auto", "exact", "monte_carlo"] = "auto"
    """"auto" solves exactly where the environment shows its transition table, and simulates otherwise."""
    num_queries: int = 64
    """States to score at, drawn from the policy's own episodes. An exact truth takes every state instead."""
    num_rollouts: int = 32
    """Simulated continuations per query state."""
    seed: int = 0
    """Seed of the context, of the queries and of their continuations."""
    device: str = "cpu"
    """Torch device of the estimator."""
    run_dir: Path | None = None
    """Folder for the results, which must not exist yet. Default: runs/<env>-<utc>-<n>."""
    tensorboard: bool = True
    """Write scalars, hyperparameters and figures for TensorBoard into the run folder."""

    def check(self) -> None:
        """Raise ValueError if a field is out of its range; the message names it."""
        from icrl_gym.values import check_gamma  # which loads NumPy: not for --help

        for name, least in (("context_length", 1), ("num_queries", 1), ("num_rollouts", 2), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.gamma is not None:
            check_gamma(self.gamma)
        self.environment_arguments()
        self.wrapper_arguments()
        self.weights_of_rewards()

    def weights_of_rewards(self) -> list[float] | None:
        """``reward_weights`` as numbers, None where there are none; raises ValueError if they are no numbers."""
        try:
            return None if self.reward_weights is None else [float(word) for word in self.reward_weights.split(",")]
        except ValueError as error:
            raise ValueError(
                f'reward_weights must be numbers with commas between, as in "1,0.5", got {self.reward_weights!r}'
            ) from error

    def environment_arguments(self) -> dict[str, Any]:
        """``env_kwargs`` as a dictionary; raises ValueError if it is not a JSON object."""
        arguments = _parsed("env_kwargs must be a JSON object", self.env_kwargs)
        if not isinstance(arguments, dict):
            raise ValueError(f"env_kwargs must be a JSON object, got {self.env_kwargs!r}")
        return arguments

    def wrapper_arguments(self) -> list[dict[str, Any]]:
        """``wrapper_kwargs`` as a list, empty for none.

        Raises:
            ValueError: neither a JSON object nor a list of them, or there is no wrapper to have arguments.
        """
        wanted = "wrapper_kwargs must be a JSON object, or a list of objects"
        arguments = _parsed(wanted, self.wrapper_kwargs)
        arguments = arguments if isinstance(arguments, list) else [arguments]
        if not all(isinstance(one, dict) for one in arguments):
            raise ValueError(f"{wanted}, got {self.wrapper_kwargs!r}")
        if not any(arguments):
            return []
        if self.wrapper is None:
            raise ValueError(f"wrapper_kwargs {self.wrapper_kwargs!r} need a wrapper (--wrapper module:Class)")
        return arguments


def _parsed(wanted: str, text: str) -> Any:
    """JSON; ``wanted`` begins the ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{wanted}, got {text!r}: {error}") from error


@dataclass(frozen=True)
class LogConfig:
    """Evaluate the policy of a log, or another policy from it, without an environment.

    Reads the transitions, lets the estimator read off values from them, and shows the value at the episodes' starts and
    along episodes.
    """

    log: str
    """A trajectory file of ours (.npz), a table (.csv, .parquet), D4RL's names in HDF5 (.hdf5, .h5), or
    "minari:DATASET"."""
    columns: tuple[str, ...] = ()
    """FIELD=COLUMN pairs, or one JSON object, where the columns have other names than those looked for."""
    policy: str | None = None
    """Another policy than the one that acted: a Stable-Baselines3 model.zip (needs trust_model), "random", or
    "module:callable"."""
    trust_model: bool = False
    """Load the model file although it contains pickled Python code."""
    algo: str = "auto"
    """Class of the Stable-Baselines3 model."""
    vec_normalize: Path | None = None
    """VecNormalize statistics saved beside the model (pickled too)."""
    deterministic: bool = False
    """Let the model take its most likely action."""
    estimator: str = DEFAULT_ESTIMATOR
    """Who estimates the values."""
    context_length: int | None = None
    """Transitions that the estimator gets to see at most, as whole episodes. Default: 100,000, fewer where observations
    are large."""
    gamma: float | None = None
    """Discount in [0, 1). Default: the model's own, else 0.99."""
    num_queries: int = 64
    """Starts of episodes whose values are asked for, at most."""
    device: str = "cpu"
    """Torch device of the estimator."""
    run_dir: Path | None = None
    """Folder for the results, which must not exist yet. Default: runs/<log>-<utc>-<n>."""
    tensorboard: bool = True
    """Write scalars and figures for TensorBoard into the run folder."""

    def check(self) -> None:
        """Raise ValueError if a field is out of its range; the message names it."""
        from icrl_gym.values import check_gamma

        for name in ("context_length", "num_queries"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.gamma is not None:
            check_gamma(self.gamma)


@dataclass(frozen=True)
class ReproduceConfig:
    """Measure the claims of the papers, one by one, and write what was found with figures and verdicts.

    Finished claims stay in the run folder, and a second call goes on from there.
    """

    claims: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Claims by number or name. Default: all."""
    quick: bool = False
    """Small sizes and few seeds: minutes instead of an hour, and often "not enough evidence"."""
    seeds: int | None = None
    """Number of independent repetitions. Default: what each claim asks for."""
    device: str = "cpu"
    """Torch device of what is trained."""
    run_dir: Path | None = None
    """Folder for the results, made or gone on with. Default: runs/reproduce, or runs/reproduce-quick."""
    rerun: bool = False
    """Throw away what the run folder holds of these claims, and measure again."""
    report: Path | None = None
    """Write the report there too, besides the run folder."""
    tensorboard: bool = True
    """Write scalars and figures for TensorBoard into the run folder."""

    def check(self) -> None:
        """Raise ValueError if a field is out of its range; the message names it."""
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be an integer of at least 1, got {self.seeds!r}")
        if self.report is not None and self.report.suffix != ".md":
            raise ValueError(f"report must end in .md, got {str(self.report)!r}")


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain the error bars on the synthetic prior: draw and solve tasks, train a network, write a checkpoint.

    Finished shards of tasks and training states stay in the run folder, and a second call goes on from there. Under
    torchrun the processes share the tasks and the batches.
    """

    out: Path = Path("runs/pretrain")
    """Folder of shards, training states and logs."""
    checkpoint: Path | None = None
    """Where to write the checkpoint (.safetensors, its card beside it). Default: generalist.safetensors in ``out``."""
    seed: int = 0
    """Seed of tasks, initial weights and batches."""
    shards: int = 320
    """Number of shards to train on."""
    validation_shards: int = 48
    """Shards to stop early by and to report; drawn from another stream."""
    tasks_per_shard: int = 16
    """Most tasks in a shard; contexts above 512 transitions come in smaller shards."""
    lengths: tuple[tuple[int, float], ...] = (
        (128, 0.14),
        (256, 0.32),
        (512, 0.32),
        (1024, 0.12),
        (2048, 0.05),
        (8192, 0.05),
    )
    """Transitions of a context, each number followed by its share of the shards."""
    num_queries: int = 64
    """Queries per task."""
    heads: tuple[int, ...] = ()
    """Heads of the mixture, by their numbers in icrl_gym/evaluator/heads.py; none means all. The first gives the
    statistics."""
    exclude: tuple[str, ...] = ()
    """Families of the prior never trained on; validation still shows them."""
    steps: int = 3000
    """Largest number of steps."""
    batch_size: int = 256
    """Tasks per step."""
    learning_rate: float = 2e-3
    """Largest learning rate, after warm-up; a cosine brings it down."""
    width: int = 32
    """Width of the hidden layers."""
    jobs: int = 1
    """Processes that draw and solve tasks on this machine."""
    device: str = "cpu"
    """Torch device of the training."""
    bf16: bool = False
    """Matrix products of the training in bfloat16, for devices that are faster at it."""
    tensorboard: bool = True
    """Write losses (by family too), errors and coverage for TensorBoard into the folder."""

    def check(self) -> None:
        """Raise ValueError if a field is out of its range; the message names it."""
        sizes = ("shards", "validation_shards", "tasks_per_shard", "num_queries")
        for name in (*sizes, "steps", "batch_size", "width", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {getattr(self, name)!r}")
        if not self.lengths or any(number < 2 or not 0 < share < float("inf") for number, share in self.lengths):
            raise ValueError(f"lengths must be numbers of at least 2, each with a share above 0, got {self.lengths!r}")
        if len(set(self.heads)) < len(self.heads) or any(number < 0 for number in self.heads):
            raise ValueError(f"heads must be different numbers of at least 0, got {self.heads!r}")
        if self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {self.seed!r}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must be in (0, 1), got {self.learning_rate!r}")
        if self.checkpoint is not None and self.checkpoint.suffix != ".safetensors":
            raise ValueError(f"checkpoint must end in .safetensors, got {str(self.checkpoint)!r}")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Run a suite of the benchmark.

    Scores every estimator, under its default and, with --tune, under its whole grid, against the truth and the SB3
    critic.
    """

    suite: str = "small"
    """Name of the suite: small, exact, classic, box2d, mujoco, grid, pixels, packages, off_policy."""
    out: Path = Path("runs/benchmark")
    """Folder of records and truths; finished cells in it are kept."""
    estimators: tuple[str, ...] = ()
    """Names of the estimators to run; none means all."""
    tune: bool = False
    """Also run every setting of each estimator's grid, for the report's hindsight column."""
    envs: tuple[str, ...] = ()
    """Only the suite's tasks in these environments, by id; none means all."""
    context_lengths: tuple[int, ...] = ()
    """Numbers of transitions of the contexts, instead of the suite's own."""
    seeds: tuple[int, ...] = ()
    """Seeds of the contexts, instead of the suite's own."""
    critics: Path = Path("runs/critics")
    """Snapshots, as scripts/train_critics.py leaves them."""
    trust_model: bool = False
    """Load the snapshots although they contain pickled Python code, which can do anything. For files you trust."""
    num_queries: int = 64
    """Number of states per task."""
    num_rollouts: int = 24
    """Number of simulated continuations per state."""
    retry_failed: bool = False
    """Run again the cells that failed, such as for want of a package; without it they are finished too."""
    jobs: int = 1
    """Processes on this machine."""
    backend: Literal["joblib", "ray"] = "joblib"
    """"joblib" runs on this machine, "ray" (an extra of the package) also on a cluster."""
    address: str | None = None
    """Address of the Ray cluster, such as "10.0.0.1:6379" or "auto". Its nodes all see the folders --out and --critics
    under the same names. Default: a Ray of --jobs processes on this machine, for this run."""


@dataclass(frozen=True)
class ReportConfig:
    """Write the report of a benchmark run: tables, figures and words, in the run's folder and as one HTML page.

    report.md and its figures go into the run's folder; the HTML page holds everything and opens without a network.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, as `icrl-gym benchmark` left it."""
    subject: str | None = None
    """Estimator that is compared with every rival. Default: the package's default where it was run."""
    show: tuple[str, ...] = ()
    """Estimators in the figures and columns, beside subject and critic. Default: the main ones that were run."""
    html: Path | None = None
    """Path of the page. Default: report.html in the run's folder."""
    archive: Path | None = None
    """Write all records there too, as one compressed CSV (.csv.gz) from which every page can be made again; refused
    where a record comes from uncommitted code."""
    onto: Path | None = None
    """An archive that this run brings up to date: its records stay where the run answers nothing anew and measured
    nothing with other agents."""
    before: Path | None = None
    """Folder of a run of an earlier version with the same agents; its `generalist` stands in the report as
    `generalist_before`."""
    tensorboard: bool = False
    """Write HParams for TensorBoard into the run's folder: one entry per estimator and setting."""
