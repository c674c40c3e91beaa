"""Shipped configs of the sibling hosts, made small enough for a CPU."""
import copy
import itertools
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import folders
import pytest
from helpers import walk
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from sct_mm.utils.config import load_config

COUNT = itertools.count()
# Of the hosts' imports and pipelines: deprecated names, and images of noise.
HOSTS_OWN = [pytest.mark.filterwarnings(f'ignore::{kind}') for kind in (
    'DeprecationWarning', 'FutureWarning', 'UserWarning', 'SyntaxWarning',
    'ResourceWarning', 'RuntimeWarning')]
# Lengths in pixels in pipelines, preprocessors, codecs and `test_cfg`.
LENGTHS = ('scale', 'scales', 'crop_size', 'size', 'input_size',
           'heatmap_size', 'img_scale', 'img_size', 'stride', 'img_shape',
           'border')
# They need albumentations, which is not installed, or change nothing here.
LEFT_OUT = ('mmdet.Albu', )
# {type of a `norm_cfg`: that of SSBN}
SSBN_OF = dict(BN='SSBN', BN2d='SSBN', SyncBN='SyncSSBN', BN3d='SSBN3d')


class Case(NamedTuple):
    """A shipped config, and what makes it small.

    Args:
        config: host::path, as in ``_base_``.
        ratio: by what its lengths in pixels are multiplied.
        scales: short edges of its training images in pixels, the base first.
        changes: options that are merged into the config.
        hook: arguments of SCTLossHook.
    """
    config: str
    ratio: float
    scales: tuple[int, ...]
    changes: dict = {}
    hook: dict = {}

    @property
    def host(self) -> str:
        return self.config.partition('::')[0]

    @property
    def name(self) -> str:
        return self.config.rpartition('/')[2].removesuffix('.py')


SEG = dict(ratio=1 / 8, scales=(64, 48, 32))
POSE = dict(ratio=1, scales=(192, 96))
VIDEO = dict(ratio=1 / 4, scales=(56, 48, 40))
YOLO = dict(ratio=1 / 5, scales=(128, 96, 64))
ROTATED = dict(ratio=1 / 8, scales=(128, 96, 64))
SELF = dict(ratio=2 / 7, scales=(64, 48, 32))
# Norms of vectors take those of two images to -1 and 1.
SELF_18 = {'train_dataloader.batch_size': 6, 'model.backbone.depth': 18,
           'model.neck.in_channels': 512, 'model.neck.hid_channels': 256}
# As shipped, it resizes each batch to a size from 480 to 800 pixels, and makes
# images floating point by that.
ONE_SIZE = {'model.data_preprocessor.batch_augments': None,
            'model.data_preprocessor.mean': [0., 0., 0.],
            'model.data_preprocessor.std': [1., 1., 1.]}
DEPTH_18 = {'model.backbone.depth': 18,
            'model.neck.in_channels': [64, 128, 256, 512]}
POSE_18 = {'model.backbone.depth': 18, 'model.head.in_channels': 512}
VIDEO_18 = {'model.backbone.depth': 18, 'model.cls_head.in_channels': 512}
HRNET_W4 = {'model.head.in_channels': 4, **{
    f'model.backbone.extra.stage{stage}.{name}': value
    for stage in (2, 3, 4) for name, value in dict(
        num_modules=1, num_blocks=(1, ) * stage,
        num_channels=(4, 8, 16, 32)[:stage]).items()}}
# Statistics that train: random weights have none that could be kept.
TRAINED = {'model.backbone.norm_eval': False,
           'model.backbone.frozen_stages': -1}
FEW_PROPOSALS = {'model.train_cfg.rpn_proposal.nms_pre': 100,
                 'model.train_cfg.rpn_proposal.max_per_img': 50,
                 'model.test_cfg.rpn.nms_pre': 20,
                 'model.test_cfg.rpn.max_per_img': 10,
                 'model.test_cfg.rcnn.max_per_img': 10}
# The rotated overlap of two thousand boxes takes a CPU minutes, and that of
# 50 proposals in 15 classes half of a test.
FEW_BOXES = {'model.test_cfg.nms_pre': 20, 'model.test_cfg.max_per_img': 20}

