"""adapt(): a stock network with smaller sizes, and the same base."""
import copy
import errno
import itertools
import json
import os
import os.path as osp
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from conftest import ROOT, become_one_of_two, meeting_place, two_processes
from fashion_det import make_fashion_det
from forks import in_two_processes
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, MODELS, init_default_scope
from torch.testing import assert_close

from sct_mm.apis import adapt, export, from_pretrained, save_pretrained
from sct_mm.apis.train import train
from sct_mm.engine.adaptation import try_rate
from sct_mm.engine.adapted_config import adapted_config
from sct_mm.engine.resume import find_checkpoint
from sct_mm.engine.training_images import SeededImages, drawn
from sct_mm.evaluation.adapted_report import MIXED, NOTHING, print_adapted
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.models.weight_change import changed_layers
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

STOCK = 'resnet18_1xb128_fashion-mnist-28px.py'
CONFIG = osp.join('tools', 'benchmarks', 'experiments', 'configs', STOCK)
FEW = {'train_dataloader.batch_size': 16,
       'train_dataloader.dataset.indices': 96}
SCALES = (28, 21, 14)
module = sys.modules['sct_mm.apis.adapt']  # hidden by its function
# The networks are not trained.
pytestmark = pytest.mark.filterwarnings('ignore:The network is sure')


def let_all_gain():
    """Let statistics that were estimated serve better, and let each size keep
    what came last, since no network of a few images gains."""
    falling = itertools.count(0, -1)
    module.score = lambda metrics: next(falling)
    module.best = lambda found: list(found)[-1]


@pytest.fixture(autouse=True)
def all_gain(monkeypatch, request):
    """A test by the name of `decides` decides by what was measured. Networks
    that are not trained may give all images one class."""
    for name in ('best', 'score'):  # put back afterwards
        monkeypatch.setattr(module, name, getattr(module, name))
    if 'one_class' not in request.node.name:
        monkeypatch.setattr(module.HeldOutImages, 'check_answers',
                            lambda self: None)
    if 'decides' not in request.node.name:
        let_all_gain()


@pytest.fixture
def stock(tmp_path, monkeypatch, small_root):
    """A checkpoint of the stock network; the network; a folder."""
    monkeypatch.chdir(small_root)
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(CONFIG).model)
    for name, value in model.state_dict().items():
        if name.endswith('running_var'):
            value.uniform_(0.5, 2)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth'), model.eval(), str(tmp_path / 'out')


def adapt_stock(stock, epochs=1, scales=SCALES, **options):
    return adapt(CONFIG, stock[0], scales, epochs, stock[2],
                 cfg_options=FEW, **options)


def tensors(path):
    return torch.load(path, weights_only=True)['state_dict']


def rows_of(old, new, scales=3):
    """{name of a norm's tensor: (its value in the stock network, its rows)}"""
    return {name: (value, new[name].view(scales, -1))
            for name, value in old.items()
            if new[name].numel() == scales * value.numel() > scales}


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


def test_the_mix_between_two_sizes_is_measured(stock):
    between = adapt_stock(stock, epochs=0)['between']
    done = adapt_stock(stock, epochs=0, sizes=[25, 18], force=True)
    found = {row['size']: row['found'] for row in done['rows']}
    assert [row['size'] for row in between] == [25, 18]
    for row in between:
        of_size = found[row['size']]
        for when, name in (('before', NOTHING), ('after', MIXED)):
            assert row[when] == pytest.approx(of_size[name], nan_ok=True)


def test_a_size_that_nobody_named_may_fail(stock, monkeypatch):
    measure = module.HeldOutImages.measure

    def failing(self, model, cases, *args):
        cases = list(cases)
        if any(case.size == 25 for case in cases):
            raise RuntimeError('25 px are not divisible by 2')
        return measure(self, model, cases, *args)

    monkeypatch.setattr(module.HeldOutImages, 'measure', failing)
    done = adapt_stock(stock, epochs=0)
    assert [row['size'] for row in done['between']] == [18]
    assert osp.exists(done['checkpoint'])


def test_a_run_that_died_goes_on_to_the_bit(stock):
    whole = tensors(adapt_stock(stock, epochs=2, resume=True)['checkpoint'])
    for name in ('adapted.pth', 'epoch_2.pth'):
        os.remove(osp.join(stock[2], name))
    resumed = tensors(adapt_stock(stock, epochs=2, resume=True)['checkpoint'])
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


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


def answers(result, size=14):
    """Of the network that was written."""
    config = load_config(result['config'])
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    model.load_state_dict(tensors(result['checkpoint']))
    torch.manual_seed(0)
    return model.eval()(torch.randn(4, 1, size, size))


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


