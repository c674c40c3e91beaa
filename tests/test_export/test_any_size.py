"""One file computes what the network computes at each size: at its scales,
between them and outside of them."""
import copy
import json
import os.path as osp

import pytest
import torch
from conftest import ROOT, SCALES, TinyModel
from exports import built
from helpers import apart, randomised, ssbn_model
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SyncSSBN, convert_to_ssbn, extract_scale, use_scale
from sct_mm.datasets.base_size import BaseSize
from sct_mm.evaluation import measure
from sct_mm.export.any_size import AnySize, scale_at, shares_at
from sct_mm.export.any_size_file import make_any_size, sizes_to_check
from sct_mm.export.formats import ANY_SIZE, Graph, graph_bytes, graph_run
from sct_mm.export.network import relative_difference
from sct_mm.export.same_padding import same_convolution
from sct_mm.export.verified_file import Request
from sct_mm.models.row_mix import rows_serving
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.models.weight_change import changed_layers
from sct_mm.utils.errors import UserError

BASE = BaseSize(16, 16, SCALES)


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    monkeypatch.setattr(measure, 'ROUNDS', 2)


def images(size, channels=3):
    torch.manual_seed(size)
    return [torch.randn(n, channels, size, size) for n in (3, 1)]


def answer(model, size, x):
    """By a plain network: the norms have the mix of their rows."""
    size = min(max(size, SCALES[-1]), SCALES[0])
    with torch.no_grad():
        return extract_scale(model, size)(x)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6, unique=True),
       st.integers(1, 500))
def test_shares_are_those_of_the_rows(scales, size):
    scales = sorted(scales, reverse=True)
    want = dict(rows_serving(scales, size))
    got = shares_at(torch.tensor(float(size)), torch.tensor(scales).float())
    assert_close(got, torch.tensor([want.get(s, 0.0) for s in scales]))
    if size in scales:  # no rounding reaches a trained scale
        assert got.max() == 1 and got.sum() == 1


@given(st.integers(1, 600), st.integers(1, 600),
       st.lists(st.integers(1, 600), max_size=4), st.integers(1, 900))
def test_the_scale_that_serves_a_test(train, test, smaller, size):
    base = BaseSize(train, test, tuple(sorted(
        {train, *(s for s in smaller if s < train)}, reverse=True)))
    assert scale_at(torch.tensor(size), base) == base.scale_at(size)


@pytest.mark.parametrize('base, trained, others', [
    (BASE, (16, 12, 8), (18, 14, 13, 10, 7)),
    (BaseSize(16, 32, (16, 8)), (32, 16), (36, 28, 24, 20, 14)),
    (BaseSize(9, 9, (9, 8)), (9, 8), (10, 7)),
    (BaseSize(1, 1, (1, )), (1, ), (2, ))])
def test_the_sizes_that_are_compared(base, trained, others):
    assert sizes_to_check(base) == (trained, others)


def changed(model, rank=2):
    """``model`` with changes of its weights that are random."""
    model = randomised(convert_to_ssbn(model, SCALES, rank)).eval()
    for layer in changed_layers(model):
        for parameter in layer.changes:
            nn.init.normal_(parameter, std=0.3)
    return model


class Standardised(nn.Conv2d):

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Varied(TinyModel):
    """With each kind of layer that has something of its own at a scale."""

    def __init__(self):
        from timm.layers import BatchNormAct2d
        super().__init__(lambda c: nn.BatchNorm2d(c, affine=c != 6))
        self.net = nn.Sequential(
            nn.Conv2d(3, 20, 3, 2, 1), BatchNormAct2d(20, eps=1e-3),
            nn.Conv2d(20, 20, 3, 1, 1, groups=20), nn.SyncBatchNorm(20),
            Standardised(20, 24, 3, padding='same'), nn.ReLU(),
            nn.Conv2d(24, 24, 3, 1, 1, groups=2),
            nn.BatchNorm2d(24, affine=False), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(24, 20), nn.BatchNorm1d(20),
            nn.Linear(20, 4))


@pytest.mark.parametrize('rank', [0, 2])
def test_a_network_of_each_kind_of_layer(rank):
    model = changed(Varied(), rank)
    before = {name: value.clone() for name, value
              in model.state_dict().items()}
    net = AnySize(copy.deepcopy(model), BASE).eval()
    for size in range(6, 20):
        x = torch.randn(2, 3, size + 3, size)
        with torch.no_grad():
            assert_close(net(x), answer(model, size, x), rtol=1e-4,
                         atol=1e-5)
            # The size may be given, too.
            assert_close(net(x, torch.tensor(8)), answer(model, 8, x),
                         rtol=1e-4, atol=1e-5)
    assert not net.rows.mixes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize('rank', [0, 2])
