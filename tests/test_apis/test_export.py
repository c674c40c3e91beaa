"""export(): the files, their manifest, and the arguments that are refused."""
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from exports import FASHION, fashion
from helpers import ssbn_model
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from torch.nn.functional import pad

from sct_mm import MultiScaleBatch, extract_scale, use_scale
from sct_mm.apis import export
from sct_mm.export import formats
from sct_mm.export import verified_file as make
from sct_mm.export.files import paths_of, write_all
from sct_mm.export.report import make_table
from sct_mm.export.stock_config import plain_config, plain_data
from sct_mm.runtime import NetworkFile, Predictor
from sct_mm.utils.checkpoint import AtomicLocalBackend, WriteError
from sct_mm.utils.errors import UserError


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    return fashion(tmp_path_factory.mktemp('fashion'))


def loaded(demo, **options):
    """The demo's network; ``options`` of its preprocessor."""
    cfg = Config.fromfile(demo[0])
    cfg.data_preprocessor.update(options)
    model = MODELS.build(dict(cfg.model,
                              data_preprocessor=cfg.data_preprocessor))
    model.load_state_dict(torch.load(demo[1])['state_dict'])
    return model


@pytest.fixture
def made(demo, tmp_path):
    """Export the demo's network into tmp_path / 'a'."""
    config, checkpoint, options = demo

    def make(size=21, format='pth', out=tmp_path / 'a', checkpoint=checkpoint,
             cfg_options=(), **arguments):
        return export(config, str(checkpoint), size, str(out), format,
                      cfg_options={**options, **dict(cfg_options)},
                      **arguments)

    return make


def test_all_sizes_and_their_manifest(made, demo, tmp_path):
    result = tmp_path / 'scales.json'
    row = dict(served_by=[28], gflops=1.0, latency_ms=2.0)
    result.write_text(json.dumps(dict(models=[
        dict(label='other', config='b', checkpoint='b.pth',
             rows=[dict(row, scale=28, metrics=dict(top1=1.0))]),
        dict(label='a', config='a', checkpoint=os.path.relpath(demo[1]),
             rows=[dict(row, scale=28, metrics=dict(top1=90.0)),
                   dict(row, scale=21, metrics=dict(top1=80.0))])])))
    found = made('all', 'torchscript', result=str(result))
    manifest = json.loads((tmp_path / 'a' / 'manifest.json').read_text())
    assert manifest == {k: v for k, v in found.items() if k != 'notes'}
    assert [file['size'] for file in manifest['files']] == [28, 21, 14]
    assert [file['metrics'] for file in manifest['files']] == [
        dict(top1=90.0), dict(top1=80.0), None]
    tested, same, counted = (file['gflops'] for file in manifest['files'])
    assert tested == same == 1.0 and 0 < counted < 0.1
    names = {file['file'] for file in manifest['files']}
    assert {p.name for p in (tmp_path / 'a').iterdir()} == {
        *names, 'manifest.json'}
    for file in manifest['files']:
        data = (tmp_path / 'a' / file['file']).read_bytes()
        assert file['sha256'] == hashlib.sha256(data).hexdigest()
        assert file['bytes'] == len(data)
        assert file['file'] == (
            f'sct_resnet18_1xb128_fashion-mnist-{file["size"]}px.pt')
        x = torch.randn(2, 1, file['size'], file['size'])
        assert formats.graph_run('torchscript', data)(x)[0].shape == (2, 10)


@pytest.mark.parametrize('size', [21, 'any'])
def test_classes_of_another_number(size, made, demo, tmp_path):
    """As those of the folders of a test set that has not all of them."""
    checkpoint = torch.load(demo[1])
    checkpoint['meta']['dataset_meta']['classes'] = ('a', 'b')
    torch.save(checkpoint, tmp_path / 'b.pth')
    found = made(size, 'onnx', checkpoint=tmp_path / 'b.pth')
    assert found['notes'] == ['The file names no classes: the network has 10, '
                              'the checkpoint or the test set 2.']
    assert Predictor(str(tmp_path / 'a')).classes is None


