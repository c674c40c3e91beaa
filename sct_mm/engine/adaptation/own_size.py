"""Whether a network with smaller sizes answers at its own as before."""
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...models.pinning import use_scale


@torch.no_grad()
def served_otherwise(model: Any, images: Sequence[Tensor],
                     base: int) -> list[Tensor]:
    """Those of ``images``, batches that are made as in a test, of which
    ``model`` makes other features unpinned than with its scale ``base``: their
    shorter edge is nearer to a smaller scale."""
    model.eval()
    found = []
    for batch in images:
        batch = batch.to(next(model.parameters()).device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                free = tree_leaves(model.extract_feat(batch))
                with use_scale(model, base):
                    pinned = tree_leaves(model.extract_feat(batch))
        except Exception as error:  # of any kind, by the host's network
            print_log(f'adapt does not run the network unpinned: {error}',
                      'current')
            return []
        if any(not torch.equal(one, other) for one, other in zip(
                free, pinned, strict=True) if isinstance(one, Tensor)):
            found.append(batch)
    return found
