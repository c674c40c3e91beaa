"""Which scale serves: pinned, else read off the input, wherever it runs."""
import copy
import threading

import numpy as np
import pytest
import torch
from conftest import SCALES, TinyModel
from hypothesis import given
from hypothesis import strategies as st
from mmengine.model import ExponentialMovingAverage, StochasticWeightAverage
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from sct_mm import (
    SSBN,
    convert_to_ssbn,
    extract_scale,
    set_scale,
    use_scale,
)
from sct_mm.models.size_selection import (
    ExtentRecord,
    fitting_size,
    scales_of,
    serving_scale,
    ssbn_layers,
)
from sct_mm.models.weight_change import changed_layers


def trained(seed=0):
    """A model trained a little at each scale, its rows far apart."""
    torch.manual_seed(seed)
    model = TinyModel(lambda c: SSBN(c, SCALES))
    for step, scale in enumerate(SCALES):
        with use_scale(model, scale):
            for _ in range(3):
                model(torch.randn(4, 3, scale, scale) * (step + 1) + step)
    for layer in ssbn_layers(model):
        layer.weight.data.uniform_(0.5, 2)
    return model.eval()


def pinned(model, x):
    with use_scale(model, x.shape[-1]):
        return model(x)


def test_every_layer_finds_the_scale_also_behind_global_pooling():
    model = trained()
    for scale in (8, 16, 12, 16, 8):
        x = torch.randn(2, 3, scale, scale)
        got = model(x)
        assert_close(got, pinned(model, x), rtol=0, atol=0)
    other = pinned(model, torch.randn(2, 3, 8, 8))
    with use_scale(model, 16):
        assert not torch.equal(model(torch.randn(2, 3, 8, 8)), other)


def test_a_loaded_model_and_a_copy_find_it():
    model = trained()
    loaded = TinyModel(lambda c: SSBN(c, SCALES)).eval()
    loaded.load_state_dict(model.state_dict())
    for scale in SCALES:
        x = torch.randn(2, 3, scale, scale)
        for network in (loaded, copy.deepcopy(model)):
            assert_close(network(x), pinned(model, x), rtol=0, atol=0)


def test_a_copy_made_before_training_finds_it():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    average = copy.deepcopy(model)
    for scale in SCALES:
        with use_scale(model, scale):
            model(torch.randn(4, 3, scale, scale))
    average.load_state_dict({k: v.clone()
                             for k, v in model.state_dict().items()})
    x = torch.randn(2, 3, 8, 8)
    assert_close(average.eval()(x), pinned(model.eval(), x))


@pytest.mark.parametrize('reentrant', [True, False])
def test_second_forward_of_activation_checkpointing(reentrant):
    """All passes first, one backward later: the pins are long gone."""
    def grads(with_cp):
        torch.manual_seed(1)
        model = trained().train()
        total = 0
        for scale in SCALES:
            x = torch.randn(4, 3, scale, scale, requires_grad=True)
            with use_scale(model, scale):
                y = (checkpoint(model.net, x, use_reentrant=reentrant)
                     if with_cp else model.net(x))
            total = total + y.pow(2).sum()
        total.backward()
        return [p.grad for p in model.parameters()]

    for ours, want in zip(grads(True), grads(False), strict=True):
        assert_close(ours, want)


def test_layers_in_evaluation_mode_record_on_demand():
    layer = SSBN(3, SCALES).eval()
    with use_scale(layer, 8):
        layer(torch.randn(2, 3, 8, 8))
    assert layer.extents == {}
    with use_scale(layer, 8, record=True):
        layer(torch.randn(2, 3, 8, 8))
    assert layer.extents == {8: [8, 8]} and not layer.pin.record


def test_loading_into_a_copy_leaves_the_original():
    model = trained()
    x = torch.randn(2, 3, 8, 8)
    want = model(x)
    other = trained(1)
    for layer in ssbn_layers(other):
        layer.extents = ExtentRecord({16: [1, 1]})
    copy.deepcopy(model).load_state_dict(other.state_dict())
    assert_close(model(x), want, rtol=0, atol=0)


