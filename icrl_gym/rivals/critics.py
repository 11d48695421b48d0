"""Values of states according to the critics of Stable-Baselines3 and sb3-contrib.

A critic with a V head (PPO, A2C, TRPO, MaskablePPO, RecurrentPPO) is read directly. One with Q heads gives the
expectation over the policy's own actions: exactly where actions are discrete (DQN, QRDQN), by averaging over sampled
actions where they are continuous (SAC, TD3, DDPG, TQC, CrossQ). Several Q heads are joined as the algorithm joins them
in its own target: by their minimum, in TQC by the mean of the pooled quantiles without the highest ones.

Stable-Baselines3 is imported only when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from icrl_gym.acting.environments import environment_identity
from icrl_gym.acting.policies import ActingPolicy, as_policy, lacks_normalisation, normalised
from icrl_gym.context.pairs import pair_process
from icrl_gym.observations import Observations, as_batch, batch_size, check_finite, named_leaves, take
from icrl_gym.values import Estimand, ValueEstimates


def sb3_critic_values(
    model: Any,
    observations: Observations,
    states: Any = None,
    episode_starts: Any = None,
    *,
    deterministic: bool = False,
    env: str | gymnasium.Env | None = None,
    num_action_samples: int = 16,
    seed: int = 0,
) -> ValueEstimates:
    """The values a trained agent's own critic gives.

    Args:
        model: an SB3 or sb3-contrib model with a critic.
        observations: (Q,) + shape, raw: a VecNormalize that the model was trained in is applied here, and undone in the
            values.
        states: recurrent models only: the hidden and cell state of the CRITIC's network before each observation, a pair
            of arrays (layers, B, hidden), or the ``RNNStates`` of both networks. With B < Q the observations are B
            sequences of equal length, one after the other, and the states those before each sequence.
        episode_starts: recurrent models only: (Q,) bool, True where the state is to be forgotten first.
        deterministic: the policy in question takes its most likely action. A V head does not depend on it (a note says
            so).
        env: the environment or its name for the estimand, where the model does not know its own.
        num_action_samples: sampled actions per observation, for continuous Q critics of stochastic policies.
        seed: seed of those samples; the global random state is left as it was.

    Raises:
        TypeError: not an SB3 model.
        ValueError: the model has no critic; a recurrent model without states and episode_starts, or another with them;
            observations that do not fit.
    """
    if not hasattr(model, "policy") or not hasattr(model, "predict"):
        raise TypeError(f"model must be a Stable-Baselines3 model, got {type(model).__name__}")
    recurrent = hasattr(model.policy, "lstm_actor")
    if recurrent != (states is not None) or recurrent != (episode_starts is not None):
        need = "needs states and episode_starts" if recurrent else "takes neither states nor episode_starts"
        raise ValueError(f"model: {type(model).__name__} {need}")
    _check_observations(observations, model.observation_space)
    actor = as_policy(model, model.action_space, deterministic=deterministic, seed=seed)
    model.policy.set_training_mode(False)
    with torch.no_grad():
        values, notes = _read(model, actor, observations, states, episode_starts, deterministic, num_action_samples)
    scale = reward_scale(model)
    if scale != 1.0:
        notes = (*notes, f"VecNormalize undone: the critic's values times {scale:.6g}")
    if lacks_normalisation(model):
        notes = (
            *notes,
            "trained in a VecNormalize that it is without now: it sees raw observations, its scale is another",
        )
    estimand = Estimand(_environment_name(model, env), actor.identity, float(model.gamma))
    return ValueEstimates(values.astype(np.float64) * scale, observations, estimand, notes=notes)


def sb3_action_values(model: Any, observations: Observations, actions: Any) -> ValueEstimates:
    """The values that a Q critic gives to actions which were taken.

    Args:
        model: an SB3 or sb3-contrib model with Q heads.
        observations: (Q,) + shape, raw, as for `sb3_critic_values`.
        actions: (Q,) + action shape, as the environment executes them.

    Returns:
        Estimates whose observations are the pairs and whose estimand is that of the process of pairs.

    Raises:
        TypeError: not an SB3 model.
        ValueError: the model has no Q critic, or the observations or the actions do not fit.
    """
    if not hasattr(model, "policy") or not hasattr(model, "predict"):
        raise TypeError(f"model must be a Stable-Baselines3 model, got {type(model).__name__}")
    _check_observations(observations, model.observation_space)
    actions = as_batch(actions, model.action_space, "actions")
    if len(actions) != batch_size(observations):
        raise ValueError(f"actions must be as many as observations ({batch_size(observations)}), got {len(actions)}")
    model.policy.set_training_mode(False)
    with torch.no_grad():
        values = _read_pairs(model, observations, actions) * reward_scale(model)
    estimand = Estimand(pair_process(_environment_name(model, None)), None, float(model.gamma))
    return ValueEstimates(values, (observations, actions), estimand)


def _read_pairs(model: Any, observations: Observations, actions: np.ndarray) -> np.ndarray:
    """Q of each pair in the critic's own reward units, (Q,) float64."""
    policy = model.policy
    inputs, _ = policy.obs_to_tensor(normalised(model, observations))
    if hasattr(policy, "q_net") or hasattr(policy, "quantile_net"):
        action_values = policy.q_net(inputs) if hasattr(policy, "q_net") else policy.quantile_net(inputs).mean(dim=1)
        column = torch.as_tensor(actions - int(model.action_space.start), device=policy.device).long()
        return action_values.gather(1, column[:, None])[:, 0].double().cpu().numpy()
    if hasattr(policy, "critic") and hasattr(policy, "actor"):
        scaled = torch.as_tensor(policy.scale_action(actions), dtype=torch.float32, device=policy.device)
        return _join_heads(model, policy.critic(inputs, scaled)).double().cpu().numpy()
    raise ValueError(f"model: {type(model).__name__} has no Q critic")


