"""The heads of the shipped mixture: settings of the tied network that differ in width, trace, relevance and keys.

The first one is the constructed evaluator. The others were chosen on the synthetic validation set and CartPole-v1,
Acrobot-v1 and Pendulum-v1 (docs/mixture.md); each one is an ordinary `Setting`.
"""

from __future__ import annotations

from icrl_gym.evaluator.setting import Setting

NUM_LANDMARKS = 200

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
