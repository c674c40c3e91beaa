"""One checkpoint at several sizes of the input: metrics and cost."""
import copy
import os.path as osp
import uuid
import warnings
from typing import Any, Optional, Sequence, Tuple

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from rich.progress import Progress
from torch import nn

from ..datasets.pipeline import nominal_size, type_name
from ..datasets.sizes import SizeSwitch, pipelines_in
from ..engine.checkpoint import check_checkpoint
from ..engine.config import (UserError, check_test_data, join_processes,
                             load_config, set_loader_defaults)
from ..engine.loading import check_fits
from ..engine.loops import check_sizes, refuse_views, scalar, unwrapped
from ..engine.protection import protected_loading
from ..models.scale import scales_of, serving_scale, use_scale
from .measure import cost_of, network_stride


class ProgressHook(Hook):
    """Show how much of the test set is done, and keep the first batch."""
    title = ''
    batch: Any = None

    def before_test_epoch(self, runner) -> None:
        self.bar = Progress(transient=True, disable=not is_main_process())
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
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.work_dir, cfg.resume = None, out, False
    cfg.log_level = 'WARNING'  # the progress bar and the table say the rest
    # mmengine names what it logs by the second: two tests may share one.
    cfg.experiment_name = f'test-{uuid.uuid4().hex[:8]}'
    set_loader_defaults(cfg.test_dataloader, cfg)
    loop = cfg.get('test_cfg')
    if loop and type_name(loop) == 'ScalesTestLoop':
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
    check_fits(model, checkpoint.get('state_dict', checkpoint), path)
    runner.test_loop  # noqa: B018  (the runner builds it when it is asked)
    runner.call_hook('before_run')
    runner.call_hook('after_load_checkpoint', checkpoint=checkpoint)
    _load_checkpoint_to_model(model, checkpoint,
                              revise_keys=[(r'^module\.', '')])
    return runner


def warn_untrained(model: nn.Module, one: dict, size: int,
                   trained: Tuple[int, ...]) -> None:
    """Say which statistics serve ``size``, and what may cost accuracy."""
    message = (f'{size} pixels were not trained: the statistics of scale '
               f'{serving_scale(trained, size)} serve them')
    stride = None
    if getattr(model.data_preprocessor, 'pad_size_divisor', 1) == 1:
        stride = network_stride(model, one['inputs'][0].shape[0])
    if stride and size % stride:
        message += (f', and {size} is no multiple of the stride {stride} of '
                    'the network, which costs accuracy')
    warnings.warn(message + '.', stacklevel=2)


def test_at(runner: Runner, size: int, progress: ProgressHook) -> dict:
    """Evaluate and measure one size, whose pictures the data set makes."""
    model = unwrapped(runner.model)
    trained = scales_of(model)
    served_by = None if trained is None else serving_scale(trained, size)
    with use_scale(model, served_by):
        metrics = runner.test_loop.run()
        loader = runner.test_loop.dataloader
        one = loader.collate_fn([loader.dataset[0]])
        model.eval()
        if served_by not in (None, size):
            warn_untrained(model, one, size, trained)
        numbers = {name: scalar(value) for name, value in metrics.items()}
        batch = progress.batch or next(iter(loader))
        return dict(scale=size, served_by=served_by,
                    # A matrix, or one value a class, is in the log alone.
                    metrics={name: value for name, value in numbers.items()
                             if value is not None},
                    **cost_of(model, one, batch))


@protected_loading()
def test_scales(config: str, checkpoint: str,
                scales: Optional[Sequence[int]] = None,
                out: Optional[str] = None,
                cfg_options: Optional[dict] = None,
                launcher: str = 'none') -> dict:
    """Test one checkpoint at several sizes: what tools/test.py prints.

    At each size the test pipeline is rewritten and the model pinned to the
    scale that serves it. One model and one data set serve all sizes.

    Args:
        config: path of the config.
        checkpoint: path or address of the checkpoint.
        scales: sizes in pixels, trained or not; None: those of the config's
            ``ScalesTestLoop``, else the trained ones, else the test size.
        out: folder of the log; None: work_dirs/NAME_OF_CONFIG.
        cfg_options: ``{'a.b': value}``, settings that override the config.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi', as mmengine's.

    Returns:
        dict: ``label``, ``config``, ``checkpoint`` and ``rows``, one a size
        from the largest down: ``scale``, ``served_by`` (None without SSBN),
        ``metrics``, and :func:`cost_of`'s ``gflops``, ``latency_ms``,
        ``pictures_per_s``.

    Raises:
        UserError, ValueError: for what is missing, does not fit, or cannot
            be rewritten; see :class:`ScalesValLoop`.
    """
    label = osp.splitext(osp.basename(config))[0]
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    weights = check_checkpoint(checkpoint)  # before any data set is read
    sizes = scales or (cfg.get('test_cfg') or {}).get('sizes')
    cfg = test_config(cfg, out or osp.join('work_dirs', label))
    join_processes(cfg)
    runner = loaded_runner(cfg, weights, checkpoint)
    rows = test_runner(runner, cfg.test_dataloader.dataset, sizes, label)
    return dict(label=label, config=config, checkpoint=checkpoint, rows=rows)


def test_runner(runner: Runner, dataset: dict,
                sizes: Optional[Sequence[int]], label: str) -> list:
    """The rows of :func:`test_scales`; ``dataset`` is the data set's
    config."""
    model = unwrapped(runner.model)
    if sizes is None and scales_of(model) is None:
        sizes = [nominal_size(next(pipelines_in(dataset))[1])]
    sizes = check_sizes(sizes, model, 'scales')
    switch = SizeSwitch(runner.test_loop.dataloader.dataset, dataset, sizes)
    progress = ProgressHook()
    runner.register_hook(progress)
    rows = []
    for size in sizes:
        progress.title = f'{label} at {size}'
        with switch.at(size):
            rows.append(test_at(runner, size, progress))
    runner.call_hook('after_run')
    return rows
