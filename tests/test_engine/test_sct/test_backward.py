"""backward='per_scale' against 'joint', through mmengine's train_step."""
import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import batch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SCTLossHook

pytestmark = pytest.mark.usefixtures('double_precision')


def checkpointed_net():
    from mmpretrain.models import ResNet_CIFAR

    class Last(nn.Module):
        def forward(self, maps):
            return maps[-1].mean((2, 3))

    model = TinyModel(nn.Identity)
    model.net = nn.Sequential(
        ResNet_CIFAR(18, base_channels=4, stem_channels=4, with_cp=True,
                     norm_cfg=dict(type='SSBN', scales=SCALES)),
        Last(), nn.Linear(32, 5))
    return model


def frozen_net():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    for layer in model.net[:2]:
        layer.eval().requires_grad_(False)
    return model


def trained(backward, make=lambda: TinyModel(lambda c: SSBN(c, SCALES)),
            wrapper=OptimWrapper, compile=None, scaled=None, hook=(),
            **options):
    """Four steps of SGD: parameters, buffers, and what each step logged."""
    torch.manual_seed(0)
    model = make().train()
    if make is frozen_net:
        model.net[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if wrapper is not OptimWrapper:
        options.update(scaled=scaled)
    optim = wrapper(optimizer=optimizer, **options)
    sct = SCTLossHook(backward=backward, **dict(hook))
    sct.attach(model, getattr(optim, 'loss_scaler', None))
    step = model.train_step
    if compile:
        step = torch.compile(step, **compile)
    optim.initialize_count_status(model, 0, 4)
    logs = []
    for i in range(4):
        sct.step = i
        logs.append(step(batch(seed=i), optim))
    return model.state_dict(), logs


REGIMES = dict(
    plain=dict(),
    weights=dict(hook=dict(loss_weights=(2., 1., .5))),
    partition=dict(hook=dict(partition=True)),
    two_scales_a_step=dict(hook=dict(scales_per_step=2)),
    one_scale_a_step=dict(hook=dict(scales_per_step=1)),
    between=dict(hook=dict(between=0.6)),
    accumulation=dict(accumulative_counts=2),
    clipping=dict(clip_grad=dict(max_norm=0.1)),
    checkpointing=dict(make=checkpointed_net),
    frozen_stages=dict(make=frozen_net))


@pytest.mark.parametrize('regime', REGIMES)
def test_both_backwards_train_alike(regime):
    options = REGIMES[regime]
    joint, joint_logs = trained('joint', **options)
    ours, logs = trained('per_scale', **options)
    assert_close(ours, joint)
    assert_close(logs, joint_logs)


def test_gradients_at_hand_are_added_to_and_survive_an_error():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    before = [torch.randn_like(p) for p in model.parameters()]
    for p, grad in zip(model.parameters(), before, strict=True):
        p.grad = grad.clone()
    SCTLossHook().attach(model)
    data = batch()
    loss = model(**data, mode='loss')['loss']
    assert_close([p.grad for p in model.parameters()], before)
    loss.backward()
    after = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match='was differentiated before'):
        loss.backward()

    def fail(module, args):
        if args[0].shape[-1] == SCALES[1]:
            raise OSError

    model.net.register_forward_pre_hook(fail)
    with pytest.raises(OSError):
        model(**data, mode='loss')
    assert_close([p.grad for p in model.parameters()], after)


def test_hooks_on_gradients_are_refused():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    next(model.parameters()).register_hook(lambda grad: grad * 2)
    SCTLossHook().attach(model)
    with pytest.raises(RuntimeError, match="Set backward='joint'"):
        model(**batch(), mode='loss')


def test_compiled_scale_by_scale():
    graphs = []

    def recording(graph, inputs):
        graphs.append(str(graph.code))
        return graph.forward

    torch.compiler.reset()
    joint, joint_logs = trained('joint')
    ours, logs = trained('per_scale', compile=dict(backend=recording))
    assert_close(ours, joint)
    assert_close(logs, joint_logs)
    assert sum(g.count('conv2d(') for g in graphs) >= 2 * len(SCALES)
    assert len(graphs) < 40  # in the first steps, not in each
