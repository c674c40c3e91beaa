"""Find the learning rate of an adaptation by short trials."""
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.optim.lr_scheduler import LambdaLR

from ...datasets.last_stage import smallest_in_training
from ...evaluation.adapted_report import FEWEST_STEPS
from ...models.scratch_copy import copied
from ...utils.checkpoint import without_nan
from ..adapted_config import warm_up
from ..sct.monitor import NotFiniteError
from .gains import Measured, is_worse, score
from .held_out import Case, HeldOutImages

# Learning rates, tried from the first until one is not near the best.
RATES = (0.003, 0.01, 0.05, 0.1)
_SHORTEST_TRIAL, _LONGEST_TRIAL = 48, 64  # steps of one learning rate
_TRIAL_TRAINS = 512  # images, if the longest trial has as many
# The share of the best score by which a larger rate may be behind in a trial
# that is far shorter than the training (our choice: behind by 9 %, it was the
# worse in a whole training, docs/results.md).
_NEAR = 0.08
_IMAGES = 500  # on which a learning rate is measured


def scale_of_trials(scales: Sequence[int]) -> int:
    """The middle one of ``scales`` below the base, at which learning rates
    are tried: at the smallest, most networks answer as if by chance after a
    few steps with any rate; near the base, all of them answer well (our
    choice, docs/results.md)."""
    return scales[len(scales) // 2]


def trial_steps(steps: int, rates: int, scales: Sequence[int],
                batch: int) -> int:
    """How many steps each of ``rates`` learning rates is tried for, at
    :func:`scale_of_trials` alone; 0 for a training of less than
    :data:`FEWEST_STEPS`.

    All of them cost a tenth of a training of ``steps`` at all ``scales``. But
    a trial has 48 to 64 steps, enough for 512 images if possible, and no more
    than the training (our choice, docs/results.md).

    Args:
        batch: images in a step of one process, each of which trains the
            whole trial on images of its own.
    """
    if steps < FEWEST_STEPS:
        return 0
    base, *small = scales

    def cost(*sizes: int) -> float:
        """In forward passes of the base: its own, and those of ``sizes``,
        whose backward pass costs twice as much."""
        return 1 + 3 * sum((size / base) ** 2 for size in sizes)

    affordable = int(steps * cost(*small) / cost(scale_of_trials(scales))
                     / (10 * rates))
    least = max(_SHORTEST_TRIAL, math.ceil(_TRIAL_TRAINS / batch))
    return min(max(affordable, least), _LONGEST_TRIAL, steps)


def best_rate(trials: Mapping[float, dict[str, float]], share: float) -> float:
    """The learning rate to take of ``{rate: metrics after its trial}``, {}
    where the trial has failed: the largest that is not far behind the best,
    since a training that is longer than the trials favours larger ones. If all
    have failed, it is the smallest.

    Args:
        share: of the training's steps, that a trial has.
    """
    near = _NEAR * (1 - share)
    most = max(trials.values(), key=score)
    return max((rate for rate, metrics in trials.items()
                if math.isfinite(score(metrics))
                and not is_worse(metrics, most, near)), default=min(trials))


def try_rate(model: Any, cfg: Config, rate: float, steps: int) -> Any:
    """A copy of ``model`` that is trained as ``cfg`` says, but at
    :func:`scale_of_trials` alone, for a few ``steps``, with the learning rate
    ``rate``; None if its loss was not finite."""
    model = copied(model)
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'optimizer': {
        **cfg.optim_wrapper.optimizer, 'lr': rate}})
    # As the training: up first, then down to zero.
    schedule = LambdaLR(wrapper.optimizer, lambda step: min(
        1, (step + 1) / warm_up(steps)) * (1 + math.cos(
            math.pi * step / steps)) / 2)
    loader = Runner.build_dataloader(cfg.train_dataloader,
                                     seed=cfg.randomness['seed'])
    scales = cfg.model.scales
    alone = scale_of_trials(scales)
    hook = HOOKS.build({**cfg.custom_hooks[-1], 'between': 0.0,
                        'loss_weights': tuple(
                            float(scale == alone) for scale in scales),
                        'scales_per_step': 1})
    hook.attach(model, getattr(wrapper, 'loss_scaler', None),
                smallest=smallest_in_training(cfg))
    try:
        model.train()
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for step, batch in zip(range(steps), batches, strict=False):
            hook.step = step
            model.train_step(batch, wrapper)
            schedule.step()
        hook.sct.settle()
    except NotFiniteError as error:
        print_log(f'adapt: a learning rate of {rate:g} failed ({error}).',
                  'current')
        return None
    finally:
        hook.detach()
    return model


def find_rate(model: Any, cfg: Config, held_out: HeldOutImages, steps: int,
              batch: int) -> tuple[float, dict[str, Any]]:
    """The learning rate to train ``model`` with, one of :data:`RATES`, by
    short trials (:func:`best_rate`); and how many ``steps`` each had, 0 if the
    training is too short for any, and their ``scores``, None where one failed.

    Args:
        cfg: of the training, of ``steps`` with ``batch`` images of a process.
    """
    scales = cfg.model.scales
    of_trial = trial_steps(steps, len(RATES), scales, batch)
    if not of_trial:
        return RATES[0], dict(steps=0, scores={})
    alone = scale_of_trials(scales)
    case = Case(alone, alone)
    found: dict[float, Measured] = {}
    for rate in RATES:
        tried = try_rate(model, cfg, rate, of_trial)
        failed = [tried is None]
        broadcast_object_list(failed)  # all measure, or none
        found[rate] = Measured() if failed[0] else held_out.measure(
            tried or model, [case], f'Learning rate {rate:g}', _IMAGES)[case]
        taken = best_rate(found, of_trial / steps)
        if taken != rate:  # larger ones are farther behind
            break
    return taken, dict(steps=of_trial, scores=without_nan({
        rate: score(metrics) for rate, metrics in found.items()}))
