"""How many dimensions a cloud of states uses, and how far two clouds use the same ones.

- effective rank: exp of the entropy of the normalised covariance spectrum (Roy & Vetterli, EUSIPCO 2007);
- participation ratio: (sum of eigenvalues)^2 / sum of squares;
- TwoNN: intrinsic dimension from the ratio of the two nearest distances (Facco et al., Sci. Rep. 2017);
- coding rate: bits a state needs at a given precision (Yu et al., NeurIPS 2020, MCR2, eq. 1);
- sharing: how much lower the coding rate of all languages together is than if their directions had nothing in common.

Shapes:  L languages   n states of one language   D hidden size   r = min(n, D)   k leading directions
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DISCARDED_SHARE = 0.1
"""TwoNN leaves out this share of the largest ratios, as in the paper: they come from the sparse border of the cloud."""


@dataclass(frozen=True)
class Spectrum:
    """Principal directions of one cloud per language."""

    values: Tensor
    """(L, r) eigenvalues of the covariance, descending."""
    directions: Tensor
    """(L, D, r), columns in the same order."""


def principal_directions(centred: Tensor) -> Spectrum:
    """Eigenvalues and eigenvectors of the covariance of every language, from (L, n, D) states with zero mean."""
    _, count, width = centred.shape
    if width <= count:
        values, vectors = torch.linalg.eigh(centred.mT @ centred / count)
    else:  # the same non-zero spectrum from the smaller Gram matrix
        values, left = torch.linalg.eigh(centred @ centred.mT / count)
        vectors = torch.nn.functional.normalize(centred.mT @ left, dim=1)
    return Spectrum(values.clamp(min=0).flip(-1), vectors.flip(-1))


def effective_rank(values: Tensor) -> Tensor:
    """exp(-sum p log p) of eigenvalues (..., r) normalised to sum 1; 0 for states that do not vary."""
    total = values.sum(dim=-1, keepdim=True)
    share = values / total.clamp(min=torch.finfo(values.dtype).tiny)
    entropy = -torch.xlogy(share, share).sum(dim=-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


def participation_ratio(values: Tensor) -> Tensor:
    """(sum)^2 / sum of squares of eigenvalues (..., r); 0 for states that do not vary."""
    squares = values.square().sum(dim=-1)
    return torch.where(
        squares > 0, values.sum(dim=-1).square() / squares.clamp(min=torch.finfo(values.dtype).tiny), 0.0
    )


def squared_distances(states: Tensor) -> Tensor:
    """(n, n) float64 squared Euclidean distances of states (n, D); 0 for copies, infinity on the diagonal."""
    exact = states.double()
    exact = exact - exact.mean(dim=0)
    norms = exact.square().sum(dim=1)
    sums = norms[:, None] + norms
    squared = sums - 2 * exact @ exact.T
    squared = torch.where(squared <= 1e-12 * sums, 0.0, squared)  # the rounding of the product
    return squared.fill_diagonal_(torch.inf)


def two_nn(squared: Tensor) -> float:
    """Intrinsic dimension from squared distances (n, n); copies count once, fewer than 3 distinct states have none (0).

    With mu the ratio of the second to the first distance, log mu is exponential with rate d; the largest tenth of the
    ratios is known only to be large (censored), which gives the unbiased maximum-likelihood estimate.
    """
    original = ~(squared == 0).triu(diagonal=1).any(dim=0)
    if not bool(original.all()):
        squared = squared[original][:, original]
    if len(squared) < 3:
        return 0.0
    nearest = squared.topk(2, dim=1, largest=False).values
    ratio = (0.5 * torch.log(nearest[:, 1] / nearest[:, 0])).sort().values
    kept = int(len(ratio) * (1 - DISCARDED_SHARE))
    total = float(ratio[:kept].sum() + (len(ratio) - kept) * ratio[kept - 1])
    return (kept - 1) / total if total > 0 else 0.0


def coding_rate(covariance: Tensor, precision: float) -> Tensor:
    """Bits a state, 1/2 log2 det(I + D / precision^2 covariance), from (..., D, D); the states' mean square is 1."""
    width = covariance.shape[-1]
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    factor = torch.linalg.cholesky(identity + width / precision**2 * covariance)
    return factor.diagonal(dim1=-2, dim2=-1).log2().sum(dim=-1)


def _rate_of_spectrum(values: Tensor, width: int, precision: float) -> Tensor:
    return 0.5 * torch.log1p(width / precision**2 * values).sum(dim=-1) / math.log(2)


def random_frames(languages: int, width: int, rank: int, draws: int, seed: int) -> Tensor:
    """(draws, L, D, r) independent orthonormal columns, uniformly distributed; a function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    frames, upper = torch.linalg.qr(torch.randn(draws, languages, width, rank, generator=generator))
    return frames * torch.sign(upper.diagonal(dim1=-2, dim2=-1))[..., None, :]


@dataclass(frozen=True)
class Sharing:
    """Coding rates in bits a state."""

    gain: float
    """Sum of the languages' rates minus the rate of all of them together."""
    gain_of_random: float
    """The same if every language's cloud is turned at random: no direction is shared on purpose."""
    gain_of_equal: float
    """The largest gain that these spectra allow: the same directions in the same order of importance."""
    pooled_rate: float

    @property
    def share(self) -> float:
        """0 for random directions, 1 for the same directions in all languages; 0 if the two cannot be told apart."""
        room = self.gain_of_equal - self.gain_of_random
        return (self.gain - self.gain_of_random) / room if room > 1e-9 else 0.0


def sharing_gain(centred: Tensor, spectrum: Spectrum, frames: Tensor, precision: float) -> Sharing:
    """How much shorter the description gets because languages use the same directions.

    Args:
        centred: (L, n, D) states without their language's mean; scaled here to a mean square of 1.
        spectrum: of `centred`.
        frames: (draws, L, D, >= r) from `random_frames`.
        precision: epsilon of the coding rate, relative to the root mean square of the states.
    """
    languages, count, width = centred.shape
    power = centred.square().sum(dim=-1).mean()
    if float(power) == 0:
        return Sharing(0.0, 0.0, 0.0, 0.0)
    flat = centred.flatten(0, 1)
    values = spectrum.values / power
    apart = float(_rate_of_spectrum(values, width, precision).sum())
    together = float(coding_rate(flat.T @ flat / (languages * count * power), precision))
    turned = torch.stack([_mixture(frame[..., : values.shape[1]], values) for frame in frames])
    random = float(coding_rate(turned, precision).mean())
    equal = float(_rate_of_spectrum(values.mean(dim=0), width, precision))
    return Sharing(apart - together, apart - random, apart - equal, together)


def _mixture(frame: Tensor, values: Tensor) -> Tensor:
    """Mean covariance (D, D) of clouds with eigenvalues (L, r) along the columns of frames (L, D, r)."""
    scaled = (frame * values.sqrt()[:, None, :]).transpose(0, 1).flatten(1)  # (D, L * r)
    return scaled @ scaled.T / len(values)


def subspace_overlap(spectrum: Spectrum, k: int) -> Tensor:
    """|U1' U2|_F^2 / k of the k leading directions of every two languages, (L, L); k / D for unrelated subspaces."""
    leading = spectrum.directions[:, :, :k]
    cosines = torch.einsum("adi,bdj->abij", leading, leading)
    return cosines.square().sum(dim=(2, 3)) / k
