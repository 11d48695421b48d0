"""Next states and rewards as smooth functions of state and action, read off the context by ridge regression.

Each output is a linear or quadratic function of the inputs plus a Gaussian kernel's read of the context (ridge
attention over rows), or the function alone. Which of them, and the ridge, is what leaving each row out finds best, for
every output by itself; the kernel's width is one for all. A constant reward is thus read as its mean.

Several members are fitted with the choices of the whole, each without some of the rows. The last output is the reward:
given the choices it is linear in the rewards of the rows.

Shape legend: N rows, K members, M rows of a member, X inputs, O outputs, P terms of the function, B queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BANDWIDTHS = (1.6, 4.0)  # standard deviations of the context, times sqrt(X / 4)
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FUNCTION_RIDGES = (1e-8, 1e-5, 1e-3)  # per row, for the function alone
FUNCTION_VARIANCES = {False: 1.0, True: 0.3}  # prior variance of its coefficients beside a kernel, by `quadratic`
MOST_TERMS = 200
LEAST_ROWS_PER_TERM = 4
EXACT = 1e-6  # of an output's variance: less error than this is none
PLAIN = 1.1  # times the least squared error that the function alone may have to be preferred
TINY = 1e-12


@dataclass(frozen=True)
class Choice:
    """How one output is read.

    Attributes:
        quadratic: whether the function has squares and products.
        ridge: of the kernel's read, or of the function where there is no kernel.
        kernel: whether there is one.
        error: mean squared error of predicting each row from the others, in units of the output's variance.
    """

    quadratic: bool
    ridge: float
    kernel: bool
    error: float


@dataclass(frozen=True, eq=False)
class SmoothRegression:
    """Fitted members.

    Attributes:
        inputs_KMX: their rows.
        bandwidth_width: width of the kernel.
        choices: one for each output.
        function_KPO, weights_KMO: coefficients of the terms and of the kernel's rows.
        centres_KO: means of the outputs.
        reward_function_KPM, reward_weights_KMM: what turns a member's rewards into the last output's coefficients.
    """

    inputs_KMX: Tensor
    bandwidth_width: float
    choices: tuple[Choice, ...]
    function_KPO: Tensor
    weights_KMO: Tensor
    centres_KO: Tensor
    reward_function_KPM: Tensor
    reward_weights_KMM: Tensor

    @classmethod
    def fit(
        cls, inputs_NX: np.ndarray, outputs_NO: np.ndarray, choosing: np.ndarray, members: Sequence[np.ndarray],
        device: torch.device | str,
    ) -> SmoothRegression:  # fmt: skip
        """Choose on some rows, then fit each member to its own.

        Args:
            inputs_NX, outputs_NO: rows; the last output is the reward.
            choosing: rows on which the choices are made.
            members: rows of each member, equally many.
            device: torch device.
        """
        x_NX = torch.as_tensor(inputs_NX, dtype=torch.float64, device=device)
        y_NO = torch.as_tensor(outputs_NO, dtype=torch.float64, device=device)
        chosen = torch.as_tensor(choosing, device=device)
        outputs_MO = y_NO[chosen]
        scale_O = outputs_MO.std(dim=0, correction=0)
        varies_O = scale_O > TINY * outputs_MO.abs().amax(dim=0)
        scaled_MO = (outputs_MO - outputs_MO.mean(dim=0)) / torch.where(varies_O, scale_O, torch.inf)
        width, choices = _choose(x_NX[chosen], scaled_MO)
        rows_KM = torch.as_tensor(np.stack(members), device=device)
        fitted = [_fit_member(x_NX[rows_M], y_NO[rows_M], width, choices) for rows_M in rows_KM]
        return cls(x_NX[rows_KM], width, choices, *(torch.stack(part) for part in zip(*fitted, strict=True)))

    @property
    def quadratic(self) -> bool:
        """Whether any output's function has squares and products."""
        return any(choice.quadratic for choice in self.choices)

    @property
    def kernel(self) -> bool:
        """Whether any output is read through the kernel."""
        return any(choice.kernel for choice in self.choices)

    def read(self, inputs_KBX: Tensor) -> tuple[Tensor, Tensor | None]:
        """Terms (K, B, P) of the queries and their kernel over the rows (K, B, M), None without one."""
        terms_KBP = _terms(inputs_KBX, self.quadratic)
        kernel_KBM = _gaussian(inputs_KBX, self.inputs_KMX, self.bandwidth_width) if self.kernel else None
        return terms_KBP, kernel_KBM

    def outputs(self, terms_KBP: Tensor, kernel_KBM: Tensor | None) -> Tensor:
        """Outputs (K, B, O) from what `read` found."""
        y_KBO = torch.baddbmm(self.centres_KO[:, None, :], terms_KBP, self.function_KPO)
        return y_KBO if kernel_KBM is None else torch.baddbmm(y_KBO, kernel_KBM, self.weights_KMO)

    def reward_attribution(self, terms_KQP: Tensor, kernel_KQM: Tensor | None, mass_KQ1: Tensor) -> Tensor:
        """Weights (K, Q, M) of a member's rewards in sums of last outputs, from the sums of what `read` found.

        Args:
            terms_KQP, kernel_KQM: weighted sums of the terms and the kernel.
            mass_KQ1: sums of the weights.
        """
        weights_KQM = terms_KQP @ self.reward_function_KPM
        if kernel_KQM is not None:
            weights_KQM = torch.baddbmm(weights_KQM, kernel_KQM, self.reward_weights_KMM)
        centred_KQM = weights_KQM - weights_KQM.mean(dim=-1, keepdim=True)
        return centred_KQM + mass_KQ1 / centred_KQM.shape[-1]


