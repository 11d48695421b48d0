"""`Result`: an outcome with everything needed to get it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from icrl_gym.reproduction.claim import Claim, Outcome


@dataclass(frozen=True)
class Result:
    """One claim's outcome in a run.

    Attributes:
        claim: what was claimed.
        outcome: what was found; its figure is None once it was read back from disk.
        quick: whether small sizes were used.
        num_seeds: independent repetitions.
        device: torch device.
        seconds: wall-clock time of the run that finished it.
        commit: the code's commit, with "+changes" where it was edited, or "unknown".
        sources: hash of the claim's source modules, as `fingerprint` gives it.
        criterion: the criterion that was judged by.
        figure: the drawn file, if there is one.
    """

    claim: Claim
    outcome: Outcome
    quick: bool
    num_seeds: int
    device: str
    seconds: float
    commit: str
    sources: str
    criterion: str
    figure: Path | None

    @property
    def command(self) -> str:
        """The command that gives this result again."""
        words = ["icrl-gym reproduce", self.claim.id]
        if self.quick:
            words.append("--quick")
        if self.num_seeds != (self.claim.quick_seeds if self.quick else self.claim.num_seeds):
            words.append(f"--seeds {self.num_seeds}")
        if self.device != "cpu":
            words.append(f"--device {self.device}")
        return " ".join(words)