# Without configs whose losses have operators for CUDA only (rotated FCOS,
# ATSS and RTMDet with the rotated IoU), or whose heads are fixed to one size
# (SimCC), or with a norm of two values behind a global pooling (BiSeNet),
# whose gradients are rounding.
CASES = tuple(itertools.starmap(
    lambda host, path, options, changes=None: Case(
        f'{host}::{path}.py', **options, changes=changes or {}), (
        ('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024', SEG),
        ('mmseg', 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024', SEG),
        ('mmseg', 'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_'
         'cityscapes-512x1024', SEG),
        ('mmseg', 'unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024', SEG,
         {'model.backbone.base_channels': 16,
          'model.decode_head.in_channels': 16,
          'model.auxiliary_head.in_channels': 32}),
        ('mmpose', 'body_2d_keypoint/topdown_heatmap/coco/'
         'td-hm_res50_8xb64-210e_coco-256x192', POSE, POSE_18),
        ('mmpose', 'body_2d_keypoint/topdown_heatmap/coco/'
         'td-hm_mobilenetv2_8xb64-210e_coco-256x192', POSE),
        ('mmpose', 'body_2d_keypoint/topdown_heatmap/coco/'
         'td-hm_hrnet-w32_8xb64-210e_coco-256x192', POSE, HRNET_W4),
        ('mmpose', 'body_2d_keypoint/topdown_regression/coco/'
         'td-reg_res50_8xb64-210e_coco-256x192', POSE, POSE_18),
        ('mmaction', 'recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-'
         '1x1x3-100e_kinetics400-rgb', VIDEO, VIDEO_18),
        ('mmaction', 'recognition/tsm/tsm_imagenet-pretrained-r50_8xb16-'
         '1x1x8-50e_kinetics400-rgb', VIDEO,
         {**VIDEO_18, 'model.backbone.pretrained2d': False}),
        ('mmaction', 'recognition/slowonly/slowonly_r50_8xb16-4x16x1-256e_'
         'kinetics400-rgb', VIDEO, VIDEO_18),
        ('mmaction', 'recognition/r2plus1d/r2plus1d_r34_8xb8-8x8x1-180e_'
         'kinetics400-rgb', VIDEO, VIDEO_18),
        ('mmyolo', 'yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco', YOLO),
        ('mmyolo', 'yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco', YOLO),
        ('mmyolo', 'yolox/yolox_tiny_fast_8xb8-300e_coco', YOLO,
         ONE_SIZE),
        ('mmyolo', 'rtmdet/rtmdet_tiny_syncbn_fast_8xb32-300e_coco', YOLO),
        ('mmrotate', 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_'
         '1x_dota', ROTATED, {**DEPTH_18, **TRAINED, **FEW_BOXES}),
        ('mmrotate', 'rotated_fcos/rotated-fcos-hbox-le90_r50_fpn_1x_dota',
         ROTATED, {**DEPTH_18, **TRAINED, **FEW_BOXES}),
        ('mmrotate', 'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota',
         ROTATED, {**DEPTH_18, **TRAINED, **FEW_PROPOSALS}),
        ('mmrotate', 's2anet/s2anet-le90_r50_fpn_1x_dota', ROTATED,
         {**DEPTH_18, **TRAINED, **FEW_BOXES}),
        ('mmpretrain', 'simclr/simclr_resnet50_16xb256-coslr-200e_in1k',
         SELF, SELF_18),
        ('mmpretrain', 'byol/byol_resnet50_16xb256-coslr-200e_in1k', SELF,
         {**SELF_18, 'model.head.predictor.hid_channels': 256}),
        ('mmpretrain', 'barlowtwins/barlowtwins_resnet50_8xb256-coslr-300e_'
         'in1k', SELF, {**SELF_18, 'model.neck.out_channels': 256,
                        'model.head.in_channels': 256}),
        ('mmpretrain', 'simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k',
         SELF, {**SELF_18, 'model.neck.out_channels': 256,
                'model.head.predictor.in_channels': 256,
                'model.head.predictor.out_channels': 256}),
    )))
# Its queue of earlier images wants one scale a step.
MOCO = Case('mmpretrain::mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
            **SELF, changes={**SELF_18, 'model.queue_len': 12},
            hook=dict(scales_per_step=1))


def shrunk(value: Any, ratio: float) -> Any:
    """``value`` in pixels, times ``ratio``; -1 stays."""
    if isinstance(value, (list, tuple)):
        return type(value)(shrunk(v, ratio) for v in value)
    return round(value * ratio) if isinstance(value, int) and (
        abs(value) > 1) else value


def shrink(cfg: Config, ratio: float) -> None:
    """Multiply each length in pixels by ``ratio``, and leave out what is not
    installed."""
    def change(node: dict) -> None:
        for key in LENGTHS:
            if key in node:
                node[key] = shrunk(node[key], ratio)
        if node.get('num_clips', 0) > 8:  # of a test
            node['num_clips'] = 3
        if 'hue' in node:  # mmcv 2.1's, which fails with numpy 2
            node['hue'] = 0.0
        for key in ('pipeline', 'transforms', 'switch_pipeline'):
            if isinstance(node.get(key), list):
                node[key] = [t for t in node[key] if not (
                    isinstance(t, dict) and t.get('type') in LEFT_OUT)]

    parts = [cfg[key] for key in cfg if key.endswith('_dataloader')]
    parts += [cfg.get('custom_hooks'), cfg.get('data_preprocessor')]
    parts += [cfg.model.get(key) for key in ('data_preprocessor', 'test_cfg')]
    parts += [cfg.model.get('head', {}).get('decoder')]
    walk(parts, change)


# {host: what lets its loaders and metrics read a folder of `folders`}
def read_cityscapes(cfg: Config, folder: str) -> None:
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = folder


def read_coco_poses(cfg: Config, folder: str) -> None:
    for split in ('train', 'val', 'test'):
        part = 'train' if split == 'train' else 'val'
        data = cfg[f'{split}_dataloader'].dataset
        data.data_root, data.bbox_file = folder, None
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = (
                f'{folder}/annotations/person_keypoints_{part}2017.json')


def read_coco_boxes(cfg: Config, folder: str) -> None:
    def change(node: dict) -> None:
        if 'ann_file' in node and 'data_prefix' in node:
            node['data_root'] = folder
    for split in ('train', 'val', 'test'):
        walk(cfg[f'{split}_dataloader'], change)
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = (
                f'{folder}/annotations/instances_val2017.json')


def read_dota(cfg: Config, folder: str) -> None:
    for split in ('train', 'val', 'test'):
        part = 'train' if split == 'train' else 'val'
        cfg[f'{split}_dataloader'].dataset.update(
            data_root=folder, ann_file=f'{part}/annfiles/',
            data_prefix=dict(img_path=f'{part}/images/'))


def read_frames(cfg: Config, folder: str) -> None:
    for split in ('train', 'val', 'test'):
        part = 'train' if split == 'train' else 'val'
        data = cfg[f'{split}_dataloader'].dataset
        data.update(type='RawframeDataset', ann_file=f'{folder}/{part}.txt',
                    data_prefix=dict(img=f'{folder}/{part}'))
        data.pipeline = [
            dict(type='RawFrameDecode') if t['type'] == 'DecordDecode' else t
            for t in data.pipeline if t['type'] != 'DecordInit']


def read_images(cfg: Config, folder: str) -> None:
    cfg.train_dataloader.dataset.update(
        type='CustomDataset', data_root=folder, data_prefix='train',
        with_label=False)
    del cfg.train_dataloader.dataset['split']


READ = dict(mmseg=read_cityscapes, mmpose=read_coco_poses,
            mmyolo=read_coco_boxes, mmrotate=read_dota,
            mmaction=read_frames, mmpretrain=read_images)
WRITE = dict(mmseg=folders.cityscapes, mmpose=folders.coco,
             mmyolo=folders.coco, mmrotate=folders.dota,
             mmaction=folders.kinetics, mmpretrain=folders.image_folder)


def need(host: str) -> None:
    """Skip a test whose host is not installed, and register the host's
    classes otherwise."""
    if find_spec(host) is None:
        pytest.skip(f'{host} is not installed: run make test-hosts')
    import_module(f'{host}.models')


def folder_of(host: str, factory: pytest.TempPathFactory) -> Path:
    """The folder of images that ``host`` reads, written once."""
    need(host)
    folder = factory.getbasetemp() / host
    if not folder.exists():
        folder.mkdir()
        WRITE[host](folder)
    return folder


def small(case: Case, folder: Path, work_dir: Path) -> Config:
    """The config of ``case`` at a few pixels, on the images of ``folder``, in
    two steps of two images, without pretrained weights."""
    cfg = load_config(case.config)
    shrink(cfg, case.ratio)
    READ[case.host](cfg, str(folder))

    def change(node: dict) -> None:
        if 'init_cfg' in node and 'Pretrained' in str(node['init_cfg']):
            node['init_cfg'] = None
        if isinstance(node.get('pretrained'), str):
            node['pretrained'] = None
        if 'dropout_ratio' in node:  # its draws differ between networks
            node['dropout_ratio'] = 0

    walk(cfg.model, change)
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader:
            loader.update(num_workers=0, persistent_workers=False,
                          batch_size=2, pin_memory=False)
            loader.pop('prefetch_factor', None)
    cfg.merge_from_dict(case.changes)
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3,
                             val_interval=3)
        cfg.default_hooks.checkpoint.interval = 3
    else:
        cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook')
    cfg.work_dir, cfg.log_level = str(work_dir), 'WARNING'
    cfg.experiment_name = f'{case.name}-{next(COUNT)}'
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
    return cfg


def with_norm_cfg(model: dict, scales: tuple[int, ...]) -> dict:
    """``model`` as a user writes it: SSBN in the `norm_cfg` of each part."""
    model = copy.deepcopy(model)

    def change(node: dict) -> None:
        kind = (node.get('norm_cfg') or {}).get('type')
        if kind in SSBN_OF:
            node['norm_cfg'] = dict(node['norm_cfg'], type=SSBN_OF[kind],
                                    scales=scales)

    walk(model, change)
    return model


def plain_and_sct(case: Case, cfg: Config) -> tuple[nn.Module, nn.Module]:
    """The host's network, and one with SSBN and the same weights."""
    model = copy.deepcopy(dict(cfg.model))
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in model:
        model['data_preprocessor'] = cfg.data_preprocessor
    plain = MODELS.build(copy.deepcopy(model))
    sct = MODELS.build(dict(type='WithSSBN', scales=case.scales,
                            model=with_norm_cfg(model, case.scales)))
    sct.load_state_dict(plain.state_dict())  # a stock checkpoint
    return plain, sct
