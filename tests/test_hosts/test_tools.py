"""The tools serve the siblings: train, validate, test, adapt and export."""
import copy
import multiprocessing.dummy
from importlib.util import find_spec

import pytest
import torch
from cases import (
    CASES,
    HOSTS_OWN,
    MOCO,
    folder_of,
    plain_and_sct,
    small,
    with_norm_cfg,
)
from helpers import randomised
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.testing import assert_close

from sct_mm import apis, extract_scale
from sct_mm.datasets.real_images import RealImages
from sct_mm.evaluation import measure
from sct_mm.export.formats import graph_run
from sct_mm.models.size_selection import scales_of

pytestmark = HOSTS_OWN
# {name of a case: sizes of its test in pixels, the base first}
TESTED = {'fcn_r18-d8_4xb2-80k_cityscapes-512x1024': (128, 96, 64),
          'pspnet_r18-d8_4xb2-80k_cityscapes-512x1024': (128, 96, 64),
          'deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024': (128, 96, 64),
          'unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024': (128, 96, 64),
          'td-hm_res50_8xb64-210e_coco-256x192': (192, 288, 96),
          'td-hm_mobilenetv2_8xb64-210e_coco-256x192': (192, 288, 96),
          'td-hm_hrnet-w32_8xb64-210e_coco-256x192': (192, 288, 96),
          'td-reg_res50_8xb64-210e_coco-256x192': (192, 288, 96),
          'tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb':
          (56, 48, 40),
          'tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb':
          (56, 48, 40),
          'slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb': (64, 55, 46),
          'yolov5_n-v61_syncbn_fast_8xb16-300e_coco': (128, 96, 64),
          'yolov8_n_syncbn_fast_8xb16-500e_coco': (128, 96, 64),
          'yolox_tiny_fast_8xb8-300e_coco': (83, 62, 42),  # 128 in training
          'rtmdet_tiny_syncbn_fast_8xb32-300e_coco': (128, 96, 64),
          'r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb': (64, 55, 46),
          'rotated-retinanet-rbox-le90_r50_fpn_1x_dota': (128, 96, 64),
          'rotated-fcos-hbox-le90_r50_fpn_1x_dota': (128, 96, 64),
          'oriented-rcnn-le90_r50_fpn_1x_dota': (128, 96, 64),
          's2anet-le90_r50_fpn_1x_dota': (128, 96, 64)}
CHOSEN = [case for case in CASES if case.name in TESTED]
SELF = [*(case for case in CASES if case.host == 'mmpretrain'), MOCO]


@pytest.fixture(autouse=True)
def no_timing(monkeypatch):
    monkeypatch.setattr(measure, 'ROUNDS', 2)


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """mmrotate evaluates each size in four processes, each of which imports
    for longer than all of them compute."""
    if find_spec('mmrotate') is not None:
        monkeypatch.setattr(
            'mmrotate.evaluation.functional.mean_ap.get_context',
            lambda method: multiprocessing.dummy)


def numbers_in(value):
    """The numbers of predictions: tensors and arrays, however deep."""
    if isinstance(value, BaseDataElement):
        value = value.to_dict()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(map(numbers_in, value), 0.0)
    if hasattr(value, 'tensor'):  # mmdet's boxes
        value = value.tensor
    if not hasattr(value, 'dtype') or 'str' in str(value.dtype):
        return 0.0
    return float(torch.as_tensor(value).double().sum())


@METRICS.register_module(force=True)
class SumOfPredictions(BaseMetric):
    """A metric that no untrained network has at 0."""
    default_prefix = 'sum'

    def process(self, data_batch, data_samples):
        self.results += [numbers_in({
            name: value for name, value in sample.items()
            if name.startswith('pred')}) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(predictions=sum(results))


def with_sum(cfg):
    for split in ('val', 'test'):
        metrics = cfg[f'{split}_evaluator']
        metrics = metrics if isinstance(metrics, list) else [metrics]
        cfg[f'{split}_evaluator'] = [*metrics, dict(type='SumOfPredictions')]
    return cfg


def dumped(cfg, folder, name):
    path = folder / f'{name}.py'
    cfg.dump(str(path))
    return str(path)


def sct(cfg, case):
    """As a user writes it."""
    cfg = copy.deepcopy(cfg)
    cfg.model = dict(type='WithSSBN', scales=case.scales,
                     model=with_norm_cfg(cfg.model, case.scales))
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []),
                        dict(case.hook, type='SCTLossHook')]
    if cfg.get('val_cfg') is not None:
        cfg.val_cfg = dict(type='ScalesValLoop')
    cfg.experiment_name += '-sct'
    return cfg


