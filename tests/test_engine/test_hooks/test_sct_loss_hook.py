"""The hook's loss against a loop written by hand, within real training."""
import json
import re
import threading
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SCALES, TinyModel
from helpers import batch, grads, ssbn_model, train
from torch import nn
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import SSBN, SCTLossHook, set_scale, use_scale
from sct_mm.engine.sct.monitor import log_means, log_name
from sct_mm.models.size_selection import ssbn_layers

pytestmark = pytest.mark.usefixtures('double_precision')


@pytest.mark.parametrize('weights', [None, (1.0, 0.5, 2.0)])
def test_loss_and_gradients_are_those_of_a_loop(weights):
    model, by_hand = ssbn_model(), ssbn_model()
    by_hand.load_state_dict(model.state_dict())
    data = batch()
    hook = SCTLossHook(loss_weights=weights)
    hook.attach(model)
    losses = model(**data, mode='loss')
    model.parse_losses(losses)[0].backward()

    total = 0
    target = torch.tensor([s.gt_label for s in data['data_samples']])
    for scale, weight in zip(SCALES, weights or (1 / 3, ) * 3, strict=True):
        set_scale(by_hand, scale)
        x = tv.resize(data['inputs'], [scale, scale], antialias=True)
        logits = by_hand.net(x)
        loss = F.cross_entropy(logits, target)
        assert_close(losses[f's{scale}/total'], loss)
        assert_close(losses[f's{scale}/accuracy'],
                     (logits.argmax(1) == target).float().mean())
        total = total + weight * loss
    total.backward()
    assert_close(losses['loss'], total)
    assert_close(grads(model), grads(by_hand))
    for name, value in by_hand.state_dict().items():
        assert_close(model.state_dict()[name], value)
    assert_close(model.parse_losses(losses)[0], losses['loss'])


def test_checkpointing_block_by_block_where_extents_coincide():
    """The last block runs again first, with no pin; 16 and 15 look alike."""
    from mmpretrain.models import ResNet_CIFAR

    class Net(TinyModel):
        def __init__(self, with_cp):
            super().__init__(nn.Identity)
            self.net = nn.Sequential(
                ResNet_CIFAR(18, base_channels=4, stem_channels=4,
                             with_cp=with_cp, zero_init_residual=False,
                             norm_cfg=dict(type='SSBN', scales=(16, 15, 8))),
                Last(), nn.Linear(32, 5))

    class Last(nn.Module):
        def forward(self, maps):
            return maps[-1].mean((2, 3))

    models = [Net(False).double(), Net(True).double()]
    models[1].load_state_dict(models[0].state_dict())
    data = batch()
    data['inputs'] = data['inputs'].double()
    for model in models:
        for layer in ssbn_layers(model):
            layer.weight.data.view(3, -1).copy_(
                    torch.tensor([[1.], [3.], [2.]]))
        SCTLossHook().attach(model)
        model(**data, mode='loss')['loss'].backward()
    assert_close(*map(grads, models))


def test_every_parameter_has_a_gradient():
    """DDP needs no find_unused_parameters."""
    model = ssbn_model()
    SCTLossHook().attach(model)
    model(**batch(), mode='loss')['loss'].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(layer.weight.grad.view(3, -1).abs().sum(1).min() > 0
               for layer in ssbn_layers(model))


def test_only_training_passes_in_loss_mode_change():
    model = ssbn_model()
    SCTLossHook().attach(model)
    data = batch()
    assert isinstance(model(**data, mode='tensor'), torch.Tensor)
    assert set(model.eval()(**data, mode='loss')) == {'loss', 'accuracy'}


def test_it_leaves_no_trace():
    model = ssbn_model()
    before = {k: v for k, v in vars(model).items() if 'hook' in k}
    before = {k: dict(v) for k, v in before.items() if v is not None}
    hook = SCTLossHook()
    hook.attach(model)
    model(**batch(), mode='loss')
    hook.detach()
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))
    assert {k: dict(v) for k, v in vars(model).items() if k in before} == (
        before)
    assert set(model(**batch(), mode='loss')) == {'loss', 'accuracy'}


def test_attached_twice_it_acts_once():
    model = ssbn_model()
    hook = SCTLossHook(partition=True)
    hook.attach(model)
    hook.attach(model)
    with mock.patch.object(hook.sct, '_start',
                           wraps=hook.sct._start) as start:
        model(**batch(), mode='loss')
    assert start.call_count == 1


def test_a_batch_too_small_for_partition(tmp_path):
    model = TinyModel(lambda c: SSBN(c, (16, 12, 8)))
    hook = SCTLossHook(partition=True, loss_weights=(2., 2., 1.))
    with pytest.raises(ValueError, match='Set batch_size to 10 or more'):
        train(tmp_path / 'run', 1, model, [hook])


def test_ctrl_c_in_a_pass_leaves_no_pin_behind():
    model = ssbn_model()
    hook = SCTLossHook()
    hook.attach(model)
    model.net.register_forward_pre_hook(
        mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model(**batch(), mode='loss')
    hook.detach()
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))