def test_a_wrong_learning_rate_decides_for_what_was_there(stock):
    """Each size answers as before or better, whatever was trained."""
    done = adapt_stock(stock, lr=3.0, scales=(28, 14))
    row, = done['rows']
    assert row['keeps'] != 'trained' and row['size'] == 14
    untouched, statistics, trained = row['found'].values()
    assert list(row['found']) == ['nothing', 'statistics', 'trained']
    assert row['before'] == untouched and row['after'] == row['found'][
        row['keeps']]
    torch.manual_seed(0)
    x = torch.randn(4, 1, 14, 14)
    assert torch.equal(answers(done), stock[1](x)) == (
        row['keeps'] == 'nothing')
    written = tensors(done['checkpoint'])
    assert not any(value.any() for name, value in written.items()
                   if name.endswith(('change_out', 'change_whole')))
    with open(osp.join(stock[2], 'adapted.json')) as file:
        assert json.load(file)['rows'][0]['keeps'] == row['keeps']


def test_a_learning_rate_that_diverges(stock):
    with pytest.raises(UserError, match='learning rate of 1e.08, and '
                       'nothing is kept: The loss of'):
        adapt_stock(stock, lr=1e8, scales=(28, 14))
    assert not osp.exists(osp.join(stock[2], 'adapted.pth'))


def test_it_decides_which_statistics_to_keep(stock, monkeypatch):
    for estimated in (True, False):
        monkeypatch.setattr(
            module, 'score', lambda metrics, better=estimated: (
                metrics['kl'] if better else -metrics['kl']))
        monkeypatch.setattr(module, 'best', lambda found: 'trained')
        done = adapt_stock(stock, scales=(28, 14), force=True)
        found = done['rows'][0]['found']
        assert found['nothing']['kl'] != found['statistics']['kl']
        better = estimated == (
            found['statistics']['kl'] > found['nothing']['kl'])
        hook = load_config(done['config']).custom_hooks[-1]
        assert hook.norm_eval != better
        for name, (value, rows) in rows_of(
                tensors(stock[0]), tensors(done['checkpoint']), 2).items():
            same = torch.equal(rows[1], value)
            assert same == ('running' in name and not better), name


def test_it_decides_for_nothing_where_nothing_gains(stock, monkeypatch):
    monkeypatch.setattr(module, 'best', lambda found: 'nothing')
    done = adapt_stock(stock, sizes=[18])
    for size in (21, 18, 14):
        torch.manual_seed(0)
        x = torch.randn(4, 1, size, size)
        assert torch.equal(answers(done, size), stock[1](x))
    assert [row['keeps'] for row in done['rows']] == ['nothing'] * 3
    assert done['scales'] == (28, 21, 18, 14)


def folder_of(path, count, size=40):
    generator = np.random.default_rng(0)
    os.makedirs(path)
    for index in range(count):
        mmcv.imwrite(generator.integers(0, 256, (size, size, 3), np.uint8),
                     osp.join(path, f'{index}.png'))
    return str(path)


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


def test_images_of_one_class_tell_nothing(stock, tmp_path):
    """As noise does, to a network that was trained."""
    folder = folder_of(tmp_path / 'images', 1)
    for index in range(1, 66):
        os.link(osp.join(folder, '0.png'), osp.join(folder, f'{index}.png'))
    with pytest.raises(UserError, match='must get different answers .*class '):
        adapt(CONFIG, stock[0], (28, 14), 1, stock[2], folder,
              cfg_options={'train_dataloader.batch_size': 16})
    assert not os.listdir(stock[2])


def test_a_run_goes_on_with_its_images_alone(stock, tmp_path):
    """Else images that have trained would be held out."""
    folder = folder_of(tmp_path / 'images', 64)
    adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder)
    os.link(osp.join(folder, '0.png'), osp.join(folder, 'a.png'))
    with pytest.raises(UserError, match='must be the 64 of .* but are 65. G'):
        adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder, resume=True)
    os.remove(osp.join(folder, 'a.png'))
    adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder, resume=True)
    os.rename(osp.join(folder, '9.png'), osp.join(folder, '0a.png'))
    with pytest.raises(UserError, match='others are held out. Give the same'):
        adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder, resume=True)


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


def test_the_best_trial_decides_the_learning_rate(stock, monkeypatch, capsys):
    monkeypatch.setattr(module, 'trial_steps', lambda *args: 2)
    monkeypatch.setattr(module, 'RATES', (0.01, 1e30))
    done = adapt_stock(stock, scales=(28, 14))
    assert load_config(done['config']).optim_wrapper.optimizer.lr == 0.01
    assert done['lr'] == 0.01 and done['trials']['steps'] == 2
    print_adapted(done)
    assert 'rate 0.01 was chosen by trials of 2' in capsys.readouterr().out
    assert done['trials']['scores'][1e30] is None
    resumed = adapt_stock(stock, scales=(28, 14), resume=True)
    assert resumed['trials'] == done['trials']


