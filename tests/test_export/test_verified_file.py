"""Graphs compute what the network computes, on any number of images, and what
cannot be exported is named."""
import io
import json
import os.path as osp
import zipfile

import pytest
import torch
from conftest import ROOT, SCALES, TinyModel
from exports import built
from helpers import randomised, ssbn_model
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, convert_to_ssbn, extract_scale, use_scale
from sct_mm.export import verified_file as module
from sct_mm.export.formats import (
    FORMATS,
    WEIGHTS,
    graph_run,
    without_source_lines,
)
from sct_mm.export.network import deployed, relative_difference
from sct_mm.export.verified_file import Request, make_graph
from sct_mm.utils.errors import UserError

GRAPHS = [kind for kind in FORMATS if kind not in WEIGHTS]


def images(size=12, channels=3, shapes=None):
    torch.manual_seed(1)
    return [torch.randn(n, channels, *shape) for n, shape in (
        shapes or ((3, (size, size)), (1, (size, size))))]


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return randomised(ssbn_model()).eval()


@pytest.mark.parametrize('fuse', [True, False], ids=['fused', 'norms'])
@pytest.mark.parametrize('kind', GRAPHS)
def test_a_graph_computes_its_scale(kind, fuse, tiny):
    made = make_graph(tiny, 12, images(), Request(kind, fuse=fuse), 0)
    run = graph_run(kind, made.data)
    for n in (1, 2, 5):  # the batch is dynamic
        x = torch.randn(n, 3, 12, 12)
        for size in SCALES:
            with use_scale(tiny, size), torch.no_grad():
                want = tiny(x)
            got, = run(x)
            same = torch.allclose(got, want, rtol=1e-4, atol=1e-5)
            assert same == (size == 12)
    assert made.entry['outputs'] == ['logits'] and made.entry['part'] == (
        'network')
    assert 0 <= made.entry['difference'] < 1e-5
    # The third norm stands behind a pooling, not behind a convolution.
    assert made.entry['norms'] == (1 if fuse else 3)
    assert made.entry['latency_ms'] > 0 and not made.notes


@pytest.mark.parametrize('fuse', [True, False], ids=['fused', 'norms'])
def test_the_norms_of_onnx(fuse, tiny):
    import onnx
    made = make_graph(tiny, 12, images(), Request('onnx', fuse=fuse), 0)
    graph = onnx.load_from_string(made.data)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count('BatchNormalization') == (1 if fuse else 3)
    assert graph.graph.input[0].name == 'input'
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == 'batch' and dims[2].dim_value == 12
    found = {each.key: each.value for each in graph.metadata_props}
    assert json.loads(found['sct_mm.json'])['size'] == 12


@pytest.mark.parametrize('kind', GRAPHS)
def test_scores_are_the_softmax_of_the_logits(kind, tiny):
    made = make_graph(tiny, 8, images(8), Request(kind, softmax=True), 0)
    x = torch.randn(4, 3, 8, 8)
    with use_scale(tiny, 8), torch.no_grad():
        want = tiny(x).softmax(1)
    assert_close(graph_run(kind, made.data)(x)[0], want)
    assert made.entry['outputs'] == ['scores']


def test_a_file_says_how_its_images_are_normalized():
    import io
    model = built(dict(
        type='ImageClassifier', backbone=dict(
            type='ResNet_CIFAR', depth=18, in_channels=1, base_channels=4,
            stem_channels=4, norm_cfg=dict(type='SSBN', scales=(16, 8))),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=32),
        data_preprocessor=dict(mean=[5.], std=[2.], to_rgb=False)))
    made = make_graph(model, 8, images(8, 1), Request('torchscript'), 0)
    found = {'sct_mm.json': ''}
    torch.jit.load(io.BytesIO(made.data), _extra_files=found)
    about = json.loads(found['sct_mm.json'])
    assert about.pop('gflops') == [made.entry['gflops']]
    assert about == dict(
        version=1, size=8, part='network', outputs=['logits'],
        scores='softmax', mean=[5.0], std=[2.0])
    made = make_graph(model, 8, images(8, 1), Request(
        'torchscript', part='features'), 0)
    assert made.entry['outputs'] == ['feature_0']
    x = torch.randn(2, 1, 8, 8)
    with use_scale(model, 8), torch.no_grad():
        assert_close(graph_run('torchscript', made.data)(x)[0],
                     model.extract_feat(x)[0])


