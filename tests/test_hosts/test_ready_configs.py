"""The configs of configs/ for siblings are short, and build."""
import glob
import os.path as osp
from types import SimpleNamespace

import pytest
import torch
import torchvision
from cases import HOSTS_OWN, need
from conftest import ROOT
from fill_metafile import of_a_sibling
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope
from PIL import Image

from sct_mm.datasets.base_size import base_size
from sct_mm.engine.loops import check_monitors
from sct_mm.models.size_selection import scales_of, ssbn_layers
from sct_mm.utils.config import load_config

pytestmark = HOSTS_OWN
CONFIGS = [path for path in sorted(glob.glob('configs/*.py', root_dir=ROOT))
           if of_a_sibling(osp.join(ROOT, path))]
PAGES = {'mmseg': 'segment', 'mmpose': 'pose', 'mmaction': 'video'}
HOST = {'sct_fcn': 'mmseg', 'sct_td-hm': 'mmpose', 'sct_tsn': 'mmaction'}
SCALES = {'mmseg': (512, 384, 256), 'mmpose': (192, 96),
          'mmaction': (224, 192, 160, 128)}


@pytest.mark.parametrize('path', CONFIGS, ids=osp.basename)
def test_config(path):
    host = next(HOST[name] for name in HOST if name in path)
    need(host)
    path = osp.join(ROOT, path)
    with open(path) as file:
        lines = file.readlines()
    assert len(lines) <= 15
    with open(osp.join(ROOT, 'docs', f'{PAGES[host]}.md')) as file:
        assert ''.join(line for line in lines if line[0] != '#'
                       ) in file.read()
    cfg = load_config(path)
    init_default_scope(host)
    model = MODELS.build(cfg.model)
    assert scales_of(model) == SCALES[host]
    norms = [m for m in model.modules() if 'BatchNorm' in type(m).__name__]
    assert ssbn_layers(model) and not norms
    assert cfg.val_cfg.type == 'ScalesValLoop'
    base = base_size(cfg, SCALES[host], cfg.val_dataloader.dataset)
    check_monitors(SimpleNamespace(hooks=[HOOKS.build(
        cfg.default_hooks.checkpoint)]), tuple(map(base.size_of,
                                                   SCALES[host])))
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks[-1] == 'SCTLossHook'
    assert ('SyncBuffersHook' in hooks) == (host == 'mmpose')
    HOOKS.build(cfg.custom_hooks[-1]).attach(model, steps=2)


def test_pretrained_weights_reach_each_scale(tmp_path):
    need('mmaction')
    cfg = load_config(osp.join(
        ROOT, 'configs/sct_tsn_r50_8xb32-1x1x3-100e_kinetics400-rgb.py'))
    init_default_scope('mmaction')
    stock = torchvision.models.resnet18()
    torch.nn.init.uniform_(stock.layer4[1].bn2.bias)
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    cfg.model.backbone.depth = 18
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'stock.pth')
    cfg.model.cls_head.in_channels = 512
    model = MODELS.build(cfg.model)
    model.init_weights()
    for scale in SCALES['mmaction']:
        assert torch.equal(model.backbone.layer4[1].bn2.row(scale)['bias'],
                           stock.layer4[1].bn2.bias)


def config_in(page, words, folder):
    """The config of a page of the docs that holds ``words``."""
    with open(osp.join(ROOT, 'docs', page)) as file:
        text, = [part for part in file.read().split('```') if words in part]
    (folder / 'config.py').write_text(text.removeprefix('python\n'))
    return load_config(str(folder / 'config.py'))


def test_the_config_of_ones_own_label_maps(tmp_path, monkeypatch):
    need('mmseg')
    cfg = config_in('segment.md', 'data/mine\'', tmp_path)
    monkeypatch.chdir(tmp_path)
    for kind, end in (('images', 'jpg'), ('masks', 'png')):
        for split in ('train', 'val'):
            folder = tmp_path / 'data' / 'mine' / kind / split
            folder.mkdir(parents=True)
            mode = 'RGB' if kind == 'images' else 'L'
            Image.new(mode, (120, 96)).save(folder / f'a.{end}')
    init_default_scope('mmseg')
    for name, shape in (('train', (64, 64)), ('val', (96, 120))):
        data = DATASETS.build(cfg[f'{name}_dataloader'].dataset)
        assert len(data) == 1 and data[0]['inputs'].shape[1:] == shape
    model = MODELS.build(cfg.model)
    assert scales_of(model) == (64, 48, 32)
    assert model.num_classes == len(data.metainfo['classes'])
    assert [HOOKS.build(hook) for hook in cfg.custom_hooks]


def test_the_config_of_mmyolo_in_the_docs_builds(tmp_path):
    need('mmyolo')
    cfg = config_in('detect.md', 'mmyolo::', tmp_path)
    assert cfg.train_dataloader.collate_fn == dict(type='yolov5_collate')
    init_default_scope('mmyolo')
    assert scales_of(MODELS.build(cfg.model)) == (640, 512, 384)
    assert [HOOKS.build(hook) for hook in cfg.custom_hooks]