@pytest.mark.parametrize('size', [21, 'any'])
def test_a_page_has_what_a_file_says(size, made, tmp_path):
    """The readers in other languages have that page alone."""
    made(size, 'onnx')
    page = Path(ROOT, 'docs', 'export.md').read_text(encoding='utf-8')
    table = page.partition('## What a file says')[2].partition('\n\n| `t')[0]
    known = {key for line in table.splitlines() if line.startswith('| `')
             for key in re.findall(r'`(\w+)`', line.split('|')[1])}
    about = NetworkFile(str(tmp_path / 'a')).metadata
    assert {'gflops', 'steps', 'mean', 'classes'} <= {*about} <= known


def test_paths_of_pathlib(demo, tmp_path):
    config, checkpoint, options = demo
    export(Path(config), Path(checkpoint), 'all', tmp_path / 'a',
           cfg_options=options)
    manifest = json.loads((tmp_path / 'a' / 'manifest.json').read_text())
    assert (manifest['config'], manifest['checkpoint']) == demo[:2]
    for name, arguments in (('out', (config, checkpoint, 21, None)),
                            ('config', (5, checkpoint, 21, 'a')),
                            ('checkpoint', (config, None, 21, 'a'))):
        with pytest.raises(TypeError, match=f'`{name}` must be a path, but g'):
            export(*arguments)


def test_a_result_of_another_checkpoint(made, tmp_path):
    result = tmp_path / 'scales.json'
    result.write_text(json.dumps(dict(models=[dict(
        label='b', config='b', checkpoint='b.pth', rows=[dict(
            scale=28, gflops=1, latency_ms=1, metrics={})])])))
    with pytest.raises(UserError, match="is of 'b.pth'. Test that check"):
        made('all', result=str(result))
    assert not (tmp_path / 'a').exists()


def test_an_output_that_exists(made, tmp_path):
    (tmp_path / 'a').write_text('before')
    with pytest.raises(UserError, match="/a' exists already. .* --force"):
        made()
    assert (tmp_path / 'a').read_text() == 'before'
    assert made(force=True)['files'][0]['size'] == 21
    assert torch.load(tmp_path / 'a')['meta']['size'] == 21


@pytest.mark.parametrize('out, match', [
    ('', 'must be a file, but .* is a folder'),
    ('file/a.pth', "cannot be written: '.*file' is no folder")])
def test_an_output_that_cannot_be_written(out, match, made, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=match):
        made(out=tmp_path / out)


def test_a_disk_that_is_full_leaves_no_file(made, tmp_path, monkeypatch):
    put = AtomicLocalBackend.put

    def full(self, obj, path):
        if '-14px' in path:
            raise WriteError('No space left on device')
        put(self, obj, path)

    monkeypatch.setattr(AtomicLocalBackend, 'put', full)
    with pytest.raises(WriteError):
        made('all')
    assert not list((tmp_path / 'a').iterdir())


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path, monkeypatch):
    put = AtomicLocalBackend.put
    paths = [str(tmp_path / name) for name in 'abc']
    write_all(dict.fromkeys(paths, b'before'))

    def full(self, obj, path):
        if path.startswith(paths[1]):
            raise WriteError('No space left on device')
        put(self, obj, path)

    monkeypatch.setattr(AtomicLocalBackend, 'put', full)
    with pytest.raises(WriteError):
        write_all(dict.fromkeys(paths, b'after'))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == (
        dict.fromkeys('abc', b'before'))


@pytest.mark.parametrize('format, out, ending', [
    ('pth', 'a.onnx', '.pth'), ('onnx', 'a.pth', '.onnx'),
    ('pt2', 'a.pt', '.pt2'), ('torchscript', 'a.safetensors', '.pt')])
def test_a_name_of_another_format(format, out, ending):
    with pytest.raises(UserError, match=f'or end the name by {ending}'):
        paths_of(out, format, (28, ), 'label', False)
    for name in ('a', 'a.bin', f'a{ending}'):
        assert paths_of(name, format, (28, ), 'label', False) == {28: name}
    assert paths_of('a.pt', 'pth', (28, ), 'label', False)


def test_a_range_is_no_size(made):
    with pytest.raises(UserError, match="'all' or 'any', but got '14:28:7'"):
        made('14:28:7')


