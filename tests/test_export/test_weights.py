"""Weights load into the stock networks of the hosts, without this package."""
import os
import os.path as osp
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import ROOT
from exports import built, clothes, fashion
from mmengine.config import Config
from PIL import Image

from sct_mm import use_scale
from sct_mm.apis import export

WITHOUT = '''
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'sct_mm':
            raise ImportError('sct_mm is not here')

sys.meta_path.insert(0, Refuse())
try:
    import sct_mm
except ImportError:
    pass
else:
    raise AssertionError('sct_mm can be imported')
import torch
x = torch.load('x.pt')
'''


@pytest.fixture
def elsewhere(tmp_path):
    """A function that runs a script in tmp_path, in a process that cannot
    import sct_mm: the script reads ``x``, the function returns its ``y``."""

    def run(script, x):
        torch.save(x, tmp_path / 'x.pt')
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', WITHOUT + textwrap.dedent(
                script) + "\ntorch.save(y, 'y.pt')"],
            cwd=tmp_path, capture_output=True, text=True,
            env={name: value for name, value in os.environ.items()
                 if name != 'PYTHONPATH'})
        assert done.returncode == 0, done.stdout + done.stderr
        return torch.load(tmp_path / 'y.pt')

    return run


def answer(model, size, x):
    with use_scale(model, size), torch.no_grad():
        return model(x)


def saved(model, path):
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def photographs(root, count=2):
    """A test set in the form of ImageNet, as options of its config."""
    rng = np.random.default_rng(0)
    os.makedirs(root / 'val')
    for index in range(count):
        Image.fromarray(rng.integers(0, 255, (200, 230, 3)).astype(
            np.uint8)).save(root / 'val' / f'{index}.png')
    (root / 'val.txt').write_text(''.join(
        f'{index}.png {index}\n' for index in range(count)))
    data = 'test_dataloader.dataset'
    return {f'{data}.data_root': str(root), f'{data}.ann_file': 'val.txt',
            f'{data}.data_prefix': 'val'}


