"""Folders of images: what is found, left out and loaded."""
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmpretrain.datasets import CIFAR10
from PIL import Image

from sct_mm.datasets.image_folder import (
    check_images,
    folder_dataset,
    folder_loader,
    given_indices,
    images_in,
    train_pipeline,
    with_plain_loading,
)
from sct_mm.datasets.image_folder import (
    test_pipeline as pipeline_of,
)
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

PIPELINE = [dict(type='LoadImageFromFile', imdecode_backend='pillow',
                 backend_args=dict(backend='petrel')),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=16), dict(type='PackInputs')]


def write(folder, name, height=20, width=30, channels=3):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    value = len(images_in(str(folder))) + 1
    assert cv2.imwrite(str(path), np.full((height, width, channels), value,
                                          np.uint8))
    return path


def config(**options):
    return Config(dict(default_scope='mmpretrain', model=dict(), **options))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, 'b/c/deep.PNG')
    write(tmp_path, 'a.jpg')
    write(tmp_path, 'b/grey.png', channels=1)
    write(tmp_path, '.hidden.png')
    write(tmp_path, '.thumbnails/a.png')
    (tmp_path / 'text.txt').write_text('no image')
    init_default_scope('mmpretrain')
    return tmp_path


@pytest.mark.parametrize('inside', [False, True])
def test_a_folder_that_is_linked_to_counts_once(inside, folder,
                                                tmp_path_factory):
    there = folder / 'b' if inside else tmp_path_factory.mktemp('there')
    write(there, 'd.png')
    (folder / 'link').symlink_to(there)
    (there / 'loop').symlink_to(there)
    (folder / 'broken.png').symlink_to('nowhere.png')
    assert images_in(str(folder)) == [
        'a.jpg', 'b/c/deep.PNG', *(['b/d.png'] if inside else ()),
        'b/grey.png', *([] if inside else ['link/d.png'])]


def test_images_at_any_depth_in_order(folder):
    assert images_in(str(folder)) == ['a.jpg', 'b/c/deep.PNG', 'b/grey.png']
    assert check_images(str(folder)) == []
    dataset = DATASETS.build(folder_dataset(config(), str(folder), PIPELINE))
    assert len(dataset) == 3
    samples = [dataset[i] for i in range(3)]
    assert [s['inputs'].shape for s in samples] == [(3, 16, 16)] * 3
    assert [s['data_samples'].img_path for s in samples] == [
        str(folder / name) for name in images_in(str(folder))]
    assert 'gt_label' not in samples[0]['data_samples']
    # Values tell the image: the second that was written is the first.
    assert [int(s['inputs'].float().mean().round()) for s in samples] == [
        2, 1, 3]


def test_what_cannot_be_used_is_left_out_with_one_warning(folder):
    whole = (folder / 'a.jpg').read_bytes()
    (folder / 'b' / 'cut.png').write_bytes(b'\x89PNG' + whole[:9])
    (folder / 'empty.jpg').write_bytes(b'')
    write(folder, 'tiny.png', 7, 7)
    write(folder, 'thin.png', 10, 600)
    write(folder, 'small.png', 8, 8)
    cv2.imwrite(str(folder / 'floats.tif'), np.zeros((20, 20), np.float32))
    with pytest.warns(UserWarning, match="5 of 9 images in '.*' are left out,"
                      " such as 'b/cut.png': they cannot be read, or are "
                      'narrower than 8 pixels or a 50th') as warned:
        made = folder_dataset(config(), str(folder), PIPELINE)
    assert len(warned) == 1
    assert made['skip'] == ['b/cut.png', 'empty.jpg', 'floats.tif',
                            'thin.png', 'tiny.png']
    dataset = DATASETS.build(made)
    assert len(dataset) == 4
    assert all(dataset[i]['inputs'].shape == (3, 16, 16) for i in range(4))
    again = folder_dataset(config(), str(folder), PIPELINE,
                           skip=made['skip'])  # is not read again
    assert again == made


