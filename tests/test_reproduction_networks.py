"""The trainable networks of the reproduction against the printed transformer, and their losses by other routes."""

import itertools

import numpy as np
import pytest
import torch

from icrl_gym.evaluator import paper
from icrl_gym.reproduction import dense_network, sparse_training, state_network
from icrl_gym.reproduction.mrps import MRPBatch, boyan_chains, random_mrps
from icrl_gym.reproduction.state_network import Parameters

GAMMA = 0.9


def random_parameters(rng, num_features=4):
    value_row, score = 0.4 * rng.standard_normal(3), 0.5 * rng.standard_normal((num_features, num_features))
    return Parameters(torch.as_tensor(value_row), torch.as_tensor(score))


def printed(parameters, features, rewards, num_layers):
    """The current-memory rows of the printed form with these parameters."""
    value_matrix, score_matrix = paper.paper_parameters(features.shape[1])
    value_matrix[-1, -3:] = parameters.value_row
    score_matrix[:-3, :-3] = parameters.score
    return paper.forward(paper.paper_prompt(features, rewards), value_matrix, score_matrix, GAMMA, num_layers, "tsm")


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_states_collapse_the_printed_forward_pass_for_any_sparse_parameters(num_layers):
    rng = np.random.default_rng(0)
    mrps = boyan_chains(rng, 6)
    states = mrps.walk(rng, 12)  # short: some states stay unvisited
    parameters = random_parameters(rng)
    found = state_network.values(parameters, state_network.count(mrps, states), GAMMA, num_layers).numpy()
    for b in range(len(mrps)):
        rows = printed(parameters, mrps.features_of(states)[b], mrps.rewards_of(states)[b], num_layers)
        np.testing.assert_allclose(found[b, states[b]], rows[-1], rtol=0, atol=1e-12)


def test_sensitivity_is_the_gradient_at_the_query():
    rng = np.random.default_rng(1)
    mrps = boyan_chains(rng, 3)
    contexts, parameters = state_network.count(mrps, mrps.walk(rng, 20)), random_parameters(rng)
    memory = state_network.memory(parameters, contexts, GAMMA, 4)
    queries = contexts.features.clone().requires_grad_()
    state_network.read(parameters, queries, contexts, memory).sum().backward()
    torch.testing.assert_close(state_network.sensitivity(parameters, contexts, memory), queries.grad)


def test_dense_network_is_the_printed_form_with_any_matrices():
    rng = np.random.default_rng(2)
    mrps = random_mrps(rng, 3, 5, 2)
    states = mrps.walk(rng, 9)
    value_matrix, score_matrix = 0.3 * rng.standard_normal((2, 5, 5))
    Z = dense_network.prompts(mrps, states)
    found = dense_network.read_out(*map(torch.as_tensor, (Z, value_matrix, score_matrix)), GAMMA, 4).numpy()
    for b in range(3):
        rows = paper.forward(Z[b], value_matrix, score_matrix, GAMMA, 4, "tsm")
        np.testing.assert_allclose(found[b], rows[-1], rtol=0, atol=1e-12)


def test_losses_equal_loops_over_prompts():
    plan = sparse_training.TrainingPlan(1, num_mrps=2, num_walks=3, num_layers=3, num_transitions=8)
    batch = sparse_training.draw(np.random.default_rng(3), 2, plan)
    parameters = random_parameters(np.random.default_rng(4))

    def delta(g, p, w):
        now, later = ({k: v[g, p, w] for k, v in vars(one).items()} for one in (batch.now, batch.later))
        predicted, following = (
            state_network.values(parameters, state_network.Contexts(**one), GAMMA, 3)[one["query"]]
            for one in (now, later)
        )
        return float(batch.reward[g, p, w] + GAMMA * following - predicted), float(predicted), int(now["query"])

    every = {index: delta(*index) for index in itertools.product(range(2), range(2), range(3))}
    for g in range(2):
        rows = {index: found for index, found in every.items() if index[0] == g}
        td = np.mean([d**2 for d, _, _ in rows.values()])
        msve = np.mean([(float(batch.truth[i]) - v) ** 2 for i, (_, v, _) in rows.items()])
        pairs = [
            every[g, p, i][0] * every[g, p, j][0] * (every[g, p, i][2] == every[g, p, j][2])
            for p in range(2)
            for i, j in itertools.permutations(range(3), 2)
        ]
        for name, expected in [("td", td), ("msve", msve), ("neu", np.mean(pairs))]:
            found = float(sparse_training.loss_of(name, parameters, batch, plan)[g])
            assert found == pytest.approx(expected, abs=1e-12), name


def test_norm_of_the_expected_update_is_unbiased_against_enumeration():
    """Every walk of three transitions and a query's successor, with its probability, gives the exact expectation."""
    rng = np.random.default_rng(5)
    one = random_mrps(rng, 1, 3, 2)
    walks = np.array(list(itertools.product(range(3), repeat=5)))
    steps = [one.transition[0][walks[:, t], walks[:, t + 1]] for t in range(4)]
    probability = np.prod(steps, axis=0) / 3
    assert probability.sum() == pytest.approx(1)
    parameters = state_network.construction(2)

    def samples(states):
        many = MRPBatch(*(np.repeat(array, len(states), axis=0) for array in vars(one).values()))
        now, later = state_network.count(many, states[:, :-1]), state_network.count(many, states)
        predicted, following = (
            state_network.at_query(c, state_network.values(parameters, c, GAMMA, 3)) for c in (now, later)
        )
        reward = torch.as_tensor(many.rewards_of(states)[:, -1])
        return sparse_training.expected_update(reward + GAMMA * following - predicted, now.query, 3)

    g = samples(walks).numpy()
    mean = probability @ g
    exact = float(mean @ mean)
    covariance = float(probability @ (g**2).sum(axis=1)) - exact
    drawn = torch.as_tensor(g[rng.choice(len(walks), size=(40_000, 4), p=probability)])
    estimates, biased = sparse_training.squared_norm(drawn).numpy(), sparse_training.plug_in_squared_norm(drawn).numpy()
    tolerance = 4.5 * estimates.std() / np.sqrt(len(drawn))  # false alarm 7e-6
    assert abs(estimates.mean() - exact) < tolerance
    assert abs(biased.mean() - exact - covariance / 4) < tolerance
    assert covariance / 4 > 10 * tolerance


def test_training_goes_on_where_it_stopped_bit_by_bit(tmp_path):
    plan = sparse_training.TrainingPlan(12, num_mrps=1, num_walks=2, num_layers=2, num_transitions=5, every=4)
    whole = sparse_training.train("td", (0, 1), plan, tmp_path / "whole.pt")

    class Stop(Exception):
        pass

    def stop(step):
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        sparse_training.train("td", (0, 1), plan, tmp_path / "cut.pt", progress=stop)
    resumed = sparse_training.train("td", (0, 1), plan, tmp_path / "cut.pt")
    assert list(whole["steps"]) == [0, 4, 8, 12]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name])
