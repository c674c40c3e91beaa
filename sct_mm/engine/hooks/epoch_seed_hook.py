"""Seeds that depend on the epoch, so that a run resumes exactly."""
from collections.abc import Callable
from functools import partial

from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import set_random_seed

_SEEDS = 2**32 - 2**16  # those of numpy, without room for ranks and workers


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed Python, numpy and torch from (seed, epoch, rank) as each epoch
    starts, so that a resumed run draws what the unbroken one would. A loop by
    iterations is one epoch: resumed within it, the network's own draws
    (dropout) begin anew.

    The workers of the data loader are seeded so too (mmengine alone seeds
    them with the same numbers in each epoch), unless
    ``persistent_workers=True`` keeps them over epochs. A ``worker_init_fn`` of
    the config runs before.
    """

    def before_train_epoch(self, runner) -> None:
        seed = (runner.seed + 1_000_003 * runner.epoch) % _SEEDS
        set_random_seed(seed + get_rank())
        loader = runner.train_dataloader
        loader.worker_init_fn = _seeding(
            getattr(loader, 'worker_init_fn', None), seed=seed,
            num_workers=loader.num_workers, rank=get_rank())


def _seeding(own: Callable | None, **seeds: int) -> Callable:
    """A ``worker_init_fn`` that seeds, beside what the loader's ``own`` does.
    """
    if isinstance(own, partial) and own.func in (worker_init_fn, _after):
        return partial(own, **seeds)  # mmengine's, or of an earlier epoch
    return (partial(worker_init_fn, **seeds) if own is None
            else partial(_after, own, **seeds))


def _after(own: Callable, worker_id: int, **seeds: int) -> None:
    own(worker_id)
    worker_init_fn(worker_id, **seeds)
