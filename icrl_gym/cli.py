"""``icrl-gym``: sub-commands generated from typed dataclasses.

Standard output carries the result and nothing else, standard error progress and errors. Bad input is one line and exit
code 2; an environment that raises in make, reset or step is one line with its own words and exit code 3. With
``--debug``, or the environment variable ICRL_GYM_DEBUG=1, the traceback is shown instead.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from icrl_gym.acting.failures import find_failure
from icrl_gym.configuration import (
    DEFAULT_ESTIMATOR,
    BenchmarkConfig,
    EvaluateConfig,
    LogConfig,
    PretrainConfig,
    ReportConfig,
    ReproduceConfig,
)
from icrl_gym.runs import standard_json, versions

if TYPE_CHECKING:
    from icrl_gym.main_job.result import Evaluation

LEGEND = "RMSE/std: 1 = the best constant, 0 = exact. 90%cover: truths in the interval."
BAD_INPUT, ENVIRONMENT_FAILED = 2, 3  # exit codes
EXPECTED_ERRORS = (ValueError, TypeError, OSError, ImportError, gymnasium.error.Error)


@dataclass(frozen=True)
class EvaluateCommand(EvaluateConfig):
    env: Annotated[str | None, tyro.conf.Positional] = None
    """Environment id, also "module:Env-v0". Default: CartPole-v1. With --log none is needed."""
    policy: str | None = None
    """"demo" (a small PPO for CartPole-v1 that ships with the package), "random", a Stable-Baselines3 model.zip (needs
    --trust-model), or "module:callable" from (B,) + observation shape to (B,) + action shape. Default: "demo"; with
    --log the policy that acted."""
    context_length: int | None = None
    """Transitions that the estimator gets to see. Default: 512; of a log up to 100,000, fewer where observations are
    large."""
    log: str | None = None
    """Evaluate from this log instead of an environment: .npz of ours, .csv, .parquet, .hdf5 or .h5 in D4RL's names, or
    "minari:DATASET"."""
    columns: tuple[str, ...] = ()
    """With --log: FIELD=COLUMN pairs, or one JSON object, such as "observations=x,y rewards=r"."""
    resume: Path | None = None
    """Go on with the run that was to fill this folder and was interrupted, with its own flags."""
    json: bool = False
    """Print one JSON object instead of the table."""
    debug: bool = False
    """Show the traceback of an error instead of one line."""


EvaluateCommand.__doc__ = EvaluateConfig.__doc__


@dataclass(frozen=True)
class InfoCommand:
    """Show versions, the checkpoints in this package with their cards, and the estimators by name."""

    json: bool = False
    """Print one JSON object instead of tables."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``icrl-gym``; returns the exit code."""
    command = tyro.extras.subcommand_cli_from_dict(
        {name: configuration for name, (configuration, _) in COMMANDS.items()},
        prog="icrl-gym",
        description="Value functions without training: in-context policy evaluation for Gymnasium.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    run = next(run for configuration, run in COMMANDS.values() if type(command) is configuration)
    try:
        run(command)
    except Exception as error:
        failure = find_failure(error)
        known = failure is not None or isinstance(error, EXPECTED_ERRORS)
        if not known or getattr(command, "debug", False) or os.environ.get("ICRL_GYM_DEBUG"):
            raise
        hint = " (--debug shows where)" if failure else ""
        sys.stderr.write(f"icrl-gym: error: {failure or ' '.join(str(error).split())}{hint}\n")
        return ENVIRONMENT_FAILED if failure else BAD_INPUT
    except KeyboardInterrupt as interruption:
        sys.stderr.write(f"icrl-gym: interrupted; {str(interruption) or 'nothing half-written was kept'}\n")
        return 130
    return 0


def run_evaluate(command: EvaluateCommand) -> None:
    """The sub-command ``evaluate``."""
    from icrl_gym.main_job.job import evaluate, resume

    if command.log is not None:
        run_evaluate_log(command)
        return
    config, bars = evaluate_config(command), _bars()
    try:
        evaluation = (
            evaluate(config, _advance(bars)) if command.resume is None else resume(command.resume, _advance(bars))
        )
    finally:
        if bars.live.is_started:  # stop() prints an empty line even where nothing was shown
            bars.stop()
    if command.json:
        _print_json(_summary(evaluation))
    else:
        _print_evaluation(evaluation, Console())


def evaluate_config(command: EvaluateCommand) -> EvaluateConfig:
    """The configuration of the main job; raises ValueError for a flag of logs, or one beside ``resume``."""
    if command.columns:
        raise ValueError("columns belong to a log (--log FILE)")
    if command.resume is not None:
        _check_only(command, ("resume",), "goes on with its own flags; leave out")
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(EvaluateConfig)}
    return EvaluateConfig(**{name: value for name, value in given.items() if value is not None})


