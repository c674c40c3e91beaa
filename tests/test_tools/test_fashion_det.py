"""The detection demo's images: seeded, resumed, boxes that fit."""
import json
import os.path as osp

import numpy as np
import pytest
from conftest import ROOT
from fashion_det import make_fashion_det

TOOL = 'dataset_converters/fashion_det.py'


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A small data set."""
    folder = tmp_path_factory.mktemp('fashion-det')
    make_fashion_det(osp.join(ROOT, 'data/fashion-mnist'), str(folder), 8, 4)
    return folder


def test_the_composed_images_are_a_function_of_the_seed(
        images, start_tool, run_tool, tmp_path):
    code, output = start_tool(TOOL, 'data/fashion-mnist', tmp_path,
                              '--train', 2, '--val', 4)
    assert code == 0, output
    for name in ('val.json', 'val/000003.png', 'train/000001.png'):
        assert (tmp_path / name).read_bytes() == (images / name).read_bytes()
    code, output = run_tool(TOOL, 'data/fashion-mnist', tmp_path,
                            '--train', 2, '--val', 4)
    assert '4 images are there' in output
    code, output = run_tool(TOOL, 'nowhere', tmp_path)
    assert code == 2 and "must be in 'nowhere'" in output
    assert 'Traceback' not in output


def test_boxes_and_masks_of_the_composed_images_agree(images):
    from pycocotools import mask as coco_mask
    data = json.loads((images / 'train.json').read_text())
    assert len(data['images']) == 8 and data['annotations']
    for annotation in data['annotations']:
        mask = coco_mask.decode(annotation['segmentation'])
        rows, columns = np.where(mask)
        x, y, w, h = annotation['bbox']
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1, rows.max() + 1) == (x + w, y + h)
        assert annotation['area'] == mask.sum()


@pytest.mark.parametrize('options', [dict(train=0), dict(val=-1),
                                     dict(seed=-1), dict(train=2.5)])
def test_counts_that_are_none(options, tmp_path):
    name, = options
    with pytest.raises((TypeError, ValueError), match=f'`{name}` must be an'):
        make_fashion_det('source', str(tmp_path), **options)
    assert not list(tmp_path.iterdir())