@pytest.mark.parametrize('format', ['pth', 'torchscript'])
def test_a_failed_check_leaves_no_file(format, made, tmp_path, monkeypatch):
    monkeypatch.setattr(make, 'weights_in', lambda kind, data: {
        name: value + 1 for name, value
        in formats.weights_in(kind, data).items()})
    monkeypatch.setattr(make, 'graph_run', lambda kind, data: lambda x: [
        y + 1 for y in formats.graph_run(kind, data)(x)])
    with pytest.raises(RuntimeError, match='No file was written'):
        made(format=format)
    assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize('arguments, kind, match', [
    (dict(format='caffe'), ValueError, '`format` must be one of pth, .* but '
                                       "got 'caffe'"),
    (dict(size=0), UserError, '`size` must be positive ints .*0'),
    (dict(size=(21, 14)), UserError,
     r"one size in pixels, 'all' or 'any', but got \(21, 14\). Export each"),
    (dict(size=None), UserError, "one size in pixels, .* but got None"),
    (dict(size='large'), UserError, "`size` must be .*'large'"),
    (dict(part='head'), ValueError, "`part` must be one of .* 'head'"),
    (dict(part='features'), UserError, '`part` is for a graph, .* `prefix`'),
    (dict(softmax=True), UserError, '`softmax` is for a graph'),
    (dict(format='pt2', prefix='head'), UserError, '`prefix` is for weights'),
    (dict(tolerance=-1), ValueError, '`tolerance` must be a finite number'),
    (dict(images=1), ValueError, '`images` must be an int from 2'),
    (dict(cfg_options={'test_dataloader.dataset.indices': 1}), UserError,
     '`test_dataloader` must have at least 2 images, but has 1'),
    (dict(cfg_options={'test_dataloader': None}), UserError,
     'must have a `test_dataloader`')])
def test_what_cannot_be_exported(arguments, kind, match, made, tmp_path):
    with pytest.raises(kind, match=match):
        made(**arguments)
    assert not (tmp_path / 'a').exists()


def test_a_package_that_is_missing(made, monkeypatch):
    monkeypatch.setattr(formats, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match="'onnx' needs onnx, but it is not "
                       r"installed. Run pip install 'sct_mm\[export\]'"):
        made(format='onnx')


@pytest.mark.parametrize('change, match', [
    (lambda state: state.pop('backbone.layer1.0.conv1.weight'),
     'layer1.0.conv1.weight of shape .* is missing there'),
    (lambda state: state.update({'backbone.layer5.0.conv1.weight':
                                 torch.ones(1)}),
     'has no place for backbone.layer5.0.conv1.weight'),
    (lambda state: state.update({'head.fc.weight': torch.ones(9, 128)}),
     'size mismatch for head.fc.weight')])
def test_a_checkpoint_of_another_network(change, match, made, demo,
                                         tmp_path):
    checkpoint = torch.load(demo[1])
    change(checkpoint['state_dict'])
    torch.save(checkpoint, tmp_path / 'b.pth')
    with pytest.raises(UserError, match=f'does not fit the config: .*{match}'):
        made(checkpoint=tmp_path / 'b.pth')


def test_a_network_without_ssbn_is_exported_as_it_is(demo, tmp_path):
    config, checkpoint, options = demo
    cfg = Config.fromfile(config)
    cfg.model.backbone.norm_cfg = dict(type='BN')
    cfg.dump(str(tmp_path / 'plain.py'))
    export(config, checkpoint, 14, str(tmp_path / 'a.pth'),
           cfg_options=options)
    export(str(tmp_path / 'plain.py'), str(tmp_path / 'a.pth'), 14,
           str(tmp_path / 'b.pth'), cfg_options=options)
    a, b = (torch.load(tmp_path / name)['state_dict']
            for name in ('a.pth', 'b.pth'))
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(UserError, match='`size` must be set for a model with'):
        export(str(tmp_path / 'plain.py'), str(tmp_path / 'a.pth'), 'all',
               str(tmp_path / 'c'), cfg_options=options)


def test_the_config_in_a_file_knows_nothing_of_this_package():
    cfg = Config.fromfile(FASHION)
    cfg.custom_imports.imports = ['sct_mm', 'mmpretrain.models']
    cfg.test_cfg = dict(type='ScalesTestLoop', sizes=(28, 14), fp16=True)
    cfg.model = dict(type='WithSSBN', scales=(28, 14), model=cfg.model,
                     data_preprocessor=cfg.data_preprocessor)
    plain = plain_config(cfg, 21)
    assert plain.model.type == 'ImageClassifier'
    assert plain.model.data_preprocessor.mean == [72.94]
    assert plain.model.backbone.norm_cfg == dict(type='BN')
    assert plain.test_dataloader.dataset.pipeline[0].scale == 21
    assert plain.test_cfg == dict(fp16=True)
    assert plain.custom_imports.imports == ['mmpretrain.models']
    text = plain.pretty_text
    assert not any(name in text for name in ('sct', 'SSBN', 'Scales', 'SCT'))
    assert cfg.model.type == 'WithSSBN'  # the config given is as it was


