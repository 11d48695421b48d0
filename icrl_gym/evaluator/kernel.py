"""Attention of states over the sources of one prompt: the softmax kernels, their widths, and what they look at.

A Gaussian kernel weighs features by their *relevance*, read off the context, scale-free in features and in rewards:

| relevance | weight of a feature (this project's own) |
|---|---|
| uniform | 1 |
| returns | sqrt(c^2 + q^2 + 1/N + 1/100), c and q: correlations of the feature and its square with lambda-returns |

Both leave the total variance of the features as it was. "returns" looks at rewards, but only through correlations.

Shape legend: B destinations (columns or queries), N sources, K keys (the sources, or a few of them: landmarks), E end
columns, C = N + E columns, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.prompt import Prompt
from icrl_gym.context.returns import decayed_sums
from icrl_gym.evaluator.keys import keys
from icrl_gym.evaluator.setting import Relevance, Setting

RETURN_TRACE = 0.95  # lambda of the returns that features are correlated with
JITTER = 0.01
HELD_COLUMNS = 4096  # of a context, whose attention is kept while it is compiled


def inner_product_attention(destination_BD: Tensor, source_ND: Tensor, key_bias_N: Tensor) -> Tensor:
    """K(k | x) = softmax_k(<x, x_k> + b_k), (..., B, N). Theorem 1's kernel for b = 0."""
    return torch.softmax(destination_BD @ source_ND.mT + key_bias_N.unsqueeze(-2), dim=-1)


def gaussian_attention(
    destination_BD: Tensor, source_ND: Tensor, key_bias_N: Tensor, log_sink: Tensor | None
) -> Tensor:
    """K(k | x) = w_k exp(-|x - x_k|^2 / 2) / (sink + sum_m w_m exp(-|x - x_m|^2 / 2)), (..., B, N), with w = exp(b).

    One softmax over inner products: the key bias -|x_k|^2/2 makes the Gaussian, and the sink is one more key that
    scores |x|^2/2 + log sink, which the query carries as a feature. The features come divided by the kernel width.

    Args:
        destination_BD: (..., B, D) features of the destinations.
        source_ND: (..., N, D) features of the sources.
        key_bias_N: (..., N) log weights of the sources; -inf drops a source.
        log_sink: (...) log of the sink's weight in units of one source at distance zero; None for no sink.
    """
    one_B1 = torch.ones_like(destination_BD[..., :1])
    bias_N1 = key_bias_N.unsqueeze(-1) - half_square(source_ND)
    if log_sink is None:
        scores_BN = torch.cat([destination_BD, one_B1], dim=-1) @ torch.cat([source_ND, bias_N1], dim=-1).mT
        return torch.softmax(scores_BN, dim=-1)
    query_BD = torch.cat([destination_BD, half_square(destination_BD), one_B1], dim=-1)
    key_ND = torch.cat([source_ND, torch.zeros_like(bias_N1), bias_N1], dim=-1)
    sink_1D = torch.zeros_like(key_ND[..., :1, :])
    sink_1D[..., 0, -2] = 1.0
    sink_1D[..., 0, -1] = log_sink
    scores_BN = query_BD @ torch.cat([key_ND, sink_1D], dim=-2).mT
    return torch.softmax(scores_BN, dim=-1)[..., :-1]


def half_square(x_BD: Tensor) -> Tensor:
    """|x|^2 / 2, keeping the feature axis: (..., B, 1)."""
    return x_BD.square().sum(dim=-1, keepdim=True) / 2