def test_loading_keeps_its_arguments_but_for_the_place_and_labels():
    before = [dict(t) for t in PIPELINE]
    assert with_plain_loading(PIPELINE) == [
        dict(type='LoadImageFromFile', imdecode_backend='pillow'),
        *PIPELINE[2:]]
    assert PIPELINE == before
    arrays = [dict(type='mmdet.LoadImageFromNDArray'), *PIPELINE[2:]]
    assert with_plain_loading(arrays)[0] == dict(type='LoadImageFromFile')
    assert with_plain_loading(PIPELINE[2:], grey=True) == [
        dict(type='LoadImageFromFile', color_type='grayscale'),
        *PIPELINE[2:]]


@pytest.mark.parametrize('pipeline, order', [(PIPELINE, 'BGR'),
                                             (PIPELINE[2:], 'RGB')])
def test_colours_are_in_the_order_of_the_config_s_own_images(
        pipeline, order, folder, tmp_path_factory):
    """mmcv loads BGR; a data set that holds arrays, as CIFAR, has RGB."""
    path = tmp_path_factory.mktemp('colours')
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path / 'a.png')
    dataset = DATASETS.build(folder_dataset(config(), str(path), pipeline))
    want = pixels if order == 'RGB' else pixels[..., ::-1]
    np.testing.assert_array_equal(
        dataset[0]['inputs'].permute(1, 2, 0).numpy(), want)


def test_a_pipeline_that_needs_annotations(folder):
    class Cut(BaseTransform):
        def transform(self, results):
            return results['gt_bboxes'][0]

    dataset = DATASETS.build(folder_dataset(config(), str(folder), [
        *PIPELINE[:3], dict(type=Cut), PIPELINE[3]]))
    with pytest.raises(UserError, match="no annotations, but the pipeline "
                       "needs 'gt_bboxes' of each. Leave --images out"):
        dataset[0]


def test_an_image_is_the_array_that_was_written(tmp_path):
    """mmpretrain's network and data set of CIFAR-10, whose images are
    written to a folder."""
    cfg = load_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py')
    init_default_scope('mmpretrain')
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32),
                                               np.uint8)
    inner = tmp_path / 'cifar' / CIFAR10.base_folder
    inner.mkdir(parents=True)
    for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        (inner / name).write_bytes(pickle.dumps(dict(
            data=images.reshape(8, -1), labels=[0] * 8)))
    (inner / CIFAR10.meta['filename']).write_bytes(pickle.dumps(
        {CIFAR10.meta['key']: list('abcdefghij')}))
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'cifar')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, '_check_integrity', lambda self: True)
        arrays = DATASETS.build(cfg.test_dataloader.dataset)
    (tmp_path / 'files').mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(
            tmp_path / 'files' / f'{i}.png')
    files = DATASETS.build(folder_dataset(cfg, str(tmp_path / 'files')))
    assert len(files) == len(arrays) == 8
    for one, other in zip(files, arrays, strict=True):
        assert torch.equal(one['inputs'], other['inputs'])


@pytest.mark.parametrize('options, channels', [
    (dict(data_preprocessor=dict(mean=[1.])), 1),
    (dict(model=dict(data_preprocessor=dict(mean=[1.]))), 1),
    (dict(model=dict(backbone=dict(in_channels=1))), 1),
    (dict(model=dict(type='WithSSBN', model=dict(
        backbone=dict(in_channels=1)))), 1),
    (dict(model=dict(backbone=dict(in_channels=3))), 3), (dict(), 3)])
def test_a_network_of_grey_images(options, channels, folder):
    cfg = Config(dict(default_scope='mmpretrain', **options))
    dataset = DATASETS.build(folder_dataset(cfg, str(folder), PIPELINE[2:]))
    assert {dataset[i]['inputs'].shape[0] for i in range(3)} == {channels}


def test_the_pipeline_and_the_loader_are_those_of_the_test(folder):
    data = dict(batch_size=7, num_workers=0, batch_sampler=dict(type='A'),
                sampler=dict(type='B', shuffle=True), drop_last=True,
                dataset=dict(type='RepeatDataset', times=2, dataset=dict(
                    type='ImageNet', data_root='nowhere',
                    pipeline=PIPELINE)))
    for cfg in (config(test_dataloader=data, test_pipeline=[]),
                config(val_dataloader=data)):
        loader = folder_loader(cfg, str(folder))
        assert loader['dataset'] == folder_dataset(cfg, str(folder), PIPELINE)
        assert loader['batch_size'] == 7 and loader['num_workers'] == 0
        assert loader['sampler'] == dict(type='DefaultSampler', shuffle=False)
        assert 'batch_sampler' not in loader and 'drop_last' not in loader
    assert pipeline_of(config(test_pipeline=PIPELINE)) == PIPELINE
    assert folder_loader(config(test_pipeline=PIPELINE),
                         str(folder))['batch_size'] == 1