def test_hosts_join_their_branches():
    model = built(dict(
        type='ImageClassifier', backbone=dict(
            type='RepVGG', arch='A0',
            norm_cfg=dict(type='SSBN', scales=(64, 32)))))
    made = make_graph(model, 32, images(32), Request(
        'torchscript', fuse=False, tolerance=1e-3), 0)
    assert made.entry['norms'] == 0
    assert any(hasattr(m, 'branch_norm') for m in model.modules())
    x = torch.randn(2, 3, 32, 32)
    with use_scale(model, 32), torch.no_grad():
        want = model(x)[-1]
    got, = graph_run('torchscript', made.data)(x)
    assert relative_difference([got], [want]) < 1e-3


class Behind(TinyModel):
    """Its norm follows an activation."""

    def __init__(self):
        super().__init__(lambda c: SSBN(c, SCALES))
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), SSBN(4, SCALES),
            nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_norm_that_no_convolution_feeds_stays():
    model = randomised(Behind()).eval()
    model.net[2].row(8)['running_mean'].fill_(0.5)
    made = make_graph(model, 8, images(8), Request('torchscript'), 0)
    assert made.entry['norms'] == 1 and made.entry['difference'] < 1e-5
    assert 'Its 1 norms are not fused: what mmcv makes of them does not ' in (
        made.notes[0])


def test_a_norm_with_an_activation_is_fused_by_the_exporter_of_onnx():
    from timm.layers import BatchNormAct2d
    model = TinyModel(lambda c: nn.BatchNorm2d(c))
    model.net = nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.AdaptiveAvgPool2d(1),
        nn.Flatten())
    model = randomised(convert_to_ssbn(model, SCALES)).eval()
    for kind, norms in (('onnx', 0), ('torchscript', 1)):
        made = make_graph(model, 8, images(8), Request(kind), 0)
        assert made.entry['norms'] == norms == len(made.notes)


@pytest.mark.parametrize('kind', GRAPHS)
def test_a_file_says_nothing_of_where_it_was_made(kind, tiny):
    """Neither paths of this machine nor images of the test set."""
    x = torch.full((3, 3, 12, 12), 1.7182818)
    data = make_graph(tiny, 12, [x, x[:1]], Request(kind), 0).data
    parts = [data]
    if kind != 'onnx':  # a zip archive, whose records may be compressed
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    pixels = x[0, 0, 0].numpy().tobytes()
    places = [path.encode() for path in (ROOT, osp.dirname(torch.__file__))]
    for part in parts:
        assert not any(place in part for place in places)
        assert pixels not in part and b'.py' not in part
        assert b'stack_trace' not in part


def test_torchscript_without_its_source_lines():
    traced = torch.jit.trace(nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={'about': 'a note'})
    data = buffer.getvalue()
    made = without_source_lines(data)
    before, after = (zipfile.ZipFile(io.BytesIO(each))
                     for each in (data, made))
    lines = {name for name in before.namelist()
             if torch.__file__[:-len('__init__.py')].encode()
             in before.read(name)}
    assert lines  # torch may write them elsewhere one day
    assert {*before.namelist()} - {*after.namelist()} >= lines
    for name in after.namelist()[:-1]:  # the last is a hash of the others
        assert after.read(name) == before.read(name)
    found = {'about': ''}
    run = torch.jit.load(io.BytesIO(made), _extra_files=found)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(run(x), traced(x)) and found['about'] == b'a note'
    with pytest.raises(RuntimeError, match='expected input'):
        run(torch.ones(1, 2, 8, 8))  # an error needs no lines