def test_two_threads_do_not_meet():
    models = [trained(0), trained(1)]
    wrong = []
    # Both threads stand before the layer that cannot tell, and then go on.
    meet = threading.Barrier(2)

    def wait(*args):
        meet.wait()

    for model in models:
        model.net[6].register_forward_hook(wait)

    def work(model, scales):
        try:
            for scale in scales * 10:
                x = torch.randn(2, 3, scale, scale)
                if not torch.equal(model(x), pinned(model, x)):
                    wrong.append(scale)
        except BaseException:
            meet.abort()
            raise

    threads = [threading.Thread(target=work, args=(m, s))
               for m, s in zip(models, ([8, 16, 12], [12, 8, 16]),
                               strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_compiled_model_finds_it():
    model = trained()
    torch.compiler.reset()  # what other tests compiled counts to its limit
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    for scale in SCALES:
        x = torch.randn(2, 3, scale, scale)
        assert_close(compiled(x), pinned(model, x))


def test_compiled_once_for_each_size():
    """In whatever order they come, as the limit of graphs is 8; without a
    record the size makes no difference, and plain BN is the reference."""
    model, unseen = trained(), TinyModel(lambda c: SSBN(c, SCALES)).eval()
    networks = (model, unseen, extract_scale(unseen, 16))
    graphs = []
    for network in networks:
        torch.compiler.reset()
        counter = CompileCounter()
        compiled = torch.compile(network, backend=counter)
        for size in (16, 12, 8, 12, 16, 8, 16):
            x = torch.randn(2, 3, size, size)
            want = pinned(model, x) if network is model else networks[2](x)
            assert_close(compiled(x), want)
        graphs.append(counter.frame_count)
    assert graphs[0] == 3 and graphs[1] == graphs[2]


def test_compiled_without_a_record_is_the_base():
    model = TinyModel(lambda c: SSBN(c, SCALES)).eval()
    torch.compiler.reset()
    x = torch.randn(2, 3, 16, 16)
    for net in (model, copy.deepcopy(model)):
        compiled = torch.compile(net, backend='eager', fullgraph=True)
        assert_close(compiled(x), model(x))


def test_without_any_pin_it_is_a_batchnorm_at_the_base_scale():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    plain = TinyModel(nn.BatchNorm2d)
    plain.load_state_dict(extract_scale(model, 16).state_dict())
    x = torch.randn(4, 3, 16, 16)
    assert_close(model(x), plain(x), rtol=0, atol=0)
    x = torch.randn(4, 3, 8, 8)
    with pytest.warns(UserWarning, match='8 pixels by the rows of its base '
                      'scale 16: it has no record'):
        assert_close(model(x), plain(x), rtol=0, atol=0)
    x = torch.randn(4, 3, 11, 11)  # it has said so
    assert_close(model(x), plain(x), rtol=0, atol=0)
    assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
    assert all(layer.num_batches_tracked.tolist() == [3, 0, 0]
               for layer in ssbn_layers(model))


def test_pins_nest_and_are_restored_by_an_error():
    model = trained()
    layer = ssbn_layers(model)[0]
    with use_scale(model, 16):
        with pytest.raises(RuntimeError, match='mine'):
            with use_scale(model, 8):
                assert layer.pinned_size == 8
                raise RuntimeError('mine')
        assert layer.pinned_size == 16
    assert layer.pinned_size is None


def test_scales_of_layers_that_disagree():
    assert scales_of(nn.Linear(2, 2)) is None
    with pytest.raises(ValueError, match=r'\(8,\), \(16,\)'):
        scales_of(nn.Sequential(SSBN(2, (16, )), SSBN(2, (8, ))))


@given(st.dictionaries(st.integers(1, 300), st.integers(1, 99), min_size=1),
       st.integers(1, 120))
def test_fitting_size_is_interpolated_or_none_if_it_cannot_tell(edges, edge):
    record = {scale: [extent, extent] for scale, extent in edges.items()}
    extents = sorted(set(edges.values()))
    nearest = {max((e for e in extents if e <= edge), default=extents[0]),
               min((e for e in extents if e >= edge), default=extents[-1])}
    knots = [[s for s in edges if edges[s] == e] for e in nearest]
    if max(map(len, knots)) > 1:
        assert fitting_size(edge, record) is None
        return
    order = sorted(nearest)
    want = np.interp(edge, order, [s for e in order for s in edges
                                   if edges[s] == e])
    assert fitting_size(edge, record) == pytest.approx(want)


def test_nothing_recorded_fits_nothing():
    assert fitting_size(5, {}) is None


def test_extents_seen_at_several_sizes_are_a_range():
    record = ExtentRecord()
    for extent in (50, 100, 25):
        record.add(800, extent)
    record.add(640, 20)
    assert record == {800: [25, 100], 640: [20, 20]}
    assert fitting_size(70, record) == 800 and fitting_size(1, record) == 640
    assert fitting_size(22, record) == 640 + 160 * 2 / 5


@pytest.mark.parametrize('leads', [True, False])
def test_what_is_above_all_records_is_of_a_base_without_one(leads):
    record = ExtentRecord()
    record.add(128, 32, leads)
    record.add(96, 24, leads)
    assert record.serving(28, None, 224) == 112
    assert record.serving(32, None, 224) == 128
    assert record.serving(33, None, 224) == record.serving(
        56, 224, 224) == 224
    assert record.serving(32, 128, 224) == record.serving(
        31, 128, 224) == 128
    # Rounding may leave a layer behind the first one the same extent.
    assert record.serving(32, 224, 224) == 224
    assert record.may_have(40, 224, 224) and not record.may_have(
        40, 128, 224)
    # A head sees the levels of a detector one by one.
    assert record.serving(2, 224, 224) == 224
    assert record.serving(40, None, 256) == 256  # add_scale() was called
    record.add(224, 56, leads)
    assert record.serving(44, None, 224) == 176
    assert ExtentRecord().serving(9, None, 224) is None


def test_an_extent_of_one_may_be_of_a_base_without_a_record():
    record = ExtentRecord()
    record.add(128, 1, True)
    assert record.serving(1, None, 224) is None  # as behind a pooling
    assert record.serving(1, 128, 224) == 128
    assert record.serving(1, 224, 224) == 224


def test_tokens_do_not_follow_the_edge_of_an_image():
    """A head that samples points takes more of them in a test, and a detector
    trains on images whose edge is not the nominal one."""
    def run(net, x, points):
        y = net[1](net[0](x).flatten(2)[..., :points])
        return net[2](y.transpose(1, 2))

    stock = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv1d(4, 4, 1),
                          nn.Linear(4, 4), nn.BatchNorm1d(4))
    net = convert_to_ssbn(copy.deepcopy(stock), (16, 8), rank=2).eval()
    for layer in changed_layers(net):
        nn.init.normal_(layer.changes[0])
    for size, edge in ((16, 16), (16, 14), (8, 8), (8, 5)):
        with use_scale(net, size, record=True, edge=edge):
            run(net, torch.randn(2, 3, edge, edge), 20)
    assert net[1].extents == {16: [20, 20], 8: [20, 20]}
    x = torch.randn(2, 3, 16, 16)
    for points in (20, 80):
        assert torch.equal(run(net, x, points), run(stock, x, points))


def test_serving_scale_takes_the_larger_on_a_tie():
    assert serving_scale((128, 160), 144) == 160
    assert serving_scale((128, 160), 143) == 128
    assert serving_scale((128, 160), 500) == 160


@pytest.mark.parametrize('size, edge, error', [
    (16, 0, ValueError), (16, 'x', TypeError), (16, -3, ValueError),
    (torch.tensor(16), None, TypeError), ('16', None, TypeError),
    (torch.tensor([16, 12]), None, TypeError), (0, None, ValueError),
    (12.5, None, TypeError)])
def test_a_pin_that_is_refused_pins_nothing(size, edge, error):
    model = trained()
    with pytest.raises(error, match='`size`|`edge`'):
        with use_scale(model, size, edge=edge):
            pass
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))
    with pytest.raises(TypeError, match='must be an nn.Module, but got None'):
        set_scale(None, 16)


