"""test_cascade: against a loop over images; what sets the threshold."""
import json
import os.path as osp
import sys
from pathlib import Path

import exports
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from sct_mm import Cascade, apis
from sct_mm.apis.test_cascade import labels_of
from sct_mm.evaluation.held_out import (
    check_held_out,
    held_out_images,
    left_out,
)
from sct_mm.evaluation.plots import draw_cascade
from sct_mm.evaluation.report import make_cascade_table, sentences
from sct_mm.evaluation.results_file import read_result
from sct_mm.runtime import Predictor
from sct_mm.utils.errors import UserError

FASHION = osp.join(ROOT, 'configs', 'sct_resnet18_1xb128_fashion-mnist.py')


@pytest.fixture
def demo(tmp_path):
    """A checkpoint of the demo's network with rows far apart, and options
    that name 12 images to test and to train, of which 5 were used."""
    init_default_scope('mmpretrain')
    _, checkpoint, options = exports.fashion(tmp_path)
    return checkpoint, {**options, 'test_dataloader.batch_size': 5,
                        'train_dataloader.dataset.data_root': str(tmp_path),
                        'train_dataloader.dataset.indices': 5}


def images_of(options, part, indices=None):
    cfg = Config.fromfile(FASHION)
    cfg.merge_from_dict(options)
    return DATASETS.build(dict(cfg[f'{part}_dataloader'].dataset,
                               indices=indices))


def answers(checkpoint, images):
    """Probabilities of ``images``, samples of the host, at 28 and, resized,
    at 14; their classes."""
    cfg = Config.fromfile(FASHION)
    model = MODELS.build(dict(cfg.model,
                              data_preprocessor=cfg.data_preprocessor))
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    batch = model.data_preprocessor(dict(
        inputs=[p['inputs'] for p in images]))['inputs']
    scores = [Cascade(model, (14, 28), limit)(batch).scores
              for limit in (0.0, 1.0)]
    return *scores, torch.tensor([int(p['data_samples'].gt_label)
                                  for p in images])


@pytest.mark.parametrize('size', ['all', 'any'])
def test_exported_files_do_the_same_without_torch(size, demo, tmp_path):
    threshold = float(answers(demo[0], images_of(demo[1], 'test'))[0].amax(
        1).median())
    want = apis.test_cascade(FASHION, demo[0], [14, 28], threshold,
                             out=str(tmp_path), cfg_options=demo[1])['cascade']
    path = str(tmp_path / 'net')
    apis.export(FASHION, demo[0], size, path, 'onnx', cfg_options=demo[1])
    images = images_of(demo[1], 'test')
    found = Predictor(path, cascade=(14, 28), thresholds=threshold).predict(
        [each['inputs'][0].numpy() for each in images])
    truth = [int(each['data_samples'].gt_label) for each in images]
    assert 0 < (found.sizes == 14).sum() < 12
    assert want['gflops'] == pytest.approx(found.gflops.mean())
    assert want['metrics']['accuracy/top1'] == pytest.approx(
        100 * (found.labels == truth).mean())


def test_a_given_threshold_against_a_loop(demo, tmp_path):
    small, large, labels = answers(demo[0], images_of(demo[1], 'test'))
    threshold = float(small.amax(1).median())
    result = apis.test_cascade(Path(FASHION), Path(demo[0]), [14, 28],
                               threshold, out=tmp_path, cfg_options=demo[1])
    assert result['config'] == FASHION  # as JSON holds it
    stays = [float(row.max()) > threshold for row in small]
    hits = [int((a if stay else b).argmax()) == int(label)
            for a, b, label, stay in zip(small, large, labels, stays,
                                         strict=True)]
    cascade, rows = result['cascade'], result['rows']
    assert cascade['held_out'] is None and 0 < sum(stays) < 12
    assert cascade['metrics'] == {'accuracy/top1': pytest.approx(
        100 * sum(hits) / 12)}
    assert [row['scale'] for row in rows] == [28, 14]
    share = sum(stays) / 12
    assert [row['share_decided'] for row in rows] == pytest.approx(
        [1 - share, share])
    cost = rows[1]['gflops'] + (1 - share) * rows[0]['gflops']
    assert cascade['gflops'] == pytest.approx(cost)
    assert cascade['gflops_ratio'] == pytest.approx(cost / rows[0]['gflops'])
    tops = [row['metrics']['accuracy/top1'] for row in rows]
    assert tops == pytest.approx([
        100 * float((scores.argmax(1) == labels).float().mean())
        for scores in (large, small)])
    assert cascade['random']['metrics']['accuracy/top1'] == pytest.approx(
        (1 - share) * tops[0] + share * tops[1])
    low, high = cascade['images_per_s_quartiles']
    assert 0 < low <= cascade['images_per_s'] <= high


