"""Networks between two scales: extracted, unpinned, run again, compiled."""
import copy
import pickle
import threading

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import apart, batch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from sct_mm import SSBN, SCTLossHook, extract_scale, set_scale, use_scale
from sct_mm.models.size_selection import admits, ssbn_layers


def trained():
    model = TinyModel(lambda c: SSBN(c, SCALES))
    for scale in SCALES:
        with use_scale(model, scale):
            model(torch.randn(4, 3, scale, scale))
    for layer in ssbn_layers(model):
        apart(layer)
    return model.eval()


@pytest.mark.parametrize('size', [15, 14, 11, 10, 9])
def test_an_extracted_size_is_an_ordinary_network(size):
    model = trained()
    plain = extract_scale(model, size)
    assert not ssbn_layers(plain)
    assert all(p.requires_grad for p in plain.parameters())
    x = torch.randn(2, 3, size, size)
    with use_scale(model, size):
        assert torch.equal(plain(x), model(x))
    with torch.no_grad():
        assert all(p.requires_grad
                   for p in extract_scale(model, size).parameters())


def test_unpinned_the_first_layer_tells_all_others():
    """Layers of coarse maps follow, whatever ran before."""
    model = trained()
    for size in (10, 16, 14, 8, 12, 14, 10):
        x = torch.randn(2, 3, size, size)
        with use_scale(model, size):
            want = model(x)
        for before in SCALES:
            model(torch.randn(1, 3, before, before))
            assert torch.equal(model(x), want)


def test_unpinned_after_a_checkpoint_and_after_a_copy():
    model = trained()
    loaded = TinyModel(lambda c: SSBN(c, SCALES)).eval()
    loaded.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 10, 10)
    with use_scale(model, 10):
        want = model(x)
    for network in (loaded, copy.deepcopy(model),
                    pickle.loads(pickle.dumps(model))):
        assert torch.equal(network(x), want)
    assert [layer.extents.leads for layer in ssbn_layers(loaded)] == [
        True, False, False]


def test_a_record_of_older_checkpoints_tells_the_scales():
    layer = SSBN(3, SCALES).eval()
    layer.set_extra_state(torch.tensor([[16, 8, 8], [12, 6, 6], [8, 4, 4]]))
    assert layer.extents.leads
    layer.set_extra_state(torch.tensor([[16, 1, 1], [12, 1, 1], [8, 1, 1]]))
    assert not layer.extents.leads


def test_copies_of_one_block_keep_records_of_their_own():
    block = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), SSBN(3, SCALES))
    model = nn.Sequential(block, copy.deepcopy(block))
    average = copy.deepcopy(model)
    for scale in SCALES:
        with use_scale(model, scale):
            model(torch.randn(4, 3, scale, scale))
    for network in (model, average):
        first, second = (layer.extents.known()
                         for layer in ssbn_layers(network))
        assert first == {16: [8, 8], 12: [6, 6], 8: [4, 4]} and first.leads
        assert second == {16: [4, 4], 12: [3, 3], 8: [2, 2]}
        assert not second.leads


def test_what_a_map_may_come_from():
    record = {224: [7, 7], 160: [5, 5]}
    assert all(admits(e, s, record) for e, s in ((7, 224), (6, 224), (6, 192),
                                                 (5, 160), (5, 170)))
    assert not admits(10, 224, record) and not admits(7, 160, record)


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_within_a_pin(reentrant):
    def grads(again):
        torch.manual_seed(1)
        model = trained().train()
        x = torch.randn(4, 3, 11, 11, requires_grad=True)
        with use_scale(model, 11):
            y = (checkpoint(model.net, x, use_reentrant=reentrant) if again
                 else model.net(x))
            y.pow(2).sum().backward()
        return [p.grad for p in model.parameters()]

    for ours, want in zip(grads(True), grads(False), strict=True):
        assert_close(ours, want)


