"""The heads of the shipped mixture: settings of the tied network that differ in width, trace, relevance and keys.

The first one is the constructed evaluator. The others were chosen on the synthetic validation set and CartPole-v1,
Acrobot-v1 and Pendulum-v1 (docs/mixture.md); each one is an ordinary `Setting`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from icrl_gym.evaluator.setting import Setting

NUM_LANDMARKS, MOST_LANDMARKS = 200, 512
MOST_SOURCES = 1024  # that are all keys in a mixture's heads; above it these have landmarks as well
LANDMARK_FORGETTING = 1e-3  # the forgetting of such a head is then this share of what it was: its unit is another

HEADS: tuple[Setting, ...] = (
    Setting(),
    Setting(bandwidth=1.2, forgetting=1e-5),
    Setting(bandwidth=1.0, forgetting=1e-6, landmarks=NUM_LANDMARKS),
    Setting(bandwidth=1.0, forgetting=1e-6, landmarks=NUM_LANDMARKS, trace_decay=0.9),
    Setting(bandwidth=0.7, forgetting=1e-7, landmarks=NUM_LANDMARKS, relevance="returns"),
    Setting(bandwidth=0.7, forgetting=1e-6, landmarks=NUM_LANDMARKS, relevance="returns", trace_decay=0.9),
    Setting(bandwidth=1.4, forgetting=1e-5, landmarks=NUM_LANDMARKS, relevance="returns"),
    Setting(bandwidth=1.4, forgetting=1e-5, landmarks=NUM_LANDMARKS, relevance="returns", trace_decay=0.9),
    Setting(bandwidth=2.0, forgetting=1e-5, landmarks=NUM_LANDMARKS, relevance="returns"),
    Setting(bandwidth=2.0, forgetting=1e-4, landmarks=NUM_LANDMARKS, relevance="returns"),
)


def at_length(head: Setting, num_transitions: int, most_sources: int = 0) -> Setting:
    """A head for a context of this length, so that its cost grows no faster than the context.

    Above `MOST_SOURCES` transitions the number of landmarks grows with the square root of the length, up to
    `MOST_LANDMARKS`; a head with every source as a key has as many. One that does not go with landmarks stays as it is.

    Args:
        head: the head for short contexts.
        num_transitions: the length.
        most_sources: up to this length every source may be a key, if it is above `MOST_SOURCES`.
    """
    if num_transitions <= MOST_SOURCES or (not head.landmarks and num_transitions <= most_sources):
        return head
    grown = round((head.landmarks or NUM_LANDMARKS) * math.sqrt(num_transitions / MOST_SOURCES))
    count = max(head.landmarks, min(MOST_LANDMARKS, grown))
    if head.landmarks:
        return replace(head, landmarks=count)
    if not head.allows_landmarks:
        return head
    return replace(head, landmarks=count, forgetting=LANDMARK_FORGETTING * head.forgetting)
