"""What the hook says before it trains."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from torch import nn

from sct_mm import (
    SSBN,
    SCTLossHook,
    SharedAffineHook,
    convert_to_ssbn,
    use_scale,
)
from sct_mm.engine.sct.checks import (
    check_images,
    check_pipeline,
    warn_if_frozen,
    warn_of_shared_norms,
)
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


def test_norms_without_rows_beside_ssbn_are_told(log):
    model = nn.Sequential(SSBN(3, (16, 8)), nn.BatchNorm2d(3))
    warn_of_shared_norms(model)
    assert '1 layers of batch normalization beside SSBN, such as 1' in log.text
    log.clear()
    warn_of_shared_norms(model[:1])
    warn_of_shared_norms(model[1:])  # SCT with shared normalization
    assert not log.text


def test_a_run_that_goes_on_with_another_schedule(log, tmp_path):
    def saved(steps=9, hooks=(), **options):
        checkpoint = {}
        SCTLossHook(**options).before_save_checkpoint(
            SimpleNamespace(max_iters=steps, hooks=hooks), checkpoint)
        torch.save(checkpoint, tmp_path / 'a.pth')
        return torch.load(tmp_path / 'a.pth', weights_only=True)

    def resumed(checkpoint, steps=9, resume=True, **options):
        log.clear()
        SCTLossHook(**options).after_load_checkpoint(
            SimpleNamespace(max_iters=steps, hooks=(), _resume=resume),
            checkpoint)
        return log.text

    small = dict(scales_per_step=1, progressive=0.5)
    assert not resumed(saved(seed=3, distill=True), 18, seed=3, distill=True)
    assert not resumed({}, seed=3)  # an older checkpoint
    assert not resumed(saved(seed=3), resume=False)
    assert not resumed(saved(**small), **small)
    assert 'max_iters=18, which was 9. Set' in resumed(saved(**small), 18,
                                                       **small)
    text = resumed(saved(seed=3), loss_weights=(1, 2), distill='larger')
    assert len(log.records) == 1
    for change in ('seed=0, which was 3', "distill=Distill(teachers='larger'",
                   'loss_weights=(1.0, 2.0), which was None'):
        assert change in text
    assert 'SharedAffineHook=False, which was True' in resumed(
        saved(hooks=[SharedAffineHook()]))
    assert not resumed(saved(backward='joint'))  # the same gradients
    assert "backward='per_scale', which was 'joint'" in resumed(saved(
        backward='joint', distill='ensemble'), distill='ensemble')
