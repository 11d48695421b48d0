"""Measure what in-context values are worth at work: as PPO's baseline, and to choose a checkpoint (docs/at_work.md).

    python scripts/measure_at_work.py                        # ten seeds of three environments, an hour of one core
    python scripts/measure_at_work.py --seeds 0 1 --report-only

One training run is one file below --out, so that an interrupted call goes on where it stopped; the page is written from
all files that are there.

Baseline. After every rollout the values by which PPO computes its advantages are replaced: each half of the
environments gets those that softmax TD (the generalist without walks) reads off the other half, so that no transition
judges itself. The critic is trained as ever, and asked for nothing.

Checkpoints. At equal numbers of environment steps, a snapshot is chosen by its in-context value at start states, read
off the rollout that was made with it anyway; by the mean return of the latest episodes of the training itself; or by
evaluation episodes, whose steps the training then does not have.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import icrl_gym as icrl
from icrl_gym.benchmark.at_work import (
    ARMS,
    BUDGETS,
    SNAPSHOTS,
    TRUTH_EPISODES,
    Runs,
    Snapshot,
    baseline_table,
    choice_table,
    figure,
    summary,
)
from icrl_gym.runs import replacing, source_commit, write_json, write_text
from icrl_gym.scoring.document import Picture, Section, markdown

NUM_ENVS, NUM_STEPS = 8, 128
EVALUATION_EPISODES = 5
LATEST_EPISODES = 20  # of the training, whose mean return a snapshot is chosen by
START_STATES = 32
LEAST_RETURN = -1e9  # stands for the training's return while no episode has ended
OPTIONS: dict[str, dict[str, Any]] = {"Pendulum-v1": {"learning_rate": 1e-3, "gae_lambda": 0.95, "gamma": 0.9}}
BASELINE = """After every rollout the values by which PPO computes its advantages are replaced: each half of the eight
environments gets those that softmax TD (`generalist` without walks) reads off the other half, so that no transition
judges itself. Bootstraps at time limits and at the end of the rollout are replaced too. Everything else is the same,
seeds included. PPO has Stable-Baselines3's settings but for 128 steps in each environment and batches of 256;
Pendulum-v1 also has a learning rate of .001 and gamma .9."""
CHOICE = f"""The in-context value of a snapshot is the mean over start states that the training met, read by
`generalist`, told the policy, off the {NUM_ENVS * NUM_STEPS:,} transitions of the rollout that was made with it
anyway. The mean return of the {LATEST_EPISODES} latest training episodes costs nothing either.
{EVALUATION_EPISODES} evaluation episodes per snapshot cost steps, which the training then lacks."""


@dataclass(frozen=True)
class Config:
    """What to run, and where to."""

    envs: tuple[str, ...] = tuple(BUDGETS)
    """Environments, among those of the page."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One training run per environment, baseline and seed."""
    out: Path = Path("runs/at_work")
    """Folder of the runs."""
    page: Path = Path("docs/at_work.md")
    """The page; its figure goes to the folder beside it."""
    report_only: bool = False
    """Write the page from the runs that are there."""


@dataclass
class Streams:
    """The steps of one rollout before the critic's bootstrap at time limits is added to rewards: lists over steps."""

    rewards: list[np.ndarray] = field(default_factory=list)
    dones: list[np.ndarray] = field(default_factory=list)
    infos: list[list[dict[str, Any]]] = field(default_factory=list)

    def cut_TE(self) -> np.ndarray:
        """Where a time limit ended the episode."""
        return np.array([[info.get("TimeLimit.truncated", False) for info in infos] for infos in self.infos])

    def successors(self, observations_TEX: np.ndarray, last_EX: np.ndarray) -> np.ndarray:
        """True successors (T, E, X): the final observation where an episode ended."""
        found = np.concatenate([observations_TEX[1:], last_EX[None]])
        for step, infos in enumerate(self.infos):
            for index, info in enumerate(infos):
                if self.dones[step][index]:
                    found[step, index] = info["terminal_observation"]
        return found


