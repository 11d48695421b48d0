"""Three independent routes to one number: the printed matrix form, the evaluator's torch form, and NumPy loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_gym.context.features import FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator import paper
from icrl_gym.evaluator.network import compile_prompt
from icrl_gym.evaluator.recursion import Trace
from icrl_gym.evaluator.setting import THEOREM_1, Setting
from icrl_gym.reproduction.reference import ReferenceInput, ReferenceSetting, certainty_equivalence, run

TOLERANCE = 1e-12


class RawFeatures(FeatureMap):
    """The observation itself, not standardised, so that all three forms see the same features."""

    def fit(self, observations):
        return self

    def __call__(self, observations):
        return np.asarray(observations, dtype=np.float64)

    effective_dimension = 4  # width scale sqrt(4 / 4) = 1


def mrp_trajectory(rng, num_transitions=20, num_states=6, dimension=3):
    """One uninterrupted trajectory of a random MRP: features (n + 1, d), rewards (n,)."""
    transition = rng.dirichlet(np.ones(num_states), size=num_states)
    table = rng.uniform(-1, 1, (num_states, dimension))
    states = [int(rng.integers(num_states))]
    for _ in range(num_transitions):
        states.append(int(rng.choice(num_states, p=transition[states[-1]])))
    return table[states], rng.uniform(-1, 1, num_transitions)


def logged(rng, num_transitions=25, dimension=2, repeats=False, flag_rate=0.12):
    """A log with terminations, truncations and silent ends."""
    shape = (num_transitions, dimension)
    observations = rng.standard_normal(shape)
    if repeats:
        observations = rng.standard_normal((4, dimension))[rng.integers(4, size=num_transitions)]
    terminated, truncated, silent = (rng.random(num_transitions) < flag_rate for _ in range(3))
    ends = terminated | truncated | silent
    ends[-1] = True
    following = np.concatenate([observations[1:], rng.standard_normal((1, dimension))])
    following = np.where(ends[:, None], rng.standard_normal(shape), following)
    rewards = rng.standard_normal(num_transitions)
    return Trajectory(observations, np.zeros(num_transitions), rewards, following, terminated, truncated, ends)


def raw_prompt(trajectory, gamma):
    return Prompt.from_trajectory(trajectory, gamma, RawFeatures(trajectory.observation_space))


def single_prompt(features, rewards, gamma):
    n = len(rewards)
    flags = np.zeros(n, dtype=bool)
    ends = np.arange(n) == n - 1
    return raw_prompt(Trajectory(features[:-1], np.zeros(n), rewards, features[1:], flags, flags, ends), gamma)


def reference_input(trajectory, gamma, log_weights=None, ratios=None):
    n = len(trajectory)
    ratios = np.ones(n) if ratios is None else ratios
    with np.errstate(divide="ignore"):
        log_weights = (np.zeros(n) if log_weights is None else log_weights) + np.log(ratios)
    return ReferenceInput(
        trajectory.observations, trajectory.next_observations, trajectory.rewards, trajectory.terminated,
        trajectory.episode_ends, gamma, log_weights, ratios,
    )  # fmt: skip


def all_columns(compiled, queries):
    """(L + 1, C + Q) as the reference orders them."""
    values = compiled.values(compiled.attend(queries)).numpy()
    columns = compiled.readout.columns_LCR[..., 0].numpy()
    return columns, values


@given(seed=st.integers(0, 2**31), alpha=st.sampled_from([1.0, 0.5]), gamma=st.floats(0.0, 0.99))
@settings(max_examples=30, deadline=None)
def test_all_forms_agree_at_every_layer_and_column_of_a_single_trajectory(seed, alpha, gamma):
    features, rewards = mrp_trajectory(np.random.default_rng(seed))
    num_layers = 6
    printed = paper.paper_forward(features, rewards, gamma, num_layers, "tsm", alpha)
    dual = paper.paper_forward(features, rewards, gamma, num_layers, "dual_head", alpha)
    setting = Setting(**{**vars(THEOREM_1), "num_layers": num_layers, "step_size": alpha})
    prompt = single_prompt(features, rewards, gamma)
    compiled = compile_prompt(prompt, setting, fall_back=False)
    columns, query = all_columns(compiled, features[-1:])
    n = len(rewards)
    flags = np.zeros(n, dtype=bool)
    given_ = ReferenceInput(
        features[:-1], features[1:], rewards, flags, np.arange(n) == n - 1, gamma, np.zeros(n), np.ones(n)
    )
    loops = run(given_, ReferenceSetting("inner_product", alpha=alpha), features[-1:], num_layers)
    scale = 1.0 + np.abs(loops).max()
    np.testing.assert_allclose(printed, dual, rtol=0, atol=TOLERANCE * scale)
    np.testing.assert_allclose(printed, loops[:, :-1], rtol=0, atol=TOLERANCE * scale)
    np.testing.assert_allclose(printed, columns, rtol=0, atol=TOLERANCE * scale)
    np.testing.assert_allclose(printed[1:, -1:], query, rtol=0, atol=TOLERANCE * scale)


@given(
    seed=st.integers(0, 2**31),
    alpha=st.sampled_from([1.0, 0.7]),
    beta=st.sampled_from([0.0, 0.3, 1.0]),
    lam=st.sampled_from([0.0, 0.6, 1.0]),
    eta=st.sampled_from([0.0, 0.05]),
    sink=st.sampled_from([0.0, 3.0]),
    kernel=st.sampled_from(["gaussian", "inner_product"]),
    constant_mode=st.booleans(),
    average_ends=st.booleans(),
    start=st.booleans(),
    bias=st.sampled_from(["none", "bootstrap", "dropped", "ratios"]),
    repeats=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_model_equals_loops_under_every_extension(
    seed, alpha, beta, lam, eta, sink, kernel, constant_mode, average_ends, start, bias, repeats
):
    rng = np.random.default_rng(seed)
    trajectory = logged(rng, repeats=repeats)
    n, gamma, num_layers = len(trajectory), 0.9, 5
    sink = sink if kernel == "gaussian" else 0.0
    log_weights = ratios = None
    if bias == "bootstrap":
        log_weights = np.log(rng.dirichlet(np.ones(n)))
    elif bias == "dropped":
        log_weights = np.where(rng.random(n) < 0.3, -np.inf, 0.0)
        log_weights[int(rng.integers(n))] = 0.0
    elif bias == "ratios":
        ratios = rng.gamma(2.0, 0.5, n)
    setting = Setting(kernel, num_layers, 1.0, sink, eta, lam, alpha, beta, constant_mode, average_ends, start)
    compiled = compile_prompt(
        raw_prompt(trajectory, gamma), setting, log_weights=log_weights, importance_ratios=ratios, fall_back=False
    )
    queries = rng.standard_normal((3, 2))
    columns, values = all_columns(compiled, queries)
    reference = ReferenceSetting(kernel, alpha, beta, lam, eta, sink, constant_mode, average_ends, start)
    loops = run(reference_input(trajectory, gamma, log_weights, ratios), reference, queries, num_layers)
    scale = 1.0 + np.abs(loops).max()
    np.testing.assert_allclose(columns, loops[:, :-3], rtol=0, atol=TOLERANCE * scale)
    np.testing.assert_allclose(values, loops[1:, -3:], rtol=0, atol=TOLERANCE * scale)


def _mutated(name):
    """The printed form with one of theory section 2's mutations, as (layer function, attention function)."""

    def unmasked(Z, score_matrix):
        scores = Z.T @ score_matrix @ Z
        weights = np.exp(scores - scores.max(axis=0))
        return weights / weights.sum(axis=0)

    def layer(Z, value_matrix, score_matrix, gamma):
        attend = unmasked if name == "no mask" else paper.attention_weights
        new = Z + value_matrix @ Z @ attend(Z, score_matrix)
        size = len(Z)
        U, W = np.eye(size), np.zeros((size, size))
        U[-2, -2] = 1.0 if name == "target row kept" else 0.0
        W[-2, -1] = 1.0 if name == "gamma dropped" else gamma
        shift = paper.shift_matrix(Z.shape[1])
        if name == "shift transposed":
            shift = shift.T
        return U @ new + W @ (Z if name == "old row shifted" else new) @ shift

    return layer


