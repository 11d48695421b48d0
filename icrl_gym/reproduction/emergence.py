"""Claim 5: pretraining from random initialisation finds weighted softmax TD ([XLCLCZ26] Theorem 3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from icrl_gym.reproduction import free_training
from icrl_gym.reproduction.claim import Claim, Finding, Judgement, Outcome, Statement, Table, table_of
from icrl_gym.reproduction.judgement import above, together
from icrl_gym.reproduction.mrps import boyan_chains
from icrl_gym.reproduction.sparse_training import LOSSES, TrainingPlan, draw, loss_of, train
from icrl_gym.reproduction.state_network import Contexts, Parameters, construction, count, memory, sensitivity, values
from icrl_gym.reproduction.store import Store
from icrl_gym.scoring.figures import COLOURS, STYLES

DIRECTION = np.array([1.0, 1.0, -1.0]) / np.sqrt(3.0)
NEAR = 0.95  # cosine that counts as "tends to"
THEOREM = "neu"  # the loss that the theorem is about
ALIKE = 0.9  # similarity that counts as "the same function"
NUM_TEST_MRPS, NUM_LOSS_MRPS = 200, 50


def plan_of(loss: str, quick: bool) -> TrainingPlan:
    """The same budget for each loss: 64 prompts per seed and step."""
    size = {"num_steps": 40, "num_layers": 6} if quick else {"num_steps": 1200, "num_layers": 10}
    return TrainingPlan(**size, **({"num_mrps": 2, "num_walks": 32} if loss == "neu" else {}))


def trained(loss: str, quick: bool, seeds: Sequence[int], device: str, store: Store) -> dict[str, np.ndarray]:
    """The path of training under ``loss``, from the store if it is there; see `train`."""
    name = f"{loss}-seeds-{'-'.join(map(str, seeds))}"
    checkpoint = store.folder / f"{name}.checkpoint"
    return store.arrays(name, lambda: train(loss, tuple(seeds), plan_of(loss, quick), checkpoint, device))


def emergence(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 5. Under torchrun the ranks share the trainings among them through the store."""
    jobs = [partial(trained, loss, quick, seeds, device, store) for loss in LOSSES]
    jobs.append(partial(free_training.trained, quick, seeds, device, store))
    _share(jobs)
    *paths, free = (job() for job in jobs)
    measured = {loss: similarities(path, plan_of(loss, quick)) for loss, path in zip(LOSSES, paths, strict=True)}
    return _judge(dict(zip(LOSSES, paths, strict=True)), measured, free, len(seeds))


def _share(jobs: Sequence[Callable[[], object]]) -> None:
    """Run every WORLD_SIZE-th job in this process, and wait for the others'; nothing in a single process."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    for job in jobs[rank::world]:
        job()
    torch.distributed.barrier()


def similarities(path: dict[str, np.ndarray], plan: TrainingPlan) -> dict[str, np.ndarray]:
    """Per seed (G,): cosines of V and A to the construction, and how alike the values are on fresh chains.

    The values are compared with weighted softmax TD with the nearest parameters alpha (1, 1, -1) and c I. As in
    [WBDZ24]: "value difference" is the mean squared difference, here over the variance of the values of softmax TD;
    "implicit weights" the cosine of the least-squares weights of the values on the features, "sensitivity" the cosine
    of the gradients with respect to the query's features; both averaged over chains.
    """
    value_row, score = path["value_row"][-1], path["score"][-1]
    diagonal = np.trace(score, axis1=1, axis2=2)
    norm = np.linalg.norm(score, axis=(1, 2))
    found = {
        "cosine of V": value_row @ DIRECTION / np.linalg.norm(value_row, axis=1),
        "cosine of A": diagonal / norm / np.sqrt(score.shape[-1]),
        "alpha": value_row @ DIRECTION / np.sqrt(3.0),
        "scale of A": diagonal / score.shape[-1],
    }
    contexts = test_contexts(plan)
    rows = [
        _alike(Parameters(torch.as_tensor(v), torch.as_tensor(a)), nearest, contexts, plan)
        for v, a, nearest in zip(value_row, score, _nearest(found, plan), strict=True)
    ]
    names = ("value difference", "implicit weights", "sensitivity")
    return found | dict(zip(names, np.array(rows).T, strict=True)) | _losses(value_row, score, plan)


def _losses(value_row: np.ndarray, score: np.ndarray, plan: TrainingPlan) -> dict[str, np.ndarray]:
    """All four losses of every seed's parameters on the same fresh prompts, each (G,)."""
    batch = draw(np.random.default_rng([5, 10**6 + 1]), 1, replace(plan, num_mrps=NUM_LOSS_MRPS, num_walks=32))
    every = [Parameters(torch.as_tensor(v), torch.as_tensor(a)) for v, a in zip(value_row, score, strict=True)]
    return {f"loss {name}": np.array([float(loss_of(name, one, batch, plan)[0]) for one in every]) for name in LOSSES}


