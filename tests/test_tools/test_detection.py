"""Every detection config trains and evaluates, on clothes of Fashion-MNIST."""
import copy
import glob
import itertools
import json
import os.path as osp
import re

import numpy as np
import pytest
import torch
from arms import ListModel
from conftest import ROOT
from fashion_det import make_fashion_det
from fill_metafile import of_a_sibling
from helpers import walk
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from sct_mm import ScalesTestLoop, SCTLossHook, use_scale
from sct_mm.models.size_selection import scales_of, ssbn_layers
from sct_mm.utils.errors import UserError

THREE_SCALES = osp.join(ROOT, 'tools/benchmarks/experiments/configs',
                        'sct-between_retinanet_r18_fpn_1xb8_fashion-det.py')
CONFIGS = sorted(
    path for path in glob.glob('configs/**/*.py', root_dir=ROOT,
                               recursive=True)
    if '_base_' not in path and ('_coco' in path or 'fashion-det' in path)
    and not of_a_sibling(osp.join(ROOT, path)))
COUNT = itertools.count()
# {key: (its value in a network, that in a smaller one of the same parts)}
SMALLER = dict(depth=(50, 18),
               in_channels=([256, 512, 1024, 2048], [64, 128, 256, 512]),
               feat_channels=(256, 32), fc_out_channels=(1024, 64),
               conv_out_channels=(256, 16))
CLOTHES = Config.fromfile(THREE_SCALES).clothes


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A small data set."""
    folder = tmp_path_factory.mktemp('fashion-det')
    make_fashion_det(osp.join(ROOT, 'data/fashion-mnist'), str(folder), 8, 4)
    return folder


def load_clothes(cfg, images):
    """Let the config's data loaders read 4 images."""
    for name, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = cfg[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2,
                      pin_memory=False)
        loader.dataset.update(
            data_root=str(images), ann_file=f'{split}.json', indices=4,
            data_prefix=dict(img=f'{split}/'),
            metainfo=dict(classes=CLOTHES))
        if name != 'train':
            cfg[f'{name}_evaluator'].ann_file = str(images / 'val.json')


def small(path, images, work_dir, smallest=32, apart=64):
    """The config at ``path`` at a few pixels, on 4 images of clothes. Its
    two steps are at two scales, or at sizes between the first and the last
    two of three."""
    cfg = Config.fromfile(path)
    found = []
    walk(cfg.model, lambda d: found.append(d.get('scales', ()))
         if str(d.get('type')).endswith('SSBN') else None)
    found += [hook.scales for hook in cfg.get('custom_hooks', ())
              if 'scales' in hook]  # of shared norms
    scales = found[0] if found else (128, 96, 64)
    if len(scales) > 4:
        apart = 32
    sizes = tuple(smallest + apart * i for i in range(len(scales)))[::-1]
    ratio = sizes[0] / scales[0]

    def change(node):
        if str(node.get('type')).endswith(('SSBN', 'SCTLossHook')) and (
                'scales' in node):
            node['scales'] = sizes
        if node.get('type') == 'SCTLossHook':
            assert (node.get('recipe') == 'any-size'
                    or node['scales_per_step'] == 1)
            node.update(dict(between=1.0, seed=1) if node.get('between')
                        else dict(seed=6))
        elif node.get('type') == 'ScalesValLoop' and 'sizes' in node:
            node['sizes'] = sizes
        elif 'Resize' in str(node.get('type')) or node.get('type') in (
                'CachedMosaic', 'CachedMixUp', 'RandomCrop', 'Pad'):
            for key in ('scale', 'img_scale', 'crop_size', 'size'):
                if node.get(key):
                    node[key] = tuple(round(v * ratio) for v in node[key])
        for key, (value, less) in SMALLER.items():
            if node.get(key) == value:
                node[key] = less
        if node.get('num_classes') == 80:
            node['num_classes'] = len(CLOTHES)
        if 'nms_pre' in node:  # of a thousand boxes each is pooled
            node.update(nms_pre=100, max_per_img=50)
        if 'score_thr' in node:
            node.update(score_thr=0.0, max_per_img=5)  # after two steps
        if 'init_cfg' in node:
            node['init_cfg'] = None

    walk(cfg._cfg_dict, change)
    load_clothes(cfg, images)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.work_dir, cfg.log_level = str(work_dir), 'WARNING'
    cfg.experiment_name = f'experiment-{next(COUNT)}'  # one a Runner
    cfg.visualizer.name = cfg.experiment_name
    cfg.default_hooks.logger.interval = 1
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=osp.basename)
def test_config_trains_two_steps_and_evaluates(path, images, tmp_path):
    path, name = osp.join(ROOT, path), osp.basename(path)
    with open(path) as f:
        assert len(f.readlines()) <= 25
    cfg = small(path, images, tmp_path)
    runner = Runner.from_cfg(cfg)
    model = runner.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    runner.train()
    assert runner.iter == 2
    logged = runner.message_hub.log_scalars
    assert np.isfinite(logged['train/loss'].current())
    scales = scales_of(model)
    shared = cfg.val_cfg.get('sizes', ())
    for size in scales or shared:
        assert f'val/{size}/coco/bbox_mAP' in logged
    assert 'val/mean/coco/bbox_mAP' in logged or (
        'val/coco/bbox_mAP' in logged and not name.startswith('sct'))
    assert (scales is not None) == (name.startswith('sct')
                                    and 'shared-bn' not in name)
    assert bool(shared) == ('shared-bn' in name)
    if not name.startswith('sct'):
        return
    steps = {name.split('/')[1] for name in logged
             if name.endswith('/total')}
    assert len(steps) == 2  # the scales nearest to their sizes
    assert steps < {f's{scale}' for scale in scales or shared}
    after = model.state_dict()
    moved = [(after[key] != before[key]).flatten(1).any(1).sum()
             for key in after if key.endswith('running_mean') and scales]
    assert len(moved) == len(ssbn_layers(model))
    # Only the config that starts from an SCT classifier keeps norm_eval.
    rows = 0 if 'r50-sct' in name else 2 if len(scales or ()) > 4 else 3
    assert all(count == rows for count in moved)


