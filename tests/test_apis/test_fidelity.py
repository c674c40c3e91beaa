"""apis.fidelity: against passes of the network itself; folders of images; what
cannot be compared."""
import json
import os.path as osp
from pathlib import Path

import cv2
import exports
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from sct_mm import apis, use_scale
from sct_mm.evaluation.fidelity import compare_scores
from sct_mm.evaluation.report import report_fidelity
from sct_mm.evaluation.results_file import quality_names, read_result
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.utils.errors import UserError

PLAIN = osp.join(ROOT, 'tools/benchmarks/experiments/configs',
                 'resnet18_1xb128_fashion-mnist-28px.py')


@pytest.fixture
def demo(tmp_path):
    """Config and checkpoint of the demo's network with rows far apart, and
    options that test it on 12 images."""
    init_default_scope('mmpretrain')
    config, checkpoint, options = exports.fashion(tmp_path)
    sharpen(config, checkpoint, options)
    return config, checkpoint, options


def sharpen(config, path, options):
    """Let a network of random weights answer an image by what is in it, and
    be sure of some: logits of mean 0 over the images, and of deviation 2."""
    saved = torch.load(path)
    found = logits_at(config, path, options, 28)
    for head, each in (found.items() if isinstance(found, dict)
                       else [('', found)]):
        name = f'head.task_heads.{head}.fc' if head else 'head.fc'
        by = 2 / each.std(0).mean()
        saved['state_dict'][f'{name}.weight'] *= by
        saved['state_dict'][f'{name}.bias'] -= each.mean(0)
        saved['state_dict'][f'{name}.bias'] *= by
    torch.save(saved, path)


@pytest.fixture
def stock(demo, tmp_path):
    """Config and checkpoint of a stock network of other weights."""
    cfg = Config.fromfile(PLAIN)
    model = exports.built(dict(cfg.model,
                               data_preprocessor=cfg.data_preprocessor))
    path = str(tmp_path / 'stock.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    sharpen(PLAIN, path, demo[2])
    return PLAIN, path


def scores_at(config, checkpoint, options, size):
    return logits_at(config, checkpoint, options, size).softmax(1)


def logits_at(config, checkpoint, options, size):
    """(12, 10) logits, by a network and images made here."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    cfg.test_dataloader.dataset.pipeline[0].scale = size
    images = DATASETS.build(cfg.test_dataloader.dataset)
    model = MODELS.build(dict(cfg.model,
                              data_preprocessor=cfg.data_preprocessor))
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    model.eval()
    batch = model.data_preprocessor(dict(
        inputs=[image['inputs'] for image in images]))
    with torch.no_grad(), use_scale(
            model, size if ssbn_layers(model) else None):
        return model(batch['inputs'])


def wanted(reference, scores, sure=0.5):
    found = compare_scores(reference, scores, sure)
    return pytest.approx({
        'agreement/all': found['agreement'],
        'agreement/sure': found['sure_agreement'], 'kl': found['kl']},
        rel=1e-3, abs=1e-6, nan_ok=True)


def test_each_size_against_the_base(demo, tmp_path):
    config, checkpoint, options = demo
    result, = apis.fidelity(config, checkpoint, [14, 21], sure=0.3,
                            out=str(tmp_path / 'out'), cfg_options={
                                **options, 'test_dataloader.batch_size': 5})
    base = scores_at(*demo, 28)
    assert [row['scale'] for row in result['rows']] == [28, 21, 14]
    for row in result['rows']:
        assert row['metrics'] == wanted(
            base, scores_at(*demo, row['scale']), 0.3)
        assert row['gflops'] > 0 and row['latency_ms'] > 0
    assert result['rows'][0]['metrics']['agreement/all'] == 100
    assert result['rows'][2]['metrics']['agreement/all'] < 100
    assert result['reference'] == dict(
        label=result['label'], config=config, checkpoint=checkpoint, size=28,
        least=0.3, images=12, sure_images=int((base.amax(1) > 0.3).sum()))


def test_sizes_above_the_base_and_those_of_the_scales(demo, tmp_path):
    config, checkpoint, options = demo
    with pytest.warns(UserWarning, match='32 pixels lie outside'):
        result, = apis.fidelity(config, checkpoint, [32, 14],
                                out=str(tmp_path), cfg_options=options)
    assert [row['scale'] for row in result['rows']] == [32, 28, 14]
    assert result['rows'][1]['metrics']['kl'] == 0
    result, = apis.fidelity(Path(config), Path(checkpoint), out=tmp_path,
                            cfg_options=options)
    assert [row['scale'] for row in result['rows']] == [28, 21, 14]


def test_against_a_stock_network_and_its_own(demo, stock, tmp_path):
    config, checkpoint, options = demo
    results = apis.fidelity(config, checkpoint, [28, 14], stock, None, None,
                            str(tmp_path), options, compare=[stock])
    reference = scores_at(*stock, options, 28)
    for result, model in zip(results, ((config, checkpoint), stock),
                             strict=True):
        assert result['reference']['checkpoint'] == stock[1]
        for row in result['rows']:
            assert row['metrics'] == wanted(
                reference, scores_at(*model, options, row['scale']))
    assert results[1]['rows'][0]['metrics']['kl'] == 0
    # Without a reference each is compared with its own base.
    results = apis.fidelity(config, checkpoint, [28, 14], out=str(tmp_path),
                            cfg_options=options, compare=[stock])
    assert [result['rows'][0]['metrics']['kl'] for result in results] == [0,
                                                                          0]


def write_images(folder, count=12, seed=0):
    """Noise of a low frequency in two folders, as grey PNG."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        path = folder / ('a' if i % 2 else 'b/c') / f'{i:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(rng.integers(
            0, 256, (5, 5)).astype(np.uint8), (40, 33)))


