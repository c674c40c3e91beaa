"""adapt(): a stock network with smaller sizes, and the same base."""
import copy
import os
import os.path as osp
from pathlib import Path

import pytest
import torch
from adaptations import (
    CONFIG,
    FEW,
    SCALES,
    STOCK,
    adapt_stock,
    answers,
    folder_of,
    let_all_gain,
    module,
    rows_of,
    tensors,
)
from conftest import ROOT, become_one_of_two, meeting_place, two_processes
from fashion_det import make_fashion_det
from forks import in_two_processes
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, MODELS, init_default_scope
from torch.testing import assert_close

from sct_mm.apis import adapt, export, from_pretrained, save_pretrained
from sct_mm.engine.adapted_config import adapted_config
from sct_mm.engine.resume import find_checkpoint
from sct_mm.engine.training_images import SeededImages, drawn
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

pytestmark = [
    pytest.mark.usefixtures('all_gain'),
    # The networks are not trained.
    pytest.mark.filterwarnings('ignore:The network is sure')]


def test_smaller_rows_alone_change(stock):
    done = adapt(Path(CONFIG), Path(stock[0]), ['14:28:7'], 1, Path(stock[2]),
                 cfg_options=FEW, between=0.5, rank=0)
    hook = load_config(done['config']).custom_hooks[-1]
    # Its images are stored at the base: one resize, as in a test.
    assert hook == dict(
        type='SCTLossHook', adapt=True, between=0.5, norm_eval=hook.norm_eval,
        batch_transform=dict(type='MultiScaleBatch', interpolation='bilinear',
                             antialias=True))
    assert find_checkpoint(stock[2]) == done['checkpoint']  # not epoch_1.pth
    old, new = tensors(stock[0]), tensors(done['checkpoint'])
    shared = [name for name, value in old.items()
              if new[name].shape == value.shape]
    assert shared and all(torch.equal(new[n], old[n]) for n in shared)
    for name, (value, rows) in rows_of(old, new).items():
        assert torch.equal(rows[0], value), name
        assert not any(torch.equal(row, value) for row in rows[1:]), name
    assert done['scales'] == SCALES


def test_what_was_written_is_a_network_for_all_sizes(stock):
    done = adapt_stock(stock)
    config = load_config(done['config'])
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    model.load_state_dict(tensors(done['checkpoint']))
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(model.eval()(x), stock[1](x))  # at 28: to the bit
    smaller = x[..., :14, :14]
    assert not torch.allclose(model(smaller), stock[1](smaller))
    assert [hook['type'] for hook in config.custom_hooks][-1] == 'SCTLossHook'


def test_statistics_alone(stock):
    done = adapt_stock(stock, epochs=0)
    old, new = tensors(stock[0]), tensors(done['checkpoint'])
    for name, (value, rows) in rows_of(old, new).items():
        assert torch.equal(rows[0], value)
        assert torch.equal(rows[2], value) != ('running' in name), name
    assert sorted(os.listdir(stock[2])) == sorted(
        ['adapted.json', 'adapted.pth', 'calibrated.pth', f'adapt_{STOCK}'])
    torch.manual_seed(0)
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(answers(done, 28), stock[1](x))


def test_sizes_between_get_statistics_alone(stock):
    done = adapt_stock(stock, epochs=0, sizes=[18, 24])
    assert done['scales'] == (28, 24, 21, 18, 14)
    model = MODELS.build(load_config(done['config']).model)
    model.load_state_dict(tensors(done['checkpoint']))
    norm = model.backbone.bn1
    with torch.no_grad():
        assert torch.equal(norm.row(24)['weight'], norm.row(28)['weight'])
    mixed = (norm.row(28)['running_mean'] * 3
             + norm.row(21)['running_mean'] * 4) / 7
    assert not torch.allclose(norm.row(24)['running_mean'], mixed)


def in_process(rank, path, out, port):
    become_one_of_two(rank, port)
    let_all_gain()
    module.HeldOutImages.check_answers = lambda self: None
    adapt_stock((path, None, out), launcher='pytorch')


@two_processes
def test_two_processes(stock):
    store = meeting_place()
    in_two_processes(in_process, stock[0], stock[2], store.port)
    rows = rows_of(tensors(stock[0]),
                   tensors(osp.join(stock[2], 'adapted.pth')))
    assert rows and all(torch.equal(row[0], value)
                        for value, row in rows.values())
    assert not any(torch.equal(row[2], value) for value, row in rows.values())