def test_a_trial_trains_one_size_alone(stock, monkeypatch):
    def changed(model, tried):
        """For each scale, whether normalization, and weights, differ."""
        for scale, index in zip(SCALES, (None, 0, 1), strict=True):
            norm = any(
                not torch.equal(value, tried_layer.row(scale)[name])
                for layer, tried_layer in zip(
                    ssbn_layers(model), ssbn_layers(tried), strict=True)
                for name, value in layer.row(scale).items())
            yield norm, index is not None and any(
                bool(layer.changes[0][index].any())
                for layer in changed_layers(tried))

    def try_and_compare(model, *args):
        tried = try_rate(model, *args)
        found.append(list(changed(model, tried)))
        return tried

    found: list = []
    monkeypatch.setattr(module, 'trial_steps', lambda *args: 2)
    monkeypatch.setattr(module, 'try_rate', try_and_compare)
    monkeypatch.setattr(module, 'best_rate', lambda found, share: max(found))
    adapt_stock(stock, between=0.5)
    assert found == 4 * [[(False, False), (True, True), (False, False)]]


def test_a_training_too_short_for_trials_says_so(stock, capsys):
    done = adapt_stock(stock, scales=(28, 14))
    assert done['trials'] == dict(steps=0, scores={}) and done['steps'] == 4
    print_adapted(done)
    assert 'too few to try learning rates: it had 0.003' in (
        capsys.readouterr().out)
    done = adapt_stock(stock, scales=(28, 14), lr=0.02, force=True)
    assert done['trials'] == {} and done['lr'] == 0.02
    capsys.readouterr()  # the log of the training
    print_adapted(done)
    assert 'learning rate' not in capsys.readouterr().out


@pytest.mark.parametrize('near, tried', [(max, 4), (min, 2)])
def test_a_short_training_tries_rates_until_one_is_far_behind(
        stock, monkeypatch, near, tried):
    def best_rate(found, share):
        assert share == 1  # a trial has as many steps as the training
        return near(found)

    monkeypatch.setattr(module, 'best_rate', best_rate)
    done = adapt(CONFIG, stock[0], (28, 14), 1, stock[2], cfg_options={
        **FEW, 'train_dataloader.batch_size': 2})
    assert done['steps'] == 32 and done['trials']['steps'] == 32
    assert list(done['trials']['scores']) == [0.003, 0.01, 0.05, 0.1][:tried]
    assert done['lr'] == near(done['trials']['scores'])
    rise, = [each for each in load_config(done['config']).param_scheduler
             if each['type'] == 'LinearLR']
    assert rise['end'] == 9  # of 32 steps


def test_a_base_that_something_changed_is_not_written(stock, monkeypatch):
    def train_and_touch(*args):
        runner = train(*args)
        with torch.no_grad():
            runner.model.head.fc.bias[3] += 1e-6
        return runner

    monkeypatch.setattr(module, 'train', train_and_touch)
    with pytest.raises(RuntimeError, match='but head.fc.bias has changed'):
        adapt_stock(stock)
    assert not osp.exists(osp.join(stock[2], 'adapted.pth'))


def test_nothing_is_overwritten(stock):
    path = adapt_stock(stock, epochs=0)['checkpoint']
    with pytest.raises(UserError, match='exists. Give --force'):
        adapt_stock(stock, epochs=0)
    torch.save({}, path)
    adapt_stock(stock, epochs=0, force=True)
    assert 'backbone.bn1.weight' in tensors(path)


def test_it_goes_on_with_its_own_run_alone(stock):
    """mmengine takes the schedule of what it resumes, and rows by their
    rank, whatever the command line says."""
    adapt_stock(stock, epochs=0, sizes=['18'])
    weights = torch.load(stock[0], weights_only=True)
    weights['state_dict']['head.fc.bias'] += 1
    torch.save(weights, f'{stock[0]}.other')
    other = (f'{stock[0]}.other', ) + stock[1:]
    for run, scales, options, text in (
            (stock, (28, 24, 16), {},
             '`--scales and --sizes` must be 28 21 14, .* but got 28 24 16'),
            (stock, SCALES, dict(lr=0.01), '`--lr` must be .* but got 0.01'),
            (stock, SCALES, dict(epochs=1),
             '`--epochs` must be 0, .* but got 1. Give the same, or --force'),
            (stock, SCALES, dict(rank=4), '`--rank` must be 8, .* got 4'),
            (stock, SCALES, dict(between=0.5), '`--between` must be 0.0, .*'
             'got 0.5'),
            (stock, SCALES, dict(cfg_options={
                **FEW, 'model.head.topk': (1, )}), 'The setting `model` must'),
            (other, SCALES, {}, 'The checkpoint must be that of the run')):
        with pytest.raises(UserError, match=text):
            adapt(CONFIG, run[0], scales, out=run[2], resume=True, **{
                'epochs': 0, 'sizes': [18], 'cfg_options': FEW, **options})


