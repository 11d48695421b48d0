"""How often the critic audit raises the alarm: at planted faults, and at critics that are right.

    nice -n 15 python scripts/measure_audit.py [--num-seeds 20] [--out runs/audit] [--page docs/audit_error_rates.md]

Each seed is one process or one training of its own, with one audit per critic at the callback's defaults (one
environment, window 2,048). Finished seeds are kept under ``--out``; an interrupted run goes on with the next one. The
page is written from all that is there.

*Tables*: Boyan chains (time limit 20, no other end) and random Markov reward processes (2 % of steps terminate), drawn
by the seed. The good critic is the exact solution. *CartPole-v1* with a time limit of 200: PPO is trained for 40,000
steps; then the policy is held still and PPO trains only the critic, 20,000 steps more: the good critic. The faults are
planted at that policy.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper

import icrl_gym as icrl
from icrl_gym.audit.callback import CriticAuditCallback
from icrl_gym.context.returns import decayed_sums
from icrl_gym.runs import write_json, write_text

GAMMA, WRONG_GAMMA = 0.99, 0.9
TABLE_GAMMA, TABLE_WRONG_GAMMA = 0.95, 0.8
TIME_LIMIT, TABLE_TIME_LIMIT = 200, 20
POLICY_STEPS, CRITIC_STEPS, LAG = 40_960, 20_480, 20_480
TERMINATION_PROBABILITY = 0.02
CARTPOLE, BOYAN, RANDOM = "CartPole-v1", "Boyan chain", "random process"
GOOD = {CARTPOLE: "long-trained", BOYAN: "exact", RANDOM: "exact"}


@dataclass(frozen=True)
class Config:
    """Flags of this measurement."""

    subjects: tuple[str, ...] = (BOYAN, RANDOM, CARTPOLE)
    """What to measure."""
    num_seeds: int = 20
    """Seeds of every subject."""
    first_seed: int = 200
    """The first of them; those below were looked at while the verdict was made."""
    out: Path = Path("runs/audit")
    """Folder of what was measured."""
    page: Path = Path("docs/audit_error_rates.md")
    """The table."""


@dataclass(frozen=True)
class Finding:
    """One audit of one critic.

    Attributes:
        subject: what was learned.
        critic: which critic, by its fault.
        seed: of the subject.
        call: the verdict's.
        sentence: the verdict in words.
        bias: mean of the critic's values minus the true ones, over the root mean square of the true ones.
        error: root mean square of the critic's error less its mean, over the standard deviation of the true ones.
        estimated_bias: the audit's bias from the returns, over the same.
    """

    subject: str
    critic: str
    seed: int
    call: str
    sentence: str
    bias: float
    error: float
    estimated_bias: float


class HiddenLimits(VecEnvWrapper):
    """A vector environment whose time limits look like terminations."""

    def reset(self) -> Any:
        """Reset all environments."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Step, without the flag."""
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards, dones, [{**info, "TimeLimit.truncated": False} for info in infos]


def audit(model: Any, env: Any, seed: int) -> Any:
    """One audit of a model as it is, by the callback, over a rollout in which nothing is learned."""
    audited = PPO("MlpPolicy", env, n_steps=2_049, batch_size=2_049, gamma=model.gamma, seed=seed, device="cpu")
    audited.policy = model.policy
    audited.train = lambda: None
    callback = CriticAuditCallback(every=2_049, figures=False)
    audited.learn(2_049, callback=callback)
    return callback.audits[-1]


def finding(subject: str, critic: str, seed: int, audited: Any, values: np.ndarray, truth: np.ndarray) -> Finding:
    """The verdict beside how wrong the critic really is at states of the policy's way."""
    scale, error = float(np.sqrt(np.mean(truth**2))), values - truth
    return Finding(
        subject,
        critic,
        seed,
        str(audited.verdict.call),
        audited.verdict.sentence,
        float(error.mean()) / scale,
        float(error.std() / truth.std()),
        audited.returns_bias / scale,
    )


# Tables


def table_process(subject: str, seed: int) -> gymnasium.Env:
    """A process drawn by the seed."""
    if subject == BOYAN:
        return gymnasium.make("icrl_envs:icrl/BoyanChain-v0", mrp_seed=seed, max_episode_steps=TABLE_TIME_LIMIT)
    return gymnasium.make("icrl_envs:icrl/RandomMRP-v0", mrp_seed=seed, termination_probability=TERMINATION_PROBABILITY)