def test_contexts(plan: TrainingPlan) -> Contexts:
    """Fresh Boyan chains, one walk each, the same in every comparison."""
    rng = np.random.default_rng([5, 10**6])
    mrps = boyan_chains(rng, NUM_TEST_MRPS, plan.num_states, plan.num_features)
    return count(mrps, mrps.walk(rng, plan.num_transitions))


def _nearest(found: dict[str, np.ndarray], plan: TrainingPlan) -> list[Parameters]:
    pairs = zip(found["alpha"], found["scale of A"], strict=True)
    return [construction(plan.num_features, float(alpha), float(scale)) for alpha, scale in pairs]


def _alike(
    learned: Parameters, nearest: Parameters, contexts: Contexts, plan: TrainingPlan
) -> tuple[float, float, float]:
    mine, reference = (values(p, contexts, plan.gamma, plan.num_layers) for p in (learned, nearest))
    difference = (mine - reference).square().mean() / reference.var()
    weights = [torch.linalg.lstsq(contexts.features, v.unsqueeze(-1)).solution.squeeze(-1) for v in (mine, reference)]
    slopes = [sensitivity(p, contexts, memory(p, contexts, plan.gamma, plan.num_layers)) for p in (learned, nearest)]
    cosine = torch.nn.functional.cosine_similarity
    return float(difference), float(cosine(*weights, dim=-1).mean()), float(cosine(*slopes, dim=-1).mean())


def _judge(paths: dict, measured: dict, free: dict[str, np.ndarray], num_seeds: int) -> Outcome:
    findings = [finding for loss, found in measured.items() for finding in _findings(loss, found)]
    verdicts: dict[str, Judgement] = {loss: _emerges(found) for loss, found in measured.items()}
    findings += [
        Finding.mean(f"{loss}: value difference", found["value difference"]) for loss, found in measured.items()
    ]
    findings.append(Finding.mean("no masks, td: cosine of V's current row", free["row_cosine"]))
    findings.append(Finding.mean("no masks, td: cosine of A's feature block", free["block_cosine"]))
    findings.append(Finding.mean("no masks, td: share of V and A outside the construction's support", free["outside"]))
    statements = tuple(
        Statement(f"Weighted softmax TD emerges under {loss}.", verdict, decides=loss == THEOREM)
        for loss, verdict in verdicts.items()
    )
    caption = (
        "Left: cosine of V's row to (1, 1, -1) during training, one line per seed. Middle: the same for A and the"
        " identity. Right: the entries of V's row after training, one point per seed, scaled to unit length; dotted:"
        " the construction."
    )
    return Outcome(
        statements,
        tuple(findings),
        _scope(verdicts, _succeeded(measured[THEOREM]), num_seeds),
        _remarks(verdicts, measured, free, num_seeds),
        _figure(paths, measured, free),
        caption,
        (_table(measured), _free_table(free)),
    )


def _findings(loss: str, found: dict[str, np.ndarray]) -> tuple[Finding, ...]:
    """The numbers that decide whether softmax TD emerged under a loss, and the share of seeds in which it did."""
    judged = ("cosine of V", "cosine of A", "implicit weights", "sensitivity")
    share = Finding.share(
        f"{loss}: share of seeds with both cosines above {NEAR}", _succeeded(found), len(found["cosine of V"])
    )
    return (*(Finding.mean(f"{loss}: {name}", found[name]) for name in judged), share)


def _emerges(found: dict[str, np.ndarray]) -> Judgement:
    """Both cosines and both similarities by their intervals."""
    v, a, weights, slopes, _ = _findings("", found)
    return together([above(v, NEAR), above(a, NEAR), above(weights, ALIKE), above(slopes, ALIKE)])


def _succeeded(found: dict[str, np.ndarray]) -> int:
    """The number of seeds with both cosines near one."""
    return int(((found["cosine of V"] > NEAR) & (found["cosine of A"] > NEAR)).sum())


def _scope(verdicts: dict[str, Judgement], succeeded: int, num_seeds: int) -> str:
    """The words that complete the verdict: the theorem's loss, its seeds, and what the other losses did."""
    others = "; ".join(f"{verdict} under {loss}" for loss, verdict in verdicts.items() if loss != THEOREM)
    return f"under {THEOREM} in this budget ({succeeded} of {num_seeds} seeds); {others}"


def _remarks(verdicts: dict[str, Judgement], measured: dict, free: dict[str, np.ndarray], num_seeds: int) -> str:
    emerged = [loss for loss, verdict in verdicts.items() if verdict == "holds"]
    parts = [f"The theorem is about {THEOREM}, whose exact formula is not available; the other losses are ours."]
    for loss, found in measured.items():
        if loss not in emerged:
            parts.append(
                f"Under {loss} {_succeeded(found)} of {num_seeds} seeds come near (mean cosine of V"
                f" {found['cosine of V'].mean():.2f}, of A {found['cosine of A'].mean():.2f})."
            )
        mirrored = int(((found["cosine of V"] < 0) & (found["cosine of A"] < 0)).sum())
        if mirrored:
            parts.append(
                f"{mirrored} of the {loss} seeds end with both signs turned, (-V, -A): in small scores that is the same"
                " linear part of TD with the constant part of the wrong sign, a local minimum."
            )
    parts += [_stuck(loss, measured) for loss in ("msve", "mc") if loss not in emerged]
    for loss in emerged:
        apart = measured[loss]["value difference"].mean()
        parts.append(
            f"Even where the directions emerge ({loss}) the small angle that is left matters: the values still differ"
            f" from softmax TD's by {apart:.2g} of their variance, while implicit weights and sensitivities agree."
        )
    if free["row_cosine"].mean() < NEAR:
        parts.append("Without masks the structure does not emerge within this budget.")
    return " ".join(parts)


