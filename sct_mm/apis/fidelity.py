"""Compare what a network answers at several sizes with its own answers at the
base, or with those of another network, without labels."""
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..datasets.base_size import test_base
from ..datasets.image_folder import (
    check_images,
    folder_loader,
    given_indices,
)
from ..engine.loops import unwrapped
from ..engine.sct.logits import gives_numbers
from ..evaluation.fidelity_metric import FidelityMetric, Reference
from ..utils.arguments import (
    StrPath,
    check_number,
    check_path,
    optional_path,
)
from ..utils.config import check_test_set
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from ..utils.sizes import Sizes, expand_sizes
from .test import (
    ProgressHook,
    Workload,
    add_rows,
    add_times,
    folder_of,
    models_of,
    open_test,
)

# Metrics that count what the reference is sure of, the same at each size.
COUNTS = ('sure_images', 'truth_boxes')


def _prepare(cfg: Config, sizes: Sizes | None, sure: float | None,
             folder: str | None, skip: Sequence[str], indices: Any,
             only_base: bool) -> None:
    """Let the test of ``cfg`` compare answers at the base and at ``sizes``,
    or at the base alone; of the images in ``folder``, if it is given."""
    if folder is not None:
        cfg.test_dataloader = folder_loader(cfg, folder, skip, indices)
    check_test_set(cfg)
    cfg.test_evaluator = dict(type='FidelityMetric', least=sure)
    loop = dict(cfg.get('test_cfg') or {})
    named = sizes or loop.get('sizes')
    base = test_base(cfg, cfg.test_dataloader.dataset)
    if only_base:
        loop['sizes'] = [base]
    elif named is not None:
        loop['sizes'] = sorted({*expand_sizes(named), base}, reverse=True)
    cfg.test_cfg = loop


def _metric_of(runner: Runner) -> FidelityMetric:
    """The metric of ``runner``, whose network answers in classes, boxes or
    labels.

    Raises:
        UserError: for a network that gives numbers.
    """
    model = unwrapped(runner.model)
    if gives_numbers(model):
        raise UserError('The network must answer in classes, boxes or labels '
                        f'to be compared, but {type(model).__name__} gives '
                        'numbers. Test it by its labels.')
    metric, = runner.test_loop.evaluator.metrics
    return metric


def _reference_of(runner: Runner, title: str) -> Reference | None:
    """The answers of the network of ``runner`` at its base."""
    runner.register_hook(ProgressHook(title))
    with closing(runner.test_loop.iter_sizes()) as results:
        for _ in results:
            pass
    runner.call_hook('after_run')
    return _metric_of(runner).reference


def _compared(result: dict, runner: Runner, reference: Reference | None,
              named: dict | None) -> tuple[dict, list[Workload]]:
    """``result`` of :func:`~sct_mm.apis.test.open_test` with its rows, and
    what their times are measured with.

    Args:
        reference: of another network; None: the network's own at the base.
        named: ``reference`` of the result; None: made here.

    Raises:
        UserError: if there is no size beside the base.
    """
    loop, metric = runner.test_loop, _metric_of(runner)
    if reference is None and loop.sizes == (loop.base.test, ):
        raise UserError('`scales` must name sizes to compare with the '
                        f'answers at the base, {loop.base.test} pixels, but '
                        f'got {loop.sizes}. Write e.g. --scales '
                        f'{loop.base.test * 3 // 4} {loop.base.test // 2}.')
    metric.reference = reference
    if reference is None:  # the base comes first
        loop.sizes = (loop.base.test, *(size for size in loop.sizes
                                        if size != loop.base.test))
    result, works = add_rows(result, runner)
    order = sorted(range(len(works)), reverse=True,
                   key=lambda i: result['rows'][i]['scale'])
    rows = [result['rows'][i] for i in order]
    counts = {name: int(rows[0]['metrics'][name])
              for name in rows[0]['metrics'] if name.endswith(COUNTS)}
    for row in rows:
        for name in counts:
            del row['metrics'][name]
    named = named or dict(label=result['label'], config=result['config'],
                          checkpoint=result['checkpoint'],
                          size=loop.base.test)
    return dict(result, rows=rows, reference=dict(
        named, least=metric.least, images=len(loop.dataloader.dataset),
        **counts)), [works[i] for i in order]