def log_config(command: EvaluateCommand) -> LogConfig:
    """The configuration of ``evaluate --log``; raises ValueError where a flag belongs to an environment."""
    names = {field.name for field in dataclasses.fields(LogConfig)}
    _check_only(command, names, "a log has no environment; leave out")
    return LogConfig(**{name: getattr(command, name) for name in names})


def _check_only(command: EvaluateCommand, names: Collection[str], why: str) -> None:
    """Raise ValueError where a flag is set besides those of these names."""
    for field in dataclasses.fields(command):
        if field.name not in (*names, "json") and getattr(command, field.name) != field.default:
            flag = "ENV" if field.name == "env" else f"--{field.name.replace('_', '-')}"
            raise ValueError(f"{field.name}: {why} {flag}")


def run_evaluate_log(command: EvaluateCommand) -> None:
    """The sub-command ``evaluate`` with ``--log``."""
    from icrl_gym.main_job.log_job import evaluate_log
    from icrl_gym.main_job.log_summary import log_summary, print_log_evaluation

    bars = _bars()
    try:
        evaluation = evaluate_log(log_config(command), _advance(bars))
    finally:
        if bars.live.is_started:
            bars.stop()
    if command.json:
        _print_json(log_summary(evaluation))
    else:
        print_log_evaluation(evaluation, Console())


def run_reproduce(command: ReproduceConfig) -> None:
    """The sub-command ``reproduce``."""
    from icrl_gym.reproduction.runner import reproduce

    bars = _bars()
    try:
        results = reproduce(command, _advance(bars))
    finally:
        if bars.live.is_started:
            bars.stop()
    for result in results:
        sys.stdout.write(f"{result.claim.number:>2}  {result.claim.title}: {result.outcome.headline}\n")


def run_pretrain(command: PretrainConfig) -> None:
    """The sub-command ``pretrain``."""
    from icrl_gym.pretraining import pretrain

    bars = _bars(TimeRemainingColumn())
    try:
        path = pretrain(command, _advance(bars))
    finally:
        if bars.live.is_started:
            bars.stop()
    sys.stdout.write(f"{path}\n")


def run_benchmark(command: BenchmarkConfig) -> None:
    """The sub-command ``benchmark``."""
    from icrl_gym.benchmark import report, runner

    bars = _bars()
    try:
        cost = runner.run_missing(command, _advance(bars))
    finally:
        if bars.live.is_started:
            bars.stop()
    sys.stderr.write(f"{cost}\n")
    records = runner.suite_records(command)
    sys.stdout.write(report.benchmark_tables(records) + "\n")


def run_report(command: ReportConfig) -> None:
    """The sub-command ``report``."""
    from icrl_gym.benchmark import report

    summary, written = report.write_report(command)
    sys.stdout.write(summary + "\n\nWritten:\n" + "".join(f"  {path}\n" for path in written))


def run_info(command: InfoCommand) -> None:
    """The sub-command ``info``."""
    from icrl_gym.registry import estimators

    found = {"versions": versions(), "checkpoints": checkpoint_cards(), "estimators": sorted(estimators())}
    if command.json:
        _print_json(found)
    else:
        _print_info(found, Console())


# One line per sub-command: its name, its flags, and what it runs.
COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "evaluate": (EvaluateCommand, run_evaluate),
    "reproduce": (ReproduceConfig, run_reproduce),
    "pretrain": (PretrainConfig, run_pretrain),
    "benchmark": (BenchmarkConfig, run_benchmark),
    "report": (ReportConfig, run_report),
    "info": (InfoCommand, run_info),
}


def checkpoint_cards() -> dict[str, Any]:
    """The cards of all checkpoints inside the package, by name."""
    folder = Path(__file__).parent / "checkpoints"
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _bars(*more: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *more)
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False)


def _advance(bars: Progress) -> Callable[[str, int, int], None]:
    """A bar per part of the work, shown when the part is first heard of."""
    tasks: dict[str, TaskID] = {}

    def advance(part: str, done: int, total: int) -> None:
        bars.start()
        if part not in tasks:
            tasks[part] = bars.add_task(part, total=total)
        bars.update(tasks[part], completed=done, total=total)

    return advance


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(standard_json(content), allow_nan=False) + "\n")


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    from icrl_gym.main_job.advice import advice

    return {
        "config": dataclasses.asdict(evaluation.config),
        "run_dir": evaluation.run_dir,
        "estimand": dataclasses.asdict(evaluation.truth.estimand),
        "scores": {
            name: {"environment_steps": evaluation.steps[name], **result.as_dict()}
            for name, result in evaluation.scores.items()
        },
        "verdict": evaluation.verdict,
        "advice": [*advice(evaluation)],
        "notes": list(evaluation.notes),
    }


