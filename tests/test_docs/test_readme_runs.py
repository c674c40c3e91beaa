"""README's commands run one after another, and its config trains."""
import os.path as osp
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, DefaultScope
from pages import REPOSITORY, blocks, text_of
from PIL import Image
from test_commands import tool

from sct_mm.evaluation import measure
from sct_mm.models.size_selection import scales_of

# A single-scale network for two classes, with ImageNet's pipelines.
STOCK = '''
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py']
model = dict(backbone=dict(_delete_=True, type='ResNet_CIFAR', depth=18,
                           base_channels=2, stem_channels=2,
                           strides=(2, 2, 2, 2)),
             head=dict(num_classes=2, in_channels=16, topk=(1, )))
data_preprocessor = dict(num_classes=2)
mine = dict(_delete_=True, type='CustomDataset', data_root='mine')
workers = dict(num_workers=0, persistent_workers=False, batch_size=4)
train_dataloader = dict(**workers, dataset=dict(
    **mine, pipeline=_base_.train_pipeline))
val_dataloader = dict(**workers, dataset=dict(
    **mine, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(topk=(1, ))
'''
# The same with the lines of README's config.
OWN = '''
_base_ = ['stock.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='EpochSeedHook'),
                dict(type='SCTLossHook', recipe='any-size')]
model = dict(backbone=dict(
    norm_cfg=dict(type='SSBN', scales=(224, 192, 160, 128))))
train_cfg = dict(max_epochs=1)
val_cfg = dict(type='ScalesValLoop')
'''


@pytest.fixture
def production(tmp_path, monkeypatch):
    """The folder where README's commands run, with config and checkpoint."""
    rng = np.random.default_rng(0)
    for label in ('bird', 'cat'):
        folder = tmp_path / 'mine' / label
        folder.mkdir(parents=True)
        for name in 'abcd':
            Image.fromarray(rng.integers(0, 256, (240, 250, 3), np.uint8)
                            ).save(folder / f'{name}.png')
    (tmp_path / 'stock.py').write_text(STOCK)
    torch.manual_seed(0)
    cfg = Config.fromfile(str(tmp_path / 'stock.py'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).train()
        model(torch.rand(8, 3, 64, 64))  # statistics
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'stock.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sct_mm.engine.adaptation.held_out.LEAST', 2)
    # A busy machine may need more than the 5 ms that README asks for.
    monkeypatch.setattr(measure, 'timed', lambda run: (run(), 4e-3)[1])
    return tmp_path


def typed():
    """[(script, words)] of README's commands, in their order."""
    text = re.sub(r'\\\n\s*', '', text_of(REPOSITORY / 'README.md'))
    return [shlex.split(line, comments=True)[1:]
            for line in text.splitlines() if line.startswith('python ')]


@pytest.mark.filterwarnings(
    'ignore:.* lie between the scales',
    'ignore:.* which have seen no batch',  # two steps train two scales
    'ignore:The network is sure')
def test_its_commands_run_one_after_another(production, monkeypatch, capsys):
    (production / 'own.py').write_text(OWN)
    names = {'CONFIG': 'own.py', 'NAME_OF_CONFIG': 'own'}
    tools = []
    for script, *words in typed():
        if script == 'tools/adapt.py':
            names.update(CONFIG='stock.py', CHECKPOINT='stock.pth',
                         NAME_OF_CONFIG='stock')
        if script == 'tools/pick.py':
            names.update(NAME_OF_CONFIG='own')
        words = [re.sub(r'[A-Z][A-Z_]{3,}', lambda name:
                        names[name[0]], word) for word in words]
        monkeypatch.setattr(sys, 'argv', [script, *words])
        tool(script).main()
        tools.append(osp.basename(script))
    assert tools == ['train.py', 'test.py', 'export.py', 'adapt.py',
                     'test.py', 'pick.py']
    for name in ('own', 'adapt_stock'):
        assert (production / 'work_dirs' / name / 'scales.json').is_file()
    assert (production / 'net.onnx').stat().st_size > 1000
    assert re.search(r'--size \d+', capsys.readouterr().out)


def test_its_new_network_trains_a_step(tmp_path):
    block, = [block for block in blocks() if block.page == 'README.md'
              and block.language == 'python']
    (tmp_path / 'a.py').write_text(block.text)
    cfg = Config.fromfile(str(tmp_path / 'a.py'))
    recipe = Config.fromfile(str(
        REPOSITORY / 'configs/sct_resnet50_8xb32_in1k.py'))
    for name in ('model', 'custom_hooks', 'custom_imports', 'train_cfg',
                 'param_scheduler', 'optim_wrapper'):
        assert cfg[name] == recipe[name], name
    assert len(block.text.splitlines()) == 6
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        cfg.model.backbone.update(depth=18, base_channels=2, stem_channels=2)
        cfg.model.head.in_channels = 16
        model = MODELS.build(dict(
            cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
        hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    from mmpretrain.structures import DataSample
    sct = next(hook for hook in hooks if hasattr(hook, 'attach'))
    sct.attach(model, steps=10)
    losses = model(torch.rand(2, 3, 224, 224), [
        DataSample().set_gt_label(i) for i in range(2)], mode='loss')
    losses['loss'].backward()
    assert len(scales_of(model)) == 4 and losses['loss'].isfinite()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0
