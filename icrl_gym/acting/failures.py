"""Telling an environment's own failure from ours: where in its life it failed, and in which words."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import gymnasium

PACKAGE = Path(__file__).parents[1]
STAGES = ("make", "reset", "step")


@dataclass(frozen=True)
class EnvironmentFailure:
    """An exception that an environment raised by itself.

    Attributes:
        stage: "make", "reset" or "step".
        words: the exception's kind and message, in one line.
    """

    stage: str
    words: str

    def __str__(self) -> str:
        return f"the environment failed in {self.stage}: {self.words}"


def find_failure(error: BaseException) -> EnvironmentFailure | None:
    """The failure of an environment that an exception is about, or None if the environment did not raise it.

    It is the environment's where the code of this package called ``gymnasium.make``, ``reset`` or ``step`` last, and
    the exception came from further down. Arguments that an environment does not take are none: they are the caller's.
    """
    frames = [
        (Path(frame.f_code.co_filename), frame.f_code.co_name) for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    ours = [index for index, (path, _) in enumerate(frames) if path.is_relative_to(PACKAGE)]
    foreign = frames[ours[-1] + 1 :] if ours else []
    if not foreign or foreign[0][1] not in STAGES:
        return None
    stage = foreign[0][1]
    if (
        stage == "make"
        and isinstance(error, (TypeError, gymnasium.error.UnregisteredEnv))
        and "unexpected keyword" in str(error)
    ):
        return None
    said = " ".join(str(error).split()) or f"at `{traceback.extract_tb(error.__traceback__)[-1].line}`"
    return EnvironmentFailure(stage, f"{type(error).__name__}: {said}")
