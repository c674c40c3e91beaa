"""Losses and train steps that are not everybody's."""
import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import batch, grads, ssbn_model, train
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SCTLossHook

pytestmark = pytest.mark.usefixtures('double_precision')


class Lossy(TinyModel):
    """``change`` makes what it returns of its losses."""

    def __init__(self, change, **options):
        super().__init__(lambda c: SSBN(c, SCALES), **options)
        self.change = change

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.change(super().forward(inputs, data_samples, mode),
                           inputs.shape[-1])


def constant_at_8(losses, size):
    """As a detector's that found nothing to train."""
    return dict(loss=losses['loss'].detach() if size == 8 else losses['loss'])


def test_a_loss_without_gradient_at_one_scale():
    models = [Lossy(constant_at_8) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, backward in zip(models, ('per_scale', 'joint'), strict=True):
        SCTLossHook(backward=backward).attach(model)
        model(**batch(), mode='loss')['loss'].backward()
    ours, theirs = map(grads, models)
    assert_close(ours, theirs)
    assert any(grad.abs().sum() > 0 for grad in ours.values())


@pytest.mark.parametrize('change, match', [
    (lambda losses, size: losses['loss'], "contains 'loss', but got a Tensor"),
    (lambda losses, size: {}, r"contains 'loss', but got the keys \[\]"),
    (lambda losses, size: dict(ce=losses['loss']), r"but got the keys \['ce'")
])
def test_without_a_loss_it_says_what_it_got(change, match):
    model = Lossy(change)
    SCTLossHook().attach(model)
    with pytest.raises(TypeError, match=match):
        model(**batch(), mode='loss')


def test_what_cannot_add_up_its_losses():
    model = nn.Sequential(SSBN(3, SCALES))
    model.forward = lambda inputs, data_samples, mode: dict(loss=inputs.sum())
    SCTLossHook().attach(model)
    with pytest.raises(TypeError, match='Sequential must be a BaseModel'):
        model(**batch(), mode='loss')


class TwoPasses(TinyModel):
    """A step that takes two gradients, as sharpness-aware minimisation."""

    def train_step(self, data, optim_wrapper):
        self.sizes = getattr(self, 'sizes', [])
        for _ in range(2):
            loss, log_vars = self.parse_losses(self(**data, mode='loss'))
            optim_wrapper.update_params(loss)
        return log_vars

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.sizes.append(inputs.shape[-1])
        return super().forward(inputs, data_samples, mode)


def test_the_passes_of_one_step_train_one_scale(tmp_path):
    model = TwoPasses(lambda c: SSBN(c, SCALES))
    train(tmp_path / 'a', 4, model, [SCTLossHook(scales_per_step=1)])
    drawn = model.sizes
    assert len(drawn) == 16 and set(drawn) == set(SCALES)
    assert drawn[::2] == drawn[1::2]


class Counting(TinyModel):
    """With a buffer that its loss replaces, and one that it writes to."""

    def __init__(self):
        super().__init__(lambda c: SSBN(c, SCALES))
        self.register_buffer('queue', torch.zeros(1))
        self.register_buffer('count', torch.zeros(()))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.queue = self.queue + 1
        self.count += 1
        return super().forward(inputs, data_samples, mode)


def test_a_head_counts_the_passes_that_train():
    """And not those in which layers are shown the other scales."""
    model = Counting()
    SCTLossHook(scales_per_step=1).attach(model)
    model(**batch(), mode='loss')
    assert model.queue.item() == model.count.item() == 1


@pytest.mark.parametrize('config', [
    dict(type='Nope'), dict(type='Resize'),
    dict(type='MultiScaleBatch', interpolatoin='area')])
def test_a_batch_transform_that_cannot_be_built(config):
    with pytest.raises(ValueError, match='`batch_transform` must be the conf'):
        SCTLossHook(batch_transform=config).attach(ssbn_model())