@pytest.mark.parametrize('state', [
    None, [[16, 1, 2]], torch.zeros(3), torch.tensor([[9, 1, 1]] * 3),
    torch.tensor([[16, -1, 1], [12, -9, -1], [8, 0, 0]]),
    torch.tensor([[16., float('nan'), 2], [12, 0, 5], [8, 0, 0]])])
def test_a_record_that_is_none_is_ignored(state):
    layer = SSBN(3, SCALES)
    layer.set_extra_state(state)
    assert layer.extents == {}


def recorded(extents):
    """The state of a layer that has seen ``extents``, {scale: extent}."""
    layer = SSBN(3, SCALES).eval()
    for scale, extent in extents.items():
        with use_scale(layer, scale, record=True):
            layer(torch.zeros(1, 3, extent, extent))
    return layer.get_extra_state()


EQUAL = recorded({16: 8, 12: 6, 8: 4})
AVERAGES = {
    'none yet, EMA': EQUAL * 0.3 + recorded({}) * 0.7,
    'none yet, soup': (EQUAL + recorded({})) / 2.0,
    'none yet, ints': (EQUAL + recorded({})) // 2,
    'none yet, half': (EQUAL.half() + recorded({}).half()) / 2,
    'one scale not yet': (EQUAL + recorded({16: 8, 12: 6})) / 2,
    'other extents': (EQUAL + recorded({16: 7, 12: 6, 8: 4})) / 2}