def test_stock_mmpretrain(elsewhere, tmp_path):
    config = osp.join(ROOT, 'configs/sct_resnet18_8xb32_in1k.py')
    cfg = Config.fromfile(config)
    model = built(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    found = export(config, saved(model, tmp_path / 'a.pth'), 160,
                  str(tmp_path / 'b.pth'), images=2,
                  cfg_options=photographs(tmp_path))
    assert found['files'][0]['difference'] == 0
    x = torch.randn(2, 3, 160, 160)
    y = elsewhere('''
        from mmpretrain import get_model
        with torch.no_grad():
            y = get_model('resnet18_8xb32_in1k', pretrained='b.pth')(x)
    ''', x)
    assert torch.equal(y, answer(model, 160, x))
    assert not torch.equal(y, answer(model, 192, x))


def test_mmpretrains_inferencer_needs_the_file_alone(elsewhere, tmp_path):
    config, checkpoint, options = fashion(tmp_path)
    export(config, checkpoint, 14, str(tmp_path / 'b.pth'),
           cfg_options=options)
    cfg = Config.fromfile(config)
    model = built(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    image = np.random.default_rng(0).integers(0, 99, (28, 28)).astype(
        np.uint8)
    y = elsewhere('''
        from mmengine.config import Config
        from mmpretrain import ImageClassificationInferencer
        cfg = Config.fromstring(torch.load('b.pth')['meta']['cfg'], '.py')
        run = ImageClassificationInferencer(cfg, pretrained='b.pth')
        result = run(x.numpy())[0]
        y = [torch.from_numpy(result['pred_scores']), result['pred_class']]
    ''', torch.from_numpy(image))
    small = np.asarray(Image.fromarray(image).resize(
        (14, 14), Image.BILINEAR)).copy()
    x = (torch.from_numpy(small)[None, None].float() - 72.94) / 90.02
    want = answer(model, 14, x).softmax(1)[0]
    torch.testing.assert_close(y[0], want)
    assert y[1] == 'abcdefghij'[int(want.argmax())]


TIMM = dict(
    pth=('', """type='TimmClassifier', model_name='test_resnet', in_chans=1,
         num_classes=10, loss=dict(type='CrossEntropyLoss')""",
         'num_classes=10'),
    safetensors=('backbone.timm_model', """type='ImageClassifier',
         backbone=dict(type='TIMMBackbone', model_name='test_resnet',
                       in_channels=1)""",
                 "num_classes=0, global_pool=''"))


@pytest.mark.parametrize('format', TIMM)
def test_stock_timm(format, elsewhere, tmp_path):
    """mmpretrain's TimmClassifier saves timm's names; in its TIMMBackbone, one
    module has timm's names."""
    prefix, inner, arguments = TIMM[format]
    (tmp_path / 'a.py').write_text(f'''
_base_ = {osp.join(ROOT, "configs/_base_/fashion-mnist.py")!r}
model = dict(_delete_=True, type='WithSSBN', scales=(28, 14), model=dict(
    {inner}))
''')
    cfg = Config.fromfile(str(tmp_path / 'a.py'))
    model = built(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    options = fashion(tmp_path)[2]
    found = export(str(tmp_path / 'a.py'), saved(model, tmp_path / 'b.pth'),
                  14, str(tmp_path / f'c.{format}'), format, prefix=prefix,
                  cfg_options=options)
    assert found['files'][0]['part'] == (prefix or 'network')
    x = torch.randn(2, 1, 14, 14)
    y = elsewhere(f'''
        import timm
        net = timm.create_model('test_resnet', in_chans=1, {arguments},
                                checkpoint_path='c.{format}')
        with torch.no_grad():
            y = net.eval()(x)
    ''', x)
    want = answer(model, 14, x)
    assert torch.equal(y, want if isinstance(want, torch.Tensor)
                       else want[-1])


def test_stock_mmdet(elsewhere, tmp_path):
    """At 96 pixels in place of 480, which changes nothing for the weights."""
    config = osp.join(ROOT, 'configs/sct_retinanet_r50_fpn_8xb2-1x_coco.py')
    options = {
        **clothes(tmp_path), 'model.backbone.init_cfg': None,
        'model.backbone.norm_cfg.scales': (128, 96),
        'test_dataloader.dataset.pipeline.1.scale': (192, 128)}
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    model = built(cfg.model, 'mmdet')
    export(config, saved(model, tmp_path / 'a.pth'), 96,
           str(tmp_path / 'b.pth'), images=2, cfg_options=options)
    x = torch.randn(2, 3, 96, 128)
    y = elsewhere('''
        from mmdet.apis import init_detector
        from mmengine.hub import get_config
        cfg = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        net = init_detector(cfg, 'b.pth', device='cpu')
        with torch.no_grad():
            y = net(x, mode='tensor')
    ''', x)
    want = answer(model, 96, x)
    assert all(torch.equal(a, b) for one, other in zip(y, want, strict=True)
               for a, b in zip(one, other, strict=True))


def test_mmdets_inferencer_needs_the_file_alone(elsewhere, tmp_path):
    config = osp.join(ROOT,
                      'configs/sct_retinanet_r18_fpn_1xb8_fashion-det.py')
    cfg = Config.fromfile(config)
    model = built(cfg.model, 'mmdet')
    model.bbox_head.test_cfg.score_thr = 0.0
    options = dict(clothes(tmp_path), **{'model.test_cfg.score_thr': 0.0})
    export(config, saved(model, tmp_path / 'a.pth'), 64,
           str(tmp_path / 'b.pth'), cfg_options=options)
    image = torch.randint(0, 255, (64, 64), dtype=torch.uint8)
    y = elsewhere('''
        from mmdet.apis import DetInferencer
        run = DetInferencer(weights='b.pth', device='cpu',
                            show_progress=False)
        found = run(x.numpy(), no_save_vis=True)['predictions'][0]
        y = torch.tensor(found['scores'])
    ''', image)
    x = (image[None, None].float() - 72.94) / 90.02
    from mmdet.structures import DetDataSample
    sample = DetDataSample(metainfo=dict(
        img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64),
        batch_input_shape=(64, 64), scale_factor=(1.0, 1.0)))
    with use_scale(model, 64), torch.no_grad():
        want = model(x, [sample], mode='predict')[0].pred_instances.scores
    assert len(want) > 10
    torch.testing.assert_close(y, want)
