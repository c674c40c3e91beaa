"""What the hook refuses, and what it keeps apart."""
import copy
import logging
from unittest import mock

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import batch, ssbn_model, train, with_trained_base
from mmengine.logging import MMLogger
from mmengine.model import convert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import (
    turn_on_efficient_conv_bn_eval,
)
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import (
    SSBN,
    SCTLossHook,
    SyncSSBN,
    convert_to_ssbn,
    extract_scale,
    use_scale,
)
from sct_mm.engine.sct.monitor import FiniteLosses
from sct_mm.engine.sct.schedule import check_loss_weights
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.models.weight_change import changed_layers


def test_scales_that_contradict_the_norm():
    with pytest.raises(ValueError, match=r'\(16, 12, 8\), but got \(16, 8\)'):
        SCTLossHook(scales=(8, 16)).attach(ssbn_model())


def test_model_without_ssbn(caplog):
    model = TinyModel(nn.BatchNorm2d)
    with pytest.raises(ValueError, match='TinyModel has none'):
        SCTLossHook().attach(model)
    with caplog.at_level(logging.WARNING):
        SCTLossHook(scales=SCALES).attach(model)
    assert 's8/total' in model(**batch(), mode='loss')


@pytest.mark.parametrize('convert', [
    nn.SyncBatchNorm.convert_sync_batchnorm,
    lambda model: convert_sync_batchnorm(model, 'torch')])
def test_sync_bn_is_refused(convert):
    model = convert(ssbn_model())
    with pytest.raises(RuntimeError, match='`sync_bn` replaces .*SyncSSBN'):
        SCTLossHook().attach(model)
    SCTLossHook().attach(TinyModel(lambda c: SyncSSBN(c, SCALES)))


def test_a_sync_norm_that_is_none_of_torchs_is_refused():
    class Synced(nn.Module):  # as mmcv's, which needs several processes
        def __init__(self, norm):
            super().__init__()
            self.num_features, self.weight = norm.num_features, norm.weight
            self.register_buffer('running_mean', norm.running_mean)

    with pytest.raises(RuntimeError, match='SyncSSBN'):
        SCTLossHook().attach(TinyModel(lambda c: Synced(SSBN(c, SCALES))))


def test_images_of_another_size():
    model = ssbn_model()
    SCTLossHook().attach(model)
    with pytest.raises(ValueError, match='scale 16 and images of 14'):
        model(**batch(size=14), mode='loss')
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))


@pytest.mark.parametrize('weights', [(1, 1), (0, 0, 0)])
def test_bad_loss_weights(weights):
    with pytest.raises(ValueError, match='one finite number >= 0 per scale'):
        check_loss_weights(weights, SCALES)


@pytest.mark.parametrize('scale, options', [
    (8, dict(scales_per_step=1, loss_weights=(1, 1, 0))),
    (12, dict(scales_per_step=2, loss_weights=(1, 0, 1))),
    (16, dict(scales_per_step=1, loss_weights=(0, 1, 1))),
    (16, dict(scales_per_step=1, loss_weights=(0, 1, 1), progressive=0.5)),
    (8, dict(scales_per_step=1, loss_weights=(1, 1, 0), between=0.5)),
    (8, dict(scales_per_step=1, loss_weights=(1, 1, 0), adapt=True))])
def test_a_scale_without_statistics_that_no_step_trains(scale, options):
    model = ssbn_model()
    if 'adapt' in options:  # it wants a base that was trained
        with use_scale(model, 16), torch.no_grad():
            model(batch()['inputs'])
    with pytest.raises(ValueError, match=f'got 0 for scale {scale}, which'):
        SCTLossHook(**options).attach(model, steps=10)
    assert not model._forward_hooks
    SCTLossHook(**options).attach(with_trained_base(model), steps=10)


@pytest.mark.parametrize('options', [
    dict(loss_weights=(1, 0, 1)), dict(scales_per_step=2),
    dict(loss_weights=(0, 1, 1), scales_per_step=1, between=0.5),
    dict(loss_weights=(1, 0, 1), scales_per_step=2, between=0.5),
    dict(loss_weights=(0, 1, 1), scales_per_step=2)])
