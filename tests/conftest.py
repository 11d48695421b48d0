"""One computing thread per test process, since the suite runs on several; the same hypothesis examples every time."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