def gradients(cfg, backward, **options):
    torch.manual_seed(0)
    cfg.experiment_name = f'experiment-{next(COUNT)}'
    cfg.visualizer.name = cfg.experiment_name
    runner = Runner.from_cfg(cfg)
    torch.manual_seed(0)
    runner.model.init_weights()
    hook = SCTLossHook(backward=backward, **options)
    hook.attach(runner.model)
    runner.model.train()
    data = runner.model.data_preprocessor(next(iter(
        runner.train_dataloader)), True)
    loss = runner.model(**data, mode='loss')['loss']
    loss.backward()
    return {n: p.grad for n, p in runner.model.named_parameters()}


@pytest.mark.parametrize('options', [{}, dict(partition=True)],
                         ids=['all', 'partition'])
def test_per_scale_and_joint_are_equal(options, images, tmp_path):
    cfg = small(THREE_SCALES, images, tmp_path)
    cfg.custom_hooks = []
    cfg.train_dataloader.batch_size = 6
    cfg.train_dataloader.dataset.indices = 8
    want = gradients(cfg, 'joint', **options)
    got = gradients(cfg, 'per_scale', **options)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    """Config file and checkpoint of a detector trained for four steps."""
    folder = tmp_path_factory.mktemp('det')
    cfg = small(THREE_SCALES, images, folder, smallest=64, apart=32)
    cfg.train_cfg.max_epochs = 2
    cfg.dump(str(folder / 'config.py'))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return folder / 'config.py', folder / 'epoch_2.pth'


def resized(cfg, scale):
    from sct_mm.datasets.rescale_pipeline import rescale_pipeline
    from sct_mm.utils.config_walk import pipelines_of
    pipeline, = pipelines_of(cfg.test_dataloader)
    pipeline[:] = rescale_pipeline(pipeline, scale)
    return cfg


@pytest.mark.parametrize('scale', [128, 96, 64])
def test_inferencer_and_init_detector_choose_the_scale(
        scale, trained, images):
    """mmdet's own, with no code of ours but the config's import."""
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    config, checkpoint = map(str, trained)
    cfg = resized(Config.fromfile(config), scale)
    path = str(images / 'val' / '000000.png')
    inferencer = DetInferencer(cfg, checkpoint, device='cpu',
                               show_progress=False)

    def scores():
        return inferencer(path)['predictions'][0]['scores']

    free = scores()
    with use_scale(inferencer.model, scale):
        assert scores() == free
    with use_scale(inferencer.model, 64 if scale == 128 else 128):
        assert scores() != free
    model = init_detector(cfg, checkpoint, device='cpu')
    found = inference_detector(model, path).pred_instances.scores
    torch.testing.assert_close(found, torch.tensor(free), atol=1e-4, rtol=0)