def table_critics(subject: str, process: Any, seed: int) -> dict[str, np.ndarray]:
    """Critics by their faults, (S,) each, the exact one first."""
    exact = process.exact_values(TABLE_GAMMA)
    critics = {
        GOOD[subject]: exact,
        "values shuffled": np.random.default_rng(seed).permutation(exact),
        "value head at its start": np.zeros_like(exact),
        f"gamma {TABLE_WRONG_GAMMA} instead of {TABLE_GAMMA}": process.exact_values(TABLE_WRONG_GAMMA),
    }
    if subject == BOYAN:
        critics["truncation as termination"] = process.exact_values(TABLE_GAMMA * (1 - 1 / TABLE_TIME_LIMIT))
    return critics


def stationary_weights(process: Any) -> np.ndarray:
    """Share of the steps in each state, (S,), time limits aside."""
    restarted = process.transition_matrix + np.outer(
        1 - process.transition_matrix.sum(axis=1), process.initial_state_distrib
    )
    weights = np.linalg.matrix_power(0.99 * restarted + 0.01 * process.initial_state_distrib, 4_096)[0]
    return weights / weights.sum()


def table_findings(subject: str, seed: int) -> Iterator[Finding]:
    """Audits of the critics of one process."""
    process: Any = table_process(subject, seed).unwrapped
    critics = table_critics(subject, process, seed)
    rows = np.random.default_rng(seed).choice(process.num_states, 4_096, p=stationary_weights(process))
    for name, values in critics.items():
        env = make_vec_env(lambda: table_process(subject, seed), seed=1_000 + seed)
        model = PPO("MlpPolicy", env, gamma=TABLE_GAMMA, seed=seed, device="cpu")
        table = torch.as_tensor(np.append(values, 0.0))
        policy: Any = model.policy
        policy.predict_values = lambda states, table=table: table[states.long().reshape(-1)].reshape(-1, 1)
        yield finding(subject, name, seed, audit(model, env, seed), values[rows], critics[GOOD[subject]][rows])


# CartPole


def cartpole(seed: int, num_envs: int) -> Any:
    """Vector environments."""
    return make_vec_env("CartPole-v1", num_envs, seed=seed, env_kwargs={"max_episode_steps": TIME_LIMIT})


def trained(seed: int) -> tuple[PPO, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A trained model, and its critic as it was at the start and 20,000 steps ago."""
    model = PPO("MlpPolicy", cartpole(seed, 8), n_steps=256, batch_size=128, gamma=GAMMA, seed=seed, device="cpu")
    start = critic_weights(model)
    model.learn(POLICY_STEPS - LAG)
    lagging = critic_weights(model)
    model.learn(LAG, reset_num_timesteps=False)
    return model, start, lagging


def critic_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the parameters that only the critic uses."""
    return {name: copy.deepcopy(value) for name, value in model.policy.state_dict().items() if "value_net" in name}


def with_critic(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The model with another critic."""
    model.policy.load_state_dict(weights, strict=False)
    return model


def critic_trained(model: Any, seed: int, gamma: float = GAMMA, hide_limits: bool = False) -> dict[str, torch.Tensor]:
    """The critic after more training while the policy is held still."""
    before, env = critic_weights(model), cartpole(seed + 500, 8)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_("value_net" in name)
    held = PPO(
        "MlpPolicy", HiddenLimits(env) if hide_limits else env, n_steps=256, batch_size=256, learning_rate=1e-3,
        gamma=gamma, seed=seed, device="cpu", max_grad_norm=100.0,
    )  # fmt: skip
    held.policy = model.policy
    held.learn(CRITIC_STEPS)
    after = critic_weights(model)
    with_critic(model, before)
    return after


def shuffled(weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The entries of each parameter in random order."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value.reshape(-1)[torch.randperm(value.numel(), generator=generator)].reshape(value.shape)
        for name, value in weights.items()
    }


def cartpole_truth(model: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States on the policy's way to the time limit, and their returns without one."""
    num_envs, length, horizon = 16, 1_500, 700
    env = gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="sync", max_episode_steps=-1)
    log = icrl.collect(env, model, num_envs * length, seed=seed + 2_000)
    returns = decayed_sums(log.rewards, GAMMA * (1.0 - log.episode_ends))
    rows = np.arange(len(log))
    starts = np.append(0, np.flatnonzero(log.episode_ends)[:-1] + 1)
    ages = rows - np.repeat(starts, np.diff(np.append(starts, len(log))))
    cuts = np.append(np.flatnonzero(log.episode_ends & ~log.terminated & ~log.truncated), len(log) - 1)
    left = cuts[np.searchsorted(cuts, rows)] - rows  # steps to the end of the stream
    kept = (ages < TIME_LIMIT) & (left > horizon)
    return log.observations[kept], returns[kept]


def cartpole_findings(seed: int) -> Iterator[Finding]:
    """Audits of the critics of one training."""
    model, start, lagging = trained(seed)
    good = critic_trained(model, seed)
    critics: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        GOOD[CARTPOLE]: lambda: good,
        "weights shuffled": lambda: shuffled(good, seed),
        "value head at its start": lambda: start,
        f"gamma {WRONG_GAMMA} instead of {GAMMA}": lambda: critic_trained(model, seed, gamma=WRONG_GAMMA),
        "truncation as termination": lambda: critic_trained(model, seed, hide_limits=True),
        "lagging by 20,000 steps": lambda: lagging,
    }
    states, returns = cartpole_truth(model, seed)
    best = smoothed_truth(with_critic(model, good), states, returns)
    for name, make in critics.items():
        weights = make()
        with_critic(model, weights)
        values = icrl.sb3_critic_values(model, states).values
        yield finding(CARTPOLE, name, seed, audit(model, cartpole(seed + 1_000, 1), seed), values, best)


