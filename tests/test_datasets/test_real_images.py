"""Images of a test set as a network gets them, also where each has a shape of
its own."""
import copy
import os.path as osp

import cv2
import numpy as np
import pytest
import torch
from exports import built
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from torch.testing import assert_close

from sct_mm import apis, extract_scale
from sct_mm.datasets.image_folder import folder_dataset
from sct_mm.datasets.real_images import RealImages, training_images
from sct_mm.engine.sct.resize import nearest_kernel
from sct_mm.evaluation import measure
from sct_mm.export.formats import graph_run
from sct_mm.utils.errors import UserError

SHAPES = [(40, 40), (40, 60), (60, 40), (40, 50), (40, 60), (50, 40)]
PREPROCESSOR = dict(mean=[120.] * 3, std=[60.] * 3, to_rgb=True)


def config(folder, shapes=SHAPES, **options):
    """mmpretrain's, whose test keeps the aspect of ``shapes``."""
    init_default_scope('mmpretrain')
    rng = np.random.default_rng(0)
    for i, shape in enumerate(shapes):
        cv2.imwrite(str(folder / f'{i}.png'),
                    rng.integers(0, 255, (*shape, 3)).astype(np.uint8))
    (folder / 'all.txt').write_text(''.join(
        f'{i}.png {i % 3}\n' for i in range(len(shapes))))
    loader = dict(
        batch_size=1, num_workers=0, dataset=dict(
            type='CustomDataset', data_root=str(folder), ann_file='all.txt',
            data_prefix='', metainfo=dict(classes=list('abc')),
            test_mode=True, pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='ResizeEdge', scale=32), dict(type='PackInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False), **options)
    norm = dict(type='SSBN', scales=(32, 24, 16))
    return Config(dict(
        default_scope='mmpretrain', test_dataloader=loader,
        train_dataloader=copy.deepcopy(loader), model=dict(
            type='ImageClassifier', data_preprocessor=PREPROCESSOR,
            backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4,
                          stem_channels=4, norm_cfg=norm),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=32,
                      loss=dict(type='CrossEntropyLoss')))))


def network(kind='ClsDataPreprocessor', **options):
    net = nn.Module()
    net.data_preprocessor = MODELS.build(dict(PREPROCESSOR, type=kind,
                                              **options))
    return net


def of_the_host(cfg, net, size):
    """Each image as mmpretrain's own test at ``size`` makes it."""
    loader = copy.deepcopy(cfg.test_dataloader)
    loader.dataset.pipeline[1].scale = size
    loader.setdefault('collate_fn', dict(type='default_collate'))
    return [net.data_preprocessor(batch, False)['inputs']
            for batch in Runner.build_dataloader(loader)]


@pytest.mark.parametrize('size', [32, 24])
def test_images_that_no_batch_holds_are_those_of_the_hosts_test(size,
                                                                tmp_path):
    cfg, net = config(tmp_path), network()
    images = RealImages(cfg, [32, 24], 8)
    first, *alone = images.batches(net, size)
    want = of_the_host(cfg, net, size)
    assert len({each.shape for each in want}) == 5
    assert_close(first, torch.cat([want[0]] * 2))
    assert len(alone) == len(want) == len(images.indices)
    assert all(map(torch.equal, alone, want))
    with pytest.raises(UserError, match='must have one shape to calibrate'):
        images.whole([first, *alone])


def test_images_that_are_padded_or_have_one_shape_are_one_batch(tmp_path):
    """mmengine pads images of a list to one shape, as mmdet's."""
    cfg, net = config(tmp_path, collate_fn=dict(type='pseudo_collate')
                      ), network()
    images = RealImages(cfg, [32], 8)
    batches = images.batches(net, 32)
    assert images.whole(batches).shape == (6, 3, 48, 48)
    assert len(batches) == 5
    square = RealImages(config(tmp_path, [(40, 40)] * 3), [32], 8)
    assert [len(each) for each in square.batches(net, 32)] == [3, 1, 1, 1]


@pytest.mark.parametrize('shapes', [SHAPES, [(40, 40)] * 3])
def test_an_error_of_one_shape_is_the_hosts(shapes, tmp_path):
    """mmseg's preprocessor refuses images of several shapes by `assert`."""
    class Refusing(nn.Module):
        def forward(self, data, training):
            inputs = data['inputs']
            assert len(inputs) == 1, 'The image size in a batch'
            return dict(inputs=torch.stack(inputs).float())

    net = nn.Module()
    net.data_preprocessor = Refusing()
    images = RealImages(config(tmp_path, shapes, collate_fn=dict(
        type='pseudo_collate')), [32], 8)
    if len({*shapes}) == 1:
        with pytest.raises(AssertionError, match='The image size in a batch'):
            images.batches(net, 32)
    else:
        assert len(images.batches(net, 32)) == 7


@pytest.mark.parametrize('loads', [True, False])
def test_training_images_of_a_folder(loads, tmp_path):
    """As of `adapt --images`, also where the test has arrays, as CIFAR."""
    cfg, net = config(tmp_path), network()
    pipeline = [dict(type='Resize', scale=32, backend='pillow'),
                dict(type='PackInputs')]
    cfg.test_dataloader.dataset.pipeline = [
        *[dict(type='LoadImageFromFile')] * loads, *pipeline]
    cfg.train_dataloader.dataset = folder_dataset(
        cfg, str(tmp_path), [*pipeline[:1], dict(type='RandomFlip', prob=1.),
                             pipeline[1]])
    got = training_images(cfg, [32], 6).batches(net, 32)[0]
    for i, x in enumerate(got):
        image = Image.open(tmp_path / f'{i}.png').resize((32, 32), 2)
        pixels = np.asarray(image)
        # The preprocessor turns round what the data set gives.
        pixels = pixels if loads else pixels[..., ::-1]
        want = (pixels.transpose(2, 0, 1) - 120.) / 60
        np.testing.assert_allclose(x.numpy(), want, atol=1e-5)


def test_the_kernel_of_images_that_no_batch_holds():
    """Rounding may give images one shape at one size, and two at another."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, 32, 48)
    small = nn.functional.interpolate(x, (16, 24), mode='bicubic',
                                      antialias=True)
    found = nearest_kernel({32: [x, x[:1]], 16: [
        small[:1].expand(2, -1, -1, -1), small[:1], small[1:2]]}, 32)
    assert found == dict(interpolation='bicubic', antialias=True)


@pytest.mark.parametrize('size', [24, 'any'])
def test_a_file_of_a_network_whose_test_keeps_the_aspect(size, tmp_path,
                                                         monkeypatch):
    monkeypatch.setattr(measure, 'SECONDS', 0.0)
    cfg = config(tmp_path)
    model = built(cfg.model)
    path, checkpoint = str(tmp_path / 'c.py'), str(tmp_path / 'a.pth')
    cfg.dump(path)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    out = tmp_path / 'a.onnx'
    done = apis.export(path, checkpoint, size, str(out), 'onnx')
    assert done['images'] == len(SHAPES)
    run, plain = graph_run('onnx', out.read_bytes()), extract_scale(model, 24)
    for x in of_the_host(cfg, model, 24):
        inputs = (x, ) if size == 24 else (x, torch.tensor(24))
        with torch.no_grad():
            assert_close(run(*inputs)[0], plain.eval()(x, mode='tensor'),
                         rtol=1e-3, atol=1e-4)
    if size == 24:
        with pytest.raises(UserError, match='or leave int8 out'):
            apis.export(path, checkpoint, size, str(out), 'onnx', force=True,
                        int8=True, tolerance=50)
        assert osp.getsize(out) == done['files'][0]['bytes']