def test_checkpoints_of_another_training_are_kept(stock):
    """As of the network itself, which may lie in the folder it came from."""
    os.makedirs(stock[2])
    path = osp.join(stock[2], 'epoch_1.pth')
    os.rename(stock[0], path)
    for options in ({}, dict(force=True), dict(resume=True)):
        with pytest.raises(UserError, match='folder of its own, .*epoch_1'):
            adapt_stock((path, *stock[1:]), **options)
    assert os.listdir(stock[2]) == ['epoch_1.pth']


def test_where_nothing_can_be_written(stock, monkeypatch):
    """Before the statistics are estimated."""
    monkeypatch.delattr(module, 'estimate')
    with pytest.raises(UserError, match='a.pth/b/.* cannot be written: '):
        adapt_stock((*stock[:2], osp.join(stock[0], 'b')))
    with pytest.raises(UserError, match="own size and smaller ones"):
        adapt(CONFIG, stock[0], (28, ), out=stock[2])
    with pytest.raises(ValueError, match='`between` must be .* 1.5'):
        adapt(CONFIG, stock[0], SCALES, out=stock[2], between=1.5)


class Killed(BaseException):
    """The end of a process, which no part of a run catches."""


@pytest.fixture
def killed(stock, monkeypatch):
    """A run that was killed in its training."""
    def die(*args):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, 'train', die)
        adapt_stock(stock)
    return stock


def test_a_killed_run_is_not_repeated_in_silence(killed):
    with pytest.raises(UserError, match='no run that has not ended, but '
                       '.*calibrated.pth.*Give --resume to go on, or --force'):
        adapt_stock(killed)
    resumed = tensors(adapt_stock(killed, resume=True)['checkpoint'])
    again = tensors(adapt_stock(killed, force=True)['checkpoint'])
    assert all(torch.equal(resumed[name], again[name]) for name in again)


def test_a_run_begun_anew_goes_on_with_its_own_checkpoints(killed,
                                                           monkeypatch):
    """Killed before its first, it must not go on with those before it."""
    adapt_stock(killed, force=True)
    os.remove(osp.join(killed[2], 'adapted.pth'))
    starts = []

    def die(*args):
        raise Killed

    def train_and_look(cfg, resume):
        runner = train(cfg, resume)
        starts.append(runner.cfg.resume)
        return runner

    monkeypatch.setattr(module, 'train', die)
    with pytest.raises(Killed):
        adapt_stock(killed, lr=0.02, force=True)
    assert 'epoch_1.pth' not in os.listdir(killed[2])
    monkeypatch.setattr(module, 'train', train_and_look)
    adapt_stock(killed, lr=0.02, resume=True)
    assert starts == [False]


def test_a_checkpoint_in_the_folder_is_not_overwritten(killed):
    path = osp.join(killed[2], 'epoch_7.pth')
    os.rename(killed[0], path)
    with pytest.raises(UserError, match='folder of its own, .*epoch_7'):
        adapt_stock((path, *killed[1:]), force=True)
    assert osp.exists(path)


def test_scales_are_checked_before_the_folder(killed):
    for scales, text in (((32, 14), 'must begin with the size'),
                         ((28, ), 'own size and smaller'),
                         (('28', '14:x'), 'or ranges')):
        with pytest.raises(UserError, match=text):
            adapt_stock(killed, scales=scales)


def test_no_old_network_stands_beside_a_config_of_other_scales(
        stock, monkeypatch):
    """Of a run that was begun anew with --force, and killed."""
    path = adapt_stock(stock, epochs=0)['checkpoint']

    def die(*args):
        raise Killed

    monkeypatch.setattr(module, 'train', die)
    with pytest.raises(Killed):
        adapt(CONFIG, stock[0], (28, 20, 12), 1, stock[2],
              cfg_options=FEW, force=True)
    assert not osp.exists(path)
    assert not osp.exists(osp.join(stock[2], 'adapted.json'))


def test_a_full_disk_leaves_the_result_of_the_run_before(stock, monkeypatch):
    path = adapt_stock(stock, epochs=0)['checkpoint']
    before = tensors(path)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('sct_mm.utils.checkpoint._write', full)
    with pytest.raises(UserError, match='nothing older is lost'):
        adapt_stock(stock, epochs=0, force=True)
    after = tensors(path)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert osp.exists(osp.join(stock[2], 'adapted.json'))


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
