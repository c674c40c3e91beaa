"""Hooks for how a run runs, with or without SCT."""
from functools import partial

import torch
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import set_random_seed


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed Python, numpy and torch from (seed, epoch, rank) as each epoch
    starts, so that a resumed run draws what the unbroken one would.

    The workers of the data loader are seeded so too (mmengine alone seeds
    them with the same numbers in each epoch), unless
    ``persistent_workers=True`` keeps them over epochs.
    """

    def before_train_epoch(self, runner) -> None:
        seed = runner.seed + 1_000_003 * runner.epoch + get_rank()
        set_random_seed(seed % 2**32)
        loader = runner.train_dataloader
        loader.worker_init_fn = partial(
            worker_init_fn, num_workers=loader.num_workers, rank=get_rank(),
            seed=runner.seed + 1_000_003 * runner.epoch)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keep the weights, and so the maps, of convolutions in the memory format
    ``torch.channels_last``.

    Whether it is faster depends on the device and the channels: measure it
    (``tools/benchmark.py --channels-last``).
    """

    def before_run(self, runner) -> None:
        runner.model.to(memory_format=torch.channels_last)