@dataclass(frozen=True, eq=False)
class Kernel:
    """One softmax kernel on one prompt, equal only to itself.

    Attributes:
        prompt: the context.
        setting: kind, width and sink.
        relevance_D: weights of the features.
        rows_K: the sources that are keys; -1 for one that the context no longer holds.
        log_weights_K: log weights of the keys.
        key_features_KD: their features.
    """

    prompt: Prompt
    setting: Setting
    relevance_D: np.ndarray
    rows_K: np.ndarray
    log_weights_K: Tensor
    key_features_KD: np.ndarray

    def attend(self, features_BD: np.ndarray) -> Tensor:
        """Attention over the keys, (B, K); a row sums to 1 less the sink's share."""
        destination_BD = self._scaled(features_BD)
        if self.setting.kernel == "inner_product":
            return inner_product_attention(destination_BD, self._keys_KD, self.log_weights_K)
        log_sink = self._keys_KD.new_tensor(self.setting.sink).log() if self.setting.sink else None
        return gaussian_attention(destination_BD, self._keys_KD, self.log_weights_K, log_sink)

    @cached_property
    def columns_CK(self) -> Tensor:
        """Attention of all columns, sources and ends, over the keys; kept until `release`."""
        sources_ND, ends_ED = self.prompt.source_features, self.prompt.end_features
        if self.prompt.end_mixtures is None:
            return self.attend(np.concatenate([sources_ND, ends_ED]))
        return torch.cat([self.attend(sources_ND), self.attend_ends(np.arange(len(ends_ED)))])

    def attend_columns(self, columns: np.ndarray) -> Tensor:
        """Attention of some columns, numbered sources first, over the keys; in short contexts all are held."""
        if len(self.prompt) + len(self.prompt.end_features) <= HELD_COLUMNS:
            return self.columns_CK[torch.as_tensor(columns)]
        num_sources, found = len(self.prompt), self._keys_KD.new_empty(len(columns), len(self._keys_KD))
        for part, attend in (
            (np.flatnonzero(columns < num_sources), lambda rows: self.attend(self.prompt.source_features[rows])),
            (np.flatnonzero(columns >= num_sources), lambda rows: self.attend_ends(rows - num_sources)),
        ):
            if len(part):
                found[torch.as_tensor(part)] = attend(columns[part])
        return found

    def attend_ends(self, ends: np.ndarray) -> Tensor:
        """Attention of some end columns, each of a mixture the weighted mean of its parts'."""
        mixtures = self.prompt.end_mixtures
        if mixtures is None:
            return self.attend(self.prompt.end_features[ends])
        ends_EK = self._keys_KD.new_zeros(len(ends), len(self._keys_KD))
        for features_ED, weights_E in zip(mixtures.features_MED[:, ends], mixtures.weights_ME[:, ends], strict=True):
            rows = np.flatnonzero(weights_E)
            weights_E1 = torch.as_tensor(weights_E[rows, None]).to(ends_EK)
            ends_EK[torch.as_tensor(rows)] += weights_E1 * self.attend(features_ED[rows])
        return ends_EK

    def release(self) -> None:
        """Let go of the attention of the columns, the one large array; it is computed again when asked for."""
        self.__dict__.pop("columns_CK", None)

    def over_sources(self, attention_BK: Tensor) -> np.ndarray:
        """Attention over the keys, put back to the N sources that the keys are, (B, N)."""
        attention_BN = np.zeros((len(attention_BK), len(self.prompt)))
        held_K = self.rows_K >= 0
        attention_BN[:, self.rows_K[held_K]] = _array(attention_BK)[:, held_K]
        return attention_BN

    def moved_on(self, prompt: Prompt, dropped: int) -> Kernel:
        """The same kernel on a context that goes on, without so many of its first transitions."""
        return replace(self, prompt=prompt, rows_K=np.maximum(self.rows_K - dropped, -1))

    def support(self, features_BD: np.ndarray, attention_BK: Tensor) -> np.ndarray:
        """Effective number of sources, (B,): weighted with exp(-distance^2 / 2), for an inner product 1 / sum K^2.

        Args:
            features_BD: the destinations.
            attention_BK: their attention.
        """
        if self.setting.kernel == "inner_product":
            return _array(1.0 / attention_BK.square().sum(dim=1))
        if self.setting.sink > 0:
            mass_B = attention_BK.sum(dim=1).clamp(max=1.0 - 1e-12)
            return _array(self.setting.sink * mass_B / (1.0 - mass_B))
        distance_BK = torch.cdist(self._scaled(features_BD), self._keys_KD)
        return _array(torch.exp(self.log_weights_K - distance_BK.square() / 2).sum(dim=1))

    @cached_property
    def _keys_KD(self) -> Tensor:
        return self._scaled(self.key_features_KD)

    def _scaled(self, features_BD: np.ndarray) -> Tensor:
        """Features divided by the kernel's width, (B, D)."""
        width = self.setting.bandwidth
        if self.setting.kernel == "gaussian":
            width, features_BD = self.prompt.kernel_width(width), features_BD * self.relevance_D
        return torch.as_tensor(features_BD / width, dtype=self.log_weights_K.dtype, device=self.log_weights_K.device)