def test_a_folder_in_place_of_the_data_set(demo, tmp_path):
    config, checkpoint, _ = demo
    images = tmp_path / 'images'
    write_images(images)
    (images / 'a' / 'text.png').write_text('no image')
    (images / 'readme.txt').write_text('no image')
    gone = {'test_dataloader.dataset.data_root': 'nowhere'}
    with pytest.warns(UserWarning, match=r'1 of 13 images in .* are left out,'
                      r" such as 'a.text.png'"):
        result, = apis.fidelity(config, checkpoint, [14], images=str(images),
                                out=str(tmp_path), cfg_options=gone)
    assert result['reference']['images'] == 12
    cfg = Config.fromfile(config)
    model = MODELS.build(dict(cfg.model,
                              data_preprocessor=cfg.data_preprocessor))
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    model.eval()
    from mmcv.transforms import Resize
    scores = {}
    for size in (28, 14):
        resize = Resize(scale=size, backend='pillow')
        grey = [resize(dict(img=cv2.imread(str(path), 0)))['img']
                for path in sorted(images.rglob('[0-9]*.png'))]
        batch = model.data_preprocessor(dict(inputs=[
            torch.as_tensor(image)[None] for image in grey]))
        with torch.no_grad(), use_scale(model, size):
            scores[size] = model(batch['inputs']).softmax(1)
    assert result['rows'][1]['metrics'] == wanted(scores[28], scores[14])


def test_the_report_and_its_files(demo, stock, tmp_path, capsys):
    config, checkpoint, options = demo
    models = apis.fidelity(config, checkpoint, [14], stock,
                           out=str(tmp_path), cfg_options=options)
    report_fidelity(models, str(tmp_path))
    shown = capsys.readouterr().out
    assert 'agreement' in shown and 'kl' in shown
    assert ('is compared with those of resnet18_1xb128_fashion-mnist-28px at '
            '28 pixels on 12 images, without labels.') in shown
    assert (tmp_path / 'fidelity.png').read_bytes()[:4] == b'\x89PNG'
    read = read_result(str(tmp_path / 'fidelity.json'))
    assert read['models'] == json.loads(json.dumps(models))
    assert quality_names(models) == ['agreement/all', 'agreement/sure']


@pytest.mark.parametrize('arguments, match', [
    (dict(sure=1.5), '`sure` must be a finite number from 0 to 1, but got 1'),
    (dict(sure='a'), '`sure` must be a number'),
    (dict(scales=(0, )), '`scales` must be positive ints'),
    (dict(images='nowhere'), "images must be in a folder, but got 'nowhere'"),
    (dict(images=osp.join(ROOT, 'docs', 'results')), None),
    (dict(images=osp.join(ROOT, 'sct_mm')), 'must hold images, but .* has no '
     'file of .jpg')])
