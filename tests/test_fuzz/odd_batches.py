"""Batches of odd forms, with samples of odd fields."""
import numpy as np
import torch
from hypothesis import strategies as st
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from odd import LAYOUTS, ODD, tensor


def sample(kind, value, size):
    one = BaseDataElement(gt_label=torch.tensor([1]))
    if kind == 'plain':
        return one
    if kind == 'other':
        return value
    if kind == 'field':
        one.set_field(value, 'odd')
        return one
    one.set_metainfo(dict(batch_input_shape=size, img_shape=size))
    if kind.startswith('meta'):
        one.set_field(value, kind[5:], field_type='metainfo')
    elif kind == 'boxes':
        one.gt_instances = InstanceData()
        BaseDataElement.set_field(one.gt_instances, value, 'bboxes')
    elif kind == 'map':
        packed = getattr(value, 'ndim', 0) == 3  # PixelData takes no other
        one.gt_sem_seg = (PixelData if packed else BaseDataElement)(data=value)
    return one


BOXES = torch.tensor([[1., 2, 7, 9], [0, 0, 16, 16]])
FIELDS = st.one_of(
    ODD, st.sampled_from([
        (16, 16), (0, 0), (-3, 4), (7, 5), (16, 16, 3), 'ab', (1.0, 2.0),
        np.ones(4), np.eye(3), (1, 2, 3, 4), BOXES, BOXES.long(),
        BOXES.half(), BOXES[:0], BOXES[0, 0], BOXES[0], BOXES.numpy(),
        BOXES[:, :3], BOXES.tolist(), torch.randn(3), torch.zeros(2, 2),
        torch.zeros(16, 16), torch.zeros(1, 16, 16),
        torch.ones(1, 16, 16, dtype=torch.uint8), torch.zeros(1, 1, 16, 16),
        torch.zeros(1, 7, 5), InstanceData(bboxes=BOXES)]))
SAMPLES = st.one_of(
    st.just(('plain', None)),
    st.tuples(st.just('boxes'), st.sampled_from([
        BOXES, BOXES.long(), BOXES.half()])),
    st.tuples(st.sampled_from([
        'boxes', 'map', 'field', 'other', 'meta img_shape', 'meta odd',
        'meta scale_factor', 'meta pad_shape', 'meta padding_size',
        'meta homography_matrix']), FIELDS))
BATCHES = st.fixed_dictionaries(dict(
    n=st.sampled_from([8, 8, 8, 6, 3, 2, 1, 0]),
    channels=st.sampled_from([3] * 9 + [1, 0]),
    size=st.sampled_from([(16, 16)] * 4 + [(16, 20), (16, 21), (7, 5),
                                           (1, 1), (0, 16)]),
    dtype=st.sampled_from([torch.float32] * 9 + [
        torch.float64, torch.float16, torch.uint8, torch.int64,
        torch.complex64, torch.bool]),
    layout=LAYOUTS, odd=SAMPLES,
    form=st.sampled_from(['good'] * 9 + [
        'none', 'empty', 'short', 'tuple', 'dict', 'missing', 'views', 'sizes',
        'imgs', '5-D', '3-D', 'key', 'odd key', 'grad', 'leaf',
        'odd inputs', 'odd'])))


def batch_of(n, channels, size, dtype, layout, odd, form):
    """A batch; ``form`` and ``odd`` say what is odd about it."""
    kind, value = odd
    inputs = tensor((n, channels, *size), dtype, layout)
    labels = [sample('plain', None, size) for _ in range(max(n - 1, 0))]
    labels += [sample(kind, value, size)] * min(n, 1)
    made = dict(inputs=inputs, data_samples=labels)
    if form in ('grad', 'leaf') and inputs.is_floating_point():
        inputs.requires_grad_()
        made['inputs'] = inputs * 1 if form == 'grad' else inputs
    made.update({
        'none': dict(data_samples=None), 'empty': dict(data_samples=[]),
        'short': dict(data_samples=labels[1:]),
        'tuple': dict(data_samples=tuple(labels)),
        'dict': dict(data_samples=dict(enumerate(labels))),
        'views': dict(inputs=[inputs, inputs]),
        'sizes': dict(inputs=(inputs, inputs[..., :5])),
        'imgs': dict(inputs=dict(imgs=inputs, points=labels)),
        '5-D': dict(inputs=inputs[None]), '3-D': dict(inputs=inputs[0:1][0]
                                                      if n else inputs),
        'key': dict(other=1), 'odd key': {2: 3},
        'odd inputs': dict(inputs=value), 'odd': dict(data_samples=value),
    }.get(form, {}))
    if form == 'missing':
        made.pop('data_samples')
    return made
