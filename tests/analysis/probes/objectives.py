"""The objective that scikit-learn minimises, of a fit: what the solver's answer is held against.

Shapes:  N rows   D features   P problems   K classes
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.probes.logistic import LogisticFit


def objectives(
    fit: LogisticFit, features: Tensor, labels: Tensor, train: Tensor, inverse_penalty: float = 1.0
) -> Tensor:
    """(P,) float64: mean training loss in nats plus the penalty on the weights of the standardised features, as
    scikit-learn states it divided by the number of rows. Arguments as `fit_logistic`."""
    found = []
    chosen = labels.expand(len(train), -1)
    for weights, logits, classes, rows in zip(fit.coefficients.cpu(), fit.logits.cpu(), chosen, train, strict=True):
        loss = F.cross_entropy(logits.T[rows].double(), classes[rows])
        standardised = weights.double() * features[rows].double().std(dim=0, correction=0)
        twice = 1 + (len(classes[rows].unique()) == 2)  # the binomial model's vector is the difference of two
        found.append(loss + twice * standardised.square().sum() / (2 * inverse_penalty * rows.sum()))
    return torch.stack(found)
