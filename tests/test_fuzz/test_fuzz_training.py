"""Odd arguments of MultiScaleBatch and SCTLossHook, and odd batches."""
import torch
from conftest import SCALES
from helpers import Classifier, grads, with_trained_base
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import TRANSFORMS
from odd import (
    assert_unpinned,
    attempt,
    cases,
    counts,  # noqa: F401
    options,
    state_of,
)
from odd_batches import BATCHES, batch_of
from torch import nn
from torchvision.transforms.v2 import functional as tv

from sct_mm import SSBN, MultiScaleBatch, SCTLossHook, use_scale
from sct_mm.datasets.batch_forms import views_of


def untouched(batch):
    """Whether ``batch`` is still what it is now."""
    inputs, samples = batch.get('inputs'), batch.get('data_samples')
    before = inputs.clone() if isinstance(inputs, torch.Tensor) else None
    text = repr(samples) if isinstance(samples, list) else ''
    return lambda: (before is None or torch.equal(inputs, before)) and (
        not text or repr(samples) == text)


@given(options=options(
    scale=[8, 12, 20], base_scale=[16], size_divisor=[1, 8, 32],
    pad_value=[0, 0.5], seg_pad_value=[255], interpolation=['nearest'],
    antialias=[True, False]), batch=BATCHES)
