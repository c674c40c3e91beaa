"""Networks of random weights that are exported, and images for them."""
import os.path as osp

import numpy as np
import torch
from conftest import ROOT
from fashion_det import make_fashion_det
from helpers import randomised
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

FASHION = 'configs/sct_resnet18_1xb128_fashion-mnist.py'


def write_idx(path, array):
    """A file in the form of MNIST."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(
        array.shape, '>i4').tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def built(model, scope='mmpretrain'):
    """The model of a config, in evaluation mode, with rows far apart."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return randomised(MODELS.build(model)).eval()


def fashion(root):
    """Config and checkpoint of a network of random weights at 28, 21 and 14
    pixels, and options that name 12 images for it, all in ``root``."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 12)
    images = rng.integers(0, 99, (12, 28, 28)) + labels[:, None, None]
    for split in ('train', 't10k'):  # the host asks for both
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
    """A test set of 4 images for a detector's config, as its options."""
    make_fashion_det(osp.join(ROOT, 'data/fashion-mnist'), str(root), 1, 4)
    data = 'test_dataloader.dataset'
    return {f'{data}.data_root': str(root), f'{data}.ann_file': 'val.json',
            f'{data}.data_prefix.img': 'val/'}
