"""int8 files answer nearly as the float files, or are not made."""
import json

import onnx
import pytest
import torch
from conftest import SCALES, TinyModel
from exports import tiny_network
from torch import nn

from sct_mm import SSBN
from sct_mm.evaluation import compare_scores
from sct_mm.export import int8 as module
from sct_mm.export.formats import graph_run
from sct_mm.export.int8 import (
    check_enough,
    compare_answers,
    expected_loss,
    float_convolutions,
    make_int8,
    quantized,
    scores_of,
)
from sct_mm.export.verified_file import Request, make_graph
from sct_mm.utils.errors import UserError


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator)


@pytest.fixture(scope='module')
def made():
    x = images(3, 0)
    return make_graph(tiny_network(), 16, [x, x[:1]], Request('onnx'), 0)


def test_an_int8_file(made):
    test = images(64, 2)
    found = make_int8(made, images(32, 1), test, None, False, 100)
    model = onnx.load_from_string(found.data)
    kinds = [node.op_type for node in model.graph.node]
    assert {'QuantizeLinear', 'DequantizeLinear'} <= set(kinds)
    weights = {each.name: each for each in model.graph.initializer}
    convolution = next(n for n in model.graph.node if n.op_type == 'Conv')
    dequantize, = [n for n in model.graph.node
                   if n.output[0] == convolution.input[1]]
    kernel, scale = (weights[name] for name in dequantize.input[:2])
    assert kernel.data_type == onnx.TensorProto.INT8
    assert list(scale.dims) == [kernel.dims[0]]  # one a channel
    # An int8 activation is off by half of 1/255 of its range, a weight by
    # half of 1/127, which a handful of layers add up.
    run, before = (graph_run('onnx', data) for data in (found.data,
                                                        made.data))
    got, want = (scores_of(each, test, 'logits', False)
                 for each in (run, before))
    assert 0 < (got - want).abs().max() < 0.1
    entry = found.entry['int8']
    assert entry['images'] == 64 and entry['calibration'] == 32
    assert entry['top1'] is None and entry['agreement'] > 90
    assert {k: entry[k] for k in ('agreement', 'kl')} == {
        k: compare_scores(want, got)[k] for k in ('agreement', 'kl')}
    assert entry['float_bytes'] == len(made.data)
    assert found.entry['outputs'] == ['logits'] and 'int8' not in made.entry


def test_what_the_file_says_of_its_images_stays(made):
    data = quantized(made.data, images(4, 1))
    before, after = ({each.key: json.loads(each.value) for each in
                      onnx.load_from_string(one).metadata_props
                      if each.key == 'sct_mm.json'}
                     for one in (made.data, data))
    assert before == after and before['sct_mm.json']['size'] == 16


def test_what_int8_loses():
    one = torch.eye(4)[[0, 1, 2, 3]] * 0.7 + 0.075
    other = torch.eye(4)[[0, 1, 2, 0]] * 0.7 + 0.075
    found = compare_answers(one, other, [0, 1, 2, 3], False)
    assert found.top1 == (100.0, 75.0) and found.loss() == (
        25.0, 'points of top-1')
    found = compare_answers(one, other, None, False)
    # A quarter of the answers, each of which the file expects to be right
    # by 0.775, is one that it expects to be right by 0.075.
    assert found.loss()[0] == pytest.approx(100 * 0.7 / 0.775 / 4)
    assert found.loss()[1] == '% of the top-1 that the float file expects'