def test_after_ctrl_c_the_next_call_is_not_pinned():
    model = ssbn_model()
    SCTLossHook().attach(model)
    model(**batch(), mode='loss')
    x = torch.rand(2, 3, 8, 8)
    want = model.eval()(x)
    stop = model.net.register_forward_pre_hook(
        mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.train()(**batch(), mode='loss')
    stop.remove()
    with torch.no_grad():
        assert_close(model.eval()(x), want, rtol=0, atol=0)


def test_after_ctrl_c_a_call_keeps_the_pin_of_its_caller():
    model = ssbn_model()
    SCTLossHook().attach(model)
    model(**batch(), mode='loss')
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad(), use_scale(model.eval(), 12):
        want = model(x)
    stop = model.net.register_forward_pre_hook(
        mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.train()(**batch(), mode='loss')
    stop.remove()
    with torch.no_grad(), use_scale(model.eval(), 12):
        for _ in range(2):
            assert_close(model(x), want, rtol=0, atol=0)
    assert 's8/total' in model.train()(**batch(), mode='loss')
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))


@pytest.mark.parametrize('elsewhere', [False, True])
def test_a_call_that_evaluates_within_the_pass_does_not_end_it(elsewhere):
    """By the model itself, or by another thread."""
    class Looks(TinyModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            if mode == 'loss':
                self.look(inputs)
                self.pins.append(self.net[1].pinned_size)
            return super().forward(inputs, data_samples, mode)

        def look(self, inputs):
            if elsewhere:
                thread = threading.Thread(target=self, args=(inputs, ))
                thread.start()
                return thread.join()
            with torch.no_grad():
                self.eval()(inputs)
            self.train()

    model = Looks(lambda c: SSBN(c, SCALES))
    model.pins = []
    SCTLossHook().attach(model)
    assert 's8/total' in model(**batch(), mode='loss')
    assert model.pins == list(SCALES)
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))


def test_a_model_that_calls_itself_stays_pinned():
    class Calls(TinyModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            if mode == 'loss':
                self(inputs)
                self.pins.append(self.net[1].pinned_size)
            return super().forward(inputs, data_samples, mode)

    model = Calls(lambda c: SSBN(c, SCALES))
    model.pins = []
    SCTLossHook().attach(model)
    model(**batch(), mode='loss')
    assert model.pins == list(SCALES)


def test_a_model_that_trains_can_be_saved_whole(tmp_path):
    model = ssbn_model()
    SCTLossHook().attach(model)
    model(**batch(), mode='loss')
    torch.save(model, tmp_path / 'model.pth')
    loaded = torch.load(tmp_path / 'model.pth', weights_only=False)
    assert_close(loaded.state_dict(), model.state_dict())
    assert set(loaded(**batch(), mode='loss')) == {'loss', 'accuracy'}
    SCTLossHook().attach(loaded)
    assert_close(loaded(**batch(), mode='loss'), model(**batch(),
                                                       mode='loss'))


def test_a_train_step_that_passes_the_hook_by_is_told(tmp_path):
    class Direct(TinyModel):
        def train_step(self, data, optim_wrapper):
            loss = self.forward(**self.data_preprocessor(data, True),
                                mode='loss')['loss']
            optim_wrapper.update_params(loss)
            return dict(loss=loss)

    with pytest.raises(RuntimeError, match='The train_step of Direct must '
                       'call model'):
        train(tmp_path / 'run', 1, Direct(lambda c: SSBN(c, SCALES)))


def test_the_log_has_every_scale_though_a_step_trains_one(tmp_path):
    """It is the mean over the last steps that trained it."""
    runner = train(tmp_path / 'run', 6, hooks=[
        SCTLossHook(scales_per_step=1)], log_processor=dict(
            type='LogProcessor', custom_cfg=[dict(
                data_src='s8/total', method_name='mean', window_size=10)]),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)))
    lines = [json.loads(line) for line in next(
        (tmp_path / 'run').rglob('scalars.json')).read_text().splitlines()]
    names = [f's{scale}/total' for scale in SCALES]
    assert not set(names) <= set(lines[0])
    assert set(names) <= set(lines[-1])
    scalars = runner.message_hub.log_scalars
    assert sum(len(scalars[f'train/{n}'].data[0]) for n in names) == 12
    for name in names:
        assert lines[-1][name] == pytest.approx(
            np.mean(scalars[f'train/{name}'].data[0][-10:]))
    runner.log_processor.mean_pattern = re.compile('a')
    for _ in range(2):
        log_means(runner.log_processor)
    assert runner.log_processor.mean_pattern.pattern == r'a|\bs[0-9]+/'
    log_means(object())  # a processor of one's own


def test_an_error_in_a_pass_unpins_the_model():
    model = ssbn_model()
    SCTLossHook().attach(model)
    data = batch()
    del data['data_samples'][3].gt_label
    with pytest.raises(AttributeError, match=r"gt_label' \(in the pass of "
                       r'SCTLossHook at scale 16\)'):
        model(**data, mode='loss')
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))


def test_a_step_is_set_on_an_attached_hook_alone():
    hook = SCTLossHook()
    with pytest.raises(RuntimeError, match='Call attach'):
        hook.step = 3
    model = ssbn_model()
    hook.attach(model)
    for want in range(3):
        assert hook.step == want
        model(**batch(), mode='loss')
    for hook.step in (7, 7):
        model(**batch(), mode='loss')
        assert hook.step == 7


def test_names_in_the_log():
    assert log_name(128, 'loss') == 's128/total'
    assert log_name(128, 'loss_rpn_cls') == 's128/rpn_cls'
    assert log_name(128, 'd0.loss_cls') == 's128/d0.cls'
    assert log_name(128, 'accuracy_top-1') == 's128/accuracy_top-1'
