"""The checks of one network: each compares the network with SSBN with the one
that its host builds."""
import copy
import io
import random
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from networks import Builder, Network, batch_norms, tensors_of
from torch import Tensor, nn

from sct_mm.datasets.multi_scale_batch import MultiScaleBatch, padding_of
from sct_mm.engine.hooks.sct_loss_hook import SCTLossHook
from sct_mm.models.extract import extract_scale
from sct_mm.models.pinning import use_scale
from sct_mm.models.size_selection import ssbn_layers

CHECKS = ('builds', 'sct_step', 'saved', 'chooses', 'extracts', 'deploys')
_BUFFERS = ('running_mean', 'running_var')


class Failed(Exception):
    """The network with SSBN differs from that of its host; the text says in
    what."""


class NotApplicable(Exception):
    """There is nothing to check; the text, if any, says why."""


def set_seed() -> None:
    for each in (random.seed, np.random.seed, torch.manual_seed):
        each(0)


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The norm of the difference of two lists of tensors, relative to the norm
    of ``theirs``; inf if their shapes differ."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float('inf')
    apart = total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().double(), b.detach().double()
        same = (a == b) | (a.isnan() & b.isnan())
        apart += float(torch.where(same, 0, a - b).pow(2).sum())
        total += float(torch.where(same & ~b.isfinite(), 0, b).pow(2).sum())
    return (apart / max(total, 1e-30))**0.5


def expect_equal(ours, theirs, tolerance: float, what: str) -> None:
    found = difference(ours, theirs)
    if not found <= tolerance:
        raise Failed(f'{what} differ by {found:.1e} of their norm')


def run_unambiguous(run: Callable, *args):
    """Return ``run(*args)``.

    Raises:
        Failed: if a layer warns that it cannot tell sizes apart, which a
            network does once.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*sees the same at several')
        try:
            return run(*args)
        except UserWarning as error:
            if 'sees the same at several' not in str(error):
                raise
            raise Failed(
                'unpinned it cannot tell sizes apart, and warns so: its first '
                'norm stands behind a pooling') from error


def one_line(error: BaseException) -> str:
    """``error`` in one line, shortened."""
    text = ' '.join(str(error).split())
    name = '' if isinstance(error, Failed) else f'{type(error).__name__}: '
    return name + (text if len(text) < 160 else text[:157] + '...')


def takes_plain_dicts(model: nn.Module) -> bool:
    """Whether a network of the host loads its own weights without the
    metadata of a state dict; torchvision's MNASNet does not."""
    try:
        copy.deepcopy(model).load_state_dict(dict(model.state_dict()))
    except ValueError:
        return False
    return True


def deployments(host: str) -> list[tuple[str, Callable]]:
    """The (name, function) pairs by which ``host`` makes a network faster for
    inference."""
    if host in ('mmpretrain', 'mmdet'):
        return [('switch_to_deploy', _switch_to_deploy),
                ('fuse_conv_bn', _fuse_conv_bn)]
    return [('fuse', _reparameterize), ('torch.fx', _fuse_by_fx)]


def _switch_to_deploy(model: nn.Module) -> nn.Module:
    parts = [m for m in model.modules() if hasattr(m, 'switch_to_deploy')]
    if not parts:
        raise NotApplicable
    parts[0].switch_to_deploy()  # the outermost module calls the inner ones
    return model


def _fuse_conv_bn(model: nn.Module) -> nn.Module:
    from mmcv.cnn import fuse_conv_bn
    before = len(batch_norms(model))
    model = fuse_conv_bn(model)
    if len(batch_norms(model)) == before:
        raise NotApplicable
    return model


def _reparameterize(model: nn.Module) -> nn.Module:
    if not any(hasattr(m, name) for m in model.modules() for name in (
            'fuse', 'reparameterize', 'switch_to_deploy')):
        raise NotApplicable
    from timm.utils.model import reparameterize_model
    return reparameterize_model(model)