def test_fusing_leaves_the_network_as_it_is(tiny):
    plain = extract_scale(tiny, 12)
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    deployed(plain, images()[0])
    assert list(plain.state_dict()) == list(before)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize('got, want, difference', [
    ([1.0, 2.0], [1.0, 2.0], 0.0), ([1.0, 3.0], [1.0, 2.0], 0.5),
    ([1.0, float('nan')], [1.0, 2.0], float('inf')),
    ([1.0], [1.0, 2.0], float('inf')), ([], [], 0.0)])
def test_relative_difference(got, want, difference):
    assert relative_difference([torch.tensor(got)],
                               [torch.tensor(want)]) == difference
    assert relative_difference([torch.tensor(got)], []) == float('inf')


class Branching(TinyModel):
    """Its answer depends on a branch that a trace does not see."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = super().forward(inputs, data_samples, mode)
        return logits if len(inputs) > 1 else logits * 2


def test_a_trace_that_missed_a_branch_is_no_file():
    model = Branching(lambda c: SSBN(c, SCALES)).eval()
    with pytest.raises(RuntimeError, match='torchscript file of size 12 '
                       'differs from the network by 5.0e-01 of the largest '
                       'output .* No file was written'):
        make_graph(model, 12, images(), Request('torchscript'), 0)


class Twice(torch.autograd.Function):
    """A function in Python, which a trace cannot hold."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy() * 2)


LIBRARY = torch.library.Library('sct_test', 'DEF')
LIBRARY.define('twice(Tensor x) -> Tensor')
# torch.export cannot find out the shape of this operator's result.
LIBRARY.impl('twice', lambda x: x * 2, 'CPU')


class Doubling(nn.Module):

    def __init__(self, kind):
        super().__init__()
        self.function = (Twice.apply if kind == 'torchscript'
                         else torch.ops.sct_test.twice)

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize('kind, match', [
    ('onnx', r'the operator sct_test::twice in net.0 \(Doubling\) stands'),
    ('pt2', r'the operator sct_test::twice in net.0 \(Doubling\) stands'),
    ('torchscript', 'the operator Twice stands in the way')])
def test_an_operator_that_cannot_be_exported_is_named(kind, match):
    model = TinyModel(lambda c: SSBN(c, SCALES)).eval()
    model.net.insert(0, Doubling(kind))
    with pytest.raises(UserError, match='cannot be exported as '
                       f'{kind}: {match}.* Take another format'):
        make_graph(model, 12, images(), Request(kind), 0)


def test_an_operator_that_onnx_does_not_have_is_named(tiny):

    class Determinant(TinyModel):

        def forward(self, inputs, data_samples=None, mode='tensor'):
            logits = super().forward(inputs, data_samples, mode)
            return logits * torch.special.bessel_j0(inputs).mean()

    model = Determinant(lambda c: SSBN(c, SCALES)).eval()
    with pytest.raises(UserError, match='the operator .*bessel_j0.* stands'):
        make_graph(model, 12, images(), Request('onnx'), 0)


def test_images_of_a_shape_that_a_file_cannot_run(tiny):
    """The graph is for 12 pixels, and runs on 8."""
    batches = images(shapes=((3, (12, 12)), (1, (8, 8))))
    with pytest.raises(RuntimeError, match=r'The onnx file '
                       r'cannot run images of shape \(1, 3, 8, 8\)'):
        make_graph(tiny, 12, batches, Request('onnx'), 0)


def test_scores_of_what_has_no_classes():
    model = built(dict(
        type='ImageClassifier', backbone=dict(
            type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4,
            norm_cfg=dict(type='SSBN', scales=(16, 8)))))
    with pytest.raises(UserError, match='need a classifier of one label an '
                       'image, but got ImageClassifier'):
        make_graph(model, 8, images(8), Request('onnx', softmax=True), 0)


def test_a_prefix_that_is_no_part(tiny):
    with pytest.raises(UserError, match="must name a part .* got 'head'.* "
                       'Name one of .*net'):
        module.make_weights(tiny, 12, images(), Request(
            'pth', prefix='head'), {})