@pytest.mark.parametrize(
    ("mutation", "from_layer"),
    [
        ("none", None),
        ("no mask", 1),
        ("shift transposed", 2),
        ("gamma dropped", 2),
        ("old row shifted", 2),
        ("target row kept", 3),
    ],
)
def test_mutations_of_the_printed_form_break_theorem_1(mutation, from_layer):
    features, rewards = mrp_trajectory(np.random.default_rng(5))
    parameters = paper.paper_parameters(features.shape[1])
    layer, Z = _mutated(mutation), paper.paper_prompt(features, rewards)
    expected = paper.paper_forward(features, rewards, 0.9, 4)
    errors = []
    for depth in range(1, 5):
        Z = layer(Z, *parameters, 0.9)
        errors.append(np.abs(Z[-1] - expected[depth]).max())
    if from_layer is None:
        assert max(errors) < TOLERANCE
    else:
        assert max(errors[: from_layer - 1], default=0.0) < TOLERANCE
        assert errors[from_layer - 1] > 1e-6


def test_parameters_are_those_printed_in_the_paper():
    value_matrix, score_matrix = paper.paper_parameters(2, alpha=0.5)
    expected_value, expected_score = np.zeros((5, 5)), np.zeros((5, 5))
    expected_value[4] = [0, 0, 0.5, 0.5, -0.5]
    expected_score[0, 0] = expected_score[1, 1] = 1.0
    np.testing.assert_array_equal(value_matrix, expected_value)
    np.testing.assert_array_equal(score_matrix, expected_score)