@pytest.mark.parametrize('options, message', [
    (dict(epochs=-1), '`epochs` must be .* but got -1'),
    (dict(lr=-1.0), '`lr` must be .* but got -1'),
    (dict(lr=0), '`lr` must be above 0, but got 0. Leave it out'),
    (dict(sizes=[24, 21]), '`sizes` must be below .* but got 21'),
    (dict(sizes=[32]), '`sizes` must be below .* but got 32'),
    (dict(scales=(28, 27), between=0.5), 'a multiple of 1 between 28 and 27'),
])
def test_arguments_that_are_refused(stock, options, message):
    with pytest.raises(ValueError, match=message):
        adapt_stock(stock, **options)
    assert not osp.exists(stock[2])


@pytest.mark.parametrize('base', [32, 20])
def test_images_that_are_not_of_the_base(stock, base):
    """Where no transform tells, but the data set's own size."""
    options = {**FEW, 'test_dataloader.dataset.pipeline': [
        dict(type='Resize', scale=base), dict(type='PackInputs')]}
    with pytest.raises(ValueError, match=f'scale {base} and images of 28'):
        adapt(CONFIG, stock[0], (base, 14), 0, out=stock[2],
              cfg_options=options)
    assert not os.listdir(stock[2])


def test_changed_weights_are_exported_and_shared(stock, tmp_path):
    done = adapt_stock(stock)
    torch.manual_seed(0)
    x = torch.randn(4, 1, 14, 14)
    want = answers(done)
    path = str(tmp_path / 'at14.pth')
    export(done['config'], done['checkpoint'], 14, path)
    plain = copy.deepcopy(stock[1])
    plain.load_state_dict(tensors(path))
    assert_close(plain(x), want, rtol=1e-5, atol=1e-5)
    folder = str(tmp_path / 'hub')
    save_pretrained(done['config'], done['checkpoint'], folder)
    assert torch.equal(from_pretrained(folder)(x), want)


def test_a_folder_of_images_without_a_training_set(stock, tmp_path):
    options = dict(train_dataloader=None, train_cfg=None)
    done = adapt(CONFIG, stock[0], (28, 14), 1, stock[2],
                 folder_of(tmp_path / 'images', 64), cfg_options=options)
    assert done['held_out'] == 32 and done['scales'] == (28, 14)
    config = load_config(done['config'])
    assert config.train_dataloader.dataset.type == 'ImageFolder'
    assert any('change_' in name and value.any() for name, value in tensors(
        done['checkpoint']).items())


def test_fewer_images_than_a_batch_train(stock):
    done = adapt(CONFIG, stock[0], (28, 14), 1, stock[2], cfg_options={
        **FEW, 'train_dataloader.batch_size': 128,
        'train_dataloader.drop_last': True})
    assert done['held_out'] == 32 and done['steps'] == 1


def test_no_batch_has_a_single_image(stock):
    """It has no variance where a map has one pixel."""
    done = adapt(CONFIG, stock[0], (28, 4), 1, stock[2], cfg_options={
        **FEW, 'train_dataloader.dataset.indices': 65})
    assert done['held_out'] == 33 and done['steps'] == 2


def test_a_training_set_without_a_test_set(stock):
    """There is no test whose images a batch might be nearest to."""
    done = adapt(CONFIG, stock[0], (28, 14), 0, stock[2], cfg_options={
        **FEW, 'test_dataloader': None})
    hook = load_config(done['config']).custom_hooks[-1]
    assert hook.batch_transform == dict(type='MultiScaleBatch')


def test_weights_that_the_checkpoint_has_are_not_loaded_from_elsewhere(stock):
    done = adapt(CONFIG, stock[0], (28, 14), 1, stock[2], cfg_options={
        **FEW, 'model.backbone.init_cfg': dict(
            type='Pretrained', checkpoint='not/there.pth')})
    assert load_config(done['config']).model.model.backbone.init_cfg is None


def test_a_part_of_a_folder_in_another_size(stock, tmp_path):
    """The network's own training does not resize; its test does."""
    folder = folder_of(tmp_path / 'images', 70)
    options = {'train_dataloader.batch_size': 17}
    done = adapt(CONFIG, stock[0], (28, 14), 1, stock[2], folder, cfg_options={
        **options, 'train_dataloader.dataset.indices': -66})
    dataset = load_config(done['config']).train_dataloader.dataset
    assert dataset.indices == -66
    assert [each['type'] for each in dataset.pipeline] == [
        'LoadImageFromFile', 'Resize', 'PackInputs']
    assert done['steps'] == 2  # 34 of them train
    with pytest.raises(UserError, match='indices` must be -66, .* left out'):
        adapt(CONFIG, stock[0], (28, 14), 1, stock[2], folder, resume=True,
              cfg_options=options)