def _fuse_by_fx(model: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse
    before = len(batch_norms(model))
    model.net = fuse(model.net)
    if len(batch_norms(model)) == before:
        raise NotApplicable
    return model


class Trial:
    """One network twice: ``stock`` as its host builds it, and ``model`` with
    SSBN, whose normalization parameters differ at each scale. Each check is a
    method, and relies on those before it.

    Args:
        by: 'norm_cfg', 'WithSSBN' or 'convert_to_ssbn'.
    """

    def __init__(self, builder: Builder, scales: tuple[int, ...],
                 by: str) -> None:
        self.builder, self.scales, self.by = builder, scales, by
        self.base = builder.images(scales[0])
        self.finite = True  # whether the losses of ``stock`` are
        self._outputs: dict[tuple[int, int], list[Tensor]] = {}

    def batch(self, model: nn.Module, scale: int) -> dict:
        batch = copy.deepcopy(self.base)  # some heads write into samples
        batch = MultiScaleBatch(scale, self.scales[0],
                                **padding_of(model))(batch)
        dtype = next(model.parameters()).dtype
        return dict(batch, inputs=batch['inputs'].to(dtype))

    def own(self, scale: int, pinned: int = 0) -> list[Tensor]:
        """:meth:`outputs` of ``model``, computed once."""
        if (scale, pinned) not in self._outputs:
            self._outputs[scale, pinned] = self.outputs(self.model, scale,
                                                        pinned)
        return self._outputs[scale, pinned]

    def outputs(self, model: nn.Module, scale: int,
                pinned: int = 0) -> list[Tensor]:
        """The outputs of ``model`` in evaluation for images of ``scale``
        pixels; ``pinned`` is a size to pin, or 0."""
        model.eval()
        set_seed()
        with torch.no_grad(), use_scale(model, pinned or None):
            found = tensors_of(model(**self.batch(model, scale),
                                     mode='tensor'))
        if not any(t.isfinite().any() for t in found):
            raise Failed(f'no output at {scale} pixels is finite')
        return found

    def loss(self, model: nn.Module, scale: int) -> Tensor:
        losses = model(**self.batch(model, scale), mode='loss')
        return model.parse_losses(losses)[0]

    def builds(self) -> None:
        """SSBN replaces each norm, and each scale starts as the host's."""
        self.stock = self.builder()
        self.model = self.builder(self.scales, self.by)
        norms = len(batch_norms(self.stock))
        if len(ssbn_layers(self.model)) != norms:
            raise Failed(f'{len(ssbn_layers(self.model))} of {norms} norms '
                         'are SSBN')
        for scale in self.scales:
            plain = extract_scale(self.model, scale).state_dict()
            for key, value in self.stock.state_dict().items():
                if not torch.equal(plain[key], value):
                    raise Failed(f'{key} does not start as the host starts it')
        self.norms = {scale: self._train_norms(scale)
                      for scale in self.scales}

    def _train_norms(self, scale: int) -> dict[str, dict[str, Tensor]]:
        """{norm: state} of a copy of ``stock`` with random parameters and the
        statistics of ``scale``; ``model`` gets them for that scale."""
        model = copy.deepcopy(self.stock).train()
        norms = batch_norms(model)
        generator = torch.Generator().manual_seed(scale)
        for norm in norms.values():
            for parameter in norm.parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += 0.1 * noise
        momentum = {norm: norm.momentum for norm in norms.values()}
        try:
            for norm in momentum:
                norm.momentum = 1.0
            with torch.no_grad():
                self.loss(model, scale)
        finally:
            for norm, value in momentum.items():
                norm.momentum = value
                # Of two images, some variances are almost 0.
                if norm.running_var is not None:
                    norm.running_var.clamp_(min=float(
                        norm.running_var.mean()) / 10)
        for name, norm in norms.items():
            row = self.model.get_submodule(name).row(scale)
            for key, value in norm.state_dict().items():
                if row.get(key) is not None:
                    row[key].data.copy_(value)
        return {name: copy.deepcopy(norm.state_dict())
                for name, norm in norms.items()}

    def sct_step(self) -> None:
        """A step of SCTLossHook gives the gradients and statistics of
        ``stock``, whose norms are exchanged before each scale."""
        expected = self._reference_step()
        hook = SCTLossHook()
        hook.check_finite = self.finite
        hook.attach(self.model.train())
        set_seed()
        try:
            losses = self.model(**copy.deepcopy(self.base), mode='loss')
            losses['loss'].backward()
        finally:
            hook.detach()
        if not self.finite:
            raise NotApplicable('from random weights, the loss of the host is '
                                'not finite')
        self._compare_step(*expected)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Some hosts start with weights whose gradients are in the millions.
        nn.utils.clip_grad_norm_(parameters, 1.0)
        torch.optim.SGD(parameters, lr=1e-3).step()
        if not all(p.isfinite().all() for p in parameters):
            raise Failed('parameters are not finite after the step')

    def _reference_step(self) -> tuple[dict, dict]:
        """``stock`` after forward and backward at each scale: {parameter:
        gradient, or of norms a list with one per scale}, {(scale, norm):
        state}."""
        model = copy.deepcopy(self.stock).train()
        norms = batch_norms(model)
        own: dict[str, list[Tensor | None]] = {}
        statistics = {}
        set_seed()
        for scale in self.scales:
            for name, norm in norms.items():
                norm.load_state_dict(self.norms[scale][name])
            try:
                loss = self.loss(model, scale) / len(self.scales)
            except Exception as error:
                raise NotApplicable(
                    f'the host itself takes no step at {scale} pixels: '
                    f'{one_line(error)}') from error
            loss.backward()
            self.finite &= bool(loss.isfinite())
            for name, norm in norms.items():
                for key, parameter in norm.named_parameters(recurse=False):
                    own.setdefault(f'{name}.{key}', []).append(parameter.grad)
                    parameter.grad = None
                statistics[scale, name] = copy.deepcopy(norm.state_dict())
        return {**{name: p.grad for name, p in model.named_parameters()},
                **own}, statistics

    def _compare_step(self, gradients: dict, statistics: dict) -> None:
        pairs = []
        for name, parameter in self.model.named_parameters():
            theirs, ours = gradients[name], parameter.grad
            if isinstance(theirs, list):  # one per scale
                theirs = None if all(g is None for g in theirs) else (
                    torch.cat([torch.zeros_like(parameter[:len(parameter)
                               // len(theirs)]) if g is None else g
                               for g in theirs]))
            if (theirs is None) != (ours is None):
                raise Failed(f'{name} has a gradient here or in the host, '
                             'but not in both')
            if theirs is not None:
                pairs.append((ours, theirs))
        expect_equal(*zip(*pairs, strict=True), 1e-4, 'gradients')
        found = []
        for (scale, name), state in statistics.items():
            row = self.model.get_submodule(name).row(scale)
            found += [(row[key], state[key]) for key in _BUFFERS
                      if key in state]
        if found:
            expect_equal(*zip(*found, strict=True), 1e-4, 'statistics')

    def saved(self) -> None:
        """A new network that loads the weights gives the same outputs at
        each scale, by itself."""
        import safetensors.torch as safetensors
        state = self.model.state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        tensors = safetensors.load(safetensors.save(
            {key: value.contiguous().clone()
             for key, value in state.items()}))
        for what, loaded, scales in (
                ('torch.save', torch.load(file, weights_only=True),
                 self.scales), ('safetensors', tensors, self.scales[-1:])):
            model = self.builder(self.scales, self.by, initialised=False)
            if loaded is tensors and not takes_plain_dicts(self.stock):
                continue
            model.load_state_dict(loaded)
            for scale in scales:
                expect_equal(self.outputs(model, scale),
                             self.own(scale), 0,
                             f'the outputs at {scale} pixels after {what}')

    def chooses(self) -> None:
        """Unpinned, the outputs at each scale are those of the network that is
        pinned to it."""
        if len(self.scales) == 1:
            raise NotApplicable
        for scale in self.scales:
            other = min(self.scales, key=lambda s: s == scale)
            pinned = self.own(scale, scale)
            if not difference(self.own(scale, other), pinned) > 1e-6:
                raise Failed(f'the parameters of {scale} and {other} give '
                             'the same outputs')
            free = run_unambiguous(self.outputs, copy.deepcopy(self.model),
                                   scale)
            expect_equal(free, pinned, 0, f'the outputs at {scale} pixels, '
                         'pinned and not,')

    def extracts(self) -> None:
        """The host's network loads an extracted scale and gives the outputs of
        the pinned one; every module has the host's class."""
        for scale in self.scales:
            plain = extract_scale(self.model, scale)
            theirs = dict(self.stock.named_modules())
            for name, module in plain.named_modules():
                # From SyncSSBN, BN is extracted, which runs in one process.
                ours, host = type(module), type(theirs[name])
                if ours is not host and not (ours is nn.BatchNorm2d and (
                        issubclass(host, nn.SyncBatchNorm))):
                    raise Failed(
                        f'{name}: {ours.__name__}, no {host.__name__}')
            stock = copy.deepcopy(self.stock)
            stock.load_state_dict(plain.state_dict())
            pinned = self.own(scale, scale)
            for what, model in (('extracted', plain), ('loaded', stock)):
                if model is plain and scale != self.scales[-1]:
                    continue
                expect_equal(self.outputs(model, scale), pinned, 1e-6,
                             f'the {what} outputs at {scale} pixels')

    def deploys(self) -> None:
        """The host can make an extracted scale faster for inference where it
        can do so with its own network."""
        # In float32, fusing a channel of small variance loses digits; parts of
        # some hosts compute in float32 only.
        dtypes = ((torch.float64, ) if isinstance(self.model, Network)
                  else ()) + (torch.float32, )
        done = [name for name, deploy in deployments(self.builder.host)
                if any(self._deployed(name, deploy, d) for d in dtypes)]
        if not done:
            raise NotApplicable
        self.deployed_by = done

    def _deployed(self, name: str, deploy: Callable,
                  dtype: torch.dtype) -> bool:
        """Whether the host can ``deploy`` its own network without a change of
        the outputs.

        Raises:
            Failed: if it can, but not with an extracted scale.
        """
        scale = self.scales[-1]
        extracted = extract_scale(self.model, scale)
        stock = copy.deepcopy(self.stock)
        stock.load_state_dict(extracted.state_dict())
        try:
            before = self.outputs(stock.to(dtype), scale)
            after = self.outputs(deploy(stock), scale)
        except Exception:  # the host cannot do it with this network
            return False
        if difference(after, before) > 1e-4:
            return False
        ours = deploy(extracted.to(dtype).eval())
        expect_equal(self.outputs(ours, scale), before, 1e-4,
                     f'the outputs after {name}')
        return True


def outcome(trial: Trial) -> dict[str, str]:
    """{check: 'yes', 'no' or '-'}, and a ``note`` on those that are not
    'yes'."""
    row, notes = dict.fromkeys(CHECKS, '-'), []
    for name in CHECKS:
        try:
            getattr(trial, name)()
            row[name] = 'yes'
        except NotApplicable as why:
            if str(why):
                notes.append(str(why))
        except Exception as error:
            row[name] = 'no'
            notes.append(f'{name}: {one_line(error)}')
            if name == 'builds':
                break
    return dict(row, note='; '.join(notes))
