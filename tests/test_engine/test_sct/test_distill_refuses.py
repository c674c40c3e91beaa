"""What cannot distill, and says so before it trains."""
import copy

import pytest
from conftest import SCALES, TinyModel
from helpers import Classifier, batch, labelled
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SCTLossHook
from sct_mm.models.size_selection import ssbn_layers


class Pair(Classifier):
    """Logits, and what is none."""

    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x.sum()

    def __init__(self):
        super().__init__()
        self.net[-1] = self.Two(6, 5)

    @property
    def head(self):
        return self.net[-1]

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.net(inputs)[0].pow(2).mean())


@pytest.mark.parametrize('make, match', [
    (Pair, 'but Two of Pair makes none of features alone'),
    (lambda: TinyModel(lambda c: SSBN(c, SCALES)), '`head` makes logits .* '
     'but TinyModel has none')])
def test_heads_that_are_refused(make, match):
    model = make()
    before = {k: p.clone() for k, p in model.named_parameters()}
    with pytest.raises(ValueError, match=match):
        SCTLossHook(distill=True).attach(model)
        model(**labelled(), mode='loss')['loss'].backward()
    assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)
    assert all(layer.pinned_size is None for layer in ssbn_layers(model))


@pytest.mark.parametrize('options, error, match', [
    (dict(distill='both'), ValueError, "`distill` must be True, .* 'both'"),
    (dict(distill=1), ValueError, '`distill` must be True, .* got 1'),
    (dict(distill=True, adapt=True), ValueError, '`adapt` has a teacher of'),
    (dict(distill=True, partition=True), ValueError, 'but partition=True sh'),
    (dict(distill='larger', scales_per_step=1), ValueError,
     'but scales_per_step=1 shows each image at one'),
    (dict(distill_weight=-1), ValueError, '`distill_weight` .* got -1'),
    (dict(temperature=0), ValueError, '`temperature` .* got 0'),
    (dict(temperature=4.), ValueError, '4.0 without it. Set distill=True'),
    (dict(adapt=True, distill_weight=0), ValueError, 'is one of `distill`'),
    (dict(temperature='1'), TypeError, '`temperature` must be a number'),
    (dict(distill=True, loss_weights=(1, 0, 0)), ValueError, 'needs two sca'),
    (dict(distill=True, loss_weights=(0, 1, 1), scales_per_step=2),
     ValueError, r'> 0 in a step, but got \{16: 0.0, .*\}, 2 a step')])
def test_what_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        SCTLossHook(**options).attach(Classifier())


@pytest.mark.parametrize('without', ['samples', 'labels'])
def test_the_ensemble_needs_labels(without):
    class NoLabels(Classifier):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return dict(loss=self.net(inputs).pow(2).mean())

    data = dict(batch(), mode='loss')
    for sample in data['data_samples']:
        del sample.gt_label
    if without == 'samples':
        del data['data_samples']
    hook = SCTLossHook(distill='ensemble')
    model = NoLabels()
    hook.attach(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="or set distill='larger'"):
        model(**data)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    hook.detach()
    SCTLossHook(distill='larger').attach(model)
    assert model(**data)['s8/distill'] > 0