@pytest.mark.parametrize('kind', ANY_SIZE)
def test_a_file_serves_each_size(kind, rank):
    model = changed(ssbn_model(), rank)
    made = make_any_size(model, BASE, images, Request(kind), 0)
    run = graph_run(kind, made.data)
    for n, height, width in ((1, 16, 16), (5, 12, 12), (2, 8, 11),
                             (3, 14, 10), (1, 9, 9), (2, 30, 20), (1, 5, 9)):
        x = torch.randn(n, 3, height, width)
        want = answer(model, min(height, width), x)
        assert relative_difference(run(x), [want]) < 1e-5
    assert not made.notes and made.entry['part'] == 'network'
    assert [row['size'] for row in made.entry['sizes']] == [
        16, 12, 8, 18, 14, 13, 10, 7]
    assert all(row['difference'] < 1e-5 for row in made.entry['sizes'])
    assert all(row['latency_ms'] > 0 for row in made.entry['sizes'][:3])


def test_weights_are_stored_once():
    """A network that is large beside its graph."""
    model = ssbn_model()
    model.net = nn.Sequential(nn.Conv2d(3, 300, 3), SSBN(300, SCALES),
                              nn.Conv2d(300, 300, 3), SSBN(300, SCALES),
                              nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = make_any_size(model.eval(), BASE, images, Request('onnx'), 0)
    weights = sum(p.numel() for name, p in model.named_parameters()
                  if p.dim() > 1)
    rows = len(SCALES) * 4 * 600
    assert made.entry['rows_bytes'] == 4 * rows
    assert len(made.data) < 1.1 * 4 * (weights + rows)


@pytest.mark.parametrize('rank', [0, 2])
def test_fixed_shapes_fold_what_the_scales_have(rank):
    """onnxruntime makes of the file what a file of one size is."""
    import onnx
    import onnxruntime
    model = changed(ssbn_model(), rank)
    del model.net[7]  # behind a pooling, where no convolution takes it
    made = make_any_size(model, BASE, images, Request('onnx'), 0)
    dims = onnx.load_from_string(made.data).graph.input[0].type.tensor_type
    assert [d.dim_param or d.dim_value for d in dims.shape.dim] == [
        'batch', 3, 'height', 'width']
    for size in (16, 10):
        options = onnxruntime.SessionOptions()
        for name, value in (('batch', 1), ('height', size), ('width', size)):
            options.add_free_dimension_override_by_name(name, value)
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
        options.log_severity_level = 3
        options.optimized_model_filepath = f'{size}.onnx'
        session = onnxruntime.InferenceSession(
            made.data, options, providers=['CPUExecutionProvider'])
        x = torch.randn(1, 3, size, size)
        got, = session.run(None, {'input': x.numpy()})
        assert_close(torch.from_numpy(got), answer(model, size, x),
                     rtol=1e-4, atol=1e-5)
        kinds = [node.op_type for node in onnx.load(
            f'{size}.onnx').graph.node]
        assert not {'BatchNormalization', 'MatMul', 'Mul', 'Add'} & {*kinds}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def about_in(data):
    """What an ONNX file says of its images."""
    import onnx
    return json.loads(next(
        each.value for each in onnx.load_from_string(data).metadata_props
        if each.key == 'sct_mm.json'))


def test_what_a_file_says_of_its_sizes():
    model = randomised(ssbn_model()).eval()
    base = BaseSize(16, 32, SCALES)
    made = make_any_size(model, base, images, Request('onnx'), 0)
    about = about_in(made.data)
    assert about.pop('version') == 1
    large, middle, small = about.pop('gflops')  # of the convolutions, mostly
    assert large / small == pytest.approx(4, abs=0.1)
    assert large / middle == pytest.approx(16 / 9, abs=0.1)
    assert about == dict(
        size=32, scales=[32, 24, 16], sizes=[32, 24, 16], train_base=16,
        test_base=32, size_from='shorter edge', part='network',
        outputs=['logits'], scores='softmax')
    x = torch.randn(2, 3, 24, 24)
    got, = graph_run('onnx', made.data)(x)
    assert_close(got, answer(model, 12, x), rtol=1e-4, atol=1e-5)


def test_images_whose_shape_does_not_tell_the_size():
    """As padded ones: the size is an input."""
    model = randomised(ssbn_model()).eval()

    def padded(size):
        return [nn.functional.pad(x, (0, 5, 0, 4)) for x in images(size)]

    made = make_any_size(model, BASE, padded, Request('onnx'), 0)
    run = graph_run('onnx', made.data)
    x = torch.randn(2, 3, 17, 19)
    for size in (20, 16, 13, 8, 5):
        got, = run(x, torch.tensor(size))
        assert_close(got, answer(model, size, x), rtol=1e-4, atol=1e-5)


def test_two_scales_that_serve_one_size():
    """As where the images of a test are smaller than those of training."""
    model = TinyModel(lambda c: SSBN(c, (16, 15, 8))).eval()
    made = make_any_size(model, BaseSize(16, 8, (16, 15, 8)), images,
                         Request('onnx'), 0)
    about = about_in(made.data)
    assert about['sizes'] == [8, 4] and len(about['gflops']) == 2


@pytest.mark.parametrize('kind', ANY_SIZE)
def test_a_detector(kind):
    model = built(Config.fromfile(osp.join(
        ROOT, 'configs/sct_retinanet_r18_fpn_1xb8_fashion-det.py')).model,
        'mmdet')
    scales = ssbn_layers(model)[0].scales

    def batches(size):
        torch.manual_seed(size)
        edges = [-(-edge // 16) * 16 for edge in (size, size * 4 // 3)]
        return [torch.randn(2, 1, *edges), torch.randn(1, 1, *edges[::-1])]

    made = make_any_size(model, BaseSize(scales[0], scales[0], scales),
                         batches, Request(kind), 16)
    x = torch.randn(2, 1, 96, 128)
    for size in (scales[0], 90, scales[-1]):
        with use_scale(model, size), torch.no_grad():
            want = [each for level in model(x, mode='tensor')
                    for each in level]
        got = graph_run(kind, made.data)(x, torch.tensor(size))
        assert relative_difference(got, want) < 8e-5


@pytest.mark.parametrize('kernel, stride, dilation', [
    (3, 2, 1), (5, 2, 1), (3, 1, 2), (2, 3, 1), (4, 2, 1)])
def test_same_padding_is_that_of_the_hosts(kernel, stride, dilation):
    from mmcv.cnn.bricks import Conv2dAdaptivePadding
    from timm.layers import Conv2dSame
    for kind in (Conv2dSame, Conv2dAdaptivePadding):
        layer = kind(3, 4, kernel, stride, dilation=dilation)
        for edge in range(7, 13):
            x = torch.randn(1, 3, edge, edge + 1)
            got = same_convolution(layer)(x, layer.weight, layer.bias)
            assert_close(got, layer(x))


@pytest.mark.parametrize('kind', ANY_SIZE)
def test_same_padding_in_a_file(kind):
    from timm.layers import Conv2dSame
    model = ssbn_model()
    model.net[0] = Conv2dSame(3, 4, 3, 2)
    model.net[3] = Conv2dSame(4, 6, 5, 2, bias=False)
    model = changed(model)
    made = make_any_size(model, BASE, images, Request(kind), 0)
    run = graph_run(kind, made.data)
    for size in range(7, 18):
        x = torch.randn(2, 3, size, size + 2)
        assert relative_difference(run(x), [answer(model, size, x)]) < 1e-5
    assert b'Pad' not in made.data or kind != 'onnx'


class Scaling(nn.BatchNorm2d):

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize('norm, match', [
    (Scaling(4), r'net\.1, a Scaling, which does more than batch norm'),
    (nn.BatchNorm2d(4, track_running_stats=False),
     r'net\.1, a BatchNorm2d without running statistics')])
def test_norms_that_a_graph_cannot_mix(norm, match):
    model = ssbn_model()
    model.net[1] = norm
    convert_to_ssbn(model, SCALES)
    with pytest.raises(UserError, match=f'cannot mix the scales of {match}.* '
                       'Export each size by --size N'):
        make_any_size(model.eval(), BASE, images, Request('onnx'), 0)


class Fixed(TinyModel):
    """Its trace keeps the height of the example."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        height = int(torch.tensor(inputs.shape[-2]))
        x = self.net[:6](inputs)
        return x.mean((2, 3)) * height


@pytest.mark.parametrize('kind', ANY_SIZE)
def test_a_network_whose_sizes_are_fixed_is_refused(kind):
    model = Fixed(lambda c: SSBN(c, SCALES)).eval()
    with pytest.raises((UserError, RuntimeError),
                       match='or one size by --size N'):
        make_any_size(model, BASE, images, Request(kind), 0)


def test_sizes_at_which_the_network_itself_does_not_run():

    class Even(TinyModel):

        def forward(self, inputs, data_samples=None, mode='tensor'):
            if not torch.compiler.is_exporting() and inputs.shape[-1] % 2:
                raise ValueError('odd edges')
            return super().forward(inputs, data_samples, mode)

    model = Even(lambda c: SSBN(c, SCALES)).eval()
    made = make_any_size(model, BASE, images, Request('onnx'), 0)
    assert made.notes == [
        'The network itself does not run on images of shape '
        f'(3, 3, {size}, {size}) (ValueError: odd edges): the file was not '
        'compared there.' for size in (13, 7)]


def test_synchronised_norms_and_scores():
    model = randomised(TinyModel(lambda c: SyncSSBN(c, SCALES))).eval()
    for layer in ssbn_layers(model):
        apart(layer)
    made = make_any_size(model, BASE, images, Request('onnx', softmax=True),
                         0)
    assert made.entry['outputs'] == ['scores']
    x = torch.randn(3, 3, 10, 10)
    assert_close(graph_run('onnx', made.data)(x)[0],
                 answer(model, 10, x).softmax(1), rtol=1e-4, atol=1e-5)


def test_an_operator_that_cannot_be_exported_names_the_way_out():
    class Bessel(nn.Module):

        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(UserError, match='the operator .*bessel_j0.* stands '
                       'in the way. Take one size by --size N'):
        graph_bytes('onnx', Graph(Bessel().eval(), torch.ones(2, 3, 4, 4), 1,
                                  ['y'], {}), True, 'one size by --size N')