@pytest.mark.parametrize('name', AVERAGES)
def test_an_average_of_different_records_is_not_taken(name):
    layer, known = SSBN(3, SCALES), SSBN(3, SCALES)
    with pytest.warns(UserWarning, match='averages records .*that differ'):
        layer.set_extra_state(AVERAGES[name])
    assert layer.extents == {}
    known.set_extra_state(EQUAL)
    known.set_extra_state(AVERAGES[name])  # its own serves it
    assert known.extents == {16: [8, 8], 12: [6, 6], 8: [4, 4]}


def test_an_average_of_equal_records_is_taken():
    shadow = EQUAL.float()
    for _ in range(1000):
        shadow = 0.99 * shadow + 0.01 * EQUAL
    for state in (shadow, EQUAL.half(), torch.stack([EQUAL] * 3).float(
            ).mean(0), recorded({}) * 1e-9 + EQUAL * (1 - 1e-9)):
        layer = SSBN(3, SCALES)
        layer.set_extra_state(state)
        assert layer.extents == {16: [8, 8], 12: [6, 6], 8: [4, 4]}
    layer.set_extra_state(recorded({}))
    assert layer.extents == {}


@pytest.mark.parametrize('networks', [10, 11, 12])
def test_an_average_of_equal_records_that_lack_a_scale(networks):
    """In single precision, a sum of shares of 2**20 is off by 0.125."""
    for extents in ({16: 8}, {}):
        state = recorded(extents)
        layer = SSBN(3, SCALES)
        layer.set_extra_state(sum(state / networks for _ in range(networks)))
        assert layer.extents == {s: [e, e] for s, e in extents.items()}


@pytest.mark.parametrize('averaged', [
    torch.optim.swa_utils.AveragedModel,
    lambda model: ExponentialMovingAverage(model, update_buffers=True),
    lambda model: StochasticWeightAverage(model, update_buffers=True)])
def test_an_average_that_began_before_training_finds_the_size(averaged):
    model = TinyModel(lambda c: SSBN(c, SCALES))
    average = averaged(model)
    for scale in SCALES * 3:
        with use_scale(model, scale):
            model(torch.randn(4, 3, scale, scale))
        average.update_parameters(model)
    loaded = averaged(TinyModel(lambda c: SSBN(c, SCALES)))
    loaded.load_state_dict(average.state_dict())
    for scale in SCALES:
        x = torch.randn(2, 3, scale, scale)
        for network in (average.eval().module, loaded.eval().module):
            assert_close(network(x), pinned(network, x), rtol=0, atol=0)


def test_behind_a_pooling_another_size_is_told_after_the_base_too():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1),
                        SSBN(4, scales=(16, 8))).eval()
    for scale in (16, 8):
        with use_scale(net, scale, record=True):
            net(torch.rand(2, 3, scale, scale))
    net(torch.rand(2, 3, 16, 16))  # silent: the base serves it rightly
    for again in (net, copy.deepcopy(net)):
        with pytest.warns(UserWarning, match='8 pixels by the rows of its '
                          'base scale 16: .* behind a pooling'):
            again(torch.rand(2, 3, 8, 8))
    net(torch.rand(2, 3, 8, 8))  # it was told


def test_a_layer_that_an_older_version_pickled_is_not_pinned():
    layer = SSBN(4, scales=(16, 8)).eval()
    state = layer.__getstate__()
    del state['pin']
    old = SSBN.__new__(SSBN)
    old.__setstate__({**state, 'pinned_size': None, 'record': False})
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(old(x), layer(x))
    with use_scale(old, 8):
        assert old.pinned_size == 8
