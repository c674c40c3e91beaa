"""SharedAffineHook: statistics alone are private."""
import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import apart, batch, plain_net, ssbn_model, train
from torch import nn

from sct_mm import SSBN, SCTLossHook, SharedAffineHook
from sct_mm.models.size_selection import ssbn_layers

pytestmark = pytest.mark.usefixtures('double_precision')


def gradients(model, *hooks):
    """Of one step, as {name: gradient}."""
    sct = SCTLossHook(backward='joint')
    sct.attach(model)
    for hook in hooks:
        hook.before_train(SimpleNamespace(model=model))
    model(**batch(), mode='loss')['loss'].backward()
    sct.detach()
    return {name: p.grad for name, p in model.named_parameters()}


def test_rows_get_the_gradient_of_one_gamma():
    model = ssbn_model()
    private = gradients(copy.deepcopy(model))
    shared = gradients(model, SharedAffineHook())
    rows = {f'{name}.{key}' for name, m in model.named_modules()
            if m in ssbn_layers(model) for key in ('weight', 'bias')}
    assert rows
    for name, grad in shared.items():
        expected = private[name]
        if name in rows:
            expected = expected.view(len(SCALES), -1).sum(0)
            expected = expected.repeat(len(SCALES))
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize('schedule', [
    dict(scales_per_step=1, between=0.5), dict(partition=True), {}])
def test_it_trains_the_network_that_shared_bn_trains(schedule):
    """Of which the statistics alone are another."""
    nets = [TinyModel(norm).double() for norm in (
        nn.BatchNorm2d, lambda c: SSBN(c, SCALES))]
    nets[1].load_state_dict(nets[0].state_dict())
    SharedAffineHook().before_train(SimpleNamespace(model=nets[1]))
    before = copy.deepcopy(nets[0].state_dict())
    for net in nets:
        hook = SCTLossHook(SCALES, backward='joint', **schedule)
        hook.attach(net)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for step in range(8):
            data = batch(seed=step)
            data['inputs'] = data['inputs'].double()
            optimizer.zero_grad()
            net(**data, mode='loss')['loss'].backward()
            optimizer.step()
    for name, value in nets[0].named_parameters():
        found = dict(nets[1].named_parameters())[name]
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(
            found, value.repeat(found.numel() // value.numel())
            if value.dim() == 1 else value)
    layer = ssbn_layers(nets[1])[0]
    assert not torch.allclose(layer.row(16)['running_var'],
                              layer.row(8)['running_var'])


def test_statistics_alone_are_private_after_training(tmp_path):
    model = ssbn_model()
    train(tmp_path, 1, model, [SCTLossHook(backward='joint'),
                               SharedAffineHook()])
    layer = ssbn_layers(model)[0]
    first, second = (layer.row(scale) for scale in SCALES[:2])
    for key in ('weight', 'bias'):
        assert torch.equal(first[key], second[key])
        assert not torch.equal(first[key], torch.ones_like(first[key]))
    assert not torch.equal(first['running_mean'], second['running_mean'])
    assert not layer.weight._backward_hooks


def test_per_scale_is_refused():
    model = ssbn_model()
    SharedAffineHook().before_train(SimpleNamespace(model=model))
    SCTLossHook().attach(model)
    with pytest.raises(RuntimeError, match="Set backward='joint'"):
        model(**batch(), mode='loss')


def test_rows_that_differ_and_no_rows_are_refused():
    model = ssbn_model()
    apart(ssbn_layers(model)[1])
    with pytest.raises(ValueError, match=r'those of \(16, 12, 8\) differ'):
        SharedAffineHook().before_train(SimpleNamespace(model=model))
    assert not any(p._backward_hooks for p in model.parameters())
    with pytest.raises(ValueError, match='SSBN, but Sequential has none'):
        SharedAffineHook().before_train(SimpleNamespace(model=plain_net()))


def test_rows_apart_by_rounding_are_alike():
    """So a run that died resumes: fused AdamW rounds its last entries, of odd
    channels, otherwise."""
    model = ssbn_model()
    with torch.no_grad():
        ssbn_layers(model)[0].weight[-1] += 1e-6
    hook = SharedAffineHook()
    hook.before_train(SimpleNamespace(model=model))
    hook.after_train(None)


def test_a_run_that_an_error_ended_leaves_nothing_behind():
    """What was hooked before counts once, and goes at the end."""
    model, hook = ssbn_model(), SharedAffineHook()
    hook.before_train(SimpleNamespace(model=model))
    once = gradients(copy.deepcopy(model), SharedAffineHook())
    for name, grad in gradients(model, hook).items():
        torch.testing.assert_close(grad, once[name])
    hook.after_train(None)
    assert not any(p._backward_hooks for p in model.parameters())


def test_two_of_them_and_a_base_that_is_kept_are_refused():
    """Two would add up the rows' gradients twice; `adapt` moves them apart
    from the base's, which a resumed run would refuse."""
    model = ssbn_model()
    SharedAffineHook().before_train(SimpleNamespace(model=model))
    with pytest.raises(RuntimeError, match='shares gamma and beta already'):
        SharedAffineHook().before_train(SimpleNamespace(model=model))
    hooks = [SCTLossHook(adapt=True)]
    with pytest.raises(ValueError, match='but got adapt'):
        SharedAffineHook().before_train(SimpleNamespace(
            model=ssbn_model(), hooks=hooks))
