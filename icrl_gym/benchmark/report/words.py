"""Who wins where, and what goes with it, in plain words computed from the records: no verdict is written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from icrl_gym.benchmark.cells import CRITIC, Task
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import results as res
from icrl_gym.benchmark.report.ratios import hindsight
from icrl_gym.benchmark.report.tables import TOO_CLOSE, judge, ranking
from icrl_gym.scoring.document import interval

NUM_RESAMPLES = 2000
HINDSIGHT_WORDS = "the best classical method and setting, picked for every cell in hindsight"
FEWEST_TASKS = 6  # below, no correlation over tasks is spoken of


def who_wins(records: Sequence[Record], subject: str, dimensions: Mapping[Task, int] | None = None) -> list[str]:
    """Paragraphs, from the answer in short to what goes along with winning.

    Between them: winners at the longest, a middle and the shortest context, what more context does, where nobody beats
    a constant, and what the errors are made of.

    Args:
        records: of one or more suites.
        subject: the estimator in question.
        dimensions: task -> numbers in an observation, where known.
    """
    good = res.usable(records)
    lengths = res.main_lengths(good)
    if not lengths:
        return []
    shown = dict.fromkeys((lengths[-1], lengths[len(lengths) // 2], lengths[0]))
    paragraphs = [_in_short(good, lengths, subject), *(_winners(good, length, subject) for length in shown)]
    if len(lengths) > 1:
        paragraphs.append(_growth(good, lengths[0], lengths[-1], subject))
    longest = res.at_length(good, lengths[-1])
    paragraphs += [_hard(longest), _level(longest, subject), _correlates(longest, subject, dimensions or {})]
    return [paragraph for paragraph in paragraphs if paragraph]


def _in_short(good: Sequence[Record], lengths: Sequence[int], subject: str) -> str:
    """The subject against the critic and against the classical methods, at the shortest and the longest context."""
    sentences = []
    for length in dict.fromkeys((lengths[0], lengths[-1])):
        part = res.at_length(good, length)
        ours = res.figures(part, subject)
        rivals = {f"`{CRITIC}`": res.figures(part, CRITIC), HINDSIGHT_WORDS: hindsight(part)}
        found = [_times(rival, res.ratios(ours, theirs)) for rival, theirs in rivals.items()]
        if any(found):
            sentences.append(
                f"At {length:,} transitions the error of `{subject}` is {' and '.join(filter(None, found))}."
            )
    return f"**In short.** {' '.join(sentences)}" if sentences else ""


def _times(rival: str, ratios: res.Figures) -> str:
    figure = res.geometric(ratios)
    if figure is None:
        return ""
    size = "smaller" if figure.value < 1 else "larger"
    ahead = sum(ratio < 1 for ratio in ratios.values())
    return f"{interval(figure).text} times that of {rival} ({size}, ahead in {ahead} of {len(ratios)} cells)"


def off_policy_words(records: Sequence[Record], subject: str) -> list[str]:
    """Winners at the longest context of tasks in which somebody else acted."""
    good = res.usable(records)
    if not good:
        return []
    longest = res.main_lengths(good)[-1]
    return [f"**Contexts of another policy.** {_winners(good, longest, subject)}"]


def _winners(good: Sequence[Record], length: int, subject: str) -> str:
    """Who is nearest where, and where an interval calls it."""
    found = res.by_environment(res.at_length(good, length))
    environments = {env: part for env, part in found.items() if ranking(part)}  # with an estimator at its defaults
    nearest: dict[str, list[str]] = {}
    called: dict[str, list[str]] = {}
    for env, part in environments.items():
        nearest.setdefault(ranking(part)[0][0], []).append(env)
        called.setdefault(judge(part, subject)[0], []).append(env)
    order = sorted(nearest, key=lambda name: (name != subject, -len(nearest[name]), name))
    first = [f"`{name}` on {len(nearest[name])} ({_list(nearest[name])})" for name in order]
    text = f"**{length:,} transitions.** Nearest to the truth among all estimators at their defaults, "
    text += f"{len(environments)} environments: {'; '.join(first)}. "
    won, open_calls = called.pop(subject, []), called.pop(TOO_CLOSE, [])
    called.pop("-", None)
    text += f"Against the best rival of each environment `{subject}` is clearly ahead on {_count(won)}, "
    lost = sorted(((name, envs) for name, envs in called.items()), key=lambda item: -len(item[1]))
    behind = "; ".join(f"to `{name}` on {_list(envs)}" for name, envs in lost)
    text += f"clearly behind on {sum(len(envs) for _, envs in lost)}{f' ({behind})' if behind else ''}, and "
    text += f"{len(open_calls)} are {TOO_CLOSE}."
    return text + _against_critic(environments, subject)


def _against_critic(environments: Mapping[str, Sequence[Record]], subject: str) -> str:
    ahead, behind = [], []
    for env, part in environments.items():
        ratio = res.geometric(res.ratios(res.figures(part, subject), res.figures(part, CRITIC)))
        if ratio is not None:
            (ahead if ratio.value < 1 else behind).append(env)
    if not ahead and not behind:
        return ""
    total = len(ahead) + len(behind)
    text = f" Against the critic alone `{subject}` is nearer on {len(ahead)} of {total} environments that have one"
    return text + (f"; the critic is nearer on {_list(behind)}." if behind else ".")


def _growth(good: Sequence[Record], short: int, long: int, subject: str) -> str:
    """Whether more context helps, where anybody beats a constant."""
    parts = [res.at_length(good, length) for length in (short, long)]
    beaten = {key for name in res.names_of(parts[1]) for key, error in res.figures(parts[1], name).items() if error < 1}
    ratios = res.ratios(res.figures(parts[1], subject), res.figures(parts[0], subject))
    kept = {key: ratio for key, ratio in ratios.items() if key in beaten}
    if not kept:
        return ""
    named = res.labels({record.cell.task for record in good})
    grown: dict[str, int] = {}
    for (task, _), ratio in kept.items():
        if ratio >= 1:
            grown[named[task]] = grown.get(named[task], 0) + 1
    falls = len(kept) - sum(grown.values())
    text = f"**More context.** From {short:,} to {long:,} transitions the error of `{subject}` falls in {falls} of "
    text += f"{len(kept)} cells in which anybody beats a constant"
    if grown:
        text += f"; it does not in {_list([f'{env} ({count})' for env, count in sorted(grown.items())])}"
    geometric = math.exp(float(np.mean(np.log(list(kept.values())))))
    return f"{text}. The geometric mean of the errors' ratio is {geometric:.2f}."


def _hard(longest: Sequence[Record]) -> str:
    hard = [env for env, part in res.by_environment(longest).items() if (best := ranking(part)) and best[0][1] >= 1]
    if not hard:
        return ""
    length = longest[0].cell.context_length
    return f"**Nobody beats a constant** at {length:,} transitions on {_list(hard)}: who is nearest there says little."


def _level(longest: Sequence[Record], subject: str) -> str:
    """Which part of the squared error is a wrong level of all values, rather than a wrong shape."""
    parts = {}
    for name in (subject, CRITIC):
        mine = [r for r in longest if r.cell.setting.estimator == name and r.cell.setting.is_default]
        shares = [share for record in mine if (share := _level_share(record)) is not None]
        if shares:
            parts[name] = f"{100 * np.mean(shares):.0f} % of the squared error of `{name}`"
    if not parts:
        return ""
    return (
        f"**What the errors are made of.** At {longest[0].cell.context_length:,} transitions a wrong level of all "
        f"values (the bias) makes {' and '.join(parts.values())}, mean over cells; the rest is shape."
    )


def _level_share(record: Record) -> float | None:
    bias, rmse = record.scores.get("bias"), record.scores.get("rmse")
    return None if bias is None or not rmse else min(bias**2 / rmse**2, 1.0)


@dataclass(frozen=True)
class Correlate:
    """Something that differs between tasks, and may go with winning."""

    name: str
    of: Callable[[Record], float]


def _correlates(longest: Sequence[Record], subject: str, dimensions: Mapping[Task, int]) -> str:
    """Rank correlations over tasks, with intervals, between log(subject / rival) and what the records say of a task."""
    rivals = {CRITIC: res.figures(longest, CRITIC)}
    rivals["the best other estimator"] = _best_other(longest, subject)
    correlates = (
        Correlate("noise of the truth over its spread", lambda r: _quotient(r, "noise_floor", "truth_std")),
        Correlate("spread of the values over their size", lambda r: _quotient(r, "truth_std", "truth_magnitude")),
        Correlate("numbers in an observation", lambda r: float(dimensions.get(r.cell.task, math.nan))),
        Correlate("episodes in the context", lambda r: _known(r.context_episodes)),
        Correlate("terminations in the context", lambda r: _known(r.context_terminations)),
    )  # fmt: skip
    found, silent = [], []
    ours = res.figures(longest, subject)
    for rival, theirs in rivals.items():
        ratios = _by_task(res.ratios(ours, theirs))
        for correlate in correlates:
            pairs = _pairs(longest, ratios, correlate)
            if len(pairs) < FEWEST_TASKS or min(len(set(side)) for side in zip(*pairs, strict=True)) < 2:
                continue
            value, low, high = _rank_correlation(np.array(pairs))
            words = f"{correlate.name} (against {rival}: {value:+.2f} [{low:+.2f}, {high:+.2f}], {len(pairs)} tasks)"
            if low > 0 or high < 0:
                side = "loses" if value > 0 else "gains"
                found.append(f"the larger the {words}, the more `{subject}` {side}")
            else:
                silent.append(words)
    if not found and not silent:
        return ""
    text = "**What goes with it.** Rank correlation over tasks between a task's property and the log ratio of errors, "
    text += "with 95 % bootstrap intervals over tasks: "
    text += "; ".join(found) + ". " if found else "none stands out of its interval. "
    if silent:
        text += f"No clear sign: {'; '.join(silent)}. "
    return text + "These are associations over few tasks, several looked at together, and no causes."


def _best_other(part: Sequence[Record], subject: str) -> res.Figures:
    others = [res.figures(part, name) for name in res.complete(part) if name not in (subject, CRITIC)]
    together = res.shared(*others) if others else [{}]
    return {key: min(errors[key] for errors in together) for key in together[0]}


def _by_task(ratios: res.Figures) -> dict[Task, float]:
    logs: dict[Task, list[float]] = {}
    for (task, _), ratio in ratios.items():
        logs.setdefault(task, []).append(math.log(ratio))
    return {task: float(np.mean(values)) for task, values in logs.items()}


def _pairs(part: Sequence[Record], ratios: Mapping[Task, float], correlate: Correlate) -> list[tuple[float, float]]:
    values: dict[Task, list[float]] = {}
    for record in part:
        value = correlate.of(record)
        if record.cell.task in ratios and math.isfinite(value):
            values.setdefault(record.cell.task, []).append(value)
    return [(float(np.mean(found)), ratios[task]) for task, found in values.items()]


def _rank_correlation(pairs: np.ndarray) -> tuple[float, float, float]:
    """Spearman's of (N, 2) pairs, and its percentile interval over resampled pairs."""
    rng = np.random.default_rng(0)
    draws = [_spearman(pairs[rng.integers(len(pairs), size=len(pairs))]) for _ in range(NUM_RESAMPLES)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return _spearman(pairs), float(low), float(high)


def _spearman(pairs: np.ndarray) -> float:
    ranks = rankdata(pairs, axis=0)
    deviations = ranks - ranks.mean(axis=0)
    norm = float(np.prod(np.sqrt((deviations**2).sum(axis=0))))
    return float((deviations[:, 0] * deviations[:, 1]).sum() / norm) if norm > 0 else math.nan


def _quotient(record: Record, upper: str, lower: str) -> float:
    numerator, denominator = record.scores.get(upper), record.scores.get(lower)
    return numerator / denominator if numerator is not None and denominator else math.nan


def _known(value: int | None) -> float:
    return math.nan if value is None else float(value)


def _count(envs: Sequence[str]) -> str:
    return f"{len(envs)} ({_list(envs)})" if envs else "none"


def _list(words: Sequence[str]) -> str:
    return ", ".join(words)