@protected_loading()
def fidelity(config: StrPath, checkpoint: StrPath,
             scales: Sizes | None = None,
             against: tuple[StrPath, StrPath] | None = None,
             images: StrPath | None = None, sure: float | None = None,
             out: StrPath | None = None, cfg_options: dict | None = None,
             launcher: str = 'none',
             compare: Sequence[tuple[StrPath, StrPath]] = ()) -> list[dict]:
    """Compare checkpoints at several sizes with their own answers at the
    base, or with another's, without labels: what tools/test.py
    --against-base prints.

    Args:
        config: path of the config.
        checkpoint: path or address of the checkpoint, or a work directory.
        scales: sizes in pixels, as in :func:`~sct_mm.apis.test`; the base is
            added.
        against: (config, checkpoint) of a network whose answers at its own
            base are the reference; None: each network's own.
        images: path of a folder of images; None: those of the config's test
            set, whose labels are not used. The config's test pipeline
            prepares them. ``test_dataloader.dataset.indices`` among
            ``cfg_options`` takes a part of either.
        sure: confidence above which the reference is sure of an image, or
            score from which its boxes are taken for the truth, from 0 to 1;
            None: 0.5, and 0.3 for boxes.
        out: folder of the log; None: work_dirs/NAME_OF_CONFIG.
        cfg_options: ``{'a.b': value}``, settings that override each config.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi', as mmengine's.
        compare: (config, checkpoint) of each other network to compare.

    Returns:
        list: as :func:`~sct_mm.apis.test` returns it. The ``metrics`` of a
        row are of classifiers ``agreement/all``, ``agreement/sure`` (%) and
        ``kl`` (nats), see
        :func:`~sct_mm.evaluation.fidelity.compare_scores`; of detectors
        ``bbox_mAP`` and ``bbox_mAP_50``
        (:func:`~sct_mm.evaluation.fidelity.compare_boxes`); of segmentors
        ``agreement`` and ``mIoU`` in %
        (:func:`~sct_mm.evaluation.fidelity.compare_maps`). Each result also
        has ``reference``: ``label``, ``config``, ``checkpoint`` and ``size``
        of the reference, ``images``, and ``sure_images`` or ``truth_boxes``,
        how many the reference is sure of.

    Raises:
        UserError, ValueError: as :func:`~sct_mm.apis.test`; for images that
            are none; and for networks whose answers cannot be compared.
    """
    if sure is not None:
        sure = check_number('sure', sure, 0, 'Give a confidence.', 1)
    config, images = check_path('config', config), optional_path('images',
                                                                images)
    folder_of(out, config)  # before all images are read
    skip = [] if images is None else check_images(images)
    sizes = None if scales is None else expand_sizes(scales, 'scales')
    models = models_of(config, checkpoint, compare, cfg_options, against)
    indices = given_indices(cfg_options, 'test_dataloader')
    prepare = partial(
        _prepare, sizes=sizes, sure=sure, folder=images, skip=skip,
        indices=indices)

    def opened(model: tuple[str, str], only_base: bool = False
               ) -> tuple[dict, Runner]:
        return open_test(*model, None, out, cfg_options, launcher,
                         partial(prepare, only_base=only_base))

    reference, named = None, None
    if against is not None:
        named, runner = opened(models.pop(), only_base=True)
        named = {name: named[name] for name in ('label', 'config',
                                                'checkpoint')}
        named['size'] = runner.test_loop.base.test
        reference = _reference_of(
            runner, f'{named["label"]} at {named["size"]}')
    return add_times([
        _compared(*opened(model), reference, named)
        for model in models])
