"""What the hook says before it trains."""
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers import Classifier, collate, samples, train, with_trained_base
from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.dataset import (
    BaseDataset,
    ConcatDataset,
    DefaultSampler,
    InfiniteSampler,
)
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from mmpretrain.engine.hooks import PreciseBNHook
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
)

from sct_mm import (
    SSBN,
    SCTLossHook,
    SharedAffineHook,
    convert_to_ssbn,
    use_scale,
)
from sct_mm.engine.hooks.sct_loss_hook import warn_of_changes
from sct_mm.engine.sct.checks import (
    check_pipeline,
    warn_if_frozen,
    warn_of_order,
    warn_of_rare_scales,
    warn_of_re_estimates,
    warn_of_shared_norms,
    warn_of_unloaded_norms,
)
from sct_mm.engine.sct.step import check_images
from sct_mm.models.size_selection import ssbn_layers


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_instance('checks')
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    del MMLogger._instance_dict['checks']


def loader(*transforms):
    return dict(dataset=dict(pipeline=list(transforms)))


def test_the_base_scale_is_the_pipelines_size():
    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    check_pipeline(loader(resize), 800)
    check_pipeline(loader(dict(type='RandomFlip')), 800)
    check_pipeline(None, 800)
    with pytest.raises(ValueError, match='pipeline, 800 pixels, but got '
                       'scale 1024'):
        check_pipeline(loader(resize), 1024)


def test_of_several_sizes_the_largest_is_the_nominal_one(log):
    several = dict(type='RandomChoiceResize',
                   scales=[(1333, 480), (1333, 800), (1333, 640)])
    check_pipeline(loader(several), 800)
    assert '3 sizes, 800 to 480 pixels' in log.text
    assert 'The nominal scale of all is 800' in log.text
    with pytest.raises(ValueError, match='pipeline, 800 pixels'):
        check_pipeline(loader(several), 640)


def padded(*shapes):
    return [BaseDataElement(metainfo=dict(
        img_shape=shape, batch_input_shape=(96, 96))) for shape in shapes]


def test_long_images_are_narrower_than_the_scale():
    batch = dict(inputs=torch.zeros(2, 3, 96, 96),
                 data_samples=padded((50, 90), (64, 80)))
    check_images(batch, 64)
    batch['data_samples'] = padded((50, 90), (70, 80))
    with pytest.raises(ValueError, match='scale 64 and images of 70 pixel'):
        check_images(batch, 64)


def test_images_that_fill_their_batch_have_the_scale():
    check_images(dict(inputs=torch.zeros(2, 3, 64, 80)), 64)
    # A shape from before the crop does not count.
    stale = [BaseDataElement(metainfo=dict(img_shape=(300, 400)))]
    check_images(dict(inputs=torch.zeros(1, 3, 64, 64),
                        data_samples=stale), 64)
    with pytest.raises(ValueError, match='scale 80 and images of 64 pixel'):
        check_images(dict(inputs=torch.zeros(2, 3, 64, 80)), 80)


def frozen(model):
    model.train()
    for layer in ssbn_layers(model):
        layer.eval()
    return nn.ModuleList(ssbn_layers(model))


def test_frozen_equal_statistics_are_worth_a_warning(log):
    model = convert_to_ssbn(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), (16, 8))
    warn_if_frozen(nn.ModuleList(ssbn_layers(model.train())))
    assert not log.text  # they are trained
    warn_if_frozen(frozen(model))
    assert 'Set norm_eval=False and frozen_stages=-1' in log.text
    log.clear()
    model[2].running_mean[1] += 1
    warn_if_frozen(frozen(model))
    assert not log.text  # as from a checkpoint trained at several scales
    warn_if_frozen(nn.ModuleList())
    warn_if_frozen(frozen(SSBN(3, (16, 8), track_running_stats=False)))
    assert not log.text


