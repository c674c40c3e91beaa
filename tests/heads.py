"""What heads of several kinds are taught by, written out."""
import torch
from helpers import batch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torchvision.transforms.v2 import functional as tv

from sct_mm import set_scale


def softmax_kl(p, q):
    return kl_divergence(*(Categorical(logits=z) for z in (p, q))).mean()


def sigmoid_kl(p, q):
    return kl_divergence(*(Bernoulli(logits=z) for z in (p, q))).sum(1).mean()


def several_labels(n=8):
    from mmpretrain.structures import DataSample
    return dict(batch(n=n), data_samples=[
        DataSample().set_gt_label([i % 5, (i + 2) % 5][:i % 3])
        for i in range(n)])


def scores(n=8):
    from mmpretrain.structures import DataSample
    return dict(batch(n=n), data_samples=[
        DataSample().set_gt_score(torch.tensor([i % 2, 1, 0, i % 3 == 0, 0]))
        for i in range(n)])


def soft_labels(n=8):
    from mmpretrain.structures import DataSample
    return dict(batch(n=n), data_samples=[
        DataSample().set_gt_score(torch.rand(5).softmax(0))
        for _ in range(n)])


def logits_by_hand(model, data, scale):
    set_scale(model, scale)
    output = model(tv.resize(data['inputs'], [scale, scale], antialias=True))
    set_scale(model, None)
    return output if isinstance(output, tuple) else (output, )