def test_first_layer_from_zero_is_a_kernel_average_of_rewards_by_hand():
    features = np.array([[0.0], [np.log(3.0)], [1.0]])
    rows = paper.paper_forward(features, np.array([4.0, 8.0]), 0.5, 1)
    # Column 1 scores: 0 and log(3)^2; column 0 scores both 0.
    weight = np.exp(np.log(3.0) ** 2)
    query = 3.0  # exp(1 * log 3)
    np.testing.assert_allclose(rows[1], [6.0, (4 + 8 * weight) / (1 + weight), (4 + 8 * query) / (1 + query)])


@pytest.mark.parametrize("lam", [0.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_equilibrium_is_the_limit_of_many_layers(lam, beta):
    trajectory = logged(np.random.default_rng(3), num_transitions=30)
    prompt = raw_prompt(trajectory, 0.9)
    options = {"sink": 2.0, "forgetting": 0.05, "trace_decay": lam, "averaging": beta, "constant_mode": False}
    solved = compile_prompt(prompt, Setting(bandwidth=0.7, **options), fall_back=False)
    deep = compile_prompt(prompt, Setting(bandwidth=0.7, num_layers=3000, **options), fall_back=False)
    queries = np.random.default_rng(0).standard_normal((7, 2))
    limit = solved.values(solved.attend(queries))[-1]
    np.testing.assert_allclose(deep.values(deep.attend(queries))[-1], limit, atol=1e-8)


def test_equilibrium_without_forgetting_is_certainty_equivalence_for_any_kernel():
    rng = np.random.default_rng(1)
    transition = rng.dirichlet(np.ones(5), size=5)
    states = [0]
    while len(states) < 60 or states[-1] != 0:  # the last successor is a source too
        states.append(int(rng.choice(5, p=transition[states[-1]])))
    states = np.array(states)
    n = len(states) - 1
    terminated = rng.random(n) < 0.1
    terminated[-1] = True
    rewards, table = rng.standard_normal(n), rng.standard_normal((5, 2))
    trajectory = Trajectory(
        table[states[:-1]], np.zeros(n), rewards, table[states[1:]], terminated, np.zeros(n, dtype=bool)
    )
    expected = certainty_equivalence(states[:-1], states[1:], rewards, 0.9 * ~terminated)
    prompt = raw_prompt(trajectory, 0.9)
    for kernel, bandwidth in [("gaussian", 0.5), ("gaussian", 1.0), ("inner_product", 1.0)]:
        setting = Setting(kernel, bandwidth=bandwidth, sink=0.0, forgetting=0.0)
        compiled = compile_prompt(prompt, setting, fall_back=False)
        np.testing.assert_allclose(compiled.values(compiled.attend(table))[-1], expected, atol=1e-6)


def test_a_source_of_weight_two_equals_the_same_source_twice():
    rng = np.random.default_rng(2)
    observations, rewards = rng.standard_normal((6, 2)), rng.standard_normal(6)
    all_true, none = np.ones(6, dtype=bool), np.zeros(6, dtype=bool)
    single = Trajectory(observations, np.zeros(6), rewards, observations, all_true, none)
    copies = [1, 2, 1, 1, 1, 1]
    repeated_arrays = (np.repeat(x, copies, axis=0) for x in (observations, np.zeros(6), rewards, observations))
    twice = Trajectory(*repeated_arrays, np.ones(7, dtype=bool), np.zeros(7, dtype=bool))
    setting = Setting(num_layers=4, sink=1.0, forgetting=0.0)
    weighted = compile_prompt(raw_prompt(single, 0.9), setting, log_weights=np.log(copies), fall_back=False)
    repeated = compile_prompt(raw_prompt(twice, 0.9), setting, fall_back=False)
    query = rng.standard_normal((5, 2))
    np.testing.assert_allclose(
        weighted.values(weighted.attend(query)), repeated.values(repeated.attend(query)), atol=TOLERANCE
    )


def test_trace_operator_and_its_transpose_are_adjoint():
    rng = np.random.default_rng(0)
    decay = torch.tensor(rng.random(37) * (rng.random(37) > 0.2))
    decay[-1] = 0
    trace = Trace.of(decay)
    x, y = (torch.tensor(rng.standard_normal((37, 2))) for _ in range(2))
    torch.testing.assert_close((trace(x) * y).sum(), (x * trace.transposed(y)).sum())