def _print_evaluation(evaluation: Evaluation, console: Console) -> None:
    from icrl_gym.main_job.advice import advice, when_to_trust

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    truth = next(iter(evaluation.scores.values()))
    estimand = evaluation.truth.estimand
    say(f"\n{estimand.env}, policy {estimand.policy}, gamma {estimand.gamma:g}")
    table = _score_table(evaluation)
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    console.print(table)
    say(LEGEND)
    say(f"Truth: {truth.n} states, standard deviation {truth.truth_std:.3g}, noise floor {truth.noise_floor:.2g}.")
    for note in evaluation.notes:
        say(f"Note: {note}")
    say(f"\n{evaluation.verdict}", style="bold")
    for line in (*advice(evaluation), when_to_trust(evaluation), *_what_next(evaluation)):
        if line:
            say(line)


def _score_table(evaluation: Evaluation) -> Table:
    """One row per estimator; a dash where a figure is not defined; magnitudes where a note says to judge by them."""
    magnitude = any("mean magnitude" in note for note in evaluation.notes)
    columns = {
        "RMSE": "rmse",
        "RMSE/std": "rmse_over_std",
        **({"RMSE/magnitude": "rmse_over_magnitude"} if magnitude else {}),
        "bias": "bias",
        "expl.var": "explained_variance",
        "Spearman": "spearman",
        "90%cover": "coverage",
    }
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("estimator", no_wrap=True)
    for heading in (*columns, "steps"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in evaluation.scores.items():
        figures = [_figure(getattr(found, attribute)) for attribute in columns.values()]
        steps = evaluation.steps[name]
        table.add_row(name, *figures, "-" if steps is None else f"{steps:,}")
    return table


def _figure(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _what_next(evaluation: Evaluation) -> list[str]:
    config, run_dir = evaluation.config, evaluation.run_dir
    shown = Path(os.path.relpath(run_dir)) if run_dir.is_relative_to(Path.cwd()) else run_dir
    lines = [f"\nWritten to {shown}"]
    if config.tensorboard:
        lines.append(f"Look at it:     tensorboard --logdir {shlex.quote(str(shown.parent))}")
    more = dataclasses.replace(config, context_length=4 * config.context_length, run_dir=None)
    other = "Pendulum-v1" if "Pendulum" not in config.env else "Acrobot-v1"
    lines.append(f"More context:   {command_line(more)}")
    lines.append(f"Something else: {command_line(EvaluateConfig(env=other, policy='random'))}")
    lines.append("Your own agent: icrl-gym evaluate ENV --policy model.zip --trust-model")
    return lines


def command_line(config: EvaluateConfig) -> str:
    """The command that gives this configuration: the environment, and every flag that is not at its default."""
    words = ["icrl-gym", "evaluate", config.env]
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), field.name.replace("_", "-")
        if field.name == "env" or value == field.default:
            continue
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def _print_info(found: dict[str, Any], console: Console) -> None:
    """About a dozen lines; the cards in full are in the JSON."""
    installed = found["versions"]
    packages = {"python": installed["python"], **installed["packages"], "commit": installed["commit"]}
    lines = [f"icrl-gym {packages.pop('icrl-gym')}, " + ", ".join(f"{k} {v}" for k, v in packages.items() if v)]
    missing = [name for name, version in packages.items() if not version and name != "commit"]
    lines += [f"not installed: {', '.join(missing)}"] if missing else []
    lines += ["", "Checkpoints inside the package (all of a card: icrl-gym info --json):"]
    lines += [f"  {name}: {_described_card(card)}" for name, card in found["checkpoints"].items()]
    marked = [f"{name} (default)" if name == DEFAULT_ESTIMATOR else name for name in found["estimators"]]
    lines += ["", f"Estimators (--estimator): {', '.join(marked)}"]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _described_card(card: Mapping[str, Any]) -> str:
    """A few words on a checkpoint."""
    digest = f"sha256 {card['sha256'][:12]}"
    if "algorithm" in card:
        return f"demo policy, {card['algorithm']} in {card['env']}, {card['num_steps_taken']:,} steps, {digest}"
    commit = str(card.get("training", {}).get("commit", "unknown"))[:12]
    return f"evaluator, {len(card.get('heads', ()))} networks, commit {commit}, {digest}"