def test_only_plain_data_goes_into_a_file():
    assert plain_data(dict(a=(1, 'b'), c=ssbn_model, d={2: [None, 1.5]})) == (
        dict(a=[1, 'b'], c=None, d={'2': [None, 1.5]}))


def test_a_manifest_is_json(made, demo, tmp_path):
    """It has no NaN, which Python alone reads."""
    (tmp_path / 'r.json').write_text(json.dumps(dict(models=[dict(
        label='a', config='a', checkpoint=demo[1], rows=[dict(
            scale=28, gflops=1, latency_ms=1, metrics=dict(
                top1=float('nan'), top5=9.0))])])))
    made('all', result=str(tmp_path / 'r.json'))
    text = (tmp_path / 'a' / 'manifest.json').read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found['files'][0]['metrics'] == dict(top1=None, top5=9.0)


@pytest.mark.parametrize('shape, channels', [
    ((2, 3, 9, 9), 'RGB'), ((2, 1, 9, 9), 'GRAY'), ((2, 1, 3, 9, 9), 'RGB'),
    ((2, 8, 3, 4, 9, 9), 'RGB')])
def test_the_channels_of_images_and_videos(shape, channels):
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[
        dict(type='Resize', scale=9)]))))
    about = sys.modules[export.__module__]._about_images(
        cfg, 9, torch.nn.Identity(), [torch.zeros(shape)], {})
    assert about['channels'] == channels


def test_int8(made, demo, tmp_path):
    """The demo's 12 test images have labels; it is calibrated on 12 others."""
    found, = made(21, 'onnx', int8=True, calibration=8, tolerance=100)['files']
    assert found['int8']['images'] == 12 and found['int8']['top1']
    assert found['int8']['calibration'] == 8
    assert found['bytes'] < found['int8']['float_bytes'] / 2
    run = Predictor(str(tmp_path / 'a'))
    x = np.random.default_rng(0).integers(0, 256, (40, 33), np.uint8)
    assert run(x).shape == (10, ) and run.classes == list('abcdefghij')
    made(21, 'onnx', out=tmp_path / 'float')
    float_run = Predictor(str(tmp_path / 'float'))
    np.testing.assert_allclose(run(x), float_run(x), atol=0.05)
    cfg = Config.fromfile(demo[0])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        resized = TRANSFORMS.build(cfg.test_dataloader.dataset.pipeline[0] | {
            'scale': 21})(dict(img=x))['img']
        model = extract_scale(loaded(demo), 21)
    inputs = torch.from_numpy((resized[None, None] - 72.94) / 90.02).float()
    with torch.no_grad():
        want = model.eval()(inputs, mode='tensor').softmax(1)
    # A resized pixel may differ by 1 of 255.
    np.testing.assert_allclose(float_run(x), want[0], atol=0.01)


@pytest.mark.parametrize('arguments, match', [
    (dict(format='pt2'), '`int8` is for the format onnx, but got pt2'),
    (dict(format='onnx', tolerance=100, cfg_options=dict(
        train_dataloader=None)),
     'must have a `train_dataloader`, .*int8 is calibrated on'),
    (dict(format='onnx', tolerance=100, cfg_options={
        'train_dataloader.dataset.indices': 1}),
     '`train_dataloader` must have at least 2 images, but has 1'),
    (dict(format='onnx', part='features'), "classifiers, but `part` is 'feat"),
    (dict(format='onnx', tolerance=1), 'on 100 images or more .* gives 12')])
def test_int8_that_cannot_be(arguments, match, made, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[export.__module__], 'make_file', None)
    with pytest.raises(UserError, match=match):
        made(int8=True, **arguments)
    assert not (tmp_path / 'a').exists()


