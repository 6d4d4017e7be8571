"""Similarities of languages on parallel sentences, for all pairs of one layer and all permutations at once.

- `cka_debiased`: linear centred kernel alignment (Kornblith et al., ICML 2019) with the unbiased estimate of HSIC (Song
  et al., JMLR 2012; here by U-centring, Székely & Rizzo 2014): the plain one is high whenever sentences are few.
- `mutual_knn`: share of common nearest neighbours (Huh et al., ICML 2024), cosine.
- `mexa`: share of sentences whose translation is nearest in both directions (Kargaran et al., arXiv 2410.05873).
- `abx_meaning`: is a sentence nearer to its translation than to another sentence of the translation's language?
- `abx_language`: is a sentence nearer to another one of its language than to that one's translation?
  Both after de Seyssel et al. (EMNLP 2025, arXiv 2505.17747), in both directions; 0.5 is chance.

All but the last are broken by permuting the sentences of one language. Language ABX survives that; its null exchanges
the two languages of a pair sentence by sentence. Every measure depends on the states only through small matrices of one
or two languages, so that a permutation costs an index, not a new comparison of states.

Shapes:  L languages   Q pairs of languages   n sentences   D hidden size   K permutations   M matrix entries
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SYMMETRIC = ("cka_debiased", "mutual_knn", "mexa", "abx_meaning", "abx_language")
"""Measures in the order in which they are reported; all are symmetric in the two languages."""
SHARES = ("mexa", "abx_meaning", "abx_language")
"""Those that are a share of right answers."""
NEIGHBOUR_EFFECT = 0.5
"""Weight of a sentence as a neighbour of others in the error of `mutual_knn`."""

_DECIMALS = 6
"""Cosines are compared at this resolution: below it, float32 rounding would decide ties."""
_GATHERED_VALUES = 4_000_000
"""Matrix entries that a chunk of permutations may gather at once."""


@dataclass(frozen=True)
class Similarity:
    """One measure for all pairs of one layer."""

    observed: Tensor
    """(Q,)."""
    null: Tensor
    """(K, Q): under each permutation (or exchange of languages)."""
    chance: Tensor
    """(Q,) expectation under the null."""
    influence: Tensor
    """(Q, n): what each sentence adds: the standard error of its mean is that of `observed`."""


def compare_languages(
    states: Tensor,
    pairs: Sequence[tuple[int, int]],
    permutations: Tensor,
    signs: Tensor,
    *,
    neighbours: int = 10,
    measures: Sequence[str] = SYMMETRIC,
) -> dict[str, Similarity]:
    """All measures between the languages of each pair.

    Args:
        states: (L, n, D) sentence vectors; sentence i of all languages is the same in meaning.
        pairs: indices of languages.
        permutations: (K, n) int64, see `draw_permutations`.
        signs: (K, n) of +-1, see `draw_signs`.
        neighbours: k of mutual k-NN.

    Raises:
        ValueError: unknown measure, states that are not finite, fewer than 4 or `neighbours` + 2 sentences.
    """
    unknown = [measure for measure in measures if measure not in SYMMETRIC]
    if unknown or not measures:
        raise ValueError(f"unknown measure {unknown[0] if unknown else '(none)'!r}: choose from {', '.join(SYMMETRIC)}")
    num_sentences = states.shape[1]
    if num_sentences < max(4, neighbours + 2):
        raise ValueError(
            f"{num_sentences} parallel sentences are too few: {max(4, neighbours + 2)} are needed for {neighbours} "
            "neighbours; use more texts or fewer neighbours"
        )
    if not bool(torch.isfinite(states).all()):
        raise ValueError("sentence states hold NaN or infinity")
    first, second = (torch.tensor([pair[side] for pair in pairs], device=states.device) for side in (0, 1))
    permutations, signs = permutations.to(states.device), signs.to(states.device)
    found: dict[str, Similarity] = {}
    centred = states - states.mean(dim=1, keepdim=True)
    grams = torch.matmul(centred, centred.mT)  # (L, n, n)
    if "cka_debiased" in measures:
        found["cka_debiased"] = _cka(_u_centred(grams), first, second, permutations)
    directions = torch.nn.functional.normalize(states, dim=-1)
    if "mutual_knn" in measures:
        found["mutual_knn"] = _mutual_knn(directions, first, second, permutations, neighbours)
    if {"mexa", "abx_meaning", "abx_language"} & set(measures):
        across = _rounded(torch.matmul(directions[first], directions[second].mT))  # (Q, n, n)
        if "mexa" in measures:
            found["mexa"] = _mexa(across, permutations)
        if "abx_meaning" in measures:
            found["abx_meaning"] = _abx_meaning(across, permutations)
        if "abx_language" in measures:
            within = _rounded(torch.matmul(directions, directions.mT))
            found["abx_language"] = _abx_language(within[first], within[second], across, signs)
    return {measure: found[measure] for measure in SYMMETRIC if measure in found}


def _rounded(cosines: Tensor) -> Tensor:
    return torch.round(cosines, decimals=_DECIMALS)


def _u_centred(grams: Tensor) -> Tensor:
    """U-centred Gram matrices with a zero diagonal: their inner product is n (n - 3) times the unbiased HSIC."""
    size = grams.shape[-1]
    hollow = grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
    rows = hollow.sum(dim=-1, keepdim=True) / (size - 2)
    total = hollow.sum(dim=(-2, -1), keepdim=True) / ((size - 1) * (size - 2))
    centred = hollow - rows - rows.mT + total
    return centred - torch.diag_embed(centred.diagonal(dim1=-2, dim2=-1))


def _cka(grams: Tensor, first: Tensor, second: Tensor, permutations: Tensor) -> Similarity:
    size = grams.shape[-1]
    # Half of a symmetric matrix holds all of it: off-diagonal products count twice.
    above, beside = torch.triu_indices(size, size, device=grams.device)
    twice = torch.where(above == beside, 1.0, 2.0)
    half = grams[:, above, beside] * twice  # (L, M)
    columns = grams.flatten(1).T.contiguous()  # (n * n, L)
    norms = (grams * grams).sum(dim=(1, 2))
    scale = (norms[first] * norms[second]).sqrt()
    inverse = torch.where(scale > 0, 1 / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)  # constant states: 0
    null = _permuted_products(half, columns, permutations, above, beside)[:, first, second] * inverse
    rows = (grams[first] * grams[second]).sum(dim=2) * inverse[:, None]  # (Q, n)
    observed = rows.sum(dim=1)
    share = (grams * grams).sum(dim=2) / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, None]  # (L, n)
    influence = observed[:, None] + size * (2 * rows - observed[:, None] * (share[first] + share[second]))
    return Similarity(observed, null, null.mean(dim=0), influence)


def _mutual_knn(directions: Tensor, first: Tensor, second: Tensor, permutations: Tensor, k: int) -> Similarity:
    size = directions.shape[1]
    cosines = _rounded(torch.matmul(directions, directions.mT))
    cosines.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    adjacency = _neighbours(cosines, k)
    row, column = torch.meshgrid(*(torch.arange(size, device=directions.device),) * 2, indexing="ij")
    columns = adjacency.flatten(1).T.contiguous()
    null = _permuted_products(adjacency.flatten(1), columns, permutations, row.flatten(), column.flatten())

    common = k * adjacency[first] * adjacency[second]  # (Q, n, n)
    observed = common.sum(dim=(1, 2)) / size
    chance = torch.full_like(observed, k / (size - 1))
    # A sentence counts with its own neighbours, and as a neighbour of others, where about half of its effect is taken
    # up by the next nearest that fills its place. Without the second part intervals cover 84 to 90 %, with all of it
    # (or with a jackknife) 99 to 100 %, so 95 to 100 % (simulated at 60 and 100 sentences).
    influence = common.sum(dim=2) + NEIGHBOUR_EFFECT * (common.sum(dim=1) - observed[:, None])
    return Similarity(observed, null[:, first, second] * k / size, chance, influence)


def _neighbours(cosines: Tensor, k: int) -> Tensor:
    """Neighbour weights (L, n, n), rows of sum 1, from cosines with -infinity on the diagonal."""
    last = cosines.topk(k, dim=-1).values[..., -1:]
    closer, tied = cosines > last, cosines == last
    # Ties for the last place share it, as in the mean over random tie breaking: collapsed states are then at chance.
    left_over = (k - closer.sum(dim=-1, keepdim=True)) / tied.sum(dim=-1, keepdim=True)
    return torch.where(tied, left_over, closer.to(cosines.dtype)) / k


def _permuted_products(left: Tensor, columns: Tensor, permutations: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Inner products (K, L, L) of `left` with the other language's matrix after its rows and columns are permuted.

    Args:
        left: (L, M) entries (row, column) of the unpermuted matrices.
        columns: (n * n, L) the matrices that are permuted.
    """
    size = permutations.shape[1]
    chunk = max(1, _GATHERED_VALUES // left.numel())
    products = []
    for part in permutations.split(chunk):
        places = part[:, row] * size + part[:, column]  # (k, M)
        gathered = columns.index_select(0, places.flatten()).view(len(part), -1, columns.shape[1])
        products.append(torch.matmul(left, gathered))
    return torch.cat(products)


def _mexa(across: Tensor, permutations: Tensor) -> Similarity:
    best = _is_only_maximum(across, dim=2) & _is_only_maximum(across, dim=1)
    mutual = best.to(across.dtype)  # (Q, n, n): row i and column j choose each other
    hits = mutual.diagonal(dim1=1, dim2=2)
    return Similarity(hits.mean(dim=1), _at_permuted(mutual, permutations), mutual.mean(dim=(1, 2)), hits)


def _is_only_maximum(matrix: Tensor, dim: int) -> Tensor:
    largest = matrix == matrix.amax(dim=dim, keepdim=True)
    return largest & (largest.sum(dim=dim, keepdim=True) == 1)


def _abx_meaning(across: Tensor, permutations: Tensor) -> Similarity:
    ranks = 0.5 * (_rank_shares(across) + _rank_shares(across.mT.contiguous()).mT)  # (Q, n, n)
    anchors = ranks.diagonal(dim1=1, dim2=2)
    observed = anchors.mean(dim=1)
    # A sentence enters as anchor and as the other sentence: both projections of the U-statistic.
    own = across.diagonal(dim1=1, dim2=2)
    size = across.shape[1]
    beaten = 0.5 * torch.sign(own[:, None] - across) + 0.5 * torch.sign(own[:, :, None] - across).mT
    other = 0.5 + 0.5 * beaten.sum(dim=2) / (size - 1)  # (Q, n): how often j loses as distractor
    influence = anchors + other - observed[:, None]
    return Similarity(observed, _at_permuted(ranks, permutations), torch.full_like(observed, 0.5), influence)


def _rank_shares(matrix: Tensor) -> Tensor:
    """Share of the other entries of its row that an entry exceeds, ties counted half, same shape."""
    ordered = matrix.sort(dim=-1).values
    below = torch.searchsorted(ordered, matrix)
    upto = torch.searchsorted(ordered, matrix, right=True)
    return (below + upto - 1).to(matrix.dtype) / (2 * (matrix.shape[-1] - 1))


def _at_permuted(matrix: Tensor, permutations: Tensor) -> Tensor:
    """mean_i matrix[:, i, permutation(i)] for every permutation, (K, Q)."""
    row = torch.arange(permutations.shape[1], device=matrix.device)
    return torch.stack([matrix[:, row, permutation].mean(dim=1) for permutation in permutations])


def _abx_language(first: Tensor, second: Tensor, across: Tensor, signs: Tensor) -> Similarity:
    size = across.shape[1]
    # Entry (i, j): is sentence j nearer to sentence i in its own language than to i's translation? -1/2 ... 1/2.
    wins = 0.25 * (torch.sign(first - across.mT) + torch.sign(second - across))
    wins.diagonal(dim1=1, dim2=2).zero_()
    total = size * (size - 1)
    observed = 0.5 + wins.sum(dim=(1, 2)) / total
    # Exchanging the languages of sentence i or of sentence j turns a win into a loss, both together leave it.
    null = 0.5 + torch.einsum("kn,qnm,km->kq", signs, wins, signs) / total
    influence = 0.5 + (wins.sum(dim=2) + wins.sum(dim=1)) / (size - 1) - (observed[:, None] - 0.5)
    return Similarity(observed, null, torch.full_like(observed, 0.5), influence)
