"""One checkpoint at several sizes of the input: metrics and cost."""
import copy
import os.path as osp
import uuid
import warnings
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..datasets.rescale_pipeline import nominal_size, train_sizes
from ..datasets.size_switch import SizeSwitch
from ..engine.load_model import (
    check_fits,
    state_in,
    warn_one_row,
    without_wrapper,
)
from ..engine.loops import check_sizes, refuse_views, scalar, unwrapped
from ..engine.resume import find_checkpoint
from ..evaluation.measure import (
    Workload,
    first_images,
    flops_of,
    kept_batch,
    measure_times,
    network_stride,
    progress_bar,
)
from ..models.pinning import use_scale
from ..models.row_mix import rows_serving
from ..models.size_selection import scales_of
from ..utils.checkpoint import check_checkpoint
from ..utils.config import (
    check_test_data,
    config_name,
    join_processes,
    load_config,
    set_loader_defaults,
)
from ..utils.config_walk import pipeline_of, pipelines_in, type_name
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from ..utils.sizes import Sizes, expand_sizes

KEPT = 2**30  # bytes of one model's batches, at all sizes together


class ProgressHook(Hook):
    """Show how much of the test set is done, and keep the first batch."""
    title = ''
    batch: Any = None

    def before_test_epoch(self, runner) -> None:
        self.bar = progress_bar()
        self.bar.start()
        self.task = self.bar.add_task(self.title,
                                      total=len(runner.test_dataloader))

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None) -> None:
        self.bar.advance(self.task)
        if batch_idx == 0:
            self.batch = data_batch

    def after_test_epoch(self, *args, **kwargs) -> None:
        self.bar.stop()


def test_config(cfg: Config, out: str) -> Config:
    """A copy of ``cfg`` for a test that reports to its caller alone."""
    check_test_data(cfg)
    if not cfg.get('test_evaluator'):
        raise UserError('The config must have a `test_evaluator`, but got '
                        f'{cfg.get("test_evaluator")!r}. Set it, e.g. to the '
                        '`val_evaluator`.')
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.work_dir, cfg.resume = None, out, False
    cfg.log_level = 'WARNING'  # the progress bar and the table say the rest
    # mmengine names what it logs by the second: two tests may share one.
    cfg.experiment_name = f'test-{uuid.uuid4().hex[:8]}'
    if cfg.filename:  # the Runner writes it: not over that of a training
        vars(cfg)['_filename'] = f'test_{osp.basename(cfg.filename)}'
    set_loader_defaults(cfg.test_dataloader, cfg)
    loop = cfg.test_cfg = cfg.get('test_cfg') or dict()
    if type_name(loop) == 'ScalesTestLoop':
        cfg.test_cfg = dict(fp16=loop.get('fp16', False))
    return cfg


def loaded_runner(cfg: Config, checkpoint: dict, path: str) -> Runner:
    """The runner of ``cfg`` with the weights of ``checkpoint``.

    As ``Runner.test`` before its loop; but what was read, and found safe, is
    not read again.
    """
    runner = (RUNNERS.build(cfg) if 'runner_type' in cfg
              else Runner.from_cfg(cfg))
    if not isinstance(runner, Runner):
        raise UserError('`runner_type` must name a subclass of Runner for a '
                        f'test, but got {type(runner).__name__}. Leave it '
                        'out.')
    model = unwrapped(runner.model)
    refuse_views(model)
    # Hooks, as that of EMA, ask for the name.
    state = state_in(checkpoint, path)
    checkpoint = dict(checkpoint if 'state_dict' in checkpoint else {},
                      state_dict=without_wrapper(state))
    more = check_fits(model, state, path)
    warn_one_row(model, state, path)
    if more:
        warnings.warn(f'{path!r} has {len(more)} weights that the network of '
                      f'the config has no place for, as {more[0]}: of another '
                      'network, the numbers tell nothing.', stacklevel=2)
    runner.test_loop  # noqa: B018  (the runner builds it when it is asked)
    runner.call_hook('before_run')
    runner.call_hook('after_load_checkpoint', checkpoint=checkpoint)
    # Once more, since a hook, as mmpretrain's of EMA, exchanges them.
    model.load_state_dict(checkpoint['state_dict'], strict=False)
    return runner