def _stuck(loss: str, measured: dict) -> str:
    """A sentence on a loss that ended higher, or lower, than it is at parameters that another loss found."""
    best = measured["neu"][f"loss {loss}"].min()
    own = measured[loss][f"loss {loss}"].mean()
    if best < own:
        return (
            f"{loss} is stuck in a local minimum: it ends at {own:.3f}, and at the best parameters that neu found,"
            f" near the construction, it is {best:.3f}."
        )
    return f"{loss} ends at {own:.3f}, below its value at the best parameters that neu found ({best:.3f})."


def _table(measured: dict[str, dict[str, np.ndarray]]) -> Table:
    names = tuple(next(iter(measured.values())))
    rows = [(loss, *(_with_spread(found[name]) for name in names)) for loss, found in measured.items()]
    return table_of(("loss", *names), rows, "With masks: mean over seeds (smallest to largest).")


def _free_table(free: dict[str, np.ndarray]) -> Table:
    names = ("row_cosine", "block_cosine", "outside", "value_difference", "loss")
    columns = (
        "cosine of V's row", "cosine of A's block", "share outside the support",
        "value difference to the nearest softmax TD", "td loss at the end",
    )  # fmt: skip
    row = tuple(_with_spread(free[name]) for name in names)
    return table_of(columns, (row,), "Without masks, loss td: mean over seeds (smallest to largest).")


def _with_spread(numbers: np.ndarray) -> str:
    return f"{numbers.mean():.3g} ({numbers.min():.3g} to {numbers.max():.3g})"


def _figure(paths: dict, measured: dict, free: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (loss, path), colour, style in zip(paths.items(), COLOURS, STYLES, strict=False):
        value_row, score = path["value_row"], path["score"]
        v = value_row @ DIRECTION / np.linalg.norm(value_row, axis=-1)
        a = np.trace(score, axis1=2, axis2=3) / np.linalg.norm(score, axis=(2, 3)) / np.sqrt(score.shape[-1])
        for axes, cosine in ((left, v), (middle, a)):
            axes.plot(path["steps"], cosine, color=colour, linestyle=style, linewidth=0.9, alpha=0.7)
            axes.plot([], [], color=colour, linestyle=style, label=loss)
        unit = value_row[-1] / np.linalg.norm(value_row[-1], axis=-1, keepdims=True)
        shift = 0.15 * (list(paths).index(loss) - 1.5)
        for entry in range(3):
            right.plot(np.full(len(unit), entry + shift), unit[:, entry], "o", color=colour, markersize=4, alpha=0.7)
    for axes, name in ((left, "V's row to (1, 1, -1)"), (middle, "A to the identity")):
        axes.axhline(NEAR, color="black", linewidth=0.7, linestyle=":")
        axes.set(xlabel="step", ylabel="cosine", ylim=(-1.05, 1.05), title=f"Cosine of {name}")
        axes.legend(fontsize="small", loc="lower right")
        axes.grid(alpha=0.25)
    for entry in range(3):
        right.plot([entry - 0.4, entry + 0.4], [DIRECTION[entry]] * 2, color="black", linestyle=":")
    right.set_xticks(range(3), ["reward", "target", "current"])
    right.set(ylabel="entry of V's row, unit length", title="V's row after training")
    right.grid(alpha=0.25)
    return figure


CLAIM = Claim(
    number=5,
    id="emergence",
    title="Weighted softmax TD emerges from pretraining",
    statement=(
        "Pretrained from random initialisation with the sparsity masks, V's row tends to a multiple of (1, 1, -1) over"
        " (reward, target, current) and A to a multiple of the identity: the transformer becomes weighted softmax TD."
    ),
    source="[XLCLCZ26] Theorem 3 and its appendix F.2 (the pattern of the masks is inferred)",
    measured=(
        "Adam on fresh Boyan chains (10 states, 4 features, n = 30, gamma = .9, 10 tied layers) under four losses: td"
        " (semi-gradient), neu (norm of the expected update, unbiased estimate, one-hot psi), msve (exact values) and"
        " mc (returns). Cosines to the construction, and agreement with weighted softmax TD at the nearest alpha (1,"
        " 1, -1), c I on 200 fresh chains: value difference (over the variance), implicit-weight and sensitivity"
        " similarity. Also td without any masks, reported but not judged."
    ),
    criterion=(
        f"Per loss: the 95 % intervals of both mean cosines lie above {NEAR}, those of both mean similarities above"
        f" {ALIKE}. The theorem's loss, {THEOREM}, decides; the others are judged beside it."
    ),
    function=emergence,
    num_seeds=10,
    quick_seeds=3,
    least_seeds=10,
)