def test_a_scale_that_some_step_trains(options):
    model = ssbn_model()
    hook = SCTLossHook(**options)
    hook.attach(model)
    expected = hook.sct.schedule.expected(60)
    for _ in range(60):
        model(**batch(n=4), mode='loss')['loss'].backward()
    counts = model.net[1].num_batches_tracked.tolist()
    assert all(counts) and all(expected.values())
    if not hook.between:
        for count, number in zip(counts, expected.values(), strict=True):
            assert abs(count - number) <= 8


def test_ddp_with_a_static_graph_needs_joint(tmp_path):
    model = ssbn_model()
    model.static_graph = True  # as DistributedDataParallel has it
    with pytest.raises(ValueError, match="Set backward='joint'"):
        train(tmp_path / 'a', 1, model, [SCTLossHook()])
    train(tmp_path / 'b', 1, model, [SCTLossHook(backward='joint')])


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class OfKnownLayers(DefaultOptimWrapperConstructor):
    """As mmyolo's YOLOv5OptimizerConstructor."""

    def add_params(self, params, module, **kwargs):
        params += [dict(params=[value]) for layer in module.modules()
                   for name in ('weight', 'bias')
                   if (value := getattr(layer, name, None)) is not None]


@pytest.mark.parametrize('adapt', [True, False])
def test_changes_of_weights_that_the_optimizer_lacks(tmp_path, adapt):
    def run(name, **options):
        model = with_trained_base(ssbn_model())
        convert_to_ssbn(model, SCALES, rank=1)
        train(tmp_path / name, 1, model, [SCTLossHook(adapt=adapt)],
              optim_wrapper=dict(**options, optimizer=dict(
                  type='SGD', lr=0.1)))
        return model

    with pytest.raises(ValueError, match="leaves out that of net.0. Set "
                       "constructor='DefaultOptimWrapperConstructor'"):
        run('a', constructor='OfKnownLayers',
            paramwise_cfg=dict(base_total_batch_size=64))
    assert all(any(change.any() for change in layer.changes[:1])
               for layer in changed_layers(run('b')))


@pytest.mark.parametrize('options, error, match', [
    (dict(backward='twice'), ValueError, "`backward` .* but got 'twice'"),
    (dict(loss_weights=(1, 'a')), TypeError, "`loss_weights` .* got 'a'"),
    (dict(loss_weights=(1, -1)), ValueError, '`loss_weights` .* got -1'),
    (dict(loss_weights=(1, float('nan'))), ValueError, '`loss_weights` .*nan'),
    (dict(loss_weights=1.), TypeError, '`loss_weights` must be a tuple'),
    (dict(batch_transform=5), TypeError, '`batch_transform` .* but got 5'),
    (dict(batch_transform=dict(type='MultiScaleBatch', scale=3)), ValueError,
     '`batch_transform` must leave scale'),
    (dict(seed='x'), TypeError, "`seed` must be an int, but got 'x'"),
    (dict(partition='yes'), TypeError, "`partition` must be True or False"),
    (dict(check_finite=1), TypeError, '`check_finite`'),
    (dict(scales_per_step='2'), TypeError, '`scales_per_step`'),
    (dict(scales_per_step=0), ValueError, '`scales_per_step`'),
    (dict(scales_per_step=1, partition=True), ValueError,
     '`partition` divides .* but got scales_per_step=1'),
    (dict(norm_eval=True), ValueError, '`norm_eval` must be False'),
    (dict(adapt=True, norm_eval=1), TypeError, '`norm_eval`'),
    (dict(progressive=0.5), ValueError, '`progressive` .* but got a schedule '
     'that trains the base in each step'),
    (dict(progressive=0.5, scales_per_step=2), ValueError, '`progressive`'),
    (dict(progressive=0.5, scales_per_step=1, adapt=True), ValueError,
     'but got adapt=True'),
    (dict(progressive=50, partition=True), ValueError, '`progressive` .* 50'),
    (dict(scales=16), TypeError, '`scales` must be a tuple of ints')])
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        SCTLossHook(**options)