def test_the_extent_of_an_image_of_the_scale_is_recorded():
    """A detector's batch of 64 is 96 high: its maps stand for 64."""
    layer = SSBN(3, (64, 32))
    for scale, edge in ((64, 96), (64, 64), (32, 48)):
        with use_scale(layer, scale, record=True, edge=edge):
            layer(torch.rand(2, 3, edge // 4, 40))
    assert layer.extents == {64: [16, 16], 32: [8, 8]}
    assert layer.pin.ratio == 1


@pytest.mark.parametrize('edge', [85, 107, 127, 128, 151, 192])
def test_the_base_is_found_whatever_batch_was_recorded(edge):
    """A stride halves odd edges, and the grid behind RoIAlign has one size."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=2, padding=3), SSBN(4, (128, 96)),
        nn.AdaptiveAvgPool2d(14), SSBN(4, (128, 96))).eval()
    for size, shorter in ((128, edge), (96, 96)):
        with use_scale(model, size, record=True, edge=shorter):
            model(torch.rand(2, 3, shorter, 200))
    model[1].row(96)['bias'].data += 1
    model[3].row(96)['bias'].data += 1
    x = torch.rand(2, 3, 128, 200)
    with use_scale(model, 128):
        want = model(x)
    assert torch.equal(model(x), want)


def test_norms_without_rows_beside_ssbn_are_told(log):
    model = nn.Sequential(SSBN(3, (16, 8)), nn.BatchNorm2d(3))
    warn_of_shared_norms(model)
    assert '1 layers of batch normalization beside SSBN, such as 1' in log.text
    log.clear()
    warn_of_shared_norms(model[:1])
    warn_of_shared_norms(model[1:])  # SCT with shared normalization
    assert not log.text


def attached(steps=9, **options):
    """A hook on a classifier of two scales, with trained statistics."""
    hook = SCTLossHook(**options)
    hook.attach(with_trained_base(Classifier(lambda c: SSBN(c, (16, 8)))),
                steps=steps if options.get('progressive') else 0)
    return hook


def saved(tmp_path, hooks=(), **options):
    """What a checkpoint of a run records, read back."""
    checkpoint = {}
    attached(**options).before_save_checkpoint(SimpleNamespace(hooks=hooks),
                                               checkpoint)
    torch.save(checkpoint, tmp_path / 'a.pth')
    return torch.load(tmp_path / 'a.pth', weights_only=True)['sct_schedule']


def test_a_run_that_goes_on_with_another_schedule(log, tmp_path):
    def changes(before, hooks=(), **options):
        now = saved(tmp_path, hooks, **options)
        log.clear()  # of how it was built
        warn_of_changes(before, now)
        assert len(log.records) == bool(log.text)
        return log.text

    def first(**options):
        return saved(tmp_path, **options)

    small = dict(scales_per_step=1, progressive=0.5)
    assert not changes(first(seed=3, distill=True), seed=3, distill=True)
    assert not changes(first(adapt=True), adapt=True)
    assert not changes({}, seed=3)  # an older checkpoint
    assert not changes(first(), scales_per_step=2)  # all of them
    assert not changes(first(**small), **small)
    assert 'steps=18, which was 9. Set' in changes(first(**small), steps=18,
                                                   **small)
    text = changes(first(seed=3), loss_weights=(1, 2), distill='larger')
    for change in ('seed=0, which was 3', "distill=Distill(teachers='larger'",
                   'weights={16: 1.0, 8: 2.0}, which was {16: 0.5, 8: 0.5}'):
        assert change in text
    assert 'SharedAffineHook=False, which was True' in changes(
        first(hooks=[SharedAffineHook()]))
    assert not changes(first(backward='joint'))  # the same gradients
    assert "backward='per_scale', which was 'joint'" in changes(
        first(backward='joint', distill='ensemble'), distill='ensemble')
    assert "adapt='labels', which was False" in changes(first(),
                                                        adapt='labels')
    assert 'antialias' in changes(first(), batch_transform=dict(
        type='MultiScaleBatch', antialias=False))


def test_a_schedule_that_an_earlier_version_recorded(log, tmp_path):
    """By the names of the hook's arguments: what both have is compared."""
    before = dict(scales='None', loss_weights='None', scales_per_step='None',
                  partition='False', between='0.5', progressive='0.0',
                  size_divisor='1', adapt='False', distill='None', seed='0',
                  batch_transform="{'type': 'MultiScaleBatch'}",
                  SharedAffineHook='False')
    now = saved(tmp_path, between=0.5)
    log.clear()
    warn_of_changes(before, now)
    assert not log.text
    warn_of_changes(dict(before, seed='3', between='0.0'), now)
    assert 'seed=0, which was 3; between=0.5, which was 0.0. Set' in log.text


@pytest.mark.parametrize('resumes', [True, False])
def test_a_run_compares_what_it_resumes_from(resumes, tmp_path):
    train(tmp_path / 'a', 1, hooks=[SCTLossHook(seed=3)])
    with mock.patch('sct_mm.engine.hooks.sct_loss_hook.print_log') as log:
        train(tmp_path / 'b', 2, hooks=[SCTLossHook()], resume=resumes,
              load_from=str(tmp_path / 'a' / 'epoch_1.pth'))
    assert ('seed=0, which was 3' in str(log.mock_calls)) == resumes


@pytest.mark.parametrize('options, steps, rare', [
    (dict(scales_per_step=1, loss_weights=(1, 1, 1e-3)), 1000, 8),
    (dict(scales_per_step=2, loss_weights=(1, 1e-3, 1)), 500, 12),
    (dict(scales_per_step=1, progressive=1.0), 10, 16),
    (dict(scales_per_step=1, progressive=0.5), 10, None),
    (dict(scales_per_step=1), 10, None), (dict(), 1, None)])
def test_a_scale_that_hardly_a_step_trains(options, steps, rare, log):
    hook = SCTLossHook(**options)
    hook.attach(Classifier(), steps=steps)
    warn_of_rare_scales(hook.sct.schedule, steps)
    assert (f'scale {rare} is drawn in less than one of the {steps} steps'
            in log.text) == (rare is not None)
    assert rare is not None or 'is drawn in less' not in log.text


@pytest.mark.parametrize('sampler, text', [
    (SequentialSampler, 'gives images without shuffling'),
    (partial(DefaultSampler, shuffle=False), 'DefaultSampler gives images w'),
    (partial(InfiniteSampler, shuffle=False), 'Set shuffle=True, or train'),
    (partial(MultiSourceSampler, batch_size=4, source_ratio=[1, 1]),
     'gives each source the same place'),
    (DefaultSampler, None), (InfiniteSampler, None), (RandomSampler, None)])
def test_a_divided_batch_whose_images_keep_their_places(sampler, text, log):
    part = BaseDataset(serialize_data=False, lazy_init=True)
    part.data_list, part._fully_initialized = [{}] * 8, True
    data = ConcatDataset([part, part])
    chosen = sampler(data)
    for loader in (DataLoader(data, 4, sampler=chosen), DataLoader(
            data, batch_sampler=BatchSampler(chosen, 4, False))):
        log.clear()
        warn_of_order(loader)
        assert (text in log.text) if text else not log.text
    assert text is None or 'trained at one scale alone' in log.text


def test_batches_that_draw_images_themselves_keep_no_places(log):
    batches = [[2, 0], [1, 3]]
    warn_of_order(DataLoader(range(4), batch_sampler=batches))
    assert not log.text
    warn_of_order(DataLoader(range(4), batch_size=None))
    assert 'SequentialSampler gives images without shuffling' in log.text


def test_a_hook_that_re_estimates_the_base_alone(log):
    hooks = [EMAHook(), PreciseBNHook()]
    for model in (nn.BatchNorm2d(3), SSBN(3, (16, ))):
        warn_of_re_estimates(model, hooks)
    warn_of_re_estimates(SSBN(3, (16, 8)), hooks[:1])
    assert not log.text
    warn_of_re_estimates(SSBN(3, (16, 8)), hooks)
    assert 'PreciseBNHook re-estimates the statistics of the base' in log.text


def test_a_run_warns_of_its_loader_and_hooks(tmp_path):
    loader = dict(batch_size=8, dataset=samples(), collate_fn=collate,
                  sampler=dict(type='DefaultSampler', shuffle=False))
    with mock.patch('sct_mm.engine.sct.checks.print_log') as log:
        train(tmp_path / 'a', 1, hooks=[SCTLossHook(partition=True),
                                        PreciseBNHook(num_samples=8)],
              train_dataloader=loader)
    said = str(log.mock_calls)
    assert 'PreciseBNHook re-est' in said and 'without shuffling' in said
    with mock.patch('sct_mm.engine.sct.checks.print_log') as log:
        train(tmp_path / 'b', 1, hooks=[SCTLossHook()],
              train_dataloader=loader)
    assert 'without shuffling' not in str(log.mock_calls)


def test_a_pretrained_backbone_whose_norms_were_not_loaded(log):
    """mmaction2's ResNet copies tensors of equal shapes, which SSBN's are
    not."""
    backbone = nn.Sequential(nn.Conv2d(3, 3, 1), SSBN(3, (16, 8)))
    warn_of_unloaded_norms(backbone)
    backbone.pretrained = 'torchvision://resnet50'
    warn_of_unloaded_norms(nn.Sequential(backbone))
    assert 'without its normalization' in log.text
    log.clear()
    with torch.no_grad():
        backbone[1].running_mean += 1
    warn_of_unloaded_norms(backbone)
    assert not log.text
