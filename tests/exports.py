"""Networks of random weights to export, and images for them."""
import json
import os.path as osp

import numpy as np
import torch
from conftest import ROOT, SCALES, TinyModel
from fashion_det import make_fashion_det
from helpers import randomised
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope

from sct_mm import SSBN
from sct_mm.export.verified_file import Request, make_graph

FASHION = 'configs/sct_resnet18_1xb128_fashion-mnist.py'


def write_idx(path, array):
    """Write a file in MNIST's format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(
        array.shape, '>i4').tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def built(model, scope='mmpretrain'):
    """The model of a config, in evaluation mode, with scales that differ."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return randomised(MODELS.build(model)).eval()


def fashion(root):
    """The config and checkpoint of a network of random weights at 28, 21 and
    14 pixels, and ``cfg_options`` that test it on 12 images in ``root``."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 12)
    images = rng.integers(0, 99, (12, 28, 28)) + labels[:, None, None]
    for split in ('train', 't10k'):  # mmpretrain requires both
        write_idx(root / f'{split}-labels-idx1-ubyte', labels)
        # No image is in both.
        write_idx(root / f'{split}-images-idx3-ubyte',
                  images + (split == 'train'))
    cfg = Config.fromfile(osp.join(ROOT, FASHION))
    model = built(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=tuple('abcdefghij')))), root / 'a.pth')
    return (osp.join(ROOT, FASHION), str(root / 'a.pth'),
            {'test_dataloader.dataset.data_root': str(root)})


def clothes(root):
    """Make a test set of 4 images for a detector; returns the ``cfg_options``
    that name it."""
    make_fashion_det(osp.join(ROOT, 'data/fashion-mnist'), str(root), 1, 4)
    data = 'test_dataloader.dataset'
    return {f'{data}.data_root': str(root), f'{data}.ann_file': 'val.json',
            f'{data}.data_prefix.img': 'val/'}


def tiny_network():
    """A network of 5 classes, sure of some images, which it normalizes."""
    torch.manual_seed(0)
    model = TinyModel(lambda c: SSBN(c, SCALES), ImgDataPreprocessor(
        mean=[120., 110., 100.], std=[60., 50., 40.], bgr_to_rgb=True))
    model.net[-1].weight.data.mul_(8)
    return randomised(model).eval()


def tiny_files(model, folder):
    """Write :func:`tiny_network` as tools/export.py --size all would."""
    entries = []
    for size in SCALES:
        x = torch.randn(3, 3, size, size)
        images = dict(
            channels='RGB', scales=list(SCALES), classes=list('abcde'),
            steps=[dict(type='resize_short', edge=size * 5 // 4,
                        backend='pillow', interpolation='bicubic'),
                   dict(type='center_crop', height=size, width=size)])
        made = make_graph(model, size, [x, x[:1]], Request('onnx'), 0,
                          images=images)
        entries.append(dict(size=size, file=f'net-{size}px.onnx'))
        (folder / entries[-1]['file']).write_bytes(made.data)
    (folder / 'manifest.json').write_text(json.dumps(dict(
        format='onnx', files=entries)))
    return folder