@pytest.mark.parametrize('case', CHOSEN, ids=lambda case: case.name)
def test_train_validate_test_and_export(case, tmp_path_factory,
                                        tmp_path, record_property):
    record_property('host', case.host)
    folder = folder_of(case.host, tmp_path_factory)
    stock = with_sum(small(case, folder, tmp_path / 'stock'))
    cfg = sct(stock, case)
    cfg.work_dir = str(tmp_path / 'sct')
    path = dumped(cfg, tmp_path, 'sct')
    runner = apis.train(Config.fromfile(path))
    assert scales_of(runner.model) == case.scales
    logged = runner.message_hub.log_scalars
    for scale in case.scales:
        assert any(name.startswith(f's{scale}/') or f'/s{scale}/' in name
                   for name in logged)
    assert any('sum/predictions' in name for name in logged)

    sizes = TESTED[case.name]
    result, = apis.test(path, cfg.work_dir, sizes, str(tmp_path / 'test'))
    rows = {row['scale']: row for row in result['rows']}
    assert set(rows) == set(sizes)

    # The host's own test of what was exported, without a word about SCT.
    out = tmp_path / 'plain.pth'
    apis.export(path, cfg.work_dir, sizes[0], str(out), images=2)
    stock.load_from = str(out)
    stock.experiment_name += '-test'
    init_default_scope(case.host)
    metrics = Runner.from_cfg(stock).test()
    for name, value in rows[sizes[0]]['metrics'].items():
        assert value == pytest.approx(metrics[name], rel=1e-5), name


@pytest.mark.parametrize('case', CHOSEN, ids=lambda case: case.name)
@pytest.mark.filterwarnings('ignore:The network is sure')
def test_adapt(case, tmp_path_factory,
               tmp_path, record_property, monkeypatch):
    record_property('host', case.host)
    monkeypatch.setattr('sct_mm.engine.adaptation.held_out.LEAST', 2)
    folder = folder_of(case.host, tmp_path_factory)
    stock = with_sum(small(case, folder, tmp_path / 'stock'))
    path = dumped(stock, tmp_path, 'stock')
    init_default_scope(case.host)
    torch.manual_seed(0)
    apis.train(Config.fromfile(path))
    base = TESTED[case.name][0]
    found = apis.adapt(
        path, stock.work_dir, [s for s in TESTED[case.name] if s <= base],
        epochs=1, out=str(tmp_path / 'adapted'))
    assert [row['size'] for row in found['rows']] == [
        s for s in sorted(TESTED[case.name], reverse=True) if s < base]
    out = str(tmp_path / 'test')
    result, = apis.test(found['config'], found['checkpoint'], [base], out)
    plain, = apis.test(path, stock.work_dir, [base], out)
    assert result['rows'][0]['metrics'] == plain['rows'][0]['metrics']


@pytest.mark.parametrize('case', SELF, ids=lambda case: case.name)
def test_self_supervised(case, tmp_path_factory,
                         tmp_path, record_property):
    record_property('host', case.host)
    folder = folder_of(case.host, tmp_path_factory)
    stock = small(case, folder, tmp_path)
    runner = apis.train(Config.fromfile(dumped(sct(stock, case), tmp_path,
                                               'config')))
    assert scales_of(runner.model) == case.scales
    alone = extract_scale(runner.model, case.scales[-1])
    plain, _ = plain_and_sct(case, stock)
    plain.load_state_dict(alone.state_dict())
    batch = plain.data_preprocessor(next(iter(runner.train_dataloader)), True)
    losses = []
    for net in (alone, plain):
        torch.manual_seed(0)
        losses.append(net.train()(**copy.deepcopy(batch), mode='loss'))
    assert losses[0] == losses[1] and losses[0]['loss'].isfinite()
    if case is MOCO:  # six images, by the one step of the training
        assert runner.model.queue_ptr == 6


def scores_of_videos(net, x):
    from mmaction.structures import ActionDataSample
    samples = [ActionDataSample() for _ in x]
    return torch.stack([sample.pred_score for sample in net(
        x, samples, mode='predict')])


def mean_of_clips(logits, x):
    return logits.softmax(1).unflatten(0, (len(x), -1)).mean(1)


# {start of a case's name: formats, what the host makes of images, what it is
# of the graph's output}
GRAPHS = {'tsn_': (('onnx', 'pt2'), scores_of_videos, mean_of_clips),
          'slowonly': (('onnx', ), scores_of_videos, mean_of_clips),
          'td-hm_res50': (('onnx', 'pt2'), lambda net, x: net.head(
              net.extract_feat(x)), lambda maps, x: maps)}


@pytest.mark.parametrize('start', GRAPHS)
def test_graphs(start, tmp_path_factory, tmp_path):
    """The whole network of videos and poses, by the runtime of the graph."""
    case, = (case for case in CASES if case.name.startswith(start))
    kinds, host, decoded = GRAPHS[start]
    folder = folder_of(case.host, tmp_path_factory)
    cfg = sct(small(case, folder, tmp_path), case)
    path = dumped(cfg, tmp_path, 'sct')
    init_default_scope(case.host)
    model = randomised(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    size = TESTED[case.name][-1]
    x = RealImages(cfg, [size], 2).batches(model, size)[0]
    with torch.no_grad():
        want = host(extract_scale(model, case.scales[-1]).eval(), x)
    for kind in kinds:
        out = tmp_path / f'a.{kind}'
        done, = apis.export(path, str(tmp_path / 'a.pth'), size, str(out),
                            kind, images=2)['files']
        assert done['part'] == 'network' and len(done['outputs']) == 1
        got, = graph_run(kind, out.read_bytes())(x)
        assert_close(decoded(got, x), want, rtol=1e-3, atol=1e-4)