def as_list(value: Any) -> Any:
    """A metric that is no single number, as JSON holds it."""
    if hasattr(value, 'tolist'):
        return value.tolist()
    return value if isinstance(value, (list, tuple)) else str(value)


def test_at(runner: Runner, size: int, progress: ProgressHook,
            limit: int) -> tuple[dict, Workload]:
    """Evaluate one size, whose images the data set makes: its row, and what
    its times are measured on, a batch of at most ``limit`` bytes."""
    model = unwrapped(runner.model)
    with use_scale(model, size):
        metrics = runner.test_loop.run()
        loader = runner.test_loop.dataloader
        one = first_images(loader, 1)
        model.eval()
        numbers = {name: scalar(value) for name, value in metrics.items()}
        fp16 = getattr(runner.test_loop, 'fp16', False)
        served_by = serving_scales(model, size)
        row = dict(scale=size, served_by=served_by,
                   metrics={name: value for name, value in numbers.items()
                            if value is not None},
                   arrays={name: as_list(metrics[name])
                           for name, value in numbers.items()
                           if value is None},
                   gflops=flops_of(lambda: model.test_step(one)) / 1e9)
        batch = progress.batch or next(iter(loader))
        # Outside of the scales a size is told of once, not at each turn.
        pin = served_by[0] if served_by and len(served_by) == 1 else size
        return row, Workload(model, pin, one,
                             kept_batch(loader, batch, limit), fp16)


