# SPDX-License-Identifier: Apache-2.0
"""FMFA's own losses in eager PyTorch, as the released code computes them.

Written from the equations of arXiv 2509.13754 and from what the released code was found
to compute; `fmfa_jax.losses` explains what is odd about them.
"""

import torch
from torch import Tensor
from torch.nn import functional

SCALE, ALPHA, EPSILON = 50.0, 0.1, 1e-8
WORD_MARGIN, PATCH_MARGIN = 0.1, 0.9


def a_sdm(image: Tensor, text: Tensor, person: Tensor) -> Tensor:
    """Return adaptive similarity distribution matching, summed over both directions.

    Args:
        image: Global image features [b,d].
        text: Global text features [b,d].
        person: Identity of each pair [b].
    """
    cosines = functional.normalize(text) @ functional.normalize(image).T
    same = (person[:, None] == person).float()
    target = same / same.sum(dim=1, keepdim=True)
    return _matching(cosines, target) + _matching(cosines.T, target)


def _matching(cosines: Tensor, target: Tensor) -> Tensor:
    """Return the weighted reverse KL divergence of the rows."""
    log_p = functional.log_softmax(SCALE * cosines, dim=1)
    rows = (log_p.exp() * (log_p - torch.log(target + EPSILON))).sum(dim=1)
    row = torch.arange(len(cosines), device=cosines.device)
    missed = cosines[row, cosines.argmax(dim=1)] - cosines[row, target.argmax(dim=1)]
    return (rows * (1 + ALPHA * missed)).mean()


def efa(text: Tensor, image: Tensor) -> Tensor:
    """Return explicit fine-grained alignment, for all pairs of the batch at once.

    Args:
        text: All text tokens [b,l,d].
        image: All image tokens [b,n,d], with the class token first.
    """
    patches = image[:, 1:]
    groups = grouped(text, patches)
    return _direction(text, groups, WORD_MARGIN) + _direction(
        patches, groups, PATCH_MARGIN
    )


def grouped(text: Tensor, patches: Tensor) -> Tensor:
    """Return each word's mean of its picture's patches, weighted by similarity."""
    similar = text @ patches.transpose(1, 2)
    low = similar.amin(dim=-1, keepdim=True)
    share = (similar - low) / (similar.amax(dim=-1, keepdim=True) - low)
    share = torch.where(share > 1 / patches.shape[1], share, 0)
    return (share / share.sum(dim=-1, keepdim=True)) @ patches


def _direction(rows: Tensor, groups: Tensor, margin: float) -> Tensor:
    """Return the margin loss of all pairs' scores, which are normalised by row."""
    scores = functional.normalize(pair_scores(rows, groups), dim=1)
    own = scores.diagonal()
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    gaps = (scores - own[:, None] + margin, scores - own[None, :] + margin)
    return sum(gap.masked_fill(diagonal, 0).logsumexp(dim=0).mean() for gap in gaps)


def pair_scores(rows: Tensor, groups: Tensor) -> Tensor:
    """Return the log-sum-exp over i's rows of the best cosine with j's groups, [b,b].

    Args:
        rows: Words or patches [b,x,d].
        groups: Groups that they are compared with [b,g,d].
    """
    rows = functional.normalize(rows, dim=-1)
    groups = functional.normalize(groups, dim=-1)
    cosines = torch.einsum("ixd,jgd->ijxg", rows, groups)
    return cosines.amax(dim=-1).logsumexp(dim=-1)