def test_the_tool(run_tool, demo, tmp_path):
    config, checkpoint, options = demo
    option, = (f'{name}={value}' for name, value in options.items())
    arguments = (config, checkpoint, '--size', 14, '--out',
                 tmp_path / 'a.onnx', '--format', 'onnx', '--softmax')
    code, output = run_tool('export.py', *arguments, '--cfg-options', option)
    assert code == 0, output
    assert 'a.onnx' in output and 'of one image on one CPU thread' in output
    assert 'arning' not in output and 'Traceback' not in output
    assert (tmp_path / 'a.onnx').stat().st_size > 1e6
    code, output = run_tool(
        'export.py', *arguments, '--force', '--tolerance', '1e-15',
        '--cfg-options', option)
    assert code == 2 and 'No file was written' in output
    own = [line for line in output.splitlines()  # a host has another
           if line != 'Could not import OneDL']
    assert len(own) == 1


def test_one_file_for_every_size(made, tmp_path):
    found = made('any', 'onnx', out=tmp_path / 'a.onnx')
    file, = found['files']
    assert file['size'] == 'any' and file['file'] == 'a.onnx'
    assert [row['size'] for row in file['sizes'][:3]] == [28, 21, 14]
    assert len(file['sizes']) == 3 + 3 + 2
    assert all(row['difference'] < 1e-5 for row in file['sizes'])
    run = formats.graph_run('onnx', (tmp_path / 'a.onnx').read_bytes())
    for size in (30, 21, 17):
        assert run(torch.randn(2, 1, size, size))[0].shape == (2, 10)


@pytest.mark.parametrize('size', ['all', 'any'])
def test_images_that_the_preprocessor_pads(size, made, demo, tmp_path):
    """To 32, 32 and 16 pixels at 28, 21 and 14."""
    pads = dict(pad_size_divisor=16, pad_value=3)
    made(size, 'onnx', cfg_options={
        f'data_preprocessor.{name}': value for name, value in pads.items()})
    model = loaded(demo, **pads).eval()
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)

    def inputs_at(size):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            resize = TRANSFORMS.build(dict(type='Resize', scale=size))
        return model.data_preprocessor(dict(inputs=[torch.from_numpy(
            resize(dict(img=x))['img'])[None] for x in images]))['inputs']

    for one in (28, 21, 14):
        with torch.no_grad(), use_scale(model, one):
            want = model(inputs_at(one)).softmax(1)
        run = Predictor(str(tmp_path / 'a'), one)
        np.testing.assert_allclose(run.predict(images).scores, want,
                                   atol=0.01)
    small = MultiScaleBatch(14, 28)(dict(inputs=inputs_at(28)[..., :28, :28]))
    with torch.no_grad(), use_scale(model, 14):
        want = model(pad(small['inputs'], (0, 2, 0, 2), value=3)).softmax(1)
    found = Predictor(str(tmp_path / 'a'), cascade=(14, 28),
                      thresholds=0.0).predict(images)
    np.testing.assert_allclose(found.scores, want, atol=1e-5)


@pytest.mark.parametrize('format', ['pth', 'safetensors', 'torchscript'])
def test_formats_that_cannot_hold_every_size(format, made, tmp_path):
    with pytest.raises(UserError, match="`size='any'` needs a graph .* but "
                       f'the format is {format}. Set it to onnx or pt2'):
        made('any', format)
    assert not (tmp_path / 'a').exists()


def test_every_size_of_a_network_without_ssbn(demo, tmp_path):
    config, checkpoint, options = demo
    cfg = Config.fromfile(config)
    cfg.model.backbone.norm_cfg = dict(type='BN')
    cfg.dump(str(tmp_path / 'plain.py'))
    export(config, checkpoint, 14, str(tmp_path / 'a.pth'),
           cfg_options=options)
    with pytest.raises(UserError, match='ImageClassifier has no SSBN, .*'
                       'Export one size by --size N'):
        export(str(tmp_path / 'plain.py'), str(tmp_path / 'a.pth'), 'any',
               str(tmp_path / 'b'), 'onnx', cfg_options=options)


def test_the_table_of_every_size():
    row = dict(latency_ms=1.0, stock_latency_ms=2.0,
               latency_ratio=[0.4, 0.5, 0.6])
    table = make_table(dict(label='a', format='onnx', files=[dict(
        size='any', file='a.onnx', bytes=9, part='network', norms=2,
        difference=1e-6, sizes=[dict(size=16, difference=1e-6, **row),
                                dict(size=14, difference=1e-7)])]))
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ['16', '14']
    assert columns[5] == ['1.0e-06', '1.0e-07']
    assert columns[8] == ['0.50 (0.40-0.60)', '']