class Again(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


def checkpointed(reentrant):
    model = TinyModel(nn.Identity)
    last = Again(nn.Conv2d(4, 4, 3, 2, 1), SSBN(4, SCALES), nn.ReLU())
    last.reentrant = reentrant
    model.net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), SSBN(4, SCALES), nn.ReLU(), last,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return model


@pytest.fixture
def threads_of_autograd(monkeypatch):
    """Run each backward pass in a thread of its own, as a GPU's is."""
    backward = torch.Tensor.backward

    def elsewhere(*args, **kwargs):
        thread = threading.Thread(target=backward, args=args, kwargs=kwargs)
        thread.start()
        thread.join()

    monkeypatch.setattr(torch.Tensor, 'backward', elsewhere)


def train_by_hand(model, how):
    for scale in SCALES:
        x = torch.randn(4, 3, scale, scale)
        if how == 'set_scale':
            set_scale(model, scale)
            model.net(x).sum().backward()
            continue
        with use_scale(model, scale):
            loss = model.net(x).sum()
            if how == 'use_scale':
                loss.backward()
        if how == 'a_pin_for_each':
            with use_scale(model, scale):
                loss.backward()
    set_scale(model, None)


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('how', [
    'per_scale', 'joint', 'use_scale', 'a_pin_for_each', 'set_scale'])
def test_no_pass_starts_where_layers_run_again(threads_of_autograd, how,
                                               reentrant):
    """Before the layers behind it, a GPU's thread has run none: the first
    of them is not that which finds the size."""
    model = checkpointed(reentrant)
    if how in ('per_scale', 'joint'):
        SCTLossHook(backward=how).attach(model)
        model(**batch(), mode='loss')['loss'].backward()
    else:
        train_by_hand(model, how)
    assert all(p.grad is not None for p in model.parameters())
    finds_each_size(model)


def finds_each_size(model, unpinned=None, sizes=(16, 14, 12, 10, 8)):
    model.eval()
    for layer in ssbn_layers(model):
        apart(layer)
    for size in sizes:
        x = torch.randn(2, 3, size, size)
        with use_scale(model, size):
            want = model(x)
        assert_close((unpinned or model)(x), want, msg=f'{size} pixels')


def test_a_network_that_another_one_precedes():
    """As the teacher in a distiller, within the pin of its student."""
    teacher, model = trained(), checkpointed(False)
    for scale in SCALES:
        x = torch.randn(4, 3, scale, scale)
        with use_scale(model, scale):
            teacher(x)
            model.net(x)
    assert [layer.extents.leads for layer in ssbn_layers(model)] == [
        True, False]
    finds_each_size(model)


def test_a_pass_that_another_pin_interrupts():
    model = checkpointed(False)
    for scale in SCALES:
        x = torch.randn(4, 3, scale, scale)
        with use_scale(model, scale):
            x = model.net[:3](x)
            with use_scale(model, None):
                pass
            model.net[3:](x)
    assert [layer.extents.leads for layer in ssbn_layers(model)] == [
        True, False]


class Break(nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


def test_compiled_in_several_graphs():
    """What precedes the start of a graph counts, in training and behind."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), SSBN(4, (16, 8)), Break(),
        nn.AdaptiveAvgPool2d(1), SSBN(4, (16, 8)))
    plain = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend='eager')
    for scale in (16, 8):
        x = torch.randn(4, 3, scale, scale)
        for network, call in ((model, compiled), (plain, plain)):
            with use_scale(network, scale):
                call(x)
    assert [layer.get_extra_state().tolist() for layer in ssbn_layers(model)
            ] == [layer.get_extra_state().tolist()
                  for layer in ssbn_layers(plain)]
    torch.compiler.reset()
    finds_each_size(model, compiled, (12, ))


def test_compiled():
    model = trained()
    torch.compiler.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    for size in (10, 14):
        x = torch.randn(2, 3, size, size)
        with use_scale(model, size):
            want = model(x)
            assert_close(compiled(x), want)
        assert_close(compiled(x), want)
