"""Try every registered environment: 64 random steps, a fit, predictions, a truth from two rollouts; write the table.

    pip install icrl-gym[coverage]
    python scripts/run_coverage.py

Each id ends as evaluated or as refused with a reason, and leaves one record; a second call tries only what has none.
Worker processes take one id after another and are replaced if one crashes or is over its time.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro

import icrl_gym as icrl
from icrl_gym.acting.adapters import left_out_parts
from icrl_gym.acting.environments import environment_spec, make_environment
from icrl_gym.acting.failures import find_failure
from icrl_gym.acting.policies import as_policy
from icrl_gym.runs import replacing
from icrl_gym.scoring.document import Section, Table, markdown, text

PACKAGES = {
    "gymnasium": "gymnasium",
    "minigrid": "minigrid",
    "highway_env": "highway-env",
    "mo_gymnasium": "mo-gymnasium",
    "popgym": "popgym",
    "gymnasium_robotics": "gymnasium-robotics",
    "flappy_bird_gymnasium": "flappy-bird-gymnasium",
    "metaworld": "metaworld",
    "panda_gym": "panda-gym",
    "gym_pusht": "gym-pusht",
    "gym_anytrading": "gym-anytrading",
    "icrl_envs": "icrl-gym",
    "ale_py": "ale-py",
}
ARGUMENTS = {  # of environments that cannot be made without
    "Meta-World/MT1": {"env_name": "reach-v3"},
    "Meta-World/goal_hidden": {"env_name": "reach-v3-goal-hidden", "seed": 0},
    "Meta-World/goal_observable": {"env_name": "reach-v3-goal-observable", "seed": 0},
}
NUM_TRANSITIONS, NUM_QUERIES, GAMMA, TOLERANCE, EPISODE_STEPS = 64, 2, 0.8, 0.05, 32
IDS_PER_WORKER = 60
QUIET = {"SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1", "OMP_NUM_THREADS": "1"}
COMMAND = "python scripts/run_coverage.py"


@dataclass(frozen=True)
class Config:
    """What is tried, and where it is written."""

    out: Path = Path("runs/coverage")
    """Folder of the records, one per id."""
    page: Path = Path("docs/coverage.md")
    """The page to write."""
    modules: tuple[str, ...] = tuple(PACKAGES)
    """Modules whose ids are tried; those that are not installed are named on the page."""
    only: str = ""
    """Regular expression that an id must match."""
    limit: float = 180.0
    """Seconds for one id."""
    rerun: bool = False
    """Try again what was not evaluated."""
    worker: bool = False
    """Read ids from standard input; used by the script itself."""


@dataclass(frozen=True)
class Record:
    """What became of one id.

    Attributes:
        module: module that registers it.
        id: its id.
        evaluated: whether values and a truth came out.
        reason: why not, in one line.
        seen: the observation's features in a few words.
        notes: what was left out, weighed or assumed.
        seconds: how long it took.
    """

    module: str
    id: str
    evaluated: bool
    reason: str = ""
    seen: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def attempt(module: str, env_id: str) -> Record:
    """Evaluate one id; every exception becomes a reason."""
    begin = time.perf_counter()
    try:
        seen, notes = evaluate(f"{module}:{env_id}")
        found = Record(module, env_id, True, seen=seen, notes=notes)
    except Exception as error:
        reason = str(find_failure(error) or f"{type(error).__name__}: {' '.join(str(error).split())}")
        found = Record(module, env_id, False, reason=reason)
    return replace(found, seconds=round(time.perf_counter() - begin, 2))


def evaluate(name: str) -> tuple[str, tuple[str, ...]]:
    """The observations made of an environment, and the remarks; raises whatever the library raises."""
    try:
        return evaluated(name, None)
    except ValueError as error:
        number = re.search(r"reward is a vector of (\d+) numbers", str(error))
        if number is None:
            raise
        count = int(number[1])
        seen, notes = evaluated(name, [1.0] * count)
        return seen, (f"--reward-weights {','.join('1' * count)}", *notes)


def evaluated(name: str, weights: list[float] | None) -> tuple[str, tuple[str, ...]]:
    """One context, its values and the truth, with random actions."""
    spec = environment_spec(name, ARGUMENTS.get(name.partition(":")[2]), reward_weights=weights)
    spec = replace(spec, max_episode_steps=EPISODE_STEPS)
    with closing(make_environment(spec)) as env:
        policy = as_policy("random", env.action_space, env.observation_space, seed=0)
        left_out = [f"without {part}" for part in left_out_parts(env)]
    trajectory = icrl.collect(spec, "random", NUM_TRANSITIONS, seed=0)
    evaluator = icrl.InContextEvaluator.from_pretrained("generalist").fit(trajectory, GAMMA, policy=policy)
    truth = icrl.monte_carlo_values(
        spec,
        "random",
        num_queries=NUM_QUERIES,
        num_rollouts=2,
        gamma=GAMMA,
        tolerance=TOLERANCE,
        states="start",
        seed=0,
    )
    estimate = evaluator.predict(truth.observations)
    icrl.score(estimate, truth)
    if not np.isfinite(estimate.values).all():
        raise ValueError("a value is not finite")
    alone = [note.partition(":")[0] for note in truth.notes if note.startswith("the simulator cannot be copied")]
    return described(trajectory.observation_space), (*left_out, *alone)


def described(space: gymnasium.Space) -> str:
    """A space in a few words."""
    if isinstance(space, gymnasium.spaces.Dict):
        return "Dict: " + ", ".join(f"{key} {described(part)}" for key, part in space.spaces.items())
    if isinstance(space, gymnasium.spaces.Tuple):
        return "Tuple: " + ", ".join(described(part) for part in space.spaces)
    size = getattr(space, "n", None) or " x ".join(map(str, space.shape or (1,)))
    return f"{type(space).__name__} {size}"


def work() -> None:
    """Answer ids from standard input with records, one line each; whatever environments print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    for line in sys.stdin:
        answers.write(json.dumps(asdict(attempt(*json.loads(line)))) + "\n")
        answers.flush()