def test_the_expected_loss():
    """That of labels drawn by the reference's probabilities."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5, 4, generator=generator).softmax(1)
            for _ in range(2))
    labels = torch.multinomial(p, 40_000, True, generator=generator)
    right, after = ((labels == each.argmax(1)[:, None]).double().mean()
                    for each in (p, q))
    want = 100 * float((right - after) / right)
    assert want > 5
    assert expected_loss(p, q, False) == pytest.approx(want, abs=1)
    assert expected_loss(p, p, False) == 0
    assert expected_loss(p, q * float('nan'), False) == 100
    p, q = p / p.amax(), q / q.amax()
    labels = torch.rand(5, 4, 40_000, generator=generator) < p[..., None]
    right, after = ((labels == (each > 0.5)[..., None]).double().mean()
                    for each in (p, q))
    want = 100 * float((right - after) / right)
    assert want > 5
    assert expected_loss(p, q, True) == pytest.approx(want, abs=1)
    assert expected_loss(p, q * float('nan'), True) == 100


@pytest.mark.parametrize('labels, what', [
    (None, '% of the top-1 that the float file expects'),
    ('own', 'points of top-1')])
def test_int8_that_loses_too_much(labels, what, made, monkeypatch):
    test = images(64, 2)
    scores = scores_of(graph_run('onnx', made.data), test, 'logits', False)
    own = scores.argmax(1).tolist() if labels else None
    monkeypatch.setattr(module, 'quantized', lambda data, x, kept: data)
    assert make_int8(made, test, test, own, False, 2).entry['int8']['kl'] == 0
    monkeypatch.setattr(module, 'scores_of', lambda run, *_: (
        scores.roll(1, 1) if run is broken else scores))
    broken, runs = object(), []
    monkeypatch.setattr(module, 'graph_run', lambda kind, data: (
        runs.append(0), broken if len(runs) > 1 else None)[1])
    with pytest.raises(RuntimeError, match=f'at most 2 {what}, but '
                       r'loses \d\d.* on 64 images, with 2 of its first convol'
                       'utions in float. No file was written'):
        make_int8(made, test, test, own, False, 2)


def test_the_first_convolutions_stay_in_float_where_needed(made, monkeypatch):
    x = images(4, 1)
    model = onnx.load_from_string(quantized(made.data, x, 1))
    first, second = (n for n in model.graph.node if n.op_type == 'Conv')
    weights = {each.name for each in model.graph.initializer}
    assert first.input[1] in weights and second.input[1] not in weights
    tried = []
    monkeypatch.setattr(module, 'quantized', lambda data, x, kept: (
        tried.append(kept), data)[1])
    scores = torch.eye(5)[[0, 1, 2, 3]]
    monkeypatch.setattr(module, 'scores_of', lambda *_: (
        scores if len(tried) in (0, 2) else scores.roll(1, 1)))
    entry = make_int8(made, x, x, None, False, 50).entry['int8']
    # Two would be all of its convolutions.
    assert tried == [0, 1] and entry['float_convolutions'] == 2


class Branches(TinyModel):
    """Its second and third convolution take one input, and their outputs are
    added."""

    def __init__(self):
        super().__init__(lambda c: SSBN(c, SCALES))
        self.stem, self.one, self.other, self.last = (
            nn.Conv2d(channels, 4, 3, padding=1) for channels in (3, 4, 4, 4))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.stem(inputs).relu()
        x = (self.one(x).relu() + self.other(x)).relu()
        return self.last(x).relu().mean((2, 3))


@pytest.mark.parametrize('kept, floats', [(0, 0), (1, 1), (2, 1), (3, 3),
                                          (4, 4)])
def test_what_stays_in_float_is_float_when_it_runs(kept, floats, tmp_path):
    """onnxruntime does not quantize more, as it loads the file."""
    import onnxruntime
    torch.manual_seed(0)
    x = images(3, 0)
    data = quantized(make_graph(Branches().eval(), 16, [x, x[:1]], Request(
        'onnx'), 0).data, images(4, 1), kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    options.optimized_model_filepath = str(tmp_path / 'loaded.onnx')
    onnxruntime.InferenceSession(data, options,
                                 providers=['CPUExecutionProvider'])
    for model in (onnx.load_from_string(data),
                  onnx.load(tmp_path / 'loaded.onnx')):
        assert len(float_convolutions(model)) == floats


def test_so_few_images_that_one_is_too_much():
    with pytest.raises(UserError, match='compared on 100 images or more to '
                       'lose at most 1 %, but the test set gives 99'):
        check_enough(99, 1)
    check_enough(100, 1)
    check_enough(2, 0)


def test_only_classifiers(made):
    other = made._replace(entry=dict(made.entry, outputs=['feature_0']))
    with pytest.raises(UserError, match='for classifiers, .* are feature_0'):
        make_int8(other, images(4, 1), images(3, 2), None, False)


def test_labels_of_each_kind():
    run = graph_of(torch.tensor([[0.0, 2.0]]))
    assert scores_of(run, images(1, 0), 'scores', False).tolist() == [[0, 2]]
    for each_class, want in ((False, torch.softmax), (True, None)):
        got = scores_of(run, images(1, 0), 'logits', each_class)
        x = torch.tensor([[0.0, 2.0]])
        torch.testing.assert_close(got, want(x, 1) if want else x.sigmoid())


def graph_of(answer):
    return lambda x: [answer.expand(len(x), -1)]
