"""One computing thread per test process: the suite runs on several processes, and small matrices gain nothing."""

import torch

torch.set_num_threads(1)
