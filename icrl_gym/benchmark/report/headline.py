"""The results in one screen: the claim, one figure, one table, and where the subject loses.

Every sentence is computed from the records; where they do not support one, it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icrl_gym.benchmark.cells import CRITIC
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import comparisons, figures
from icrl_gym.benchmark.report import errors as res
from icrl_gym.benchmark.report.comparisons import FQE, pooled_ratios
from icrl_gym.benchmark.report.tables import mean_over_environments
from icrl_gym.scoring.document import Picture, Section, Table, interval
from icrl_gym.scoring.verdict import Call

OTHERS = {
    "generalist_before": "the last version's, which read states and rewards alone",
    res.REFERENCE: "softmax TD's with nothing trained and no walks (`constructed`)",
    comparisons.HINDSIGHT: "the best classical method and setting, chosen for every cell in hindsight",
}
# Panels of the first figure, one or two of each suite; fixed here, so that no outcome chooses them.
PANELS = (
    "Taxi-v4 (dqn)", "LunarLander-v3", "Hopper-v5", "HalfCheetah-v5", "Swimmer-v5", "MiniGrid-Empty-5x5-v0",
)  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """Records by what may be concluded from them.

    Attributes:
        untouched: environments on which nothing was chosen; all of the policy's own contexts if there is no other.
        selection: the environments on which the design was chosen.
        off_policy: contexts in which somebody else than the policy acted.
    """

    untouched: list[Record]
    selection: list[Record]
    off_policy: list[Record]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Groups:
        """Sort records into the groups."""
        own = [record for record in records if record.cell.task.behaviour is None]
        chosen = [record for record in own if record.cell.task.env in res.SELECTION]
        return cls(
            [record for record in own if record.cell.task.env not in res.SELECTION], chosen,
            [record for record in records if record.cell.task.behaviour is not None],
        )  # fmt: skip


def results(records: Sequence[Record], subject: str) -> list[Section]:
    """One screen: the claim, one figure, one table, where it loses, contexts of another policy."""
    groups = Groups.of(_at_compared_lengths(records))
    main = groups.untouched or groups.selection or groups.off_policy
    words = claim(main, subject)
    shown: list[str | Table | Picture] = [words] if words else []
    if picture := first_picture(main, subject):
        shown.append(picture)
    found = [Section("In short", tuple(shown))]
    found.append(Section("Who wins where", (comparisons.verdict_table(main, subject, "Nothing was chosen on these"),)))
    found.append(Section("Where it loses, and why", (losses(main, subject),)))
    parts = {"tests": groups.untouched, "development": groups.selection, "another policy acted": groups.off_policy}
    worth = comparisons.parts_table({name: part for name, part in parts.items() if part})
    if worth.rows:
        found.append(Section("What each part is worth", (worth,)))
    if groups.selection and groups.untouched:
        longest = res.at_length(groups.selection, res.lengths_of(groups.selection)[-1])  # the others: suites' pages
        table = comparisons.verdict_table(longest, subject, "The design was chosen on these")
        short = Table(table.title, table.columns, table.rows)
        found.append(Section("The environments that chose the design", (claim(groups.selection, subject), short)))
    if groups.off_policy:
        sentences = [over_fqe(groups.off_policy, subject), tally(groups.off_policy, subject)]
        words = " ".join(sentence for sentence in sentences if sentence)
        found.append(Section("Contexts in which another policy acted", (words,)))
    return [section for section in found if any(section.parts)]


def _at_compared_lengths(records: Sequence[Record]) -> list[Record]:
    """Without context lengths at which the critic was not run, if it was at any: they are on the suites' pages."""
    compared = {record.cell.context_length for record in records if record.cell.variant.estimator == CRITIC}
    return [record for record in records if not compared or record.cell.context_length in compared]


def claim(records: Sequence[Record], subject: str) -> str:
    """The subject against the critic at every context length, and against the others at the longest."""
    good = res.usable(records)
    found = {length: pooled_ratios(res.at_length(good, length), subject) for length in res.lengths_of(good)}
    critics = [
        f"{interval(ratios[CRITIC][0]).text} from {length:,} transitions"
        for length, ratios in found.items()
        if CRITIC in ratios
    ]
    longest = found[max(found)] if found else {}
    others = [
        f"{interval(longest[name][0]).text} times that of {words}"
        for name, words in OTHERS.items()
        if name in longest and name != subject
    ]
    num = len(res.by_environment(good))
    sentences = []
    if critics:
        sentences.append(
            f"The error of `{subject}` over that of the policy's own SB3 critic{_trained(good)}, is {_listed(critics)}"
            f", over the {longest[CRITIC][2] if CRITIC in longest else 0} of these {num} environments that have one."
        )
    if others:
        sentences.append(f"From {max(found):,} transitions it is {_listed(others)}.")
    return " ".join(sentences)


def over_fqe(records: Sequence[Record], subject: str) -> str:
    """The subject against fitted Q evaluation at every context length."""
    good = res.usable(records)
    found = {length: pooled_ratios(res.at_length(good, length), subject).get(FQE) for length in res.lengths_of(good)}
    phrases = [f"{interval(ratio[0]).text} from {length:,} transitions" for length, ratio in found.items() if ratio]
    if not phrases or subject == FQE:
        return ""
    return (
        f"The error of `{subject}` over that of fitted Q evaluation (`{FQE}`), which is given the same policy, is "
        f"{_listed(phrases)}."
    )


def _trained(part: Sequence[Record]) -> str:
    steps = [res.environment_steps(r) for r in part if r.cell.variant.estimator == CRITIC and r.error is None]
    known = [count for count in steps if count is not None]
    return f", which saw {np.median(known):,.0f} steps (median)" if known else ""


