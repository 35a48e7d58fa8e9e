"""Multinomial logistic regression, as scikit-learn's, with half of its cost.

Fits of probes are small and many, and scikit-learn spends more time around the arithmetic than on it. The
axis letter N counts examples, E = D + 1 features with a constant one.
"""

import dataclasses

import numpy as np
import scipy.optimize
from sklearn.preprocessing import StandardScaler

_TOLERANCE = (
    1e-8  # with 1e-4, rounding decides where a weak penalty stops: accuracies moved by up to 7 points
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticModel:
    """A fitted classifier."""

    scaler: StandardScaler | None  # None: the features as they are
    classes_Y: np.ndarray
    weight_ExY: np.ndarray  # the last row is the bias
    is_converged: bool  # False: stopped at the iteration limit, or by the line search

    def predict(self, token_NxD: np.ndarray) -> np.ndarray:
        """The class of the highest logit; the first one among equals."""
        return self.classes_Y[self.logits(token_NxD).argmax(axis=1)]

    def log_loss(self, token_NxD: np.ndarray, label_N: np.ndarray) -> float:
        """The mean negative log of the probability of the label, clipped as in sklearn.metrics.log_loss."""
        probability_NxY = np.exp(self.logits(token_NxD))
        probability_NxY /= probability_NxY.sum(axis=1, keepdims=True)
        own_N = probability_NxY[np.arange(len(label_N)), np.searchsorted(self.classes_Y, label_N)]
        smallest = np.finfo(own_N.dtype).eps
        return float(-np.log(np.clip(own_N, smallest, 1 - smallest)).mean())

    def logits(self, token_NxD: np.ndarray) -> np.ndarray:
        """Logits of `classes_Y`, of which the largest is 0."""
        scaled_NxD = token_NxD if self.scaler is None else np.asarray(self.scaler.transform(token_NxD))
        logit_NxY = _with_one(scaled_NxD) @ self.weight_ExY
        return logit_NxY - logit_NxY.max(axis=1, keepdims=True)


def fit_logistic(
    token_NxD: np.ndarray, label_N: np.ndarray, *, strength: float, max_iterations: int
) -> LogisticModel:
    """The classifier of standardised features that minimises the loss of `fit_plain`."""
    scaler = StandardScaler()
    scaled_NxD = np.asarray(scaler.fit_transform(token_NxD))
    model = fit_scaled(scaled_NxD, label_N, strength=strength, max_iterations=max_iterations)
    return dataclasses.replace(model, scaler=scaler)


def fit_scaled(
    scaled_NxD: np.ndarray, label_N: np.ndarray, *, strength: float, max_iterations: int
) -> LogisticModel:
    """`fit_plain` of features that are standardised already, to the tolerance of probes."""
    return fit_plain(
        scaled_NxD, label_N, strength=strength, max_iterations=max_iterations, tolerance=_TOLERANCE
    )


def fit_plain(
    token_NxD: np.ndarray, label_N: np.ndarray, *, strength: float, max_iterations: int, tolerance: float
) -> LogisticModel:
    """The classifier that minimises the summed cross-entropy plus |weights|^2 / (2 strength).

    The bias has no penalty. L-BFGS from zero in float64, with the settings of scikit-learn's
    LogisticRegression. As there, two classes are fitted by one logistic function, which is the softmax of two
    with twice the penalty. It stops where no entry of the gradient of the mean loss exceeds `tolerance`.
    """
    token_NxE = _with_one(token_NxD)
    classes_Y, index_N = np.unique(label_N, return_inverse=True)
    count, shape = len(label_N), (token_NxE.shape[1], len(classes_Y))
    penalty = (2.0 if len(classes_Y) == 2 else 1.0) / (strength * count)
    is_own_NxY = np.eye(len(classes_Y))[index_N]
    token_ExN = np.ascontiguousarray(token_NxE.T)

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray]:
        weight_ExY = weight.reshape(shape)
        logit_NxY = token_NxE @ weight_ExY
        logit_NxY -= logit_NxY.max(axis=1, keepdims=True)
        own = np.vdot(logit_NxY, is_own_NxY)
        np.exp(logit_NxY, out=logit_NxY)
        sum_Nx1 = logit_NxY.sum(axis=1, keepdims=True)
        logit_NxY /= sum_Nx1
        logit_NxY -= is_own_NxY
        gradient_ExY = token_ExN @ logit_NxY
        gradient_ExY /= count
        gradient_ExY[:-1] += penalty * weight_ExY[:-1]
        loss = (np.log(sum_Nx1).sum() - own) / count
        return loss + 0.5 * penalty * np.vdot(weight_ExY[:-1], weight_ExY[:-1]), gradient_ExY.ravel()

    options = {"maxiter": max_iterations, "maxls": 50, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(shape[0] * shape[1])
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return LogisticModel(
        scaler=None,
        classes_Y=classes_Y,
        weight_ExY=found.x.reshape(shape),
        is_converged=found.status == 0,
    )


def _with_one(token_NxD: np.ndarray) -> np.ndarray:
    return np.concatenate([token_NxD, np.ones((len(token_NxD), 1))], axis=1)
