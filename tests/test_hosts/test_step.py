"""One SCT step of a sibling's network is as many steps of plain networks, on
batches of its own pipeline that are resized by hand."""
import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, HOSTS_OWN, folder_of, plain_and_sct, small
from mmengine.logging import MessageHub
from mmengine.model import BaseAveragedModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sct_mm import SCTLossHook

pytestmark = HOSTS_OWN
CLOSE = 1e-4  # of the largest gradient of a tensor, in single precision


def resized(image, factor):
    """(..., C, H, W) at ``factor`` times its edges."""
    shape = [round(edge * factor) for edge in image.shape[-2:]]
    flat = image.reshape(-1, *image.shape[-3:])
    return F.interpolate(flat, shape, mode='bilinear', antialias=True,
                         align_corners=False).reshape(
                             *image.shape[:-2], *shape)


# {host: what follows the images of a batch, changed in place}
def resize_maps(samples, factor):
    for sample in samples:
        labels = sample.gt_sem_seg.data
        shape = [round(edge * factor) for edge in labels.shape[-2:]]
        sample.gt_sem_seg = PixelData(data=F.interpolate(
            labels[None].float(), shape, mode='nearest')[0].to(labels.dtype))
        sample.set_metainfo(dict(img_shape=tuple(shape)))


def resize_heatmaps(samples, factor):
    """By half: element j of a heatmap lies at pixel 4 j."""
    assert factor == 0.5
    for sample in samples:
        if 'gt_fields' in sample:
            maps = sample.gt_fields.heatmaps[:, ::2, ::2].contiguous()
            sample.gt_fields = PixelData(heatmaps=maps)


def resize_collated(samples, factor):
    samples['bboxes_labels'][:, 2:] *= factor
    samples['img_metas'] = [{**meta, 'batch_input_shape': tuple(
        round(edge * factor) for edge in meta['batch_input_shape'])}
        for meta in samples['img_metas']]


def resize_rotated(samples, factor):
    for sample in samples:
        sample.gt_instances.bboxes.tensor[:, :4] *= factor
        sample.set_metainfo({name: tuple(
            round(edge * factor) for edge in sample.metainfo[name][:2])
            for name in ('img_shape', 'batch_input_shape', 'pad_shape')})


def leave(samples, factor):
    """Labels only, or none."""


RESIZE = dict(mmseg=resize_maps, mmpose=resize_heatmaps,
              mmaction=leave, mmyolo=resize_collated,
              mmrotate=resize_rotated, mmpretrain=leave)


def by_hand(host, batch, factor):
    batch = copy.deepcopy(batch)
    inputs = batch['inputs']
    batch['inputs'] = (resized(inputs, factor) if isinstance(inputs, Tensor)
                       else [resized(view, factor) for view in inputs])
    if factor != 1:
        RESIZE[host](batch['data_samples'], factor)
    return batch


def total(losses):
    """The loss that mmengine minimises."""
    return sum(part.mean() if isinstance(part, Tensor)
               else sum(p.mean() for p in part)
               for name, part in losses.items() if 'loss' in name)


def difference(got, want):
    """The largest one, relative to the largest entry."""
    if got is None or want is None:
        assert got is want is None or not (want if got is None else got).any()
        return 0.0
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-8)).item()


def with_own_norms(net):
    """A copy of ``net`` that shares all tensors but those of its norms."""
    own = {id(t) for m in net.modules() if isinstance(m, _BatchNorm)
           for t in (*m.parameters(), *m.buffers())}
    return copy.deepcopy(net, {
        id(t): t for t in (*net.parameters(), *net.buffers())
        if id(t) not in own})


def norms_of(net):
    """Its batch norms, or what has replaced them, but for those of a momentum
    encoder, whose statistics mmengine overwrites before each pass."""
    averaged = [name for name, m in net.named_modules()
                if isinstance(m, BaseAveragedModel)]
    return {name: m for name, m in net.named_modules()
            if isinstance(m, _BatchNorm)
            and not name.startswith(tuple(averaged))}


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_a_step_is_one_of_plain_networks(case, tmp_path_factory, tmp_path,
                                         record_property):
    record_property('host', case.host)
    cfg = small(case, folder_of(case.host, tmp_path_factory), tmp_path)
    init_default_scope(case.host)
    torch.manual_seed(0)
    plain, sct = plain_and_sct(case, cfg)
    # As a Runner sets them, for the momentum of BYOL.
    MessageHub.get_current_instance().update_info_dict(
        dict(iter=0, max_iters=100))
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    torch.manual_seed(0)
    batch = plain.data_preprocessor(next(iter(loader)), True)

    hook = SCTLossHook(backward='joint')
    hook.attach(sct.train())
    torch.manual_seed(0)
    losses = sct(**copy.deepcopy(batch), mode='loss')
    losses['loss'].backward()
    hook.detach()

    torch.manual_seed(0)
    plains = {scale: with_own_norms(plain).train() for scale in case.scales}
    loss = sum(total(net(**by_hand(case.host, batch, scale / case.scales[0]),
                         mode='loss')) for scale, net in plains.items())
    (loss / len(plains)).backward()
    worst = {'loss': difference(losses['loss'], loss / len(plains))}

    norms = norms_of(sct)
    private = {f'{name}.{key}' for name in norms for key in
               ('weight', 'bias')}
    shared = dict(plains[case.scales[0]].named_parameters())
    for name, parameter in sct.named_parameters():
        if name not in private:
            worst[name] = difference(parameter.grad, shared[name].grad)
    for row, (scale, net) in enumerate(plains.items()):
        for name, norm in norms_of(net).items():
            layer = norms[name]
            for key in ('weight', 'bias'):
                if not norm.affine:
                    continue
                grad = getattr(layer, key).grad
                worst[f'{name}.{key} at {scale}'] = difference(
                    None if grad is None
                    else grad.view(len(plains), -1)[row],
                    getattr(norm, key).grad)
            for key in ('running_mean', 'running_var'):
                worst[f'{name}.{key} at {scale}'] = difference(
                    layer.row(scale)[key], getattr(norm, key))
    where = max(worst, key=worst.get)
    record_property('worst', f'{worst[where]:.1e}')
    assert worst[where] < CLOSE, f'{where} differs by {worst[where]:.1e}'