class AtWork(BaseCallback):
    """Takes snapshots at equal distances and, if asked to, puts in-context values in the place of the critic's."""

    def __init__(self, env_id: str, budget: int, replaces_critic: bool, seed: int) -> None:
        super().__init__()
        self.env_id, self.budget, self.replaces_critic, self.seed = env_id, budget, replaces_critic, seed
        self.snapshots: list[Snapshot] = []
        self.starts: list[np.ndarray] = []
        self.returns: list[float] = []
        self.streams = Streams()

    def _init_callback(self) -> None:
        self.gamma: float = vars(self.model)["gamma"]
        self.observation_shape = self.model.observation_space.shape or ()
        self.action_shape = self.model.action_space.shape or ()

    def _on_rollout_start(self) -> None:
        self.streams = Streams()

    def _on_step(self) -> bool:
        self.streams.rewards.append(np.array(self.locals["rewards"], dtype=np.float64))
        self.streams.dones.append(np.array(self.locals["dones"], dtype=bool))
        self.streams.infos.append(list(self.locals["infos"]))
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        started_TE = buffer.episode_starts.astype(bool)
        self.starts = (self.starts + list(buffer.observations[started_TE]))[-START_STATES:]
        if self.replaces_critic:
            self._replace_values(buffer)
        if self.num_timesteps >= (len(self.snapshots) + 1) * self.budget / SNAPSHOTS:
            self.snapshots.append(self._snapshot(buffer))

    def _trajectory(self, buffer: RolloutBuffer, envs: slice) -> icrl.Trajectory:
        """The rollout of some of the environments, one after the other."""
        streams, model = self.streams, self.model
        cut_TE, dones_TE = streams.cut_TE()[:, envs], np.stack(streams.dones)[:, envs]
        successors_TEX = streams.successors(buffer.observations, self.locals["new_obs"])[:, envs]
        parts = (
            buffer.observations[:, envs], buffer.actions[:, envs].reshape(NUM_STEPS, -1, *self.action_shape),
            np.stack(streams.rewards)[:, envs], successors_TEX, dones_TE & ~cut_TE, cut_TE,
        )  # fmt: skip
        flat = [np.swapaxes(part, 0, 1).reshape(-1, *part.shape[2:]) for part in parts]
        if isinstance(model.action_space, gymnasium.spaces.Discrete):
            flat[1] = flat[1].astype(int)
        elif isinstance(model.action_space, gymnasium.spaces.Box):  # the buffer holds actions before they are clipped
            flat[1] = flat[1].clip(model.action_space.low, model.action_space.high)
        ends = np.zeros(len(flat[2]), dtype=bool)
        ends[NUM_STEPS - 1 :: NUM_STEPS] = True
        return icrl.Trajectory(
            *flat, episode_ends=ends | flat[4] | flat[5], observation_space=model.observation_space
        )  # fmt: skip

    def _replace_values(self, buffer: RolloutBuffer) -> None:
        """Values, bootstraps at time limits and last values of each half of the environments, read off the other."""
        halves = slice(0, NUM_ENVS // 2), slice(NUM_ENVS // 2, NUM_ENVS)
        rewards_TE, cut_TE = np.stack(self.streams.rewards), self.streams.cut_TE()
        last_values_E = np.zeros(NUM_ENVS)
        for own, other in (halves, halves[::-1]):
            evaluator = icrl.InContextEvaluator.from_pretrained(imagination=False)
            evaluator.fit(self._trajectory(buffer, other), gamma=self.gamma)

            def values(observations: np.ndarray, evaluator: icrl.InContextEvaluator = evaluator) -> np.ndarray:
                flat = observations.reshape(-1, *self.observation_shape)
                return evaluator.predict(flat).values.reshape(observations.shape[: -len(flat.shape[1:])])

            buffer.values[:, own] = values(buffer.observations[:, own])
            successors_TEX = self.streams.successors(buffer.observations, self.locals["new_obs"])[:, own]
            bootstraps_TE = np.where(cut_TE[:, own], self.gamma * values(successors_TEX), 0.0)
            buffer.rewards[:, own] = rewards_TE[:, own] + bootstraps_TE
            last_values_E[own] = values(self.locals["new_obs"][own])
        buffer.compute_returns_and_advantage(torch.as_tensor(last_values_E), self.locals["dones"])

    def _start_value(self, buffer: RolloutBuffer) -> float:
        """Mean in-context value of start states, by walks under the policy, off this rollout."""
        evaluator = icrl.InContextEvaluator.from_pretrained()
        evaluator.fit(self._trajectory(buffer, slice(None)), gamma=self.gamma, policy=self.model)
        return float(evaluator.predict(np.stack(self.starts)).values.mean())

    def _snapshot(self, buffer: RolloutBuffer) -> Snapshot:
        with torch.random.fork_rng(devices=[]):
            value = None if self.replaces_critic else self._start_value(buffer)
            torch.manual_seed(1000 * self.seed + len(self.snapshots))
            returns, lengths = episodes(self.model, self.env_id, EVALUATION_EPISODES + TRUTH_EPISODES, self.seed)
        latest = float(np.mean(self.returns[-LATEST_EPISODES:])) if self.returns else LEAST_RETURN
        return Snapshot(
            self.num_timesteps, value, latest, float(np.mean(returns[:EVALUATION_EPISODES])),
            int(np.sum(lengths[:EVALUATION_EPISODES])), float(np.mean(returns[EVALUATION_EPISODES:])),
        )  # fmt: skip


def episodes(model: Any, env_id: str, count: int, seed: int) -> tuple[list[float], list[int]]:
    """Returns and lengths of the first episodes of as many environments, so that short ones are no likelier."""
    env = make_vec_env(env_id, n_envs=count, seed=10_000 + seed)
    observations, returns, lengths = env.reset(), np.zeros(count), np.zeros(count, dtype=int)
    going = np.ones(count, dtype=bool)
    while going.any():
        actions, _ = model.predict(observations)
        observations, rewards, dones, _ = env.step(actions)
        returns += np.where(going, rewards, 0.0)
        lengths += going
        going &= ~dones
    env.close()
    return returns.tolist(), lengths.tolist()


def run(env_id: str, arm: str, seed: int) -> list[Snapshot]:
    """Train once."""
    options = {"n_steps": NUM_STEPS, "batch_size": 256, **OPTIONS.get(env_id, {})}
    env = make_vec_env(env_id, n_envs=NUM_ENVS, seed=seed)
    model = PPO("MlpPolicy", env, seed=seed, device="cpu", **options)
    callback = AtWork(env_id, BUDGETS[env_id], arm == "in_context", seed)
    model.learn(BUDGETS[env_id], callback)
    env.close()
    return callback.snapshots


def read(folder: Path) -> dict[tuple[str, str, int], list[Snapshot]]:
    """All finished runs by environment, arm and seed."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found[content["env"], content["arm"], content["seed"]] = [Snapshot(**one) for one in content["snapshots"]]
    return found


def write_page(config: Config, runs: Runs) -> None:
    """The page and its figure."""
    commit = source_commit(Path(icrl.__file__).parent) or "unknown"
    picture = Picture(
        "learning_curves",
        "Mean return of PPO with either baseline; bands are 95 % t intervals over seeds.",
        figure(runs),
    )
    sections = (
        Section("In short", (summary(runs),)),
        Section("As PPO's baseline", (BASELINE, baseline_table(runs), picture)),
        Section("To choose a checkpoint", (CHOICE, choice_table(runs))),
    )
    folder = config.page.parent / config.page.stem
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{picture.name}.png") as unfinished:
        picture.figure.savefig(unfinished, format="png", dpi=110, metadata={"Software": None})
    intro = (
        "# In-context values at work\n\nDo values without training help a training? Generated by\n"
        f"`python scripts/measure_at_work.py`, the page at commit `{commit[:12]}`; not edited by hand.\n\n"
    )
    write_text(config.page, intro + markdown(sections, pictures=f"{folder.name}/") + "\n")


def main(config: Config) -> None:
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    unknown = sorted(set(config.envs) - set(BUDGETS))
    if unknown:
        raise SystemExit(f"envs must be among {', '.join(BUDGETS)}, got {', '.join(unknown)}")
    for seed in () if config.report_only else config.seeds:
        for env in config.envs:
            for arm in ARMS:
                path = config.out / f"{env}-{arm}-{seed}.json"
                if path.exists():
                    continue
                config.out.mkdir(parents=True, exist_ok=True)
                snapshots = [vars(one) for one in run(env, arm, seed)]
                write_json(path, {"env": env, "arm": arm, "seed": seed, "snapshots": snapshots})
                sys.stderr.write(f"{env} {arm} seed {seed}: {snapshots[-1]['truth']:.1f}\n")
    write_page(config, read(config.out))


if __name__ == "__main__":
    main(tyro.cli(Config))
