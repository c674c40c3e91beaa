"""Every shipped config is short and builds; those of SCT train a step."""
import glob
import os.path as osp
import re

import pytest
import torch
from conftest import ROOT
from fill_metafile import of_a_sibling
from helpers import with_trained_base
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmpretrain.structures import DataSample

import sct_mm  # noqa: F401
from sct_mm.datasets.rescale_pipeline import nominal_size, train_sizes
from sct_mm.engine.loops import check_sizes
from sct_mm.models.size_selection import scales_of

# Those of detectors are in test_detection.py, those of siblings in test_hosts.
CONFIGS = sorted(
    path for path in glob.glob('configs/**/*.py', root_dir=ROOT,
                               recursive=True)
    if '_base_' not in path and '_coco' not in path and '-det' not in path
    and not of_a_sibling(osp.join(ROOT, path)))


@pytest.mark.parametrize('path', CONFIGS, ids=osp.basename)
def test_config(path):
    path, file = osp.join(ROOT, path), osp.basename(path)
    with open(path) as f:
        assert len(f.readlines()) <= 25
    cfg = Config.fromfile(path)
    assert Config.fromstring(cfg.pretty_text, '.py').model == cfg.model
    init_default_scope(cfg.default_scope)
    pipelines = {}
    for name in ('train', 'val', 'test'):
        pipelines[name] = cfg[f'{name}_dataloader'].dataset.pipeline
        Compose(pipelines[name])
    size = nominal_size(pipelines['test'])
    assert size == nominal_size(pipelines['val'])
    match = re.search(r'-(\d+)px\.py$', file)
    if match:
        assert size == int(match[1])
        assert train_sizes(pipelines['train']) in ((), (size, ))
    processor = dict(cfg.get('data_preprocessor', {}),
                     type='ClsDataPreprocessor')
    model = MODELS.build(dict(cfg.model, data_preprocessor=processor))
    hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    scales = scales_of(model)
    sct = [hook for hook in hooks if hasattr(hook, 'attach')]
    assert bool(sct) == file.startswith(('sct', 'adapt'))
    loop = dict(cfg.val_cfg)
    if not sct:
        assert scales is None and 'Scales' not in str(loop)
        return
    assert loop.pop('type') == 'ScalesValLoop'
    assert check_sizes(loop.get('sizes'), model) == (scales or sct[0].scales)
    assert (scales is None) == ('shared-bn' in file)
    sct[0].attach(with_trained_base(model), steps=2)
    assert size == (scales or sct[0].scales)[0]
    images = 18 if sct[0].partition else 2
    channels = cfg.model.get('model', cfg.model).backbone.get(
        'in_channels', 3)
    batch = model.data_preprocessor(dict(
        inputs=torch.randint(0, 256, (images, channels, size, size),
                             dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(i % 8)
                      for i in range(images)]), True)
    loss = model(**batch, mode='loss')['loss']
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.parameters()
               if p.requires_grad)
