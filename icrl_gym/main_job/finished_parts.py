"""`FinishedParts`: the finished parts of a run, on disk, so that an interrupted one goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from icrl_gym.configuration import EvaluateConfig
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.runs import RunFolder, unfinished_folder
from icrl_gym.stored_values import load_values, save_values
from icrl_gym.values import ValueEstimates

FOLDER = "finished"


class FinishedParts:
    """The context, the truth and the critic's values of one run; each is made once.

    Args:
        run: the run's folder, which keeps what is finished when the user interrupts it.
        policy: identity of the policy; what was kept must be about it.
    """

    def __init__(self, run: RunFolder, policy: str) -> None:
        self._run, self._policy = run, policy
        self._folder = run.path / FOLDER
        self._folder.mkdir(exist_ok=True)
        for events in run.path.glob("events.out.tfevents.*"):  # of an attempt that was interrupted
            events.unlink()

    def context(self, collect: Callable[[], Trajectory]) -> Trajectory:
        """The context as kept, or collected now.

        Raises:
            ValueError: the kept one is of another policy: the model's file has changed meanwhile.
        """
        path = self._folder / "context.npz"
        if path.exists():
            kept = Trajectory.load(path)
            self._check(kept.policy)
            return kept
        found = collect()
        found.save(path)
        self._run.keeps = True
        return found

    def values(self, name: str, measure: Callable[[], ValueEstimates]) -> ValueEstimates:
        """Values by the name of their file as kept, or measured now; raises as `context` does."""
        path = self._folder / f"{name}.npz"
        if path.exists():
            kept = load_values(path)
            self._check(kept.estimand.policy)
            return kept
        found = measure()
        save_values(path, found)
        self._run.keeps = True
        return found

    def discard(self) -> None:
        """Remove the parts: the run is complete."""
        shutil.rmtree(self._folder)

    def _check(self, policy: str | None) -> None:
        if policy != self._policy:
            raise ValueError(
                f"resume: what the interrupted run finished is about policy {policy!r}, and the policy is now "
                f"{self._policy!r}: it has changed; start a new run"
            )


def interrupted_config(run: Path) -> EvaluateConfig:
    """The flags of an interrupted run.

    Raises:
        FileNotFoundError, FileExistsError: see `unfinished_folder`.
        ValueError: it was interrupted before it wrote them, or another version did.
    """
    path = unfinished_folder(run) / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        paths = {name: Path(stored[name]) for name in ("vec_normalize", "run_dir") if stored[name] is not None}
        return EvaluateConfig(**{**stored, **paths})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"resume: {str(run)!r} holds no flags of this version's evaluate: {error}") from error
