"""The Python code of README and docs/ runs, and its configs build."""
import os.path as osp
import re
from functools import partial

import numpy as np
import pytest
import torch
from exports import fashion
from helpers import plain_net
from mmengine.config import Config
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    DefaultScope,
)
from pages import blocks, is_config
from PIL import Image
from torch import nn

import sct_mm
from sct_mm import convert_to_ssbn
from sct_mm.apis import export, save_pretrained
from sct_mm.models.size_selection import scales_of

PYTHON = [block for block in blocks() if block.language == 'python']
CONFIGS = [block for block in PYTHON if is_config(block.text)]
SCRIPTS = [block for block in PYTHON if block not in CONFIGS]


# The configs of siblings are built by tests/test_hosts/test_ready_configs.py.
BUILT = [block for block in CONFIGS if not re.search(
    r"_base_ = \['(?!mmpretrain|mmdet|sct_mm)\w+::", block.text)]


def identify(block):
    return f'{block.page}-{PYTHON.index(block)}'


def registered(name, registry):
    """Whether a config of the current scope finds ``name`` in it."""
    with registry.switch_scope_and_registry(None) as own:
        return own.get(name) is not None


@pytest.mark.parametrize('block', BUILT, ids=identify)
def test_a_config_builds(block, tmp_path):
    path = tmp_path / 'a.py'
    path.write_text(block.text)
    cfg = Config.fromfile(str(path))
    scope = cfg.get('default_scope') or 'mmpretrain'
    with DefaultScope.overwrite_default_scope(scope):
        for name in re.findall(r"type='(\w+)'", block.text):
            assert any(map(partial(registered, name), (
                MODELS, HOOKS, LOOPS, DATASETS, TRANSFORMS,
                PARAM_SCHEDULERS))), name
        for hook in cfg.get('custom_hooks', ()):
            HOOKS.build(hook)
        if 'model' in cfg:
            match = re.search(r'scales=(\(.*?\))', block.text)
            scales = scales_of(MODELS.build(cfg.model))
            assert scales == (eval(match[1]) if match
                              else (224, 192, 160, 128))


@pytest.mark.parametrize('index, classes, size', [
    (0, ('bird', 'cat'), 224), (1, ('bird', 'cat', 'dog'), 64)])
def test_a_folder_of_ones_own_is_read(index, classes, size, tmp_path,
                                      monkeypatch):
    text = [block.text for block in CONFIGS if 'data/mine' in block.text
            and block.page == 'docs/train.md'][index]
    monkeypatch.chdir(tmp_path)
    for split in ('train', 'val'):
        for label in classes:
            folder = tmp_path / 'data/mine' / split / label
            folder.mkdir(parents=True)
            Image.new('RGB', (260, 240)).save(folder / 'a.png')
    cfg = Config.fromstring(text, '.py')
    for name in ('train', 'val', 'test'):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            data = DATASETS.build(cfg[f'{name}_dataloader'].dataset)
        assert data.metainfo['classes'] == classes
        assert len(classes) == cfg.model.head.num_classes
        assert data[1]['inputs'].shape == (3, size, size)
        assert data[1]['data_samples'].gt_label == 1


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder in which scripts run: a config, a checkpoint, and the files
    that tools/export.py and tools/hub.py make of them."""
    root = tmp_path_factory.mktemp('scripts')
    config, checkpoint, options = fashion(root)
    (root / 'config.py').write_text('\n'.join([
        f'_base_ = {config!r}', 'test_dataloader = dict(dataset=dict('
        f'data_root={str(root)!r}))']))
    for kind in ('pth', 'onnx', 'torchscript'):
        export(config, checkpoint, 14, str(root / f'net.{kind}'), kind,
               cfg_options=options)
    export(config, checkpoint, 'all', str(root / 'NETS'), 'onnx',
           cfg_options=options)
    save_pretrained(config, checkpoint, str(root / 'FOLDER'))
    return root


def names_for(page):
    """The names that a script of ``page`` uses without setting them."""
    image = np.arange(784, dtype=np.uint8).reshape(28, 28)
    return {
        'docs/adapt.md': dict(
            model=convert_to_ssbn(nn.Sequential(*plain_net()[:2]),
                                  (224, 160)),
            batches_176=[torch.rand(2, 3, 176, 176) for _ in range(2)]),
        'docs/batches.md': dict(sct_mm=sct_mm),
        'docs/configs.md': dict(
            criterion=nn.CrossEntropyLoss(), labels=torch.tensor([1, 2]),
            images_160=torch.rand(2, 3, 160, 160)),
        'docs/early-exit.md': dict(
            CONFIG='config.py', CHECKPOINT='a.pth', images=[image] * 3,
            images_28=torch.rand(3, 1, 28, 28)),
        'docs/export.md': dict(image=image),
        'docs/runtime.md': dict(image=image),
        'docs/test.md': dict(config='config.py', checkpoint='a.pth'),
    }[page]


@pytest.mark.parametrize('block', SCRIPTS, ids=identify)
def test_a_script_runs(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = names_for(block.page)
    exec(compile(block.text, block.page, 'exec'), names)
    check = dict(
        model=lambda: 176 in names['model'][1].scales
        if block.page == 'docs/adapt.md' else True,
        sizes=lambda: set(names['sizes'].tolist()) <= {14, 28},
        rows=lambda: [row['scale'] for row in names['rows']] == [28, 14])
    assert all(check[name]() for name in check if name in names)
    if 'predictor' in names:
        run = torch.jit.load('net.torchscript')
        x = names['predictor'].prepare(image := names['image'], 14)
        want, = run(torch.from_numpy(x[None]))
        torch.testing.assert_close(
            torch.from_numpy(names['predictor'](image)), want.softmax(1)[0])
    assert not osp.exists('plain.pth') or torch.load('plain.pth')[
        'bn1.weight'].shape == (64, )
