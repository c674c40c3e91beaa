"""Test checkpoints at several input sizes: metrics, and what a size costs."""
import copy
import itertools
import os.path as osp
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from rich.markup import escape
from torch import nn

from ..datasets.base_size import base_size, test_base
from ..datasets.last_stage import sizes_in_training
from ..engine.load_model import (
    check_fits,
    state_in,
    warn_one_row,
    without_wrapper,
)
from ..engine.loops import ScalesTestLoop, refuse_views, scalar, unwrapped
from ..engine.resume import find_checkpoint
from ..engine.runner import built_runner
from ..evaluation.measure import (
    Timer,
    first_images,
    flops_of,
    kept_batch,
    measure_times,
    network_stride,
    progress_bar,
)
from ..models.row_mix import rows_serving
from ..models.size_selection import scales_of, warn_of_unseen
from ..utils.arguments import StrPath, check_path, optional_path
from ..utils.checkpoint import check_checkpoint, check_place
from ..utils.config import (
    check_test_data,
    config_name,
    import_this_package,
    join_processes,
    load_config,
    set_loader_defaults,
)
from ..utils.config_walk import type_name
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading
from ..utils.sizes import Sizes, expand_sizes

KEPT = 2**30  # bytes of one model's batches, at all sizes together
TURN = 0.02  # seconds of calls for one image in a turn


class ProgressHook(Hook):
    """Show how much of a test is done, and keep the first batch of a size."""
    batch: Any = None

    def __init__(self, title: str) -> None:
        self.title = title

    def before_test_epoch(self, runner) -> None:
        self.bar = progress_bar()
        self.bar.start()
        loop = runner.test_loop
        self.task = self.bar.add_task(
            escape(self.title), total=len(loop.dataloader) * len(loop.sizes))

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None) -> None:
        self.bar.advance(self.task)
        if batch_idx == 0:
            self.batch = data_batch

    def after_test_epoch(self, *args, **kwargs) -> None:
        self.bar.stop()


def test_config(cfg: Config, out: str, sizes: Sizes | None) -> Config:
    """A copy of ``cfg`` for a :class:`ScalesTestLoop` over ``sizes`` that
    reports only to its caller."""
    check_test_data(cfg)
    if not cfg.get('test_evaluator'):
        raise UserError('The config must have a `test_evaluator`, but got '
                        f'{cfg.get("test_evaluator")!r}. Set it, e.g. to the '
                        '`val_evaluator`.')
    loop = cfg.get('test_cfg') or {}
    if type_name(loop) not in ('', 'TestLoop', 'ScalesTestLoop'):
        raise UserError('`test_cfg` must have the type TestLoop or '
                        'ScalesTestLoop to test at several sizes, but got '
                        f'{type_name(loop)!r}. Leave its type out.')
    cfg = copy.deepcopy(cfg)
    import_this_package(cfg)
    cfg.load_from, cfg.work_dir, cfg.resume = None, out, False
    cfg.log_level = 'WARNING'  # the progress bar and the table say the rest
    if cfg.filename:  # the Runner writes it: not over that of a training
        vars(cfg)['_filename'] = f'test_{osp.basename(cfg.filename)}'
    set_loader_defaults(cfg.test_dataloader, cfg)
    cfg.test_cfg = dict(loop, type='ScalesTestLoop',
                        sizes=sizes or loop.get('sizes'))
    return cfg