def _listed(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def first_picture(records: Sequence[Record], subject: str) -> Picture | None:
    """Error against environment steps on the fixed panels, or on whatever environments there are."""
    have = list(res.by_environment(res.usable(records)))
    panels = [env for env in PANELS if env in have] or have[:6]
    try:
        figure = figures.error_by_steps(records, panels, subject)
    except figures.NothingToDraw:
        return None
    caption = (
        f"Error against the environment steps seen: `{subject}` from one context (blue), the SB3 critic of the same "
        "policy after its training (star). The dotted line is the best constant; bars are 95 % intervals over contexts."
    )
    return Picture("error_by_steps", caption, figure)


def tally(records: Sequence[Record], subject: str) -> str:
    """How often the verdicts call the subject or a rival, by context length, with the names of the losses."""
    sentences = []
    for length in res.lengths_of(res.usable(records)):
        ahead, behind, total, uncalled = _called(records, length, subject)
        losses = f" ({_listed([f'{env} to `{rival}`' for env, rival in behind])})" if behind else ""
        wins = f" ({_listed(ahead)})" if ahead else ""
        sentences.append(
            f"At {length:,} transitions `{subject}` is ahead of its best rival on {len(ahead)} of {total} "
            f"environments{wins} and behind on {len(behind)}{losses}; "
            f"{total - len(ahead) - len(behind) - uncalled} are too close to call"
            f"{f', and {uncalled} have too few cells for a verdict' if uncalled else ''}."
        )
    return " ".join(sentences)


def _called(records: Sequence[Record], length: int, subject: str) -> tuple[list[str], list[tuple[str, str]], int, int]:
    """Environments won, environments lost with the winner, how many there are, and how many without a verdict."""
    ahead, behind, uncalled = [], [], 0
    environments = res.by_environment(res.at_length(res.usable(records), length))
    for env, part in environments.items():
        verdict = comparisons.verdict_of(part, subject)
        if verdict.call is Call.AHEAD:
            ahead.append(env)
        elif verdict.call is Call.BEHIND:
            behind.append((env, str(verdict.rival)))
        uncalled += verdict.call is Call.NONE
    return ahead, behind, len(environments), uncalled


def losses(records: Sequence[Record], subject: str) -> str:
    """Where the subject loses at the longest context, and what goes with it, in at most five sentences."""
    good = res.usable(records)
    longest = res.at_length(good, res.lengths_of(good)[-1]) if good else []
    found = [
        tally(longest, subject), _critics(good, subject), _hopeless(longest), _level(longest, subject),
        _coverage(longest, subject),
    ]  # fmt: skip
    return " ".join(sentence for sentence in found if sentence)


def _critics(good: Sequence[Record], subject: str) -> str:
    """Where the interval of the one comparison with the critic leaves 1 out, by context length."""
    phrases = []
    for length in res.lengths_of(good):
        ratios = {
            env: ratio
            for env, part in res.by_environment(res.at_length(good, length)).items()
            if (ratio := res.geometric(res.ratios(res.figures(part, subject), res.figures(part, CRITIC)))) is not None
        }
        nearer = [env for env, ratio in ratios.items() if ratio.has_interval and ratio.high < 1]
        behind = [env for env, ratio in ratios.items() if ratio.has_interval and ratio.low > 1]
        if ratios:
            named = f" ({_listed(behind)})" if behind else ""
            phrases.append(
                f"nearer than the critic on {len(nearer)} of {len(ratios)} environments and behind on "
                f"{len(behind)}{named} at {length:,} transitions"
            )
    return f"Against the critic alone, one comparison each, it is {_listed(phrases)}." if phrases else ""


def _hopeless(longest: Sequence[Record]) -> str:
    hopeless = []
    for env, part in res.by_environment(longest).items():
        errors = [res.geometric(res.figures(part, name)) for name in res.complete(part)]
        if errors and min(error.value for error in errors if error is not None) >= 1:
            hopeless.append(env)
    return f"Nobody beats a constant on {_listed(hopeless)}, so who is nearest there says little." if hopeless else ""


def _level(longest: Sequence[Record], subject: str) -> str:
    """How much of the squared error is a wrong level of all values, in contexts with and without an ending."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for record in longest:
        bias, rmse, ends = record.scores.get("bias"), record.scores.get("rmse"), record.context_terminations
        ours = record.cell.variant.estimator == subject and record.cell.variant.is_default
        if ours and bias is not None and rmse and ends is not None:
            shares[ends > 0].append(min(bias**2 / rmse**2, 1.0))
    if not (shares[True] and shares[False]):
        return ""
    return (
        f"A wrong level of all values makes {np.mean(shares[False]):.0%} of its squared error in contexts that saw no "
        f"episode terminate and {np.mean(shares[True]):.0%} where one did, mean over cells; the rest is shape."
    )


def _coverage(longest: Sequence[Record], subject: str) -> str:
    coverage = {
        env: float(np.mean(list(found.values())))
        for env, part in res.by_environment(longest).items()
        if (found := res.figures(part, subject, "coverage"))
    }
    if not coverage:
        return ""
    least = min(coverage, key=lambda env: coverage[env])
    return (
        f"Its 90 % intervals hold {np.mean(list(coverage.values())):.0%} of the true values, mean over environments, "
        f"and as little as {coverage[least]:.0%} on {least}.{_interval_score(longest, subject)}"
    )


def _interval_score(longest: Sequence[Record], subject: str) -> str:
    ratio = mean_over_environments(res.figures(longest, subject, "interval_score_ratio"))
    if ratio is None:
        return ""
    return f" Their interval score is {ratio:.2f} times that of the best constant interval."