class Tuple(TinyModel):
    """Takes views in a list, as self-supervised models do."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        u, v = (self.net(view) for view in inputs)
        return dict(loss=(u - v).pow(2).mean())


@pytest.mark.parametrize('schedule', [{}, dict(partition=True),
                                      dict(scales_per_step=2),
                                      dict(scales_per_step=1)])
@pytest.mark.parametrize('inputs, samples, match', [
    ([torch.rand(8, 3, 16, 16)] * 2, None, 'but got a list'),
    (dict(sup=torch.rand(8, 3, 16, 16)), dict(sup=[]), 'but got a dict'),
    (torch.rand(8, 3, 16, 16), dict(sup=[]), 'must be a list, but got a di')])
def test_views_and_dicts_change_nothing(inputs, samples, match, schedule):
    model = Tuple(lambda c: SSBN(c, SCALES))
    SCTLossHook(**schedule).attach(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(TypeError, match=match):
        model(inputs=inputs, data_samples=samples, mode='loss')
    assert_close(model.state_dict(), before, rtol=0, atol=0)


class Writes(TinyModel):
    """A host that writes into what it is given while it computes."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if torch.is_grad_enabled():  # not where extents are recorded
            self.seen.append([int(s.gt_label) for s in data_samples])
            self.edges.append(float(inputs.sum()))
        inputs.mul_(0.5)
        losses = super().forward(inputs, data_samples, mode)
        for sample in data_samples:
            sample.gt_label.zero_()
            del sample.gt_label
        return losses


@pytest.mark.parametrize('schedule', [{}, dict(backward='joint'),
                                      dict(scales_per_step=2),
                                      dict(scales_per_step=1)])
def test_each_scale_sees_what_the_pipeline_made(schedule):
    model = Writes(lambda c: SSBN(c, SCALES)).double()
    model.seen, model.edges = [], []
    SCTLossHook(**schedule).attach(model)
    data = batch()
    data['inputs'] = data['inputs'].double()
    want = [float(s.gt_label) for s in data['data_samples']]
    edges = [tv.resize(data['inputs'], [s, s], antialias=True).sum().item()
             for s in SCALES]
    for sample in data['data_samples']:
        sample.gt_label = torch.tensor(sample.gt_label)
    model(**data, mode='loss')
    assert len(model.seen) == schedule.get('scales_per_step', 3)
    assert all(seen == want for seen in model.seen)
    assert all(min(abs(e - other) for other in edges) < 1e-9
               for e in model.edges)