def loaded_runner(cfg: Config, checkpoint: dict, path: str) -> Runner:
    """The runner of ``cfg``, which is of :func:`test_config`, with the
    weights of ``checkpoint``.

    It is prepared as ``Runner.test`` does before the loop, but the file is
    not read again, since it was found safe. A network without SSBN is tested
    at the size of the config unless other sizes are given.
    """
    runner = built_runner(cfg)
    if not isinstance(runner, Runner):
        raise UserError('`runner_type` must name a subclass of Runner for a '
                        f'test, but got {type(runner).__name__}. Leave it '
                        'out.')
    model = unwrapped(runner.model)
    refuse_views(model)
    # Some hooks, as that of EMA, read the key `state_dict`.
    state = state_in(checkpoint, path)
    checkpoint = dict(checkpoint if 'state_dict' in checkpoint else {},
                      state_dict=without_wrapper(state))
    more = check_fits(model, state, path)
    warn_one_row(model, state, path)
    if more:
        warnings.warn(f'{path!r} has {len(more)} weights that the network of '
                      f'the config has no place for, as {more[0]}: of another '
                      'network, the numbers tell nothing.', stacklevel=2)
    loop = runner._test_loop  # a config until the loop is built
    if loop['sizes'] is None and scales_of(model) is None:
        dataset = cfg.test_dataloader.dataset
        loop['sizes'] = [test_base(cfg, dataset)]
    runner.test_loop  # noqa: B018  (builds it)
    runner.call_hook('before_run')
    runner.call_hook('after_load_checkpoint', checkpoint=checkpoint)
    # Once more, since a hook, as mmpretrain's of EMA, exchanges the weights.
    model.load_state_dict(checkpoint['state_dict'], strict=False)
    return runner


def as_list(value: Any) -> Any:
    """A metric that is no single number, as JSON holds it."""
    if hasattr(value, 'tolist'):
        return value.tolist()
    return value if isinstance(value, (list, tuple)) else str(value)


class Workload(NamedTuple):
    """Timers of a model at one size: of one image, and of a batch."""
    latency: Timer
    throughput: Timer

    def times(self) -> dict:
        return {**self.latency.latency(), **self.throughput.throughput()}


def workload(loop: ScalesTestLoop, size: int, model: BaseModel, one: dict,
             batch: dict) -> Workload:
    """Timers of ``model.test_step`` at ``size``, as ``loop`` runs it.

    Args:
        one: a collated batch of one image, as the data loader gives it.
        batch: a collated batch to measure throughput with.
    """
    @contextmanager
    def pinned() -> Iterator[None]:
        with loop.at(size, timed=True), autocast(enabled=loop.fp16):
            yield

    step = partial(model.test_step, one)
    return Workload(
        Timer(step, turn=TURN, within=pinned),
        Timer(partial(model.test_step, batch), len(batch['inputs']), step,
              within=pinned))