def test_what_is_refused_before_any_work(arguments, match):
    if match is None:  # its images are fine, the config is what is missing
        match = "The config must be a file, but got 'no.py'"
    with pytest.raises((UserError, TypeError, ValueError), match=match):
        apis.fidelity('no.py', 'no.pth', **arguments)


def test_nothing_to_compare_with(stock, demo, tmp_path):
    with pytest.raises(UserError, match=r'`scales` must name sizes to compare'
                       r'.* 28 pixels, but got \(28,\). .*--scales 21 14'):
        apis.fidelity(*stock, out=str(tmp_path), cfg_options=demo[2])


def with_head(path, stock, options, **head):
    """Config and checkpoint of the stock network with another head."""
    cfg = Config.fromfile(stock[0])
    cfg.model.head = dict(head) if 'task_heads' in head else dict(
        num_classes=10, in_channels=128, **head)
    cfg.dump(str(path / 'head.py'))
    model = exports.built(dict(cfg.model,
                               data_preprocessor=cfg.data_preprocessor))
    torch.save(dict(state_dict=model.state_dict()), path / 'head.pth')
    found = str(path / 'head.py'), str(path / 'head.pth')
    sharpen(*found, options)
    return found


def test_labels_of_any_number(stock, demo, tmp_path):
    """Each class is answered for alone, by a sigmoid."""
    model = with_head(tmp_path, stock, demo[2],
                      type='MultiLabelLinearClsHead')
    result, = apis.fidelity(*model, [14], out=str(tmp_path),
                            cfg_options=demo[2])
    reference, scores = (logits_at(*model, demo[2], size).sigmoid()
                         for size in (28, 14))
    assert result['rows'][1]['metrics'] == wanted(reference, scores)
    assert compare_scores(reference, scores) == compare_scores(
        reference, scores, each_class=True)
    assert result['reference']['sure_images'] == int(
        (reference.amax(1) > 0.5).sum())


def test_several_tasks(stock, demo, tmp_path):
    head = dict(type='LinearClsHead', num_classes=10, in_channels=128)
    model = with_head(tmp_path, stock, demo[2], type='MultiTaskHead',
                      task_heads=dict(shape=head,
                                      style=dict(head, num_classes=4)))
    pack = 'test_dataloader.dataset.pipeline.1'
    result, = apis.fidelity(*model, [14], out=str(tmp_path), cfg_options={
        **demo[2], f'{pack}.type': 'PackMultiTaskInputs',
        f'{pack}.multi_task_fields': ('none', )})
    reference, scores = (logits_at(*model, demo[2], size)
                         for size in (28, 14))
    found = result['rows'][1]['metrics']
    for task in ('shape', 'style'):
        assert {name.removeprefix(f'{task}/'): value
                for name, value in found.items() if name.startswith(task)
                } == wanted(reference[task].softmax(1),
                            scores[task].softmax(1))
    assert 'shape/sure_images' in result['reference']


def test_networks_of_other_classes(stock, demo, tmp_path):
    cfg = Config.fromfile(stock[0])
    cfg.model.head.num_classes = 7
    cfg.dump(str(tmp_path / 'seven.py'))
    model = exports.built(dict(cfg.model,
                               data_preprocessor=cfg.data_preprocessor))
    path = str(tmp_path / 'seven.pth')
    torch.save(dict(state_dict=model.state_dict()), path)
    with pytest.raises(UserError, match=r'classes of `reference`, \(1, 10\), '
                       r'but got \(1, 7\)'):
        apis.fidelity(str(tmp_path / 'seven.py'), path, [28], stock,
                      out=str(tmp_path), cfg_options=demo[2])


def test_other_images_than_those_of_the_reference(stock, demo, tmp_path):
    cfg = Config.fromfile(stock[0])
    cfg.test_dataloader.dataset.indices = 8
    cfg.dump(str(tmp_path / 'fewer.py'))
    with pytest.raises(UserError, match='same images in one order, but image '
                       '8 is 8 for one and None for the other'):
        apis.fidelity(*demo[:2], [14], (str(tmp_path / 'fewer.py'), stock[1]),
                      out=str(tmp_path), cfg_options=demo[2])