def test_a_threshold_is_found_on_the_images_left_out(demo, tmp_path):
    """A target of 100 points wants none of 28, one of 0 what 28 has."""
    train = images_of(demo[1], 'train')
    small, large, labels = answers(demo[0], [train[i] for i in range(5, 12)])
    right = torch.stack([small.argmax(1) == labels,
                         large.argmax(1) == labels]).float()
    for target in (0.0, 100.0):
        result = apis.test_cascade(
            FASHION, demo[0], [14, 28], target=target, out=str(tmp_path),
            cfg_options=demo[1])
        found = result['cascade']['held_out']
        assert found['images'] == 7 and not found['trained_on']
        assert found['source'] == (
            '7 training images that `indices` leave out')
        threshold, = result['cascade']['thresholds']
        hits = torch.where(small.amax(1) > threshold + 1e-6, *right)
        assert found['accuracy'] == pytest.approx(100 * float(hits.mean()))
        assert found['base_accuracy'] == pytest.approx(
            100 * float(right[1].mean()))
        assert found['accuracy'] >= found['base_accuracy'] - target
    assert result['cascade']['thresholds'] == (0, )
    assert result['rows'][1]['share_decided'] == 1


def test_the_tool_writes_what_pick_reads(demo, tmp_path, run_tool):
    options = [f'{name}={value}' for name, value in demo[1].items()]
    code, text = run_tool(
        'test.py', FASHION, demo[0], '--cascade', 14, 18, 28, '--out',
        tmp_path / 'out', '--cfg-options', *options)
    assert code == 0, text
    assert 'found on 7 training images that `indices` leave out' in text
    assert '18 pixels lie between the scales 21 and 14' in text
    assert osp.getsize(tmp_path / 'out' / 'cascade.png') > 5000
    data = read_result(str(tmp_path / 'out' / 'cascade.json'))
    assert [row['scale'] for row in data['models'][0]['rows']] == [28, 18, 14]
    code, text = run_tool('pick.py', tmp_path / 'out' / 'cascade.json',
                          '--max-gflops', 0.01)
    assert code == 0 and 'pixels of sct_resnet18' in text, text


@pytest.mark.parametrize('sizes, options, match', [
    ([28, 14], {}, 'must ascend'), ([28], {}, 'at least two sizes'),
    ([14, 28], dict(thresholds=2.0), 'from 0 to 1, but got 2.0'),
    ([14, 28], dict(thresholds=0.5, target=0.0),
     'given or found on held-out images for a target, but got both'),
    ([14, 28], dict(thresholds=0.5, count=9), 'but got both'),
    ([14, 28], dict(target=-1.0), '`target` must be a finite number from')])
def test_bad_arguments_are_refused_before_a_file_is_read(sizes, options,
                                                         match):
    with pytest.raises(ValueError, match=match):
        apis.test_cascade('no.py', 'no.pth', sizes, **options)


@pytest.mark.parametrize('options, match', [
    (['--cascade', 14, 28, '--scales', 28], 'leave --scales'),
    (['--threshold', 0.5], 'belong to --cascade'),
    (['--cascade', 28, 14], 'must ascend')])
def test_bad_options(options, match, run_tool):
    code, text = run_tool('test.py', FASHION, 'no.pth', *options)
    assert code == 2 and match in ' '.join(text.split()), text
    assert 'Traceback' not in text


def test_padded_images_are_refused_before_the_test(demo, tmp_path,
                                                   monkeypatch):
    seen = []
    module = sys.modules[apis.test_cascade.__module__]
    answers_of = module.answers_of
    monkeypatch.setattr(module, 'answers_of', lambda cascade, loader, title: (
        seen.append(title), answers_of(cascade, loader, title))[1])
    with pytest.raises(UserError, match='largest size, 28 pixels, but got 32'):
        apis.test_cascade(FASHION, demo[0], [14, 28], 0.5, out=str(tmp_path),
                          cfg_options={**demo[1], 'data_preprocessor'
                                       '.pad_size_divisor': 16})
    assert seen == ['one image']


def test_a_detector_is_refused_in_a_sentence():
    detector = FASHION.replace('resnet18_1xb128_fashion-mnist',
                               'retinanet_r18_fpn_1xb8_fashion-det')
    with pytest.raises(UserError, match="config is of mmdet's detectors"):
        apis.test_cascade(detector, 'no.pth', [64, 128])

    class Boxes:
        gt_instances = ()

    with pytest.raises(UserError, match='one class each, but got Boxes'):
        labels_of([Boxes()])


@pytest.mark.parametrize('indices, left', [
    (None, []), (3, [3, 4]), (5, []), (-2, [0, 1, 2]), ([0, 4], [1, 2, 3])
    ])
def test_what_indices_leave_out_is_what_the_host_does_not_take(indices, left):
    from mmengine.dataset import BaseDataset

    class Five(BaseDataset):
        def load_data_list(self):
            return [dict(index=i) for i in range(5)]

    taken = {item['index'] for item in Five(
        indices=indices, test_mode=True)}
    assert left_out(indices, 5) == left == sorted(set(range(5)) - taken)