def test_as_many_images_as_asked_drawn_at_random(stock, monkeypatch):
    """The first ones may all be of one class."""
    seen = set()

    def get(self, index):
        seen.add(int(index))
        return getitem(self, index)

    getitem = SeededImages.__getitem__
    monkeypatch.setattr(SeededImages, '__getitem__', get)
    done = adapt_stock(stock, max_images=70)
    order = drawn(range(96)).tolist()
    assert seen == {*order[:70]}  # held out, and those of the statistics
    assert done['steps'] == 3 and done['held_out'] == 32
    sampler = DATA_SAMPLERS.build(load_config(
        done['config']).train_dataloader.sampler, default_args=dict(
            dataset=range(96)))
    assert {*sampler} == {*order[32:70]}
    with pytest.raises(UserError, match='`--max-images` must be 70, .* left'):
        adapt_stock(stock, resume=True)
    with pytest.raises(ValueError, match='max_images` must be .*64.*got 6'):
        adapt_stock(stock, max_images=6)


def test_a_folder_that_nothing_resizes(stock, tmp_path):
    with pytest.raises(UserError, match="edge of 28 pixels, .*0.png' has 40"):
        adapt(CONFIG, stock[0], (28, 14), 1, stock[2],
              folder_of(tmp_path / 'images', 66), cfg_options={
                  'test_dataloader.dataset.pipeline': [
                      dict(type='PackInputs')], 'test_base': 28})
    assert not osp.exists(stock[2])


@pytest.mark.parametrize('count, match', [
    (10, 'at least 64 images'), (0, 'must hold images')])
def test_a_folder_of_too_few_images(stock, tmp_path, count, match):
    folder = folder_of(tmp_path / 'images', count)
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    with pytest.raises(UserError, match=match):
        adapt(CONFIG, stock[0], (28, 14), 1, stock[2], folder)
    assert not osp.exists(stock[2])


def test_a_layer_whose_weight_its_head_reads_has_no_change(stock):
    from mmpretrain.models import LinearClsHead

    class ReadingHead(LinearClsHead):
        def forward(self, feats):
            return torch.nn.functional.linear(
                self.pre_logits(feats), self.fc.weight, self.fc.bias)

    MODELS.register_module('ReadingHead', force=True, module=ReadingHead)
    options = {**FEW, 'model.head.type': 'ReadingHead'}
    for resume in (False, True):
        done = adapt(CONFIG, stock[0], (28, 14), 1, stock[2], lr=0.01,
                     resume=resume, cfg_options=options)
        assert load_config(done['config']).model.unchanged == ['head.fc']
        names = [name for name in tensors(done['checkpoint'])
                 if '.change_' in name]
        assert names and not any(name.startswith('head.') for name in names)


def test_a_detector_needs_labels(detector, tmp_path):
    config, path, options = detector
    with pytest.raises(UserError, match='images of a folder have no labels'):
        adapt(config, path, (128, 64), 1, str(tmp_path / 'out'),
              folder_of(tmp_path / 'images', 64), cfg_options=options)


def test_a_network_that_has_sizes_already(stock):
    sct = osp.join('configs', 'sct_resnet18_1xb128_fashion-mnist.py')
    with pytest.raises(UserError, match='for one size, but .* SCT config'):
        adapt(sct, stock[0], SCALES, out=stock[2])


def test_a_network_that_was_never_trained(stock):
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(CONFIG).model)
    torch.save(dict(state_dict=model.state_dict()), stock[0])
    with pytest.raises(ValueError, match='have never been trained'):
        adapt_stock(stock)
    assert not osp.exists(stock[2])


def test_another_size_than_the_pipelines(stock):
    options = {**FEW, 'train_dataloader.dataset.pipeline': [
        dict(type='Resize', scale=32), dict(type='PackInputs')]}
    with pytest.raises(ValueError, match='is tested at, 28 pixels in a test '
                       r'\(32 in training\), but got 32'):
        adapt(CONFIG, stock[0], (32, 16), out=stock[2], cfg_options=options)
    with pytest.warns(UserWarning, match=(  # the test makes images of 28 px
            r'4 of 4 images, made as a test .* otherwise than before: .* as '
            r'28 pixels, .* use_scale\(model, 32\)')):
        done = adapt(CONFIG, stock[0], (28, 14), 0, out=stock[2],
                     cfg_options=options)
    assert done['scales'] == (28, 14)
    assert Config.fromfile(done['config']).model.scales == [32, 16]


def test_the_config_has_the_images_of_the_last_stage():
    cfg = load_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    new = adapted_config(cfg, (640, 320), 2, 0.003)
    used = [each['type'] for each in new.train_dataloader.dataset.pipeline]
    assert 'CachedMosaic' not in used and 'CachedMixUp' not in used
    assert 'RandomResize' in used
    assert 'PipelineSwitchHook' not in [
        hook['type'] for hook in new.custom_hooks]