def test_runner(runner: Runner, dataset: dict, sizes: Sizes | None,
                label: str) -> list[tuple[dict, Workload]]:
    """:func:`test_at` each size; ``dataset`` is the data set's config."""
    model = unwrapped(runner.model)
    if sizes is None and scales_of(model) is None:
        sizes = [nominal_size(next(pipelines_in(dataset))[1])]
    sizes = check_sizes(sizes, model, 'scales')
    loader = runner.test_loop.dataloader
    switch = SizeSwitch(loader.dataset, dataset, sizes)
    warn_untrained(model, sizes,
                   first_images(loader, 1)['inputs'][0].shape[0])
    progress = ProgressHook()
    runner.register_hook(progress)
    tested = []
    for size in sizes:
        progress.title = f'{label} at {size}'
        with switch.at(size):
            tested.append(test_at(runner, size, progress,
                                  KEPT // len(sizes)))
    runner.call_hook('after_run')
    return tested


def test_one(config: str, checkpoint: str, sizes: Sizes | None,
             out: str | None, cfg_options: dict | None,
             launcher: str) -> tuple[dict, list[Workload]]:
    """One model of :func:`test_models`, its rows without times, and what
    these are measured on."""
    label = config_name(config)
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)  # before any data set is read
    if sizes is None:
        sizes = (cfg.get('test_cfg') or {}).get('sizes')
    cfg = test_config(cfg, out or osp.join('work_dirs', label))
    join_processes(cfg)
    runner = loaded_runner(cfg, weights, checkpoint)
    tested = test_runner(runner, cfg.test_dataloader.dataset, sizes, label)
    return dict(label=label, config=config, checkpoint=checkpoint,
                cfg_options=cfg_options or {},
                trained=trained_sizes(cfg, unwrapped(runner.model)),
                rows=[row for row, _ in tested]), [w for _, w in tested]


def name_apart(results: list[dict]) -> None:
    """Label the results of one config by what their checkpoints' paths do not
    share, too."""
    alike: dict[str, list[dict]] = {}
    for result in results:
        alike.setdefault(result['label'], []).append(result)
    for label, several in alike.items():
        paths = [osp.abspath(result['checkpoint']) for result in several]
        shared = osp.commonpath(map(osp.dirname, paths))
        for result, path in zip(several, paths,
                                strict=True) if len(several) > 1 else ():
            result['label'] = f'{label} ({osp.relpath(path, shared)})'


@protected_loading()
def test_models(models: Sequence[tuple[str, str]],
                scales: Sizes | None = None,
                out: str | None = None,
                cfg_options: dict | None = None,
                launcher: str = 'none') -> list[dict]:
    """Test several checkpoints at the same sizes; see :func:`test_scales`.

    Times are measured when all metrics are there, models and sizes in turns
    (:func:`take_turns`). All models stay in memory until then.

    Args:
        models: (config, checkpoint) of each.

    Returns:
        list: what :func:`test_scales` returns, one a model.
    """
    sizes = None if scales is None else expand_sizes(scales, 'scales')
    results, workloads = [], []
    for config, checkpoint in models:
        result, work = test_one(config, checkpoint, sizes, out, cfg_options,
                                launcher)
        results.append(result)
        workloads += work
    name_apart(results)
    measure_times(workloads)
    rows = [row for result in results for row in result['rows']]
    for row, workload in zip(rows, workloads, strict=True):
        row.update(workload.times())
    return results


def test_scales(config: str, checkpoint: str,
                scales: Sizes | None = None,
                out: str | None = None,
                cfg_options: dict | None = None,
                launcher: str = 'none') -> dict:
    """Test one checkpoint at several sizes: what tools/test.py prints.

    At each size the test pipeline is rewritten and the model pinned to it.
    One model and one data set serve all sizes.

    Args:
        config: path of the config.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is tested.
        scales: sizes in pixels, trained or not, also as ranges such as
            ``'128:224:16'`` (:func:`expand_sizes`); None: those of the
            config's ``ScalesTestLoop``, else the trained ones, else the test
            size.
        out: folder of the log; None: work_dirs/NAME_OF_CONFIG.
        cfg_options: ``{'a.b': value}``, settings that override the config.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi', as mmengine's.

    Returns:
        dict: ``label``, ``config``, ``checkpoint``, ``cfg_options``,
        ``trained`` (:func:`trained_sizes`) and ``rows``, one a size from the
        largest down: ``scale``; ``served_by``, the scales whose rows serve
        it, two between them (None without SSBN); ``metrics``, and in
        ``arrays`` those that are no single number; ``gflops``
        (:func:`flops_of`) of one image; ``latency_ms`` of one image and
        ``images_per_s`` in batches, both with ``..._quartiles``;
        ``latency_reliable`` and ``images_reliable``
        (:func:`spread_of`). Times include the preprocessor and the
        post-processing, not the loading.

    Raises:
        UserError, ValueError: for what is missing, does not fit, or cannot
            be rewritten; see :class:`ScalesValLoop`.
    """
    result, = test_models([(config, checkpoint)], scales, out, cfg_options,
                          launcher)
    return result


def trained_sizes(cfg: Config, model: nn.Module) -> tuple[int, ...]:
    """The sizes that a network was trained at, as far as can be told: the
    scales of its SSBN, else of the config's SCTLossHook, else the sizes of its
    training pipeline."""
    scales = scales_of(model)
    for hook in cfg.get('custom_hooks') or ():
        if scales is None and isinstance(hook, dict) and (
                type_name(hook) == 'SCTLossHook'):
            scales = hook.get('scales')
    return tuple(scales or train_sizes(
        pipeline_of(cfg.get('train_dataloader') or {}) or []))


def serving_scales(model: nn.Module, size: int) -> list[int] | None:
    """The scales whose rows serve ``size``, two between them; None without
    SSBN."""
    scales = scales_of(model)
    return None if scales is None else [
        scale for scale, _ in rows_serving(scales, size)]


def listed(sizes: Sequence[int]) -> str:
    return ', '.join(map(str, sizes))


def warn_untrained(model: nn.Module, sizes: Sequence[int],
                   channels: int) -> None:
    """Say what serves each of ``sizes`` that is no scale, and which may cost
    accuracy.

    Args:
        channels: of the images.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for size in sizes:
        rows = serving_scales(model, size)
        if rows not in (None, [size]):
            groups.setdefault(tuple(rows), []).append(size)
    if not groups:
        return
    for rows, group in groups.items():
        if len(rows) > 1:  # for the others set_scale() warns
            warnings.warn(f'{listed(group)} pixels lie between the scales '
                          f'{rows[0]} and {rows[1]}, whose rows are mixed.',
                          stacklevel=2)
    stride = None
    if getattr(model.data_preprocessor, 'pad_size_divisor', 1) == 1:
        stride = network_stride(model, channels)
    odd = [size for group in groups.values() for size in group
           if stride and size % stride]
    if odd:
        warnings.warn(
            f'{listed(odd)} pixels are no multiple of the stride '
            f'{stride} of the network, which costs accuracy.', stacklevel=2)
