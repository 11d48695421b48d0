"""The peak memory of compiling one prompt in a process of its own, beside what is predicted: two numbers of bytes.

Arguments: "one" setting or the "generalist"; number of transitions; number of features; options as JSON.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import torch

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator import mixture
from icrl_gym.evaluator.heads import at_length
from icrl_gym.evaluator.memory import needed_memory
from icrl_gym.evaluator.setting import Setting


def make_prompt(num_transitions, num_features):
    rng = np.random.default_rng(0)
    states = np.sin(0.05 * np.cumsum(rng.normal(size=(num_transitions + 1, num_features)), axis=0))
    truncated = np.arange(num_transitions) % 200 == 199
    rewards, never = rng.normal(size=num_transitions), np.zeros(num_transitions, dtype=bool)
    log = icrl.Trajectory(states[:-1], never.astype(int), rewards, states[1:], never, truncated)
    return Prompt.from_trajectory(log, 0.99)


def status(name):
    """A figure of this process alone: `getrusage` also knows the peak of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main():
    kind, (num_transitions, num_features), options = sys.argv[1], map(int, sys.argv[2:4]), json.loads(sys.argv[4])
    mixture.MOST_SOURCES_ALONE = sys.maxsize  # the setting as it is given
    if kind == "one":
        network = mixture.Construction(Setting(**options))
        heads = network.heads
    else:
        network = icrl.InContextEvaluator.from_pretrained("generalist", **options).model
        heads = [at_length(head, num_transitions) for head in network.heads]
    network.compile(make_prompt(64, num_features), "cpu", torch.float64)
    prompt = make_prompt(num_transitions, num_features)
    predicted = needed_memory(prompt, heads)
    ctypes.CDLL(None).malloc_trim(0)  # give back what is free, so that it does not hide what is taken
    before = status("VmRSS")
    network.compile(prompt, "cpu", torch.float64)
    sys.stdout.write(f"{predicted} {status('VmHWM') - before}\n")


if __name__ == "__main__":
    main()
