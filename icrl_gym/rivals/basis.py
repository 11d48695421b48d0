"""Basis functions for the linear methods: radial around centres drawn from the context, or the features themselves."""

from __future__ import annotations

from typing import Literal

import numpy as np

from icrl_gym.context.prompt import Prompt
from icrl_gym.rivals.base import check_positive, scaled_distances

BasisName = Literal["radial", "linear"]


class Basis:
    """phi(x), (B, F): a bias and either Gaussian bumps or the raw features.

    Args:
        name: "radial": exp(-|x - centre|^2 / (2 width^2)) around distinct sources of the context; "linear": x itself.
        num_centres: at most this many, evenly spaced along the context.
        width: width of the bumps, in standard deviations of the context, times sqrt(effective dimension / 4).
    """

    def __init__(self, name: BasisName = "radial", num_centres: int = 200, width: float = 2.0) -> None:
        if name not in ("radial", "linear"):
            raise ValueError(f"basis must be 'radial' or 'linear', got {name!r}")
        check_positive(num_centres=num_centres, width=width)
        self.name, self.num_centres, self.width = name, num_centres, width

    def fit(self, prompt: Prompt) -> Basis:
        """Choose the centres. Returns self."""
        distinct = prompt.source_features[np.sort(np.unique(prompt.source_features, axis=0, return_index=True)[1])]
        picked = np.linspace(0, len(distinct) - 1, min(self.num_centres, len(distinct))).round().astype(int)
        self._centres_FD = distinct[picked]
        self._width = prompt.kernel_width(self.width)
        return self

    def __call__(self, features_BD: np.ndarray) -> np.ndarray:
        """phi, (B, F), the bias last."""
        bias = np.ones((len(features_BD), 1))
        if self.name == "linear":
            return np.concatenate([features_BD, bias], axis=1)
        bumps = np.exp(-scaled_distances(features_BD, self._centres_FD, self._width) / 2)
        return np.concatenate([bumps, bias], axis=1)