def cost_at(size: int, loop: ScalesTestLoop, model: BaseModel,
            batch: dict) -> tuple[dict, Workload]:
    """The row of one size without metrics and times, and what its times are
    measured with; the data set makes its images, and the model is pinned."""
    one = first_images(loop.dataloader, 1)
    row = dict(scale=size, served_by=serving_scales(
        model, loop.base.scale_at(size)),
               gflops=flops_of(lambda: model.test_step(one)) / 1e9)
    kept = kept_batch(loop.dataloader, batch, KEPT // len(loop.sizes))
    return row, workload(loop, size, model, one, kept)


def test_sizes(runner: Runner, label: str) -> list[tuple[dict, Workload]]:
    """The row of each size without times, and what its times are measured
    with."""
    loop, model = runner.test_loop, unwrapped(runner.model)
    warn_untrained(model, loop)
    progress = ProgressHook(label)
    runner.register_hook(progress)
    tested = []
    with closing(loop.iter_sizes()) as results:
        for size, metrics in results:
            row, work = cost_at(size, loop, model, progress.batch)
            numbers = {name: scalar(value) for name, value in metrics.items()}
            row['metrics'] = {name: number for name, number in numbers.items()
                              if number is not None}
            row['arrays'] = {name: as_list(metrics[name])
                             for name, number in numbers.items()
                             if number is None}
            tested.append((row, work))
    runner.call_hook('after_run')
    return tested


def folder_of(out: StrPath | None, config: str) -> str:
    """The folder ``out`` of a test's results and log, by default
    work_dirs/NAME_OF_CONFIG, which need not be there.

    Raises:
        TypeError: for what is no path.
        UserError: as :func:`~sct_mm.utils.checkpoint.check_place`.
    """
    folder = optional_path('out', out) or osp.join('work_dirs',
                                                   config_name(config))
    for name in ('scales.json', f'test_{config_name(config)}.py'):
        check_place(osp.join(folder, name))
    return folder


def open_test(config: str, checkpoint: str, sizes: Sizes | None,
              out: StrPath | None, cfg_options: dict | None, launcher: str,
              change: Callable[[Config], None] | None = None
              ) -> tuple[dict, Runner]:
    """One result of :func:`test` without rows, and the runner that makes
    them. The model is one of :func:`models_of`.

    Args:
        change: called with the config before it is checked and built.
    """
    folder = folder_of(out, config)
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    weights = check_checkpoint(checkpoint)  # before any data set is read
    if change is not None:
        change(cfg)
    cfg = test_config(cfg, folder, sizes)
    join_processes(cfg)
    runner = loaded_runner(cfg, weights, checkpoint)
    return dict(label=config_name(config), config=config,
                checkpoint=checkpoint, cfg_options=cfg_options or {},
                trained=trained_sizes(cfg, unwrapped(runner.model))), runner


def models_of(config: StrPath, checkpoint: StrPath, compare: Any,
              cfg_options: dict | None, against: Any = None
              ) -> list[tuple[str, str]]:
    """(config, checkpoint) of each model of :func:`test`, and last of
    ``against`` if there is one, that can be read: otherwise the tests of those
    before it would be lost.

    Raises:
        TypeError: if one to compare with is no pair.
        UserError: for a file that is missing or damaged.
    """
    others = [*(compare if isinstance(compare, (list, tuple)) else [compare]),
              *([] if against is None else [against])]
    for each in others:
        if not isinstance(each, (list, tuple)) or len(each) != 2:
            raise TypeError('Each network to compare with must be a pair '
                            f'(config, checkpoint), but got {each!r}. Write '
                            "e.g. compare=[('a.py', 'a.pth')].")
    models = []
    for each in ((config, checkpoint), *others):
        config, checkpoint = map(check_path, ('config', 'checkpoint'), each)
        checkpoint = find_checkpoint(checkpoint, load_config(config,
                                                             cfg_options))
        check_checkpoint(checkpoint)
        models.append((config, checkpoint))
    return models


def add_rows(result: dict, runner: Runner) -> tuple[dict, list[Workload]]:
    """``result`` of :func:`open_test` with its rows, without times, and what
    these are measured with."""
    rows, works = zip(*test_sizes(runner, result['label']), strict=True)
    return dict(result, rows=list(rows)), list(works)


def add_times(tested: Sequence[tuple[dict, list[Workload]]]) -> list[dict]:
    """The results of :func:`add_rows` with times, measured in turns, and
    labels that differ."""
    results = [result for result, _ in tested]
    name_apart(results)
    works = [work for _, each in tested for work in each]
    measure_times(list(itertools.chain(*works)))
    rows = [row for result in results for row in result['rows']]
    for row, work in zip(rows, works, strict=True):
        row.update(work.times())
    return results


def name_apart(results: list[dict]) -> None:
    """Label the results of one config by what their checkpoints' paths do not
    share, too; those of one checkpoint by what their configs' do not."""
    for name in ('checkpoint', 'config'):
        alike: dict[str, list[dict]] = {}
        for result in results:
            alike.setdefault(result['label'], []).append(result)
        for label, several in alike.items():
            paths = [osp.abspath(result[name]) for result in several]
            shared = osp.commonpath(map(osp.dirname, paths))
            for result, path in zip(several, paths, strict=True) if (
                    len(set(paths)) > 1) else ():
                result['label'] = f'{label} ({osp.relpath(path, shared)})'


@protected_loading()
def test(config: StrPath, checkpoint: StrPath, scales: Sizes | None = None,
         out: StrPath | None = None, cfg_options: dict | None = None,
         launcher: str = 'none',
         compare: Sequence[tuple[StrPath, StrPath]] = ()) -> list[dict]:
    """Test checkpoints at several sizes: what tools/test.py prints.

    At each size the test pipeline is rewritten and the model pinned to it.
    One model and one data set serve all sizes. Times are measured after all
    metrics, models and sizes in turns (:func:`take_turns`); all models stay
    in memory until then.

    Args:
        config: path of the config.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is tested.
        scales: sizes in pixels, trained or not, also as ranges such as
            ``'128:224:16'`` (:func:`expand_sizes`); None: those of the
            config's ``ScalesTestLoop``, else the trained ones, else the test
            size.
        out: folder of the log; None: work_dirs/NAME_OF_CONFIG.
        cfg_options: ``{'a.b': value}``, settings that override each config.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi', as mmengine's.
        compare: (config, checkpoint) of each other model to test too.

    Returns:
        list: a dict for ``config``, and one for each of ``compare``:
        ``label``, ``config``, ``checkpoint``, ``cfg_options``, ``trained``
        (:func:`trained_sizes`) and ``rows``, one a size from the largest
        down: ``scale``; ``served_by``, the scales whose parameters serve it,
        two between them (None without SSBN); ``metrics``, and in ``arrays``
        those that are no single number; ``gflops`` (:func:`flops_of`) of one
        image; ``latency_ms`` of one image and ``images_per_s`` in batches,
        both with ``..._quartiles``; ``latency_reliable`` and
        ``images_reliable`` (:func:`spread_of`). Times include the
        preprocessor and the post-processing, not the loading.

    Raises:
        UserError, ValueError: for what is missing, does not fit, or cannot
            be rewritten; see :class:`ScalesValLoop`.
    """
    sizes = None if scales is None else expand_sizes(scales, 'scales')
    return add_times([
        add_rows(*open_test(*model, sizes, out, cfg_options, launcher))
        for model in models_of(config, checkpoint, compare, cfg_options)])


def trained_sizes(cfg: Config, model: nn.Module) -> tuple[int, ...]:
    """The sizes of a test that a network was trained for: those that the
    scales of its SSBN serve, else those of the config's SCTLossHook, else of
    its training pipeline, if it sets any."""
    scales = scales_of(model)
    for hook in cfg.get('custom_hooks') or ():
        if scales is None and isinstance(hook, dict) and (
                type_name(hook) == 'SCTLossHook'):
            scales = hook.get('scales')
    found = sorted(scales or {size for sizes in sizes_in_training(cfg)
                              for size in sizes}, reverse=True)
    return tuple(map(base_size(cfg, found).size_of, found))


def serving_scales(model: nn.Module, at: int) -> list[int] | None:
    """The scales whose normalization parameters serve the scale ``at``, two
    if it lies between them; None without SSBN."""
    scales = scales_of(model)
    return None if scales is None else [
        scale for scale, _ in rows_serving(scales, at)]


def listed(sizes: Sequence[int], most: int = 4) -> str:
    """``sizes`` as a sentence names them: all, or the first, the last, and how
    many lie between them."""
    if len(sizes) <= most:
        return ', '.join(map(str, sizes))
    return f'{sizes[0]}, {sizes[1]}, ... {sizes[-1]} ({len(sizes)} sizes)'


def warn_untrained(model: nn.Module, loop: ScalesTestLoop) -> None:
    """Warn of each size of ``loop`` that is no scale: which scales serve it,
    and whether it may cost accuracy. Warn of scales that were not trained."""
    warn_of_unseen(model, [*map(loop.base.scale_at, loop.sizes)])
    groups: dict[tuple[int, ...], list[int]] = {}
    for size in loop.sizes:
        at = loop.base.scale_at(size)
        served_by = serving_scales(model, at)
        if served_by is not None and served_by != [at]:
            groups.setdefault(tuple(served_by), []).append(size)
    for scales, group in groups.items():
        if len(scales) > 1:  # outside of the scales set_scale() warns
            warnings.warn(f'{listed(group)} pixels lie between the scales '
                          f'{scales[0]} and {scales[1]}, whose rows are '
                          'mixed.', stacklevel=2)
    stride = None
    if groups and getattr(model.data_preprocessor, 'pad_size_divisor', 1) == 1:
        image = first_images(loop.dataloader, 1)['inputs'][0]
        stride = network_stride(model, image.shape[0])
    odd = [size for group in groups.values() for size in group
           if stride and size % stride]
    if odd:
        warnings.warn(
            f'{listed(odd)} pixels are no multiple of the stride '
            f'{stride} of the network, which costs accuracy.', stacklevel=2)