def _choose(x_NX: Tensor, y_NO: Tensor) -> tuple[float, tuple[Choice, ...]]:
    """The kernel's width and every output's choice, by the squared error of leaving each row out."""
    num_rows, num_inputs = x_NX.shape
    num_terms = 1 + num_inputs + num_inputs * (num_inputs + 1) // 2
    functions = (False, True) if num_terms <= min(MOST_TERMS, num_rows // LEAST_ROWS_PER_TERM) else (False,)
    plain = [Choice(False, math.inf, False, 0.0)]
    errors = [y_NO.square().mean(dim=0)]  # the mean alone: an infinite ridge
    for quadratic in functions:
        terms_NP = _terms(x_NX, quadratic)
        for ridge in FUNCTION_RIDGES:
            inverse_PP = torch.linalg.inv(_function_gram(terms_NP, ridge))
            leverage_N = torch.einsum("np,pq,nq->n", terms_NP, inverse_PP, terms_NP).clamp(max=0.99)
            left_NO = y_NO - terms_NP @ (inverse_PP @ (terms_NP.mT @ y_NO))
            errors.append((left_NO / (1.0 - leverage_N)[:, None]).square().mean(dim=0))
            plain.append(Choice(quadratic, ridge, False, 0.0))
    plain_EO = torch.stack(errors)
    best_plain_O, which_plain_O = plain_EO.min(dim=0)
    found: list[tuple[float, float, list[Choice]]] = []
    for bandwidth in BANDWIDTHS:
        width = bandwidth * math.sqrt(num_inputs / 4)
        kernel_NN = _gaussian(x_NX, x_NX, width)
        kernels, kernel_errors = [], []
        for quadratic in functions:
            terms_NP = _terms(x_NX, quadratic)
            values_N, vectors_NN = torch.linalg.eigh(
                kernel_NN + FUNCTION_VARIANCES[quadratic] * (terms_NP @ terms_NP.mT)
            )
            rotated_NO, squares_NN = vectors_NN.mT @ y_NO, vectors_NN.square()
            for ridge in RIDGES:
                inverse_N = 1.0 / (values_N.clamp(min=0.0) + ridge)
                left_NO = vectors_NN @ (inverse_N[:, None] * rotated_NO) / (squares_NN @ inverse_N)[:, None]
                kernels.append(Choice(quadratic, ridge, True, 0.0))
                kernel_errors.append(left_NO.square().mean(dim=0))
        best_O, which_O = torch.stack(kernel_errors).min(dim=0)
        choices = []
        for output, (error, index) in enumerate(zip(best_O.tolist(), which_O.tolist(), strict=True)):
            plain_error = float(best_plain_O[output])
            if plain_error <= max(PLAIN * error, EXACT):
                picked, error = plain[int(which_plain_O[output])], plain_error
            else:
                picked = kernels[index]
            choices.append(Choice(picked.quadratic, picked.ridge, picked.kernel, error))
        found.append((sum(math.log(choice.error + TINY) for choice in choices), width, choices))
    _, width, choices = min(found, key=lambda one: one[0])
    return width, tuple(choices)


def _fit_member(x_MX: Tensor, y_MO: Tensor, width: float, choices: tuple[Choice, ...]) -> tuple[Tensor, ...]:
    """Coefficients, kernel weights, centres, and the reward's matrices of one member."""
    quadratic = any(choice.quadratic for choice in choices)
    all_terms_MP = _terms(x_MX, quadratic)
    num_rows, num_terms, num_outputs = len(x_MX), all_terms_MP.shape[1], y_MO.shape[1]
    centre_O = y_MO.mean(dim=0)
    function_PO, weights_MO = y_MO.new_zeros(num_terms, num_outputs), y_MO.new_zeros(num_rows, num_outputs)
    reward_PM, reward_MM = y_MO.new_zeros(num_terms, num_rows), y_MO.new_zeros(num_rows, num_rows)
    kernel_MM = _gaussian(x_MX, x_MX, width) if any(choice.kernel for choice in choices) else None
    for group in {(choice.quadratic, choice.ridge, choice.kernel) for choice in choices}:
        outputs = [o for o, choice in enumerate(choices) if (choice.quadratic, choice.ridge, choice.kernel) == group]
        if math.isinf(group[1]):
            continue
        terms_MP = _terms(x_MX, group[0])
        used = slice(0, terms_MP.shape[1])
        if group[2]:
            assert kernel_MM is not None
            variance, identity_MM = FUNCTION_VARIANCES[group[0]], torch.eye(num_rows).to(y_MO)
            factor_MM = torch.linalg.cholesky(kernel_MM + variance * (terms_MP @ terms_MP.mT) + group[1] * identity_MM)
            found_MO = torch.cholesky_solve((y_MO - centre_O)[:, outputs], factor_MM)
            weights_MO[:, outputs], function_PO[used, outputs] = found_MO, variance * (terms_MP.mT @ found_MO)
            if num_outputs - 1 in outputs:
                reward_MM = torch.cholesky_inverse(factor_MM)
                reward_PM[used] = variance * (terms_MP.mT @ reward_MM)
        else:
            to_function_PM = torch.linalg.solve(_function_gram(terms_MP, group[1]), terms_MP.mT)
            function_PO[used, outputs] = to_function_PM @ (y_MO - centre_O)[:, outputs]
            if num_outputs - 1 in outputs:
                reward_PM[used] = to_function_PM
    return function_PO, weights_MO, centre_O, reward_PM, reward_MM


def _function_gram(terms_NP: Tensor, ridge: float) -> Tensor:
    penalty_P = torch.full((terms_NP.shape[1],), ridge * len(terms_NP)).to(terms_NP)
    penalty_P[0] *= 1e-6
    return terms_NP.mT @ terms_NP + torch.diag(penalty_P + TINY)


def _terms(x: Tensor, quadratic: bool) -> Tensor:
    """1, the inputs and, if asked for, their squares and products, (..., B, P)."""
    parts = [torch.ones_like(x[..., :1]), x]
    if quadratic:
        i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
        parts.append(x[..., i] * x[..., j])
    return torch.cat(parts, dim=-1)


def _gaussian(a: Tensor, b: Tensor, width: float) -> Tensor:
    """exp(-|a - b|^2 / (2 width^2)), (..., A, B), as the exponential of one product of matrices."""
    left, right = a / width, b / width
    left = torch.cat([left, left.square().sum(dim=-1, keepdim=True).mul_(-0.5), torch.ones_like(a[..., :1])], dim=-1)
    right = torch.cat([right, torch.ones_like(b[..., :1]), right.square().sum(dim=-1, keepdim=True).mul_(-0.5)], dim=-1)
    return (left @ right.mT).exp_()