class Worker:
    """A process that takes ids until it crashes, is too slow, or has had its share."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._num_done = 0

    def ask(self, module: str, env_id: str, limit: float) -> Record:
        """The record of an id, whatever happens to the process."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        self._num_done += 1
        try:
            process.stdin.write(json.dumps([module, env_id]) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], limit)[0]:
                self.stop()
                return Record(module, env_id, False, f"over the limit of {limit:g} seconds", seconds=limit)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return Record(**json.loads(line))
        code = process.wait()
        self.stop()
        return Record(module, env_id, False, f"the process crashed with exit code {code}")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
        self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._num_done >= IDS_PER_WORKER:
            self.stop()
        if self._process is None:
            self._num_done = 0
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, env={**os.environ, **QUIET},
            )  # fmt: skip
        return self._process


def registered(modules: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(module, id) of everything that the modules register, in the order of the modules."""
    known: set[str] = set()
    for module in modules:
        if importlib.util.find_spec(module) is None:
            continue
        importlib.import_module(module)
        new = sorted(set(gymnasium.registry) - known)
        known |= set(new)
        yield from ((module, env_id) for env_id in new)


def path_of(config: Config, module: str, env_id: str) -> Path:
    """Where the record of an id is kept."""
    return config.out / module / f"{env_id.replace('/', '__')}.json"


def load(path: Path) -> Record:
    """A record as it was kept."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Record(**{**content, "notes": tuple(content["notes"])})


def run(config: Config, ids: list[tuple[str, str]]) -> None:
    """Try every id without a record, or whose record is to be renewed."""
    worker = Worker()
    try:
        for module, env_id in ids:
            path = path_of(config, module, env_id)
            if path.exists() and not (config.rerun and not load(path).evaluated):
                continue
            found = worker.ask(module, env_id, config.limit)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as unfinished:
                unfinished.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
            print(f"{module}:{env_id}  {'evaluated' if found.evaluated else found.reason}  {found.seconds:.1f} s")
            sys.stdout.flush()
    finally:
        worker.stop()


def page(records: list[Record]) -> str:
    """The page: a summary by package, then each package's ids."""
    by_module = {module: [one for one in records if one.module == module] for module in PACKAGES}
    missing = [package for module, package in PACKAGES.items() if not by_module[module]]
    horizon = int(np.ceil(np.log(TOLERANCE) / np.log(GAMMA)))
    words = [
        f"Every environment that these packages register, tried by `{COMMAND}`: {NUM_TRANSITIONS} steps of random "
        f"actions, a fit of the default evaluator, its values at {NUM_QUERIES} starts, and their truth from two "
        f"rollouts each (discount {GAMMA}, horizon {horizon}, episodes cut at {EPISODE_STEPS} steps). This says what "
        "works, not how well: so short a context says little about values.",
        "An id is *evaluated*, or *refused* with the reason; where the environment failed, the reason is in its own "
        "words. Where observations hold text (missions), that is left out; several rewards are weighed with "
        "`--reward-weights`; where a simulator cannot be copied, the truth is the one return of each query's own "
        "episode.",
    ]
    if missing:
        words.append(f"Not installed when this was made: {', '.join(missing)}.")
    parts: list[Any] = [*words, summary(by_module), *reasons(records)]
    sections = [Section("What was tried", tuple(parts))]
    sections += [Section(PACKAGES[module], (listing(found),)) for module, found in by_module.items() if found]
    return f"# Coverage\n\n{markdown(sections)}\n"


def summary(by_module: dict[str, list[Record]]) -> Table:
    """One row per package."""
    rows = []
    for module, found in by_module.items():
        if found:
            done = sum(one.evaluated for one in found)
            fields = (PACKAGES[module], version(PACKAGES[module]), str(len(found)), str(done), str(len(found) - done))
            rows.append(tuple(map(text, fields)))
    total = [one for found in by_module.values() for one in found]
    done = sum(one.evaluated for one in total)
    rows.append(tuple(map(text, ("all", "", str(len(total)), str(done), str(len(total) - done)))))
    return Table("By package", ("package", "version", "ids", "evaluated", "refused"), tuple(rows))


def reasons(records: list[Record]) -> list[Table]:
    """How often each reason occurred, the commonest first."""
    refused = [one for one in records if not one.evaluated]
    counted = Counter(
        re.sub(r"'\.\.\./[\w.]+'", "'...'", shortened(one.reason.replace(one.id, "ID"))) for one in refused
    )
    rows = tuple((text(str(count)), text(reason)) for reason, count in counted.most_common())
    return [Table("Reasons", ("ids", "reason"), rows)] if rows else []


def listing(records: list[Record]) -> Table:
    """One row per id."""
    rows = [
        (text(f"`{one.id}`"), text("evaluated" if one.evaluated else "refused"), text(remark(one)))
        for one in sorted(records, key=lambda one: one.id)
    ]
    return Table(f"{len(records)} ids", ("id", "outcome", "what was seen, or why not"), tuple(rows))


def remark(record: Record) -> str:
    """The last column of an id."""
    return "; ".join((record.seen, *record.notes)) if record.evaluated else shortened(record.reason)


def shortened(reason: str, length: int = 180) -> str:
    """A reason on one line of a table, without paths of this machine."""
    plain = re.sub(r"(?<![:/\w])(/[\w.-]+){2,}/", ".../", reason)
    return plain if len(plain) <= length else plain[:length].rstrip() + " ..."


def version(package: str) -> str:
    """The installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def main(config: Config) -> None:
    """Try what is missing, then write the page from all records."""
    if config.worker:
        work()
        return
    os.environ.update(QUIET)
    everything = list(registered(config.modules))
    run(config, [(module, env_id) for module, env_id in everything if re.search(config.only, env_id)])
    records = [load(path) for one in everything if (path := path_of(config, *one)).exists()]
    with replacing(config.page) as unfinished:
        unfinished.write_text(page(records), encoding="utf-8")
    print(f"{sum(one.evaluated for one in records)} of {len(records)} ids evaluated; {config.page}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
