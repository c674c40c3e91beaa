"""The arms of the benchmark: ways to train a network, each in its own
process."""
import itertools
import resource
import statistics
from collections.abc import Callable
from functools import partial

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, fx, nn

from sct_mm.datasets.multi_scale_batch import MultiScaleBatch, padding_of
from sct_mm.engine.hooks.sct_loss_hook import SCTLossHook
from sct_mm.evaluation.measure import flops_of, timed
from sct_mm.models.extract import extract_scale
from sct_mm.models.size_selection import ScaleSpecific, scales_of
from sct_mm.utils.cli import device_name
from sct_mm.utils.config import check_data, load_config, set_loader_defaults
from sct_mm.utils.errors import UserError

# {arm: arguments of its SCTLossHook, or None if it has none}
_HOOKS: dict[str, dict | None] = dict(
    ssbn=None, joint=dict(backward='joint'), per_scale={},
    two_scales=dict(scales_per_step=2), partition=dict(partition=True),
    lists=None)
ARMS = tuple(_HOOKS)


class _Lists(fx.Interpreter):
    """Run each operation on a list of inputs, one per scale, before the next
    operation, with a list of BN in place of each norm. RS-Nets' code
    (arXiv 2007.09558) does so, and keeps all scales in memory."""

    def run_node(self, node: fx.Node):
        if node.op in ('placeholder', 'get_attr', 'output'):
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return [self._run_at(node, i, args, kwargs)
                for i in range(self.module.rows)]

    def _run_at(self, node: fx.Node, i: int, args: tuple, kwargs: dict):
        def at(value):
            return value[i] if isinstance(value, list) else value

        args = tuple(map(at, args))
        kwargs = {name: at(value) for name, value in kwargs.items()}
        if node.op == 'call_module':
            module = self.fetch_attr(node.target)
            if isinstance(module, nn.ModuleList):
                return module[i](*args)
        return getattr(self, node.op)(node.target, args, kwargs)


class _Tracer(fx.Tracer):

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return (isinstance(module, ScaleSpecific)
                or super().is_leaf_module(module, name))


