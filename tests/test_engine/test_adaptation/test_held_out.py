"""The images that are held out, what is measured on them, and what a size
gets back by that."""

import pytest
import torch
from helpers import randomised
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from sct_mm import convert_to_ssbn, use_scale
from sct_mm.engine.adaptation.held_out import (
    Case,
    HeldOutImages,
    WithoutHeldOut,
    number_held_out,
)
from sct_mm.engine.adaptation.keeping import copy_row, drop_change
from sct_mm.engine.adapted_config import check_folder
from sct_mm.engine.training_images import drawn
from sct_mm.evaluation.fidelity import compare_scores
from sct_mm.models.weight_change import changed_layers
from sct_mm.utils.errors import UserError

SCALES = (16, 8)


class Images(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.png'))
        return dict(inputs=torch.randn(3, 16, 16, generator=generator),
                    data_samples=sample)


class Preprocessor(BaseDataPreprocessor):
    def forward(self, data, training=False):
        data = self.cast_data(data)
        return dict(inputs=torch.stack(data['inputs']),
                    data_samples=data['data_samples'])


class Classifier(BaseModel):
    def __init__(self, scores=True):
        super().__init__(Preprocessor())
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        self.scores = scores

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.net(inputs)
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return dict(loss=logits.square().mean())
        name = 'pred_score' if self.scores else 'pred_number'
        for sample, each in zip(data_samples, logits * 20, strict=True):
            sample.set_field(each.softmax(0), name)
        return data_samples


def classifier(**options):
    torch.manual_seed(1)
    model = Classifier(**options)
    convert_to_ssbn(model, SCALES, rank=1)
    randomised(model)
    for layer in changed_layers(model):
        nn.init.normal_(layer.changes[0])
    return model.train()


def held_out():
    loader = DataLoader(Images(), batch_size=5, collate_fn=pseudo_collate)
    return HeldOutImages(loader, 16)


def answers(model, size, scale):
    inputs = torch.stack([Images()[i]['inputs'] for i in range(24)])
    inputs = nn.functional.interpolate(
        inputs, size=(size, size), mode='bilinear', antialias=True,
        align_corners=False)
    model.eval()
    with use_scale(model, scale), torch.no_grad():
        found = (model(inputs) * 20).softmax(1)
    model.train()
    return found


def test_the_metrics_are_those_of_the_answers():
    model, images = classifier(), held_out()
    cases = [Case(8, 16), Case(8, 8), Case(16, 16)]
    found = images.measure(model, cases, 'title')
    reference = answers(model, 16, 16)
    for case in cases:
        want = compare_scores(reference, answers(model, *case))
        assert found[case]['agreement/all'] == want['agreement']
        assert found[case]['agreement/sure'] == want['sure_agreement']
        assert found[case]['kl'] == pytest.approx(want['kl'], abs=1e-5)
        right = (answers(model, *case).argmax(1) == reference.argmax(1))
        weight = 1. + (reference.amax(1) > 0.5)  # the sure ones count twice
        assert weight.sum() > 24
        assert found[case]['agreement/weighed'] == pytest.approx(
            100 * (right * weight).sum().item() / weight.sum().item())
    assert found[Case(16, 16)]['agreement/all'] == 100
    assert images.sure == want['sure_images'] / 24
    # The reference is that of the first time.
    with torch.no_grad():
        model.net[5].bias.add_(torch.tensor([9., 0, 0, 0]))
    again = images.measure(model, cases[:1], 'title')[cases[0]]
    want = compare_scores(reference, answers(model, 8, 16))
    assert again['agreement/all'] == want['agreement']
    few = images.measure(model, cases[:1], 'title', images=7)[cases[0]]
    want = compare_scores(reference[:10], answers(model, 8, 16)[:10])
    assert few['agreement/all'] == want['agreement']
    assert model.training and model.net[1].training


def test_answers_that_cannot_be_compared_are_measured_by_the_loss():
    model, images = classifier(scores=False), held_out()
    found = images.measure(model, [Case(8, 8)], 'title')
    assert images.by_loss and images.doubt() is None
    model.eval()
    inputs = torch.stack([Images()[i]['inputs'] for i in range(24)])
    inputs = nn.functional.interpolate(
        inputs, size=(8, 8), mode='bilinear', antialias=True,
        align_corners=False)
    with use_scale(model, 8), torch.no_grad():
        losses = [model(part, mode='loss')['loss']
                  for part in inputs.split(5)]
    assert found[Case(8, 8)]['loss'] == pytest.approx(
        float(torch.stack(losses).mean()), rel=1e-5)


def test_images_that_all_get_one_class():
    model, images = classifier(), held_out()
    images.check_answers()  # of none that was measured
    few = HeldOutImages(DataLoader(Subset(Images(), range(8)), batch_size=5,
                                   collate_fn=pseudo_collate), 16)
    few.measure(model, [Case(8, 8)], 'title')
    few.check_answers()
    images.measure(model, [Case(8, 8)], 'title')
    found = answers(model, 16, 16)
    assert found.argmax(1).unique().tolist() == [0]
    with pytest.raises(UserError, match='gives class 0 to each of those'):
        images.check_answers()
    margin = (found[:, 0] / found[:, 1]).log() / 20  # of the logits
    with torch.no_grad():
        model.net[5].bias[1] += margin.median()
    images = held_out()
    images.measure(model, [Case(8, 8)], 'title')
    images.check_answers()


def test_images_that_the_network_is_unsure_of():
    images = held_out()
    images.sure = 0.31
    assert 'only 31 % of the images' in images.doubt()
    images.sure = 0.7
    assert images.doubt() is None


def test_how_many_are_held_out():
    assert [number_held_out(n) for n in (64, 320, 2000, 10**6)] == [
        32, 32, 200, 1000]
    with pytest.raises(UserError, match='at least 64 images.*but got 10'):
        number_held_out(10)
    # No process gets a last batch of one image.
    assert [number_held_out(64 + n, 16) for n in (0, 1, 2)] == [32, 33, 32]
    assert [number_held_out(64 + n, 32, 2) for n in (0, 1, 2, 3)] == [
        32, 33, 34, 32]
    assert number_held_out(65, 2, 2) == 32  # each batch has one


@pytest.mark.parametrize('shuffle', [True, False])
def test_what_is_held_out_is_never_drawn(shuffle):
    sampler = WithoutHeldOut(Images(), 5, shuffle, seed=3)
    held = set(drawn(Images())[:5].tolist())
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert len(sampler) == len(epochs[-1]) == 19
        assert set(epochs[-1]) == set(range(24)) - held
    assert (epochs[0] != epochs[1]) == shuffle
    assert sampler.dataset[3]['inputs'].shape == (3, 16, 16)


def test_a_size_gets_what_it_had():
    model = classifier()
    source = classifier()
    want = answers(source, 8, 16)
    before = answers(model, 16, 16)
    copy_row(model, source, 8, of=16)
    drop_change(model, 8)
    assert torch.equal(answers(model, 8, 8), want)
    assert torch.equal(answers(model, 16, 16), before)


def test_a_crop_alone_takes_images_of_its_size_alone(tmp_path):
    Image.new('RGB', (40, 50)).save(tmp_path / 'a.png')
    cfg = Config(dict(train_dataloader=dict(dataset=dict(
        folder=str(tmp_path), pipeline=[
            dict(type='RandomCrop', crop_size=32, padding=4)]))))
    with pytest.raises(UserError, match=r"of 32 pixels, .*a.png' has 40"):
        check_folder(cfg, 32)
    check_folder(cfg, 40)