@cases(500, 2500)
def test_a_batch_is_resized_or_refused(options, batch):
    options = {'scale': 8, 'base_scale': 16, **options}
    transform = attempt(lambda: MultiScaleBatch(**options))
    if transform is None or max(transform.scale, transform.size_divisor) > 64:
        return
    n, kind, size = batch['n'], batch['odd'][0], batch['size']
    made = batch_of(**batch)
    unchanged = untouched(made)
    result = attempt(lambda: transform.transform(made))
    assert unchanged()
    if result is None or transform.scale == transform.base_scale:
        return
    factor = transform.scale / transform.base_scale
    for inputs, before in zip(views_of(result), views_of(made), strict=True):
        assert inputs.dtype == before.dtype and inputs.isfinite().all()
        assert len(inputs) == len(before)
        shape = [max(int(edge * factor + 0.5), 1)
                 for edge in before.shape[-2:]]
        if kind in ('plain', 'boxes') and batch['form'] != 'odd inputs':
            content = inputs[..., :shape[0], :shape[1]]
            assert [-(-edge // transform.size_divisor) * transform.size_divisor
                    for edge in shape] == list(inputs.shape[-2:])
            if transform.antialias and inputs.dtype == torch.float32:
                torch.testing.assert_close(content, tv.resize(
                    before, shape, antialias=True))
    samples = result.get('data_samples')
    if kind == 'boxes' and samples and len(samples) == n:
        old, new = (s[-1].gt_instances.bboxes for s in (
            made['data_samples'], samples))
        by = [max(int(edge * factor + 0.5), 1) / edge
              for edge in size[::-1]] * 2
        torch.testing.assert_close(
            new.double(), old.double() * torch.tensor(by).double(),
            rtol=1e-3, atol=1e-3)


def by_hand(model, batch, weights):
    """The gradients of the weighted losses, scale by scale."""
    inputs = batch['inputs']
    if not isinstance(inputs, torch.Tensor):  # which the network does not take
        return model(inputs, batch.get('data_samples'), 'loss')
    inputs = inputs.detach()
    shape = inputs.shape[-2:]
    for scale, weight in weights.items():
        sizes = [int(edge * scale / 16 + 0.5) for edge in shape]
        part = inputs if scale == 16 else tv.resize(inputs, sizes,
                                                    antialias=True)
        with use_scale(model, scale):
            loss = model(part, batch.get('data_samples'), 'loss')['loss']
        (loss * weight).backward()


def one_step(model, batch):
    losses = model(**batch, mode='loss')
    losses['loss'].backward()
    return losses


def check_step(model, before, losses, at_scales):
    """What one step may leave behind; the scales that it ran, if it ran
    ``at_scales`` alone."""
    ran = {int(name[1:].partition('/')[0]) for name in losses
           if name.endswith('/total')}
    assert losses['loss'].isfinite() and ran
    assert all(p.grad is None or p.grad.isfinite().all()
               for p in model.parameters())
    assert_unpinned(model)
    for name, layer in model.named_modules():
        if isinstance(layer, SSBN) and at_scales:
            for i, scale in enumerate(layer.scales):
                steps = layer.num_batches_tracked[i] - before[
                    f'{name}.num_batches_tracked'][i]
                same = torch.equal(layer.running_mean[i],
                                   before[f'{name}.running_mean'][i])
                assert steps == (scale in ran) and same == (scale not in ran)
    return ran


def run_step(model, plain, batch, weights, at_scales):
    """A step on an odd batch; ``plain`` is the model without the hook, and
    the loss has ``weights`` where they are known."""
    made = {str(k): v for k, v in batch_of(**batch).items()}
    plain.load_state_dict(model.state_dict())
    model.zero_grad()
    before, unchanged = state_of(model), untouched(made)
    losses = attempt(lambda: one_step(model, made), model,
                     lambda: by_hand(plain, made, {16: 1}))
    assert unchanged()
    if losses is None:
        return
    ran = check_step(model, before, losses, at_scales)
    if weights and batch['odd'][0] == 'plain' and ran == set(SCALES):
        plain.zero_grad()
        by_hand(plain, made, dict(zip(SCALES, map(float, weights),
                                      strict=True)))
        torch.testing.assert_close(grads(model), grads(plain))


OPTIONS = st.one_of(
    st.fixed_dictionaries({}, optional=dict(
        loss_weights=st.sampled_from([(0.5, 0.3, 0.2), (1, 1, 0)]),
        backward=st.sampled_from(['joint', 'per_scale']))),
    options(
        scales=[None, SCALES], loss_weights=[None, (0.5, 0.3, 0.2)],
        backward=['joint', 'per_scale'], scales_per_step=[1, 2, 3],
        partition=[True], between=[0.5, 1], progressive=[0.5, 1],
        size_divisor=[1, 3], recipe=['any-size', 'paper'],
        shared_affine=[True, False],
        adapt=[True, 'labels'], distill=[True, 'ensemble'],
        distill_weight=[0, 2], temperature=[1, 4], seed=[1, 2**40],
        check_finite=[True, False],
        batch_transform=[dict(type='MultiScaleBatch', antialias=False),
                         dict(type='MultiScaleBatch', pad_value=1)]))


@given(options=OPTIONS, batches=st.tuples(BATCHES, BATCHES),
       step=st.integers(0, 2**40),
       norm=st.sampled_from([lambda c: SSBN(c, SCALES)] * 5 + [
           nn.BatchNorm2d, lambda c: SSBN(c, (16, ))]))
@cases(250, 1800)
def test_a_step_is_the_sct_loss_or_refused(options, batches, step, norm):
    model = with_trained_base(Classifier(norm))
    hook = attempt(lambda: SCTLossHook(**options))
    if hook is None:
        return
    plain = Classifier(norm)  # a copy would share the record
    attached = attempt(lambda: hook.attach(model, steps=9) or True, model,
                       lambda: build_transform(options['batch_transform']))
    if attached:
        hook.step = step
    weights = None
    if set(options) <= {'backward', 'seed', 'check_finite', 'loss_weights'}:
        weights = options.get('loss_weights') or (1 / 3, ) * 3
    for batch in batches if attached else ():
        run_step(model, plain, batch, weights, 'between' not in options)
        hook.sct.restore()  # as after an optimizer step
    hook.detach()
    assert not (model._forward_hooks or model._forward_pre_hooks)
    assert_unpinned(model)


def build_transform(config):
    TRANSFORMS.build(dict(config, scale=16, base_scale=16))