class ListModel(nn.Module):
    """A classifier with a list of BN, one per scale, and a list of inputs.

    Raises:
        UserError: if the model is no classifier, or torch.fx cannot trace its
            backbone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        scales = scales_of(model)
        if not hasattr(model, 'head'):
            raise UserError('The arm `lists` needs a classifier, but got a '
                            f'{type(model).__name__}. Leave it out of --arms.')
        try:
            graph = _Tracer().trace(model.backbone)
        except Exception as error:  # whatever the backbone's code meets
            raise UserError('The arm `lists` needs a backbone that torch.fx '
                            f'can trace, but {error}. Leave it out of '
                            '--arms.') from error
        backbone = fx.GraphModule(model.backbone, graph)
        for name, layer in list(backbone.named_modules()):
            if isinstance(layer, ScaleSpecific):
                parent, _, child = name.rpartition('.')
                setattr(backbone.get_submodule(parent), child, nn.ModuleList(
                    extract_scale(layer, s) for s in scales))
        backbone.rows = len(scales)
        self.backbone, self.neck, self.head = (backbone, model.neck,
                                               model.head)
        self.transforms = [MultiScaleBatch(s, scales[0]) for s in scales]
        self.parse_losses = model.parse_losses

    def forward(self, inputs: Tensor, data_samples: list,
                mode: str = 'loss') -> dict:
        batches = [t(dict(inputs=inputs, data_samples=data_samples))
                   for t in self.transforms]
        maps = _Lists(self.backbone).run([b['inputs'] for b in batches])
        losses = []
        for i, batch in enumerate(batches):
            out = tuple(m[i] for m in maps)
            out = self.neck(out) if self.neck is not None else out
            losses.append(self.head.loss(out, batch['data_samples'])['loss'])
        return dict(loss=sum(losses) / len(losses))


def _peak_memory() -> int:
    """Peak bytes of torch's allocator on a GPU, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory() -> int:
    """Bytes that are in use."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    with open('/proc/self/statm') as f:
        return int(f.read().split()[1]) * resource.getpagesize()


class Worker:
    """One arm: its network, batch and optimizer. Methods that measure are
    called through the pipe of :func:`serve`."""

    def __init__(self, name: str, scale: int | None, args) -> None:
        self.cfg = load_config(args.config)
        init_default_scope(self.cfg.get('default_scope') or 'mmengine')
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        torch.manual_seed(0)
        model = MODELS.build(self.cfg.model)
        self.scales = scales_of(model)
        self.padding = padding_of(model)
        model = model.to(self.device)
        self.batch = self._make_batch(args.batch_size, model)
        if name == 'plain':
            model = extract_scale(model, scale)
            self.batch = self._resized(scale)
        elif name == 'lists':
            model = ListModel(model)
        self.model = model.train()
        if args.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        self.optim = (AmpOptimWrapper(dtype=args.amp, optimizer=optimizer)
                      if args.amp else OptimWrapper(optimizer))
        self.hook = None
        if _HOOKS.get(name) is not None:
            self.hook = SCTLossHook(**_HOOKS[name])
            self.hook.attach(self.model,
                             getattr(self.optim, 'loss_scaler', None))
        self.amp, self.args = args.amp, args
        self.before = _memory()

    def _make_batch(self, size: int, model) -> dict:
        """A batch at the base scale: noise for a classifier, else the first
        training images of the config."""
        if not hasattr(model, 'head'):
            batches = iter(self._loader(size))
            return model.data_preprocessor(next(batches), True)
        from mmpretrain.structures import DataSample
        channels = self.cfg.model.backbone.get('in_channels', 3)
        samples = [DataSample().set_gt_label(i % model.head.num_classes).to(
            self.device) for i in range(size)]
        edge = self.scales[0]
        return dict(inputs=torch.randn(size, channels, edge, edge,
                                       device=self.device),
                    data_samples=samples)

    def _resized(self, scale: int) -> dict:
        return MultiScaleBatch(scale, self.scales[0], **self.padding)(
            self.batch)

    def _step(self) -> None:
        if self.hook:
            self.hook.step += 1
        with self.optim.optim_context(self.model):
            losses = self.model(**self.batch, mode='loss')
        self.optim.update_params(self.model.parse_losses(losses)[0])

    def step(self, calls: int) -> float:
        """Median seconds of a training step."""
        if self.device == 'cuda':
            self._step()  # allocates the memory that the last turn freed
        seconds = _median(self._step, calls)
        if self.device == 'cuda':
            torch.cuda.empty_cache()
        return seconds

    def peak(self) -> int:
        """Peak bytes above those before the first step."""
        return _peak_memory() - self.before

    def beside_plain(self, calls: int) -> float:
        """Seconds of a training step divided by those of a plain step at the
        base scale. Both alternate in this process and share its memory."""
        if not hasattr(self, 'plain'):
            self.plain = Worker('plain', self.scales[0], self.args)
            self.plain._step()
        seconds = []
        for _ in range(calls):  # each of the two goes first once
            ours, theirs = timed(self._step), timed(self.plain._step)
            seconds += [(ours, theirs),
                        (timed(self.plain._step), timed(self._step))[::-1]]
        ours, theirs = map(statistics.median, zip(*seconds, strict=True))
        return ours / theirs

    @torch.no_grad()
    def infer(self, scale: int, calls: int) -> float:
        """Seconds of an inference with SSBN divided by those with plain BN.
        Both alternate in this process and share its memory."""
        networks = (self.model.eval(),
                    extract_scale(self.model, scale).eval())
        batch = self._resized(scale)
        with torch.autocast(self.device, getattr(torch, self.amp or 'float32'),
                            enabled=bool(self.amp)):
            seconds = [[timed(partial(net, **batch, mode='tensor'))
                        for net in networks] for _ in range(calls + 1)]
        ours, theirs = map(statistics.median, zip(*seconds[1:], strict=True))
        return ours / theirs

    def resize(self) -> float:
        """Seconds that the resizes of one step take."""
        return _median(lambda: [self._resized(s) for s in self.scales[1:]], 5)

    def flops(self) -> float:
        """Multiply-adds of a forward pass."""
        self.model.eval()
        try:
            return flops_of(lambda: self.model(**self.batch, mode='tensor'))
        finally:
            self.model.train()

    def _loader(self, size: int):
        from mmengine.runner import Runner
        loader = self.cfg.train_dataloader
        loader.batch_size = size
        set_loader_defaults(loader, self.cfg)
        check_data(loader)
        return Runner.build_dataloader(loader)

    def load(self) -> float | None:
        """Seconds in which the config's loader makes a batch of this size;
        None if the data set is missing."""
        try:
            loader = self._loader(len(self.batch['inputs']))
        except (UserError, OSError):
            return None
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        ahead = loader.num_workers * (loader.prefetch_factor or 0)
        for _ in range(ahead + 1):  # batches that were made in advance
            next(batches)
        return timed(lambda: [next(batches) for _ in range(10)]) / 10

    def device_name(self) -> str:
        return device_name()


def _median(run: Callable[[], object], calls: int) -> float:
    seconds: list[float] = [timed(run) for _ in range(calls)]
    return statistics.median(seconds)


def serve(pipe, name: str, scale: int | None, args) -> None:
    """Answer each (method, *arguments) that comes through ``pipe`` with the
    result of that method of a :class:`Worker`, or with a UserError."""
    worker = None
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            worker = worker or Worker(name, scale, args)
            pipe.send(getattr(worker, command)(*arguments))
        except UserError as error:
            pipe.send(error)
