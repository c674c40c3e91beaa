"""What teaches the smaller scales of a network, and what cannot adapt."""
import pytest
import torch
from adapting import assert_kept, network, unlabelled
from conftest import SCALES, TinyModel
from helpers import (
    batch,
    classifier,
    grads,
    labelled,
    ssbn_model,
    train,
    with_trained_base,
)
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SCTLossHook
from sct_mm.engine.sct.logits import distillation_loss
from sct_mm.models.size_selection import ssbn_layers


class Detector(TinyModel):
    """Returns no logits; its loss depends on its mode."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.passes.append((inputs.shape[-1], mode, self.training,
                            self.net[1].training, torch.is_grad_enabled()))
        maps = self.net(inputs)
        if mode == 'tensor':
            return maps, maps
        assert self.training
        return dict(loss_cls=maps.pow(2).mean())


def test_a_detector_trains_by_its_own_losses():
    """True finds out in the first step; labels are needed."""
    model = with_trained_base(Detector(lambda c: SSBN(c, SCALES)))
    model.passes = []
    hook = SCTLossHook(adapt=True)
    hook.attach(model)
    losses = [model(**batch(), mode='loss') for _ in range(2)]
    assert model.passes == [
        (16, 'tensor', False, False, False),
        *[(size, 'loss', True, True, True) for size in (12, 8)] * 2]
    assert set(losses[0]) == {'loss', 's12/total', 's12/cls', 's8/total',
                              's8/cls'}
    assert_close(losses[0]['loss'], sum(
        losses[0][f's{s}/total'] for s in (12, 8)) / 3)
    for layer in ssbn_layers(model):
        assert set(layer.extents) == set(SCALES)
    with pytest.raises(ValueError, match='samples without labels'):
        model(**unlabelled(), mode='loss')
    hook.detach()
    model.passes = []
    SCTLossHook(adapt='labels').attach(model)
    model(**batch(), mode='loss')
    assert [p[0] for p in model.passes] == [12, 8]


class WithoutTensorMode(Detector):
    passes = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'tensor':
            raise NotImplementedError('has no such mode')
        return super().forward(inputs, data_samples, mode)


def test_a_detector_without_a_tensor_mode_trains_by_its_losses(caplog):
    model = with_trained_base(WithoutTensorMode(lambda c: SSBN(c, SCALES)))
    logger = MMLogger.get_instance('adapts')
    logger.addHandler(caplog.handler)
    SCTLossHook(adapt=True).attach(model)
    losses = [model(**batch(), mode='loss') for _ in range(2)]
    assert caplog.text.count("whose mode='tensor' fails: has no such") == 1
    assert 's8/total' in losses[0] and losses[1]['loss'].isfinite()
    for layer in ssbn_layers(model):
        assert set(layer.extents) == set(SCALES)
    model = with_trained_base(WithoutTensorMode(lambda c: SSBN(c, SCALES)))
    SCTLossHook(adapt='logits').attach(model)
    with pytest.raises(NotImplementedError, match='has no such mode'):
        model(**batch(), mode='loss')


def test_both_is_the_sum_of_the_two():
    losses = {}
    for adapt in ('both', 'logits', 'labels'):
        model = classifier()
        hook = SCTLossHook(adapt=adapt)
        hook.attach(model)
        losses[adapt] = model(**labelled(), mode='loss')
        losses[adapt]['loss'].backward()
        losses[adapt]['grad'] = model.backbone.bn1.weight.grad
        assert not model.head._forward_hooks
    for name in ('loss', 'grad'):
        assert_close(losses['both'][name], losses['logits'][name]
                     + losses['labels'][name])
    assert_close(losses['both']['s8/distill'], losses['logits']['s8/total'])
    assert_close(losses['both']['s8/total'], losses['labels']['s8/total'])


@pytest.mark.parametrize('adapt', ['logits', 'both'])
@pytest.mark.parametrize('backward', ['per_scale', 'joint'])
def test_layers_that_run_again_are_in_the_mode_of_their_pass(backward, adapt):
    """Blocks that autograd runs again, with a norm that all scales share."""
    found = []
    for with_cp in (False, True):
        model = classifier(with_cp=with_cp).double()
        shared = nn.BatchNorm2d(8).double()
        shared.running_mean.normal_()
        model.backbone.layer2[0].norm1_name = 'shared'
        model.backbone.layer2[0].shared = shared
        SCTLossHook(adapt=adapt, backward=backward).attach(model)
        data = labelled()
        data['inputs'] = data['inputs'].double()
        model(**data, mode='loss')['loss'].backward()
        assert all(m.training for m in model.modules())
        assert all(layer.pinned_size is None for layer in ssbn_layers(model))
        found.append(grads(model))
    assert_close(*found)


@pytest.mark.parametrize('head', ['LinearClsHead', 'MultiLabelLinearClsHead'])
def test_a_classifier_of_mmpretrain_is_taught_without_labels(head):
    model = classifier(head)
    SCTLossHook(adapt=True).attach(model)
    losses = model(inputs=torch.rand(8, 3, 16, 16), mode='loss')
    assert set(losses) == {'loss', 's12/total', 's8/total'}


@pytest.mark.parametrize('adapt, make, match', [
    ('logits', lambda: Detector(lambda c: SSBN(c, SCALES)), 'Detector does '
     "not return them with mode='tensor'"),
    ('both', ssbn_model, 'or has no `head`')])
def test_without_logits_it_says_what_to_do(adapt, make, match):
    model = with_trained_base(make())
    model.passes = []
    before = {k: v.clone() for k, v in model.state_dict().items()}
    SCTLossHook(adapt=adapt).attach(model)
    with pytest.raises(ValueError, match=match):
        model(**batch(), mode='loss')
    assert_kept(model.state_dict(), before)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize('make, options, match', [
    (ssbn_model, {}, 'rows of that scale have never been trained. Set load_f'),
    (lambda: TinyModel(nn.BatchNorm2d), dict(scales=SCALES),
     "TinyModel has SSBN for None. Write model=dict\\(type='WithSSBN'"),
    (lambda: TinyModel(lambda c: SSBN(c, (16, ))), {},
     r'has SSBN for \(16,\)'),
    (lambda: with_trained_base(ssbn_model()).requires_grad_(False), {},
     'none of TinyModel requires gradients'),
    (network, dict(loss_weights=(1., 0., 0.)), '> 0 for a smaller scale'),
    (network, dict(scales_per_step=3), r'from 1 to the 2 scales \(12, 8\)'),
    (network, dict(adapt='kl'), "`adapt` must be True, .* but got 'kl'"),
    (network, dict(adapt=1), '`adapt` must be True, .* but got 1')])
def test_what_cannot_adapt(make, options, match):
    with pytest.raises(ValueError, match=match):
        SCTLossHook(**{**dict(adapt=True), **options}).attach(make())


def test_a_run_that_loads_nothing_is_told(tmp_path):
    with pytest.raises(ValueError, match='Set load_from to the check'):
        train(tmp_path / 'run', 1, hooks=[SCTLossHook(adapt=True)])


def test_distillation_is_the_kl_divergence():
    teacher, student = torch.randn(2, 6, 5)
    want = torch.distributions.kl_divergence(*(
        torch.distributions.Categorical(logits=x)
        for x in (teacher, student))).mean()
    assert_close(distillation_loss(teacher, student), want)
    # The sum is rounded, and the logarithm of the softmax: two roundings of
    # numbers below 8 each, that the sum over the probabilities averages.
    assert teacher.abs().max() < 5
    assert distillation_loss(teacher, teacher + 3).abs() < (
        4 * 8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize('priority', ['LOWEST', 90])
def test_a_checkpoint_is_saved_of_what_was_put_back(priority, tmp_path):
    hook = dict(type='SCTLossHook', adapt=True, priority=priority)
    with pytest.raises(ValueError, match='`priority` of SCTLossHook'):
        train(tmp_path / 'a', 1, network(), [hook])


class Frees(Hook):
    def before_train_iter(self, runner, *args, **kwargs):
        runner.model.requires_grad_(True)


def test_what_another_hook_frees_stays_all_the_same(tmp_path):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(tmp_path / 'a', 1, model, [SCTLossHook(adapt=True), Frees()])
    assert_kept(model.state_dict(), before)
    assert all(p.requires_grad for p in model.parameters())
