"""Smaller scales for a trained network: what trains, and what stays."""
import pytest
import torch
from adapting import assert_kept, kept, network, unlabelled
from conftest import SCALES, TinyModel
from helpers import (
    Dies,
    batch,
    grads,
    train,
    with_trained_base,
)
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.registry import MODELS
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import (
    EpochSeedHook,
    SCTLossHook,
    convert_to_ssbn,
    extract_scale,
    use_scale,
)
from sct_mm.engine.sct.adapt_step import kept_tensors
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.models.weight_change import changed_layers


@MODELS.register_module(force=True)
class Rounds(BaseAveragedModel):
    """mmdet's average: of x and x it is not always x to the bit."""

    def avg_func(self, averaged_param, source_param, steps):
        averaged_param.mul_(1 - 0.3).add_(source_param, alpha=0.3)


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('options', [
    {}, dict(backward='joint'), dict(scales_per_step=1),
    dict(partition=True), dict(between=1.0), dict(norm_eval=True),
    dict(loss_weights=(0., 1., 3.))])
def test_gradients_are_those_of_a_loop_taught_by_the_base(options, rank):
    model, by_hand = network(rank), network(rank)
    hook = SCTLossHook(adapt=True, **options)
    hook.attach(model)
    for hook.step in range(3):
        data = unlabelled(n=9, seed=hook.step)
        with torch.no_grad(), use_scale(by_hand.eval(), 16):
            taught = by_hand(data['inputs']).softmax(1)
        for layer in ssbn_layers(by_hand):
            layer.train(not options.get('norm_eval'))
        total = 0
        passes = hook.sct.schedule.passes(9, hook.step)
        assert 16 not in {p.scale for p in passes}
        for p in passes:
            share = p.share or slice(None)
            x = tv.resize(data['inputs'][share], [p.size] * 2, antialias=True)
            with use_scale(by_hand, p.size):
                logs = by_hand(x).log_softmax(1)
            total = total + p.weight * (taught[share] * (
                taught[share].log() - logs)).sum(1).mean()
        losses = model(**data, mode='loss')
        assert_close(losses['loss'], total)
        for net, loss in ((model, losses['loss']), (by_hand, total)):
            net.zero_grad()
            loss.backward()
        for name, grad in grads(model).items():
            trains = name.startswith(('net.1.', 'net.4.', 'net.7.')) or (
                '.change_' in name)
            assert (grad is not None) == trains
            if trains:
                assert_close(grad, dict(by_hand.named_parameters())[name].grad)
        for ours, theirs in zip(ssbn_layers(model), ssbn_layers(by_hand),
                                strict=True):
            assert_close(ours.running_mean[1:], theirs.running_mean[1:])
            assert_close(ours.running_var[1:], theirs.running_var[1:])
            # The base's own do not move the reference's teacher either.
            theirs.running_mean[0] = ours.running_mean[0]
            hook.sct.restore()
            for name, value in ours.row(16).items():
                theirs.row(16)[name].data.copy_(value)


@pytest.mark.parametrize('options', [
    dict(adapt=True), dict(adapt='labels'),
    dict(adapt=True, between=1.0), dict(adapt=True, backward='joint'),
    dict(adapt=True, scales_per_step=1, between=0.5)])
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('optimizer', [
    dict(type='AdamW', lr=0.05, weight_decay=0.5),
    dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)])
def test_all_but_the_smaller_rows_stays_to_the_bit(tmp_path, optimizer,
                                                   options, rank):
    model, before = network(rank), network(rank).state_dict()
    x = torch.rand(4, 3, 16, 16)
    with use_scale(model.eval(), 16):
        want = model(x)
    ema = EMAHook('Rounds', update_buffers=True)
    train(tmp_path / 'run', 3, model, [ema, SCTLossHook(**options)],
          optim_wrapper=dict(optimizer=optimizer))
    saved = torch.load(tmp_path / 'run' / 'epoch_3.pth')
    average = ema.ema_model.module
    for state in (model.state_dict(), average.state_dict(),
                  saved['state_dict'], {k[7:]: v for k, v in saved[
                      'ema_state_dict'].items() if k != 'steps'}):
        assert_kept(state, before)
    for net in (model, average):
        assert torch.equal(net.cpu().eval()(x), want)
        assert torch.equal(extract_scale(net, 16).eval()(x), want)
        for layer in ssbn_layers(net):
            for name, rows in (('weight', layer.weight), ('mean',
                                                          layer.running_mean)):
                base, *others = rows.detach().reshape(3, -1)
                assert all((row != base).all() for row in others), name
        for layer in changed_layers(net):
            assert all(row.any() for row in layer.changes[0])
        assert len(changed_layers(net)) == 3 * rank
    assert all(p.requires_grad for p in model.parameters())


