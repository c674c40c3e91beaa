"""Models, batches and runs that several tests share."""
import torch
from conftest import SCALES, TinyModel
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from sct_mm import SSBN, EpochSeedHook, SCTLossHook
from sct_mm.models.size_selection import ssbn_layers


def ssbn_model():
    return TinyModel(lambda c: SSBN(c, SCALES))


def samples(n=8, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [dict(inputs=torch.randn(3, size, size, generator=generator),
                 data_samples=BaseDataElement(gt_label=i % 5))
            for i in range(n)]


def collate(items):
    return dict(inputs=torch.stack([i['inputs'] for i in items]),
                data_samples=[i['data_samples'] for i in items])


def batch(**options):
    return collate(samples(**options))


def train(work_dir, epochs, model=None, hooks=None, resume=False,
          **options):
    if hooks is None:
        hooks = [SCTLossHook(), EpochSeedHook(), EMAHook()]
    torch.manual_seed(0)
    runner = Runner(**{**dict(
        model=model or ssbn_model(), work_dir=str(work_dir),
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}-{resume}',
        train_dataloader=dict(
            batch_size=6, dataset=samples(), collate_fn=collate,
            sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=dict(type='StepLR', step_size=1, gamma=0.5),
        default_hooks=dict(checkpoint=dict(
            type='CheckpointHook', interval=1,
            backend_args=dict(backend='atomic_local'))),
        custom_hooks=hooks, randomness=dict(seed=7), resume=resume,
        log_level='ERROR'), **options})
    runner.train()
    return runner


class ScaledOptimWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper, which refuses a CPU, for one."""

    def __init__(self, dtype, scaled, **options):
        super().__init__(**options)
        self.dtype = dtype
        self.loss_scaler = torch.amp.GradScaler(
            'cpu', enabled=scaled, init_scale=2.0**12, growth_interval=2)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def optim_context(self, model):
        return torch.autocast('cpu', dtype=self.dtype)


def grads(model):
    return {k: p.grad for k, p in model.named_parameters()}


class Classifier(TinyModel):
    """With a ``head``, as mmpretrain's have, and the same tensors."""

    def __init__(self, norm=lambda c: SSBN(c, SCALES), **options):
        super().__init__(norm, **options)

    @property
    def head(self):
        return self.net


def classifier(head='LinearClsHead', loss=None, in_channels=32, **options):
    """A small one of mmpretrain."""
    import mmpretrain.models  # noqa: F401  it draws numbers
    torch.manual_seed(0)
    head = dict(type=head, num_classes=5, in_channels=in_channels)
    return with_trained_base(MODELS.build(dict(
        type='mmpretrain.ImageClassifier', backbone=dict(
            type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4,
            norm_cfg=dict(type='SSBN', scales=SCALES), **options),
        neck=dict(type='GlobalAveragePooling'),
        head=head if loss is None else dict(head, loss=loss))))


def labelled(n=8, **options):
    from mmpretrain.structures import DataSample
    return dict(batch(n=n, **options), data_samples=[
        DataSample().set_gt_label(i % 5) for i in range(n)])


class Dies(Hook):
    """A run that is killed in the middle of its second epoch."""

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 2:
            raise KeyboardInterrupt


def plain_net(sync=False):
    norm = nn.SyncBatchNorm if sync else nn.BatchNorm2d
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Flatten(1),
                         nn.Linear(4 * 6 * 6, 5), nn.BatchNorm1d(5))


def randomised(net):
    """``net`` with rows far apart, which the base's answers do not show."""
    for layer in ssbn_layers(net):
        for scale in layer.scales[1:]:
            row = layer.row(scale)
            row['running_var'].uniform_(0.5, 2)
            if layer.affine:
                row['weight'].data.uniform_(0.5, 2)
    return net


def with_trained_base(net):
    """``net`` as one is that loaded the checkpoint of a plain network: all
    rows alike, and not as they are built."""
    for layer in ssbn_layers(net):
        base = layer.row(layer.scales[0])
        base['running_mean'].normal_()
        base['running_var'].uniform_(0.5, 2)
        base['weight'].data.uniform_(0.5, 2)
        base['bias'].data.normal_()
        base['num_batches_tracked'].fill_(9)
        for scale in layer.scales[1:]:
            for name, value in layer.row(scale).items():
                value.data.copy_(base[name].data)
    return net


def apart(layer):
    """``layer`` with rows that are far apart."""
    with torch.no_grad():
        for value in (layer.weight, layer.running_var):
            value.uniform_(0.5, 2)
        for value in (layer.bias, layer.running_mean):
            value.uniform_(-1, 1)
    return layer


def walk(node, change):
    """Call change(dict) on every dict of a config."""
    if isinstance(node, dict):
        change(node)
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            walk(child, change)
