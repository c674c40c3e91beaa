"""Heads of one's own, and targets that are odd."""
import copy

import pytest
import torch
from conftest import SCALES
from heads import logits_by_hand, scores, several_labels, softmax_kl
from helpers import classifier, labelled
from torch import nn
from torch.testing import assert_close

from sct_mm import SCTLossHook
from sct_mm.engine.sct.logits import HeadLogits, distillation_loss


class Counting(nn.Linear):
    """A head of one's own, called in ways of its own."""

    def forward(self, feats, target=None):
        if target is not None and target.dim() == 5:
            raise AttributeError('no such target')
        return super().forward(feats[-1])

    def loss(self, feats, data_samples):
        target = torch.cat([s.gt_label for s in data_samples])
        loss = nn.functional.cross_entropy(
            self(target=target, feats=feats), target)
        with torch.no_grad():
            hits = (self(feats).argmax(1) == target).float().mean()
        return dict(loss=loss, accuracy=hits)


def test_a_head_that_measures_itself_is_taught_by_its_loss():
    model = classifier()
    model.head = Counting(32, 5)
    hand = copy.deepcopy(model)
    SCTLossHook(distill='larger').attach(model)
    losses = model(**labelled(), mode='loss')
    losses['loss'].backward()
    teacher, student = (logits_by_hand(hand, labelled(), scale)[0]
                        for scale in SCALES[:2])
    assert_close(losses['s12/distill'],
                 softmax_kl(teacher, student).detach() / 2)
    SCTLossHook().attach(hand)
    hand(**labelled(), mode='loss')['loss'].backward()
    assert not torch.allclose(model.head.weight.grad, hand.head.weight.grad)


def test_a_head_that_would_count_twice_is_refused():
    model = classifier()
    model.head = Counting(32, 5)
    model.head.norm = nn.BatchNorm1d(5)
    SCTLossHook(distill='larger').attach(model)
    with pytest.raises(ValueError, match='makes none of features alone'):
        model(**labelled(), mode='loss')


class Several(nn.Module):
    """Its logits, and what it made them of; its own loss."""

    def __init__(self, num_classes=None):
        super().__init__()
        self.fc = nn.Linear(32, 5)
        if num_classes:
            self.num_classes = num_classes

    def forward(self, feats):
        return self.fc(feats[-1]), feats[-1]

    def loss(self, feats, data_samples):
        return dict(loss=nn.functional.cross_entropy(
            self(feats)[0], torch.cat([s.gt_label for s in data_samples])))


@pytest.mark.parametrize('classes', [None, 5, 32])
def test_features_beside_the_logits_are_none(classes):
    model = classifier()
    model.head = Several(classes)
    hook = SCTLossHook(distill='larger')
    hook.attach(model)
    with pytest.raises(ValueError, match='makes none of features alone'):
        model(**labelled(), mode='loss')
    hook.detach()
    SCTLossHook(adapt=True).attach(model)
    with pytest.raises(ValueError, match='without labels'):
        model(inputs=torch.rand(8, 3, 16, 16), mode='loss')


@pytest.mark.parametrize('labels', [[[0], [1]], [[1], [0]]])
def test_the_label_of_one_class_is_its_score(labels):
    model = classifier(loss=dict(type='CrossEntropyLoss', use_sigmoid=True))
    model.head.fc = nn.Linear(32, 1)
    head = HeadLogits(model, 'x')
    logits = torch.tensor([[-9.], [2.]])
    assert_close(head.cross_entropy({'/0': logits}, [
        torch.tensor(each) for each in labels]),
        nn.functional.binary_cross_entropy_with_logits(
            logits, torch.tensor(labels).float()))


def test_a_loss_of_numbers_beside_one_of_classes():
    model = classifier()
    model.head.loss_module = nn.ModuleDict(dict(
        a=nn.CrossEntropyLoss(), b=nn.SmoothL1Loss()))
    SCTLossHook(distill='larger').attach(model)


class Numbers(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.fc, self.loss_module = nn.Linear(32, 5), loss

    def forward(self, feats):
        return self.fc(feats[-1])

    def loss(self, feats, data_samples):
        return dict(loss=self.loss_module(self(feats), torch.stack(
            [s.gt_score for s in data_samples]).float()))


@pytest.mark.parametrize('loss', [nn.L1Loss(), nn.MSELoss()])
def test_numbers_are_no_classes(loss):
    model = classifier()
    model.head = Numbers(loss)
    with pytest.raises(ValueError, match='is of numbers. Leave it out'):
        SCTLossHook(distill='larger').attach(model)
    hook = SCTLossHook(adapt=True)
    hook.attach(model)  # by its own losses
    losses = model(**scores(), mode='loss')
    assert losses['s12/total'] > .01  # of a KL it would be none
    hook.detach()
    SCTLossHook(adapt='logits').attach(model)
    with pytest.raises(ValueError, match="numbers. Set adapt='labels'"):
        model(**scores(), mode='loss')


def test_scores_of_several_labels_want_a_sigmoid():
    model = classifier()
    SCTLossHook(distill='larger').attach(model)
    with pytest.raises(ValueError, match='add up to 2. Set use_sigmoid=True'):
        model(**{**scores(), 'data_samples': scores()['data_samples'][1:] * 2,
                 'inputs': torch.rand(14, 3, 16, 16)}, mode='loss')


def test_labels_that_are_ignored_do_not_weigh():
    model, data = classifier(), labelled()
    data['data_samples'][0].set_gt_label(-100)
    hook = SCTLossHook(distill='ensemble')
    hook.attach(model)
    model(**data, mode='loss')
    assert all(point.isfinite() for point in hook.sct.ensemble().values())
    model = classifier('MultiLabelLinearClsHead')
    hook = SCTLossHook(distill='ensemble')
    hook.attach(model)
    data = several_labels()
    data['data_samples'][1].set_gt_label([])
    model(**data, mode='loss')
    assert all(point.isfinite() for point in hook.sct.ensemble().values())


def test_a_class_that_is_masked_adds_nothing():
    teacher, student = torch.randn(2, 6, 5)
    expected = distillation_loss(teacher[:, 1:], student[:, 1:])
    masked = student.clone().requires_grad_()
    teacher[:, 0] = -torch.inf
    loss = distillation_loss(teacher, masked + torch.tensor(
        [-torch.inf, 0, 0, 0, 0]))
    assert_close(loss, expected)
    loss.backward()
    assert masked.grad.isfinite().all() and masked.grad[:, 1:].any()
    student[:, 0] = -torch.inf
    assert_close(distillation_loss(teacher, student, sigmoid=True),
                 distillation_loss(teacher[:, 1:], student[:, 1:],
                                   sigmoid=True))