def smoothed_truth(model: Any, states: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """Mean returns of states that the good critic holds for alike: the noise of single returns is taken out."""
    order = np.argsort(icrl.sb3_critic_values(model, states).values)
    truth = np.empty(len(returns))
    for group in np.array_split(order, 50):
        truth[group] = returns[group].mean()
    return truth


# Running and reporting


def measure(config: Config) -> None:
    """Measure what is not there yet."""
    config.out.mkdir(parents=True, exist_ok=True)
    work: dict[str, Callable[[int], Iterator[Finding]]] = {
        BOYAN: lambda seed: table_findings(BOYAN, seed),
        RANDOM: lambda seed: table_findings(RANDOM, seed),
        CARTPOLE: cartpole_findings,
    }
    for subject in config.subjects:
        for seed in range(config.first_seed, config.first_seed + config.num_seeds):
            path = config.out / f"{subject.replace(' ', '-')}-{seed}.json"
            if not path.exists():
                found = list(work[subject](seed))
                write_json(path, [asdict(one) for one in found])
                print(subject, seed, *(f"{one.critic}: {one.sentence};" for one in found), flush=True)


def stored(config: Config) -> list[Finding]:
    """All findings on disk."""
    return [Finding(**one) for path in sorted(config.out.glob("*.json")) for one in json.loads(path.read_text())]


def page(findings: list[Finding]) -> str:
    """The table of error rates."""
    lines = [
        "| subject | critic | seeds | biased | uninformative | cannot tell | agrees | alarm raised "
        "| true bias, absolute | rest of the error |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for subject, critic in dict.fromkeys((one.subject, one.critic) for one in findings):
        group = [one for one in findings if (one.subject, one.critic) == (subject, critic)]
        calls = [
            sum(one.call == call for one in group) for call in ("biased", "uninformative", "cannot tell", "agrees")
        ]
        good = " (good)" if critic == GOOD[subject] else ""
        bias, error = np.median([abs(one.bias) for one in group]), np.median([one.error for one in group])
        lines.append(
            f"| {subject} | {critic}{good} | {len(group)} | {' | '.join(map(str, calls))} "
            f"| **{(calls[0] + calls[1]) / len(group):.0%}** | {bias:.2f} | {error:.2f} |"
        )
    return "\n".join(lines) + "\n"


HEAD = """# Error rates of the critic audit

Generated by `nice -n 15 python scripts/measure_audit.py`, whose head says what the subjects are. One audit per critic
and seed, at the defaults of the callback (window 2,048, one environment). An alarm is the verdict "biased" or
"uninformative". The last two columns are medians over the seeds of how wrong the critics really are: the absolute mean
error over the root mean square of the true values, and the standard deviation of the error over that of the true ones.

"""


def main(config: Config) -> None:
    """Measure, then write the page."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*truncated mini-batch.*")
    measure(config)
    write_text(config.page, HEAD + page(stored(config)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