class Breaks(TinyModel):
    """A loss that is not finite, or a pass that raises, at 8 pixels."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        if inputs.shape[-1] == 8 and self.error:
            raise self.error
        if inputs.shape[-1] == 8:
            losses['loss'] = losses['loss'] / 0
        return losses


@pytest.mark.parametrize('schedule', [{}, dict(backward='joint'),
                                      dict(partition=True)])
def test_a_loss_that_is_not_finite_stops_with_scale_and_step(schedule):
    model = Breaks(lambda c: SSBN(c, SCALES))
    model.error = None
    hook = SCTLossHook(**schedule)
    hook.attach(model)
    hook.step = 7
    with pytest.raises(RuntimeError, match='loss of scale 8 is NaN or inf at '
                       'step 7'):
        model(**batch(), mode='loss')
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))
    hook.detach()
    hook = SCTLossHook(check_finite=False, **schedule)
    hook.attach(model)
    assert model(**batch(), mode='loss')['loss'].isinf()


def test_on_a_gpu_it_is_told_when_one_waits_for_it():
    """The same sums, on a device that this test calls no CPU."""
    class Device:
        type = 'elsewhere'

    finite = FiniteLosses()
    for step, value in enumerate([1., 2., float('nan'), 3., float('inf')]):
        for scale in (16, 8):
            loss = mock.Mock(device=Device, detach=lambda v=value, s=scale:
                             torch.tensor(v if s == 8 else 1.))
            finite.watch(loss, f'scale {scale}', step)
    with pytest.raises(RuntimeError, match='scale 8 is NaN or inf at step 2'):
        finite.settle()
    finite.settle()


@pytest.mark.parametrize('error, match', [
    (ValueError('mine'), r'mine \(in the pass of SCTLossHook at scale 8\)'),
    (torch.OutOfMemoryError('full'), r'full .*at scale 8\)$'),
    (RuntimeError('`a` is 3. Set 2.'), r'Set 2. .*at scale 8\)$'),
    (RuntimeError('a (3) must match b (4)'), r'at scale 8\). If the host .*, '
     'leave scale 8 out of `scales`.'),
    (AssertionError(), r'^\(in the pass .*leave scale 8 out')])
def test_a_pass_that_raises_names_its_scale(error, match):
    model = Breaks(lambda c: SSBN(c, SCALES))
    model.error = error
    SCTLossHook().attach(model)
    with pytest.raises(type(error), match=match):
        model(**batch(), mode='loss')


def test_a_lost_default_of_the_host_is_told(caplog):
    logger = MMLogger.get_instance('lost')
    logger.addHandler(caplog.handler)

    def told(kind='SSBN', **norm_cfg):
        caplog.clear()
        model = dict(
            type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.1,
            norm_cfg=dict(norm_cfg, type=kind))
        if kind == 'SSBN':
            model['norm_cfg']['scales'] = SCALES
        else:  # as the host builds it
            model = dict(type='WithSSBN', scales=SCALES, model=model)
        SCTLossHook().attach(MODELS.build(model))
        return caplog.text

    try:
        text = told()
        assert 'eps=0.001 in its own norm_cfg, but SSBN has eps=1e-05' in text
        assert 'momentum=0.03 in its own' in text and 'WithSSBN' in text
        assert 'momentum' not in told(momentum=0.03)
        assert 'norm_cfg' not in told(momentum=0.03, eps=1e-3)
        assert 'norm_cfg' not in told('BN')
    finally:
        logger.removeHandler(caplog.handler)
        del MMLogger._instance_dict['lost']


def test_what_reads_the_tensors_of_bn_is_refused():
    from mmcv.cnn import ConvModule
    net = ConvModule(3, 4, 3, norm_cfg=dict(type='SSBN', scales=SCALES))
    net.turn_on_efficient_conv_bn_eval()
    with pytest.raises(ValueError, match='efficient_conv_bn_eval.*ConvModul'):
        SCTLossHook().attach(net)
    with pytest.raises(RuntimeError, match='efficient_conv_bn_eval.*those of '
                       r'\(16, .*Remove it from the config'):
        turn_on_efficient_conv_bn_eval(ssbn_model(), 'net')


def test_a_second_hook_is_refused():
    model = ssbn_model()
    first = SCTLossHook()
    first.attach(model)
    with pytest.raises(RuntimeError, match='has a SCTLossHook already'):
        SCTLossHook().attach(model)
    first.detach()
    SCTLossHook().attach(model)


def test_images_that_require_gradients():
    model = ssbn_model()
    data = batch()
    data['inputs'].requires_grad_()
    hook = SCTLossHook()
    hook.attach(model)
    with pytest.raises(ValueError, match="Set backward='joint'"):
        model(**data, mode='loss')
    hook.detach()
    SCTLossHook(backward='joint').attach(model)
    model(**data, mode='loss')['loss'].backward()
    assert data['inputs'].grad.abs().sum() > 0


def test_without_gradients_it_is_the_hosts_own_loss():
    model = ssbn_model()
    SCTLossHook().attach(model)
    with torch.no_grad():
        assert set(model(**batch(), mode='loss')) == {'loss', 'accuracy'}


def test_on_a_copy_and_on_what_was_extracted_it_rests():
    model = ssbn_model()
    SCTLossHook().attach(model)
    for other in (copy.deepcopy(model), extract_scale(model, 8)):
        assert set(other(**batch(), mode='loss')) == {'loss', 'accuracy'}
    assert not extract_scale(model, 8)._forward_pre_hooks
    assert 's8/total' in model(**batch(), mode='loss')


def test_a_model_that_takes_no_samples():
    class NoSamples(TinyModel):
        def forward(self, inputs, mode='tensor'):
            return dict(loss=self.net(inputs).pow(2).mean())

    model = NoSamples(lambda c: SSBN(c, SCALES))
    SCTLossHook().attach(model)
    losses = model(inputs=torch.rand(4, 3, 16, 16), mode='loss')
    assert 's8/total' in losses
    with pytest.raises(TypeError, match='got 4 arguments'):
        model(torch.rand(4, 3, 16, 16), None, 'loss', 1)


def test_a_queue_of_earlier_images():
    """Keys of the same images at another scale are no negatives."""
    model = ssbn_model()
    model.register_buffer('queue', torch.zeros(4, 8))
    for options in (dict(), dict(scales_per_step=2), dict(between=0.5),
                    dict(partition=True)):
        with pytest.raises(ValueError, match='queue of earlier images, as '
                           'TinyModel, but .* Set scales_per_step=1'):
            SCTLossHook(**options).attach(model)
    hook = SCTLossHook(scales_per_step=1)
    hook.attach(model)
    hook.detach()