def test_the_network_learns_what_it_answers_at_the_base():
    """From labels that say nothing."""
    model = network()
    hook = SCTLossHook(adapt='logits')
    hook.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for hook.step in range(60):
        loss = model(**unlabelled(n=32, seed=hook.step % 4),
                     mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])


@pytest.mark.parametrize('schedule', [{}, dict(between=0.5),
                                      dict(scales_per_step=1)])
@pytest.mark.parametrize('rank', [0, 1])
def test_resumed_it_is_the_unbroken_one_to_the_bit(tmp_path, schedule, rank):
    def run(name, *more, **options):
        return train(tmp_path / name, 2, network(rank), [
            SCTLossHook(adapt=True, **schedule), EpochSeedHook(), EMAHook(),
            *more], **options)

    whole = run('whole').model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        run('parts', Dies())
    resumed = run('parts', resume=True)
    assert resumed.iter == 4
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[name]), name
    ema = [torch.load(tmp_path / d / 'epoch_2.pth')['state_dict']
           for d in ('whole', 'parts')]
    assert all(torch.equal(ema[1][name], value)
               for name, value in ema[0].items())


@pytest.mark.parametrize('rank', [0, 1])
def test_after_ctrl_c_and_detach_the_model_is_as_before(rank):
    model, before = network(rank), network(rank).state_dict()
    model.net[1].eval()  # as norm_eval
    model.net[3].weight.requires_grad_(False)  # as frozen_stages
    modes = [m.training for m in model.modules()]
    trains = [p.requires_grad for p in model.parameters()]
    hook = SCTLossHook(adapt=True)
    hook.attach(model)
    model(**batch(), mode='loss')['loss'].backward()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model.net[1].running_mean, before['net.1.running_mean'])

    def stop(module, args):
        if module.training and torch.is_grad_enabled():
            raise KeyboardInterrupt

    handle = model.net[4].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(**batch(), mode='loss')
    handle.remove()
    hook.detach()
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trains
    assert_kept(model.state_dict(), before)


def test_changes_of_weights_adapt_beside_frozen_norms():
    """As mmdet's DETR freezes them: requires_grad=False in its norm_cfg."""
    model = network(1)
    for layer in ssbn_layers(model):
        layer.requires_grad_(False)
    SCTLossHook(adapt=True).attach(model)
    model(**batch(), mode='loss')['loss'].backward()
    assert {name for name, grad in grads(model).items()
            if grad is not None} == {
                name for name, p in model.named_parameters()
                if any(p is change for layer in changed_layers(model)
                       for change in layer.changes)}


@pytest.mark.parametrize('rank', [0, 1])
def test_what_is_kept_is_all_but_the_smaller_rows(rank):
    model = network(rank)
    written, parameters = kept_tensors(model)
    assert not set(written) & set(parameters)
    state = model.state_dict()
    assert sum(v.numel() for v in (*written.values(), *parameters.values())
               ) == sum(v.numel() for v in kept(state).values())


def test_a_converted_norm_that_does_more_keeps_the_rest():
    class Scaled(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.gain = nn.Parameter(torch.ones(channels))
            self.register_buffer('seen', torch.zeros(()))

        def forward(self, x):
            return super().forward(x) * self.gain[:, None, None]

    model = with_trained_base(convert_to_ssbn(TinyModel(Scaled), SCALES))
    SCTLossHook(adapt=True).attach(model)
    model(**batch(), mode='loss')['loss'].backward()
    assert model.net[1].gain.grad is None
    assert model.net[1].weight.grad is not None


@pytest.mark.parametrize('rank', [0, 1])
def test_ddp_is_wrapped_anew_for_what_trains(tmp_path, rank):
    """It waits for the gradients of all that trained when it was wrapped."""
    torch.distributed.init_process_group(
        'gloo', f'file://{tmp_path}/store', rank=0, world_size=1)

    class Runner:
        cfg: dict = {}
        model = DistributedDataParallel(network(rank))

        def wrap_model(self, cfg, model):
            return DistributedDataParallel(model)

    try:
        runner, hook = Runner(), SCTLossHook(adapt=True)
        hook.before_run(runner)
        net = runner.model.module
        assert all(p.requires_grad for p in net.parameters())
        hook.attach(net)
        for model, fails in ((runner.model, False), (Runner.model, True)):
            for step in range(2):
                if step and fails:
                    with pytest.raises(RuntimeError, match='Expected to have '
                                       'finished reduction'):
                        model(**batch(), mode='loss')
                    break
                model(**batch(), mode='loss')['loss'].backward()
        hook.detach()
    finally:
        torch.distributed.destroy_process_group()