@pytest.fixture
def config(demo):
    """A config of 12 images, after changes of its training set."""
    def make(**changes):
        cfg = Config.fromfile(FASHION)
        cfg.merge_from_dict(demo[1])
        cfg.train_dataloader.dataset.update(changes)
        return cfg
    return make


def test_the_images_are_those_of_the_training_set_as_tested(config, demo):
    found = held_out_images(config(indices=-3), 14, 4)
    whole = images_of(demo[1], 'train')
    assert not found.trained and len(found.images) == 4
    for place, index in enumerate((0, 2, 4, 6)):
        item = found.images[place]
        assert item['inputs'].shape[-2:] == (14, 14)
        assert int(item['data_samples'].gt_label) == (
            whole.get_data_info(index)['gt_label'])


def test_images_that_it_was_trained_on_are_called_so(config):
    found = held_out_images(config(indices=None), 28, 6)
    assert found.trained and len(found.images) == 6
    assert 'was trained: it is over-confident' in found.source
    with pytest.raises(UserError, match='no `indices` that leave some out. '
                       'Give --held-out N to take N'):
        held_out_images(config(indices=None), 28, None)


def test_no_held_out_images_are_refused(config):
    with pytest.raises(UserError, match='leave out none of 12'):
        held_out_images(config(indices=12), 28, None)
    cfg = config()
    cfg.train_dataloader.dataset = dict(cfg.test_dataloader.dataset,
                                        indices=7)
    with pytest.raises(UserError, match='the training set is the test set'):
        check_held_out(cfg, 5)
    cfg.train_dataloader = None
    with pytest.raises(UserError, match='has no `train_dataloader`'):
        check_held_out(cfg, None)
    with pytest.raises(ValueError, match='`held_out` must be an int from 1'):
        check_held_out(config(), 0)
    cfg = config()
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        cfg.test_dataloader.dataset] * 2)
    with pytest.raises(UserError, match="one training set, but got 'Concat"):
        check_held_out(cfg, None)
    cfg.train_dataloader.dataset = dict(  # as tools/adapt.py --images
        type='ImageFolder', folder='photos', pipeline=[])
    with pytest.raises(UserError, match="of the folder 'photos', have none. "
                       'Give --threshold'):
        check_held_out(cfg, 5)


def test_no_image_of_the_test_is_held_out(config, demo):
    """Also where another config names it, as of a split by `indices`."""
    tested = images_of(demo[1], 'test', indices=-6)
    same = dict(split='test', test_mode=True, download=False)
    left = held_out_images(config(indices=3, **same), 28, None, tested)
    assert list(left.images.indices) == [3, 4, 5]
    with pytest.raises(UserError, match='The 6 training images .* test set'):
        held_out_images(config(indices=6, **same), 28, None, tested)
    cfg = config(indices=None)
    one = dict(cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = dict(type='KFoldDataset', dataset=one)
    cfg.test_dataloader.dataset = dict(type='KFoldDataset', dataset=one,
                                       test_mode=True)
    with pytest.raises(UserError, match='the training set is the test set'):
        check_held_out(cfg, 5)


def result(**cascade):
    row = dict(metrics={'accuracy/top1': 90.0}, gflops=1.0, auroc=0.9,
               gflops_ratio=0.6,
               share_decided=0.5, images_per_s=100.0,
               images_per_s_quartiles=[99.0, 101.0],
               images_reliable=True)
    return dict(label='net', rows=[dict(row, scale=28), dict(row, scale=14)],
                cascade={**row, 'sizes': (14, 28), 'thresholds': (0.98765, ),
                         'held_out': None, 'random': row,
                         'curve': [[0, 90.0, 1.0], [1, 91.0, 2.0]],
                         **cascade})


def test_what_is_said(tmp_path):
    assert sentences(result())[0] == 'Threshold 0.9877, as given.'
    found = dict(source='9 images', accuracy=91.0, base_accuracy=92.0,
                 target=0.5)
    assert sentences(result(held_out=found))[0] == (
        'Threshold 0.9877, found on 9 images: 91.00 there, 92.00 by 28 '
        'alone, target 0.5. No image of the test was used.')
    assert not any('saves nothing' in each for each in sentences(result()))
    # A target does not go with a threshold that is given.
    for held_out, fix in ((None, 'a lower threshold'),
                          (found, 'a target above 0')):
        assert sentences(result(gflops_ratio=1.05, held_out=held_out))[1] == (
            'It saves nothing: 28 alone costs less. Take a smaller first '
            f'size, or {fix}.')
    assert make_cascade_table(result()).row_count == 4
    json.dumps(result())
    draw_cascade(result(), str(tmp_path / 'a.png'))
    assert osp.getsize(tmp_path / 'a.png') > 5000
