"""calibrate(): real images, any number of processes, refusals."""
import contextlib
import os
import os.path as osp
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import become_one_of_two, meeting_place, two_processes
from forks import in_two_processes
from helpers import randomised
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import set_random_seed
from torch.testing import assert_close
from torch.utils.data import Dataset

from sct_mm.apis import calibrate
from sct_mm.engine.load_model import loaded_model
from sct_mm.engine.loops import failing_at
from sct_mm.engine.training_images import SeededImages, batches_of
from sct_mm.utils.config import scales_settings
from sct_mm.utils.errors import UserError

FASHION = osp.join('configs', 'sct_resnet18_1xb128_fashion-mnist.py')
FEW = {'train_dataloader.batch_size': 16}
module = sys.modules['sct_mm.apis.calibrate']  # hidden by its function


@pytest.fixture
def checkpoint(tmp_path, monkeypatch, small_root):
    """Paths of a checkpoint of the demo's network, and of what to write."""
    monkeypatch.chdir(small_root)
    init_default_scope('mmpretrain')
    model = randomised(MODELS.build(Config.fromfile(FASHION).model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth'), str(tmp_path / 'out.pth')


def rows(path):
    return torch.load(path, weights_only=True)['state_dict']


def test_each_row_by_itself_and_a_size_more(checkpoint):
    path, out = checkpoint
    done = calibrate(FASHION, path, [21, 24], out, 48, cfg_options=FEW)
    assert done['scales'] == (28, 24, 21, 14) and done['images'] == 48
    assert done['settings'] == {
        'model.backbone.norm_cfg.scales': [28, 24, 21, 14]}
    old, new = rows(path), rows(out)
    name = 'backbone.layer1.0.bn1.running_mean'
    assert torch.equal(new[name][[0, 3]], old[name][[0, 2]])
    assert not torch.equal(new[name][2], old[name][1])
    # The other size alone, and as the second: the same.
    calibrate(FASHION, path, [24], out, 48, force=True, cfg_options=FEW)
    assert torch.equal(rows(out)[name][1], new[name][1])


def test_all_are_the_trained_scales(checkpoint):
    path, out = checkpoint
    done = calibrate(Path(FASHION), Path(path), 'all', Path(out), 32,
                     cfg_options=FEW)
    assert done['scales'] == (28, 21, 14) and done['out'] == out
    name = 'backbone.bn1.running_mean'
    assert not torch.isclose(rows(out)[name], rows(path)[name]).any(1).all()


def in_process(rank, path, out, port):
    become_one_of_two(rank, port)
    calibrate(FASHION, path, [21], out, 80, cfg_options=FEW,
              launcher='pytorch')


@two_processes
def test_two_processes_make_the_file_of_one(checkpoint):
    path, out = checkpoint
    calibrate(FASHION, path, [21], out, 80, cfg_options=FEW)
    store = meeting_place()
    in_two_processes(in_process, path, f'{out}.2', store.port)
    for name, value in rows(out).items():
        assert_close(rows(f'{out}.2')[name], value, rtol=1e-6, atol=1e-7)


class Noise(Dataset):

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, np.random.rand(), torch.rand(())


def test_augmentations_depend_on_the_image_alone(monkeypatch):
    set_random_seed(3)
    want = Noise()[3]
    for name in ('manual_seed', 'manual_seed_all'):  # no one puts it back
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail(
            'a GPU was seeded'))
    images = SeededImages(Noise())
    np.random.seed(5)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = images[3], images[4]
    assert images[3] == first[0] == want and first[0][1:] != first[1][1:]
    assert (np.random.get_state()[1] == state[0]).all()
    assert torch.equal(torch.get_rng_state(), state[1])


def test_images_are_drawn_alike_and_short_batches_left_out():
    first = batches_of(dict(batch_size=3), Noise(), 7)
    assert first == batches_of(dict(batch_size=3), Noise(), 7)
    assert [len(batch) for batch in first] == [3, 3]
    assert len({i for batch in first for i in batch}) == 6
    assert sorted(map(len, batches_of(dict(batch_size=4), Noise(), 99))) == [
        2, 4, 4]
    assert [len(batch) for batch in batches_of(
        dict(batch_size=4), Noise(), 5, least=1)] == [4, 1]
    # Statistics need two batches.
    assert [len(batch) for batch in batches_of(dict(batch_size=32), Noise(),
                                               8)] == [4, 4]


@pytest.mark.parametrize('sizes, images, match', [
    ([36], 48, 'at most those of .* 28 pixels, but got 36'),
    (np.array([28, 21]), 48, r'pixels.* but got array\(\[28, 21\]\)'),
    ([0], 48, '`sizes` must be positive ints'), ([], 48, r'got \[\]'),
    ('some', 48, "ranges FIRST:LAST:STEP of them, but got 'some'"),
    ([21], 3, 'at least two batches, but 3 of .* make 1 of 2. Give '
     '4 images')])
def test_what_is_refused(sizes, images, match, checkpoint):
    path, out = checkpoint
    with pytest.raises((UserError, ValueError), match=match):
        calibrate(FASHION, path, sizes, out, images, cfg_options=FEW)
    assert not osp.exists(out)


def test_a_size_that_the_network_does_not_take(checkpoint, monkeypatch):
    """As that of a transformer with a bias for each place."""
    def refuse(model, args):
        if args[0].shape[-1] < 21:
            raise RuntimeError('The size of tensor a must match.')

    def built(*args):
        model = loaded_model(*args)
        model.backbone.register_forward_pre_hook(refuse)
        return model

    monkeypatch.setattr(module, 'loaded_model', built)
    path, out = checkpoint
    calibrate(FASHION, path, [21], out, 32, cfg_options=FEW)
    with pytest.raises(UserError, match=r'cannot be tested at 14 pixels '
                       r'\(RuntimeError: The size of tensor a must match\)'):
        calibrate(FASHION, path, [14], out, 32, True, cfg_options=FEW)


def test_what_a_loss_asks_a_runner_for(checkpoint, monkeypatch):
    """As those of mmyolo's YOLOv6 and PPYOLOE: there is none."""
    asked = []

    def built(*args):
        model = loaded_model(*args)
        model.backbone.register_forward_pre_hook(lambda *_: asked.append([
            MessageHub.get_current_instance().get_info(name)
            for name in ('epoch', 'iter')]))
        return model

    monkeypatch.setattr(module, 'loaded_model', built)
    monkeypatch.setattr(MessageHub, '_instance_dict', {})
    path, out = checkpoint
    calibrate(FASHION, path, [21], out, 32, cfg_options=FEW)
    assert asked and all(each == [0, 0] for each in asked)


def test_an_error_is_that_of_the_size_alone_that_ended_the_test():
    net = torch.nn.Conv2d(3, 1, 1)
    with pytest.raises(ValueError, match='^of the caller'):
        with failing_at(14, net):
            with contextlib.suppress(RuntimeError):
                net(torch.ones(1, 2, 3, 3))
            raise ValueError('of the caller')


def test_an_output_that_exists_is_kept(checkpoint):
    path, out = checkpoint
    with open(out, 'w') as file:
        file.write('mine')
    with pytest.raises(UserError, match='exists already. .* --force'):
        calibrate(FASHION, path, [21], out)
    with open(out) as file:
        assert file.read() == 'mine'


def test_an_output_of_another_format(checkpoint):
    with pytest.raises(UserError, match='checkpoint of torch, but got .*a.sa'):
        calibrate(FASHION, checkpoint[0], [21], 'a.safetensors')


def test_an_output_that_is_no_file_and_scales_of_others(checkpoint):
    path, out = checkpoint
    for place, match in ((osp.dirname(path), 'is a folder'),
                         (out + os.sep, 'is a folder'),
                         (osp.join(path, 'b.pth'), 'cannot be written')):
        with pytest.raises(UserError, match=match):
            calibrate(FASHION, path, [21], place, force=True)
    with pytest.raises(UserError, match=r'trained at the scales \(28, 21, 14'):
        calibrate(FASHION, path, [24], out, cfg_options={
            'model.backbone.norm_cfg.scales': (28, 24, 14)})
    assert os.listdir(osp.dirname(path)) == ['a.pth']


def test_a_network_without_ssbn_is_refused(checkpoint):
    path, out = checkpoint
    cfg = osp.join('tools', 'benchmarks', 'experiments', 'configs',
                   'resnet18_1xb128_fashion-mnist-28px.py')
    init_default_scope('mmpretrain')
    plain = MODELS.build(Config.fromfile(cfg).model)
    torch.save(dict(state_dict=plain.state_dict()), f'{out}.plain')
    with pytest.raises(UserError, match='must have SSBN .* tools/adapt.py'):
        calibrate(cfg, f'{out}.plain', [21], out)


def test_the_tool_says_what_the_config_must_name(checkpoint, run_tool,
                                                 small_root):
    path, out = checkpoint
    code, text = run_tool(
        'calibrate.py', FASHION, path, '--sizes', '21:24:3', '--images', 32,
        '--out', out, '--cfg-options', 'train_dataloader.batch_size=16',
        cwd=small_root)
    assert code == 0 and '[28,24,21,14]' in text, text
    code, text = run_tool('calibrate.py', FASHION, path, '--sizes', 'x',
                          '--out', out)
    assert code == 2 and "FIRST:LAST:STEP of them, but got 'x'" in text


def test_each_place_where_a_config_names_scales():
    model = dict(backbone=dict(norm_cfg=dict(type='SyncSSBN')), head=[
        dict(norm_cfg=dict(type='BN')), dict(norm_cfg=dict(type='SSBN',
                                                           scales=(1, )))])
    assert scales_settings(model, (224, 176)) == {
        'model.backbone.norm_cfg.scales': [224, 176],
        'model.head.1.norm_cfg.scales': [224, 176]}
    assert scales_settings(dict(type='WithSSBN', model=dict(type='X')),
                           (9, )) == {'model.scales': [9]}