def test_the_config_keeps_what_the_host_had(monkeypatch):
    device = 'sct_mm.engine.adapted_config.get_device'
    monkeypatch.setattr(device, lambda: 'cuda')
    stock = Config(dict(
        model=dict(type='X'), custom_imports=dict(imports='a.b'),
        custom_hooks=[dict(type='EMAHook'), dict(type='ProfilerHook')],
        optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16',
                           clip_grad=dict(max_norm=1),
                           optimizer=dict(type='SGD', lr=1)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=7),
            param_scheduler=dict(type='YOLOv5ParamSchedulerHook')),
        sync_bn='torch', efficient_conv_bn_eval=['backbone'],
        train_dataloader=dict(sampler=dict(type='InfiniteSampler'),
                              num_batch_per_epoch=2, drop_last=True)))
    made = adapted_config(stock, (32, 16), 3, 0.5)
    assert made.custom_imports.imports == ['a.b', 'sct_mm']
    assert [hook.type for hook in made.custom_hooks] == [
        'ProfilerHook', 'EpochSeedHook', 'SCTLossHook']
    assert made.optim_wrapper == dict(
        type='AmpOptimWrapper', dtype='bfloat16',
        optimizer=dict(type='AdamW', lr=0.5, weight_decay=0.0))
    assert made.default_hooks.logger.interval == 7
    assert made.default_hooks.param_scheduler.type == 'ParamSchedulerHook'
    assert made.sync_bn is made.efficient_conv_bn_eval is None
    assert not {'num_batch_per_epoch', 'drop_last'} & set(
        made.train_dataloader)
    assert made.train_dataloader.sampler.type == 'WithoutHeldOut'
    assert made.train_cfg.max_epochs == 3
    assert stock.train_dataloader.sampler.type == 'InfiniteSampler'
    monkeypatch.setattr(device, lambda: 'cpu')
    assert 'dtype' not in adapted_config(stock, (32, 16), 3, 0.5).optim_wrapper


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """The config of a detector, a checkpoint, and the options for a data set
    of eight images."""
    monkeypatch.chdir(ROOT)
    config = osp.join('tools', 'benchmarks', 'experiments', 'configs',
                      'retinanet_r18_fpn_1xb8_fashion-det-128px.py')
    make_fashion_det('data/fashion-mnist', str(tmp_path), 64, 4)
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(config).model)
    for name, value in model.state_dict().items():
        if name.endswith('running_var'):
            value.uniform_(0.5, 2)
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    return config, path, {
        'train_dataloader.batch_size': 4, 'visualizer.name': str(tmp_path),
        'train_dataloader.dataset.data_root': f'{tmp_path}/',
        'model.test_cfg.max_per_img': 10}  # mAP of 100 takes two seconds


def test_a_detector(detector, tmp_path):
    """Two passes of its own losses; the base as it was."""
    config, path, options = detector
    done = adapt(config, path, (128, 64), 1, str(tmp_path / 'out'),
                 cfg_options=options)
    rows = rows_of(tensors(path), tensors(done['checkpoint']), 2)
    assert rows
    for value, row in rows.values():
        assert torch.equal(row[0], value) and not torch.equal(row[1], value)


def test_a_batch_resized_behind_the_pipeline(detector, tmp_path):
    """mmdet's BatchResize (CrowdDet) halves images as Resize does: both take
    the mean of four pixels, which Resize rounds."""
    config, path, options = detector
    cfg = Config.fromfile(config)
    load, annotate, *_, pack = cfg.train_dataloader.dataset.pipeline
    resize = dict(type='Resize', scale=(80, 64), keep_ratio=True)
    found = []
    for epochs, pipeline, augments in [
            (1, [load, annotate, pack],
             [dict(type='BatchResize', scale=(80, 64), pad_size_divisor=16)]),
            (0, [load, annotate, resize, pack], None)]:
        out = str(tmp_path / f'{epochs} epochs')
        adapt(config, path, (64, 32), epochs, out, cfg_options={
            **options, 'train_dataloader.dataset.pipeline': pipeline,
            'test_dataloader.dataset.pipeline': [load, resize, annotate,
                                                 pack],
            'model.data_preprocessor.batch_augments': augments})
        found.append(tensors(osp.join(out, 'calibrated.pth')))
    # Resize rounds by half a level at most: so far mean and deviation move.
    weight = tensors(path)['backbone.conv1.weight'].abs().sum((1, 2, 3))
    bound = weight * 0.5 / min(cfg.model.data_preprocessor.std)
    for name, of in (('running_mean', torch.clone), ('running_var',
                                                     torch.sqrt)):
        one, other = (of(each[f'backbone.bn1.{name}'][1]) for each in found)
        assert ((one - other).abs() <= bound).all() and (one != 0).all()
        assert (one - of(tensors(path)[f'backbone.bn1.{name}'])
                ).abs().max() > bound.max()