class Kernels:
    """The kernels of one prompt; settings that attend alike share one.

    Args:
        prompt: the context.
        log_weights_N: log weights of the sources; -inf drops a source.
        device: torch device of the attention.
    """

    def __init__(self, prompt: Prompt, log_weights_N: np.ndarray, device: str | torch.device) -> None:
        self._prompt, self._log_weights_N, self._device = prompt, log_weights_N, device
        self._kernels: dict[tuple[object, ...], Kernel] = {}
        self._relevances: dict[Relevance, np.ndarray] = {}

    def of(self, setting: Setting, dtype: torch.dtype) -> Kernel:
        """The kernel of a setting, computed in this dtype."""
        alike = setting.kernel, setting.bandwidth, setting.sink, setting.relevance, setting.landmarks, dtype
        if alike not in self._kernels:
            self._kernels[alike] = self._new(setting, dtype)
        return self._kernels[alike]

    def release(self) -> None:
        """Let go of the attention of the columns in every kernel."""
        for kernel in self._kernels.values():
            kernel.release()

    def _new(self, setting: Setting, dtype: torch.dtype) -> Kernel:
        if setting.relevance not in self._relevances:
            self._relevances[setting.relevance] = RELEVANCES[setting.relevance](self._prompt)
        rows_K, log_weights_K = keys(self._prompt, setting.landmarks, self._log_weights_N)
        weights = torch.as_tensor(log_weights_K, dtype=dtype, device=self._device)
        relevance_D, features_KD = self._relevances[setting.relevance], self._prompt.source_features[rows_K]
        return Kernel(self._prompt, setting, relevance_D, rows_K, weights, features_KD)


class Rows:
    """Attention of a batch of queries, a matrix for each kernel, computed when first asked for.

    Args:
        features_QD: the queries.
    """

    def __init__(self, features_QD: np.ndarray) -> None:
        self.features_QD = features_QD
        self._by_kernel: dict[Kernel, Tensor] = {}

    def __getitem__(self, kernel: Kernel) -> Tensor:
        """(Q, K)."""
        if kernel not in self._by_kernel:
            self._by_kernel[kernel] = kernel.attend(self.features_QD)
        return self._by_kernel[kernel]


def lambda_return_errors(prompt: Prompt, trace_decay: float) -> np.ndarray:
    """lambda-returns less the log's constant, (N,): sums of decayed TD errors of the constant.

    They describe the log as it is, so importance ratios do not enter.
    """
    constant = replace(prompt, importance_ratios=None, log_weights=None).constant
    errors_N = prompt.rewards - (1.0 - prompt.discounts) * constant
    return decayed_sums(errors_N, prompt.discounts * trace_decay * prompt.trace_links)


def _by_returns(prompt: Prompt) -> np.ndarray:
    x_ND = prompt.source_features - prompt.source_features.mean(axis=0)
    returns_N = lambda_return_errors(prompt, RETURN_TRACE)
    squares_D = _correlations(x_ND, returns_N) ** 2 + _correlations(x_ND**2, returns_N) ** 2
    weights_D = np.sqrt(squares_D + 1.0 / len(x_ND) + JITTER)
    variance_D = x_ND.var(axis=0)
    before, after = variance_D.sum(), (variance_D * weights_D**2).sum()
    return weights_D * (np.sqrt(before / after) if after > 0 else 1.0)


def _correlations(x_ND: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Correlation of each column with y, (D,); 0 where either does not vary."""
    x_ND, y_N = x_ND - x_ND.mean(axis=0), y_N - y_N.mean()
    scale_D = np.sqrt(np.square(x_ND).sum(axis=0) * np.square(y_N).sum())
    return np.divide(y_N @ x_ND, scale_D, out=np.zeros_like(scale_D), where=scale_D > 0)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


RELEVANCES: dict[Relevance, Callable[[Prompt], np.ndarray]] = {
    "uniform": lambda prompt: np.ones(prompt.source_features.shape[1]),
    "returns": _by_returns,
}