@pytest.mark.parametrize('options', [{}, dict(test_pipeline=[]),
                                     dict(test_dataloader=None)])
def test_a_config_without_a_pipeline(options, folder):
    with pytest.raises(UserError, match='The config must have a test pipel'):
        folder_dataset(config(**options), str(folder))


def test_a_pipeline_of_videos(folder):
    with pytest.raises(UserError, match='networks of images, but the pipeli'):
        folder_dataset(config(), str(folder), [dict(type='DecordDecode')])


def test_folders_without_images(tmp_path):
    with pytest.raises(UserError, match="in a folder, but got '.*nowhere'"):
        check_images(str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match=r'has no file of \.jpg, .*\.webp\.'):
        check_images(str(tmp_path))
    (tmp_path / 'a.png').write_text('no image')
    with pytest.raises(UserError, match='has 1 that cannot be read or are'):
        check_images(str(tmp_path))


@pytest.mark.parametrize('indices', [2, -2, [2, 0], 9, None])
def test_a_part_of_the_images(indices, folder):
    """As mmengine takes a part of any data set."""
    dataset = DATASETS.build(folder_dataset(config(), str(folder), PIPELINE,
                                            indices=indices))
    names = np.array(images_in(str(folder)))
    want = (names if indices is None else names[indices]
            if isinstance(indices, list) else names[:indices]
            if indices > 0 else names[indices:])
    assert [dataset.get_data_info(i)['img_path'] for i in range(
        len(dataset))] == [str(folder / name) for name in want]
    loader = folder_loader(config(test_pipeline=PIPELINE), str(folder),
                           indices=indices)
    assert loader['dataset'].get('indices') == indices


def test_a_part_that_is_not_there(folder):
    with pytest.raises(UserError, match='`indices` must be those of the 3 '
                       "images of the data set, but got 3"):
        DATASETS.build(folder_dataset(config(), str(folder), PIPELINE,
                                      indices=[0, 3]))


def test_the_part_that_a_user_names():
    for options, want in (
            ({'a.dataset.indices': 5}, 5),
            ({'a.dataset.dataset.indices': [1, 2]}, [1, 2]),
            (dict(a=dict(dataset=dict(indices=-3))), -3),
            ({'b.dataset.indices': 5, 'a.batch_size': 2}, None),
            ({'a.dataset': None}, None), (None, None)):
        assert given_indices(options, 'a') == want


def test_what_prepares_images_for_a_training():
    """Its own pipeline, if that resizes, or the test's does not."""
    load, _, resize, pack = PIPELINE
    crop = dict(type='RandomCrop', crop_size=16)
    drawn = dict(type='RandomResizedCrop', scale=16)
    sized, none = [load, resize, pack], [load, pack]
    for train, test, want in (
            (sized, [load, resize], sized), (sized, none, sized),
            ([load, drawn], sized, [load, drawn]),
            (none, sized, sized), ([load, crop], sized, sized),
            (none, [load, dict(type='CenterCrop', crop_size=16)], none),
            (none, none, none), (None, sized, sized)):
        cfg = config(train_dataloader=train and dict(dataset=dict(
            pipeline=train)), test_dataloader=dict(dataset=dict(
                pipeline=test)))
        assert train_pipeline(cfg) == want
    assert train_pipeline(config(train_dataloader=dict(dataset=dict(
        pipeline=none)))) == none
    with pytest.raises(UserError, match='must have a test pipeline'):
        train_pipeline(config())


def test_images_of_another_size_that_nothing_resizes(folder):
    assert check_images(str(folder), 20) == []
    with pytest.raises(UserError, match='a shorter edge of 28 pixels, .*'
                       r"'.*a\.jpg' has 20\. Add dict\(type='Resize', "
                       r'scale=28\)'):
        check_images(str(folder), 28)
