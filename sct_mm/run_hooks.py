"""Hooks for how a run runs, with or without SCT."""
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import set_random_seed


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed Python, numpy and torch from (seed, epoch, rank) as each epoch
    starts, so that a resumed run draws what the unbroken one would.

    It covers what the main process draws: mixup, dropout, and the transforms
    with ``num_workers=0``. Workers are seeded by mmengine when they start: a
    run with workers resumes exactly with ``persistent_workers=False``.
    """

    def before_train_epoch(self, runner) -> None:
        seed = runner.seed + 1_000_003 * runner.epoch + get_rank()
        set_random_seed(seed % 2**32)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keep the weights, and so the maps, of convolutions in the memory format
    ``torch.channels_last``: faster on CPUs, and on GPUs in half precision.

    Checkpoints are the same in either format.
    """

    def before_run(self, runner) -> None:
        runner.model.to(memory_format=torch.channels_last)