def _read(
    model: Any,
    actor: ActingPolicy,
    observations: Observations,
    states: Any,
    episode_starts: Any,
    deterministic: bool,
    num_action_samples: int,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The critic's values in its own reward units, (Q,), and what to say about them."""
    policy = model.policy
    inputs, _ = policy.obs_to_tensor(normalised(model, observations))
    if hasattr(policy, "predict_values"):
        notes = ("the V head was trained for the policy that samples",) if deterministic else ()
        if states is not None:
            starts = _starts(episode_starts, batch_size(observations), policy.device)
            memory = _critic_state(states, policy.device), starts
            return policy.predict_values(inputs, *memory).reshape(-1).cpu().numpy(), notes
        return policy.predict_values(inputs).reshape(-1).cpu().numpy(), notes
    if hasattr(policy, "q_net"):
        action_values = policy.q_net(inputs).double().cpu().numpy()
        return _expected(action_values, actor, observations), ("Q head, expectation over the policy's actions",)
    if hasattr(policy, "quantile_net"):
        action_values = policy.quantile_net(inputs).mean(dim=1).double().cpu().numpy()
        return _expected(action_values, actor, observations), ("mean of the quantiles, expectation over the actions",)
    if hasattr(policy, "critic") and hasattr(policy, "actor"):
        return _continuous(model, actor, observations, inputs, deterministic, num_action_samples)
    raise ValueError(f"model: {type(model).__name__} has no critic")


def _expected(action_values: np.ndarray, actor: ActingPolicy, observations: Observations) -> np.ndarray:
    return (actor.action_probabilities(observations) * action_values).sum(axis=1)


def _continuous(
    model: Any, actor: ActingPolicy, observations: Observations, inputs: Any, deterministic: bool, num_samples: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Expectation of a continuous Q critic over the policy's own actions."""
    policy = model.policy
    stochastic = hasattr(model, "ent_coef") and not deterministic
    draws = []
    for _ in range(num_samples if stochastic else 1):
        scaled = policy.scale_action(actor.act(observations))
        actions = torch.as_tensor(scaled, dtype=torch.float32, device=policy.device)
        draws.append(_join_heads(model, policy.critic(inputs, actions)).double().cpu().numpy())
    notes = [_how_joined(model), f"mean over {len(draws)} sampled actions" if stochastic else "at the policy's action"]
    if hasattr(model, "ent_coef"):
        weight = entropy_weight(model)
        notes.append(f"includes the discounted entropy bonus of all later steps (coefficient {weight:.4g})")
    return np.mean(draws, axis=0), tuple(notes)


def _join_heads(model: Any, heads: Any) -> torch.Tensor:
    """(Q,) from the several Q heads, as in the algorithm's own target."""
    if not hasattr(model.policy.critic, "quantiles_total"):
        return torch.cat(tuple(heads), dim=1).min(dim=1).values
    pooled = heads.reshape(len(heads), -1).sort(dim=1).values
    return pooled[:, : pooled.shape[1] - _num_dropped(model)].mean(dim=1)


def _num_dropped(model: Any) -> int:
    return model.top_quantiles_to_drop_per_net * model.policy.critic.n_critics


def _how_joined(model: Any) -> str:
    critic = model.policy.critic
    if hasattr(critic, "quantiles_total"):
        return f"mean of the {critic.quantiles_total} pooled quantiles without the {_num_dropped(model)} highest"
    num_heads = len(critic.q_networks)
    return f"minimum of {num_heads} Q heads" if num_heads > 1 else "one Q head"


def entropy_weight(model: Any) -> float:
    """The number that an entropy critic multiplies entropies with, in the rewards that it was trained on."""
    if model.log_ent_coef is not None:
        return float(model.log_ent_coef.detach().exp())
    return float(model.ent_coef_tensor)


def _critic_state(states: Any, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, cell = getattr(states, "vf", states)
    return torch.as_tensor(hidden, dtype=torch.float32, device=device), torch.as_tensor(
        cell, dtype=torch.float32, device=device
    )


def recurrent_critic_states(model: Any, histories: Sequence[Observations]) -> tuple[np.ndarray, np.ndarray]:
    """The state of a recurrent critic after each history but for its last observation: what `sb3_critic_values` needs.

    Args:
        model: RecurrentPPO.
        histories: the raw observations of each query's episode from its start up to the query; see `query_histories`.

    Returns:
        Hidden and cell state, (layers, Q, hidden) each; the queries are no episode starts any more.

    Raises:
        ValueError: the model is not recurrent.
    """
    policy = model.policy
    if not hasattr(policy, "lstm_actor"):
        raise ValueError(f"model: {type(model).__name__} is not recurrent")
    policy.set_training_mode(False)
    network = policy.lstm_critic if policy.lstm_critic is not None else policy.lstm_actor
    parts = []
    for history in histories:
        memory = tuple(torch.zeros(network.num_layers, 1, network.hidden_size, device=policy.device) for _ in range(2))
        before = take(history, slice(-1))
        if batch_size(before):
            inputs, _ = policy.obs_to_tensor(normalised(model, before))
            with torch.no_grad():
                features = policy.extract_features(inputs)
                features = features[1] if isinstance(features, tuple) else features
                memory = network(features.unsqueeze(1), memory)[1]
        parts.append(memory)
    hidden, cell = zip(*parts, strict=True)
    return torch.cat(hidden, dim=1).cpu().numpy(), torch.cat(cell, dim=1).cpu().numpy()


def _starts(episode_starts: Any, batch: int, device: Any) -> torch.Tensor:
    starts = torch.as_tensor(np.asarray(episode_starts), dtype=torch.float32, device=device)
    if starts.shape != (batch,):
        raise ValueError(f"episode_starts must have shape ({batch},), got {tuple(starts.shape)}")
    return starts


def _check_observations(observations: Observations, space: spaces.Space) -> None:
    leaves = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    if not any(isinstance(leaf, spaces.Box) and len(leaf.shape) == 3 for leaf in leaves):
        as_batch(observations, space, "observations")  # images may come with the channels first or last
    for path, leaf in named_leaves(observations, "observations"):
        check_finite(np.asarray(leaf), path)


def reward_scale(model: Any) -> float:
    """The number that VecNormalize divided the rewards by; 1 without it."""
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is None or not vec_normalize.norm_reward:
        return 1.0
    return float(np.sqrt(vec_normalize.ret_rms.var + vec_normalize.epsilon))


def _environment_name(model: Any, env: str | gymnasium.Env | None) -> str | None:
    if env is not None:
        return env if isinstance(env, str) else environment_identity(env)
    vector = model.get_env()
    inner = getattr(getattr(vector, "unwrapped", None), "envs", None)
    return environment_identity(inner[0]) if inner else None