def test_each_view_of_mmdets_tta_is_served_at_its_own_scale(
        trained, tmp_path):
    """Unpinned, in the host's TestLoop; refused where a size is pinned."""
    cfg = Config.fromfile(str(trained[0]))
    cfg.work_dir = str(tmp_path)
    cfg.test_dataloader.batch_size = 1  # images of two shapes are padded
    load, resize, annotate, pack = cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.dataset.pipeline = [load, dict(
        type='TestTimeAug', transforms=[
            [dict(resize, scale=(s + s // 4, s)) for s in (128, 64)],
            [dict(type='RandomFlip', prob=0.0)], [annotate],
            [dict(pack, meta_keys=(*pack['meta_keys'], 'flip',
                                   'flip_direction'))]])]
    cfg.model = dict(type='DetTTAModel', module=cfg.model, tta_cfg=dict(
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=20))
    cfg.experiment_name = f'experiment-{next(COUNT)}'
    cfg.visualizer.name = cfg.experiment_name
    runner = Runner.from_cfg(cfg)
    model = runner.model.module.eval()
    model.load_state_dict(torch.load(trained[1])['state_dict'])
    batch = next(iter(runner.test_loop.dataloader))
    free, = runner.model.test_step(copy.deepcopy(batch))

    def pinned(*scales):
        found = []
        for i, scale in enumerate(scales):
            view = copy.deepcopy({k: v[i] for k, v in batch.items()})
            with use_scale(model, scale):
                found += model.test_step(view)
        return runner.model.merge_preds([found])[0].pred_instances.bboxes

    assert torch.equal(free.pred_instances.bboxes, pinned(128, 64))
    assert not torch.equal(free.pred_instances.bboxes, pinned(128, 96))
    assert isinstance(runner.test(), dict)
    with pytest.raises(UserError, match='DetTTAModel makes views of sizes'):
        ScalesTestLoop(runner, cfg.test_dataloader, cfg.test_evaluator)


def test_tools_serve_a_detector(trained, images, run_tool, tmp_path):
    config, checkpoint = trained
    code, output = run_tool('test.py', config, checkpoint, '--out', tmp_path,
                            '--scales', 128, 100, 64)
    assert code == 0, output
    model, = json.loads((tmp_path / 'scales.json').read_text())['models']
    assert [row['served_by'] for row in model['rows']] == [
        [128], [128, 96], [64]]
    for row in model['rows']:
        assert {'coco/bbox_mAP', 'coco/bbox_mAP_s'} <= set(row['metrics'])
        assert row['latency_ms'] > 0
    assert model['rows'][0]['gflops'] > 3 * model['rows'][2]['gflops'] > 0
    assert 'bbox_mAP' in output and (tmp_path / 'scales.png').exists()
    code, output = run_tool(
        'train.py', config, '--work-dir', tmp_path / 'run', '--resume',
        '--cfg-options', 'train_cfg.max_epochs=1', 'log_level=INFO')
    assert code == 0, output
    assert re.search(r's(128|96|64)/total', output)
    assert 'coco/bbox_mAP' in output


def test_the_benchmark_serves_a_detector(trained, run_tool, tmp_path):
    code, output = run_tool(
        'benchmarks/cost/benchmark.py', trained[0], '--rounds', 3,
        '--batch-size', 2, '--arms', 'per_scale',
        '--out', tmp_path / 'out.json')
    assert code == 0, output
    rows = json.loads((tmp_path / 'out.json').read_text())['training']
    flops = {row['arm']: row['flops'] for row in rows}
    assert flops['plain BN at 128'] == 1 and flops['plain BN at 64'] < 0.35
    assert flops['per_scale'] == pytest.approx(sum(list(flops.values())[:3]))
    init_default_scope('mmdet')
    with pytest.raises(UserError, match='needs a classifier, but got a Retin'):
        ListModel(MODELS.build(Config.fromfile(trained[0]).model))


def test_fidelity_of_a_detector(trained, images, run_tool, tmp_path):
    """The truth is what mmdet's own inference finds at the base."""
    from mmdet.apis import inference_detector, init_detector
    config, checkpoint = map(str, trained)
    model = init_detector(resized(Config.fromfile(config), 128), checkpoint,
                          device='cpu')
    scores = torch.cat([inference_detector(model, str(path))
                        .pred_instances.scores
                        for path in sorted((images / 'val').glob('*.png'))])
    least = float(scores.sort().values[len(scores) // 2 - 1:][:2].mean())
    code, output = run_tool(
        'test.py', config, checkpoint, '--against-base', '--scales', 64,
        '--images', images / 'val', '--sure', least, '--out', tmp_path)
    assert code == 0, output
    model, = json.loads((tmp_path / 'fidelity.json').read_text())['models']
    assert model['reference']['truth_boxes'] == int((scores > least).sum())
    base, small_one = model['rows']
    assert base['metrics'] == dict(bbox_mAP=1, bbox_mAP_50=1)
    assert 0 <= small_one['metrics']['bbox_mAP'] < 1
    assert f'{model["reference"]["truth_boxes"]} boxes of a score' in output
