"""How each field of a data sample follows its image to another size: one
function a kind of field, and a table for each host.

Fields without a function are refused if they may carry pixels, which
``pixel_fields.py`` decides. :func:`register_resizer` adds a function.
"""
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .pixel_fields import check_plain, is_area, numbers, refuse

Shape = tuple[int, int]
INSTANCES = ('gt_instances', 'ignored_instances')


def padded_shape(shape: Sequence[int], divisor: int) -> Shape:
    """``shape`` with each edge padded to a multiple of ``divisor``."""
    height, width = (-(-edge // divisor) * divisor for edge in shape)
    return height, width


class Geometry(NamedTuple):
    """How one image was resized; shapes are (H, W) in pixels. The *content*
    is the image without its padding."""
    old: Shape  # of the content before
    new: Shape  # of the content after
    batch: Shape  # of the batch before, with padding
    padded: Shape  # of the batch after, with padding
    divisor: int = 1  # padded edges are multiples of it
    ignore: int = 255  # the label of padding in a semantic map
    corner: Shape = (0, 0)  # top and left edge of the content before
    new_corner: Shape = (0, 0)  # and after
    aligned: bool = False  # heatmaps whose corners are those of the image
    field: str = ''  # that is resized, for error messages

    @property
    def factor(self) -> tuple[float, float]:
        """The width and the height after, divided by those before."""
        return self.new[1] / self.old[1], self.new[0] / self.old[0]

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Padding after, in pixels: left, right, top, bottom."""
        top, left = self.new_corner
        return (left, self.padded[1] - self.new[1] - left,
                top, self.padded[0] - self.new[0] - top)

    def moved(self, points: Tensor) -> Tensor:
        """Points (..., 2 k) of x, y, x, y, ... in the image after."""
        shift = [after - before * factor for before, after, factor in zip(
            self.corner[::-1], self.new_corner[::-1], self.factor,
            strict=True)]
        # Python's numbers, because a tensor of factors would make a GPU wait.
        return torch.stack([
            x * factor + move for x, (factor, move) in zip(
                points.unbind(-1), cycle(zip(self.factor, shift,
                                             strict=True)), strict=False)],
            -1)


Resizer = Callable[[Any, Geometry], Any]


def unchanged(value: Any, geometry: Geometry) -> Any:
    """A field that stays as it is at every size."""
    return value


def _check_none(beyond: Any, geometry: Geometry) -> None:
    """Refuse what lies beyond a padded image: at a wrong ``img_shape`` the
    image would be cut off, its boxes would not.

    Args:
        beyond: a tensor or an array, of which all must be 0.
    """
    if beyond.any():
        raise ValueError(f'`{geometry.field}` must lie within their image, '
                         f'{geometry.old}, but got some beyond it. Let each '
                         'transform of the pipeline that changes images set '
                         'img_shape, too.')


def _check_within(points: Tensor, geometry: Geometry) -> None:
    """Refuse instances with none of their points (n, P, 2) in the image. Some
    may lie beyond it, where the host does not clip."""
    if geometry.old == geometry.batch or not points.numel():
        return
    (top, left), (h, w) = geometry.corner, geometry.old
    low, high = points.amin(-2), points.amax(-2)
    # Half a pixel, since boxes that are clipped may lie on the edge.
    _check_none((low[..., 0] > left + w + .5) | (low[..., 1] > top + h + .5)
                | (high[..., 0] < left - .5) | (high[..., 1] < top - .5),
                geometry)


def boxes_at(boxes: Any, geometry: Geometry) -> Any:
    """Boxes (n, 4) of corners, (n, 8) of four corners, (n, 5) of centre, edges
    and angle, or mmdet's ``BaseBoxes``. As in mmdet's ``Resize``, none is
    dropped, however small it becomes."""
    rows = getattr(boxes, 'tensor', boxes)
    if not isinstance(rows, Tensor) or rows.shape[-1:] not in (
            (4, ), (5, ), (8, )):
        refuse(boxes, geometry.field)
    rotated = rows.shape[-1] == 5
    _check_within(_around(rows) if rotated
                  else rows.unflatten(-1, (-1, 2)), geometry)
    if hasattr(boxes, 'rescale_') and geometry.corner == (0, 0):
        boxes = boxes.clone() if rows.is_floating_point() else boxes.float()
        boxes.rescale_(geometry.factor)
        return boxes
    rows = _rotated(rows, geometry) if rotated else geometry.moved(rows)
    return rows if isinstance(boxes, Tensor) else type(boxes)(rows)


def _around(boxes: Tensor) -> Tensor:
    """Two corners (n, 2, 2) of the upright box around each rotated one."""
    centre, edges, angle = boxes.split([2, 2, 1], -1)
    half = (edges * angle.cos().abs()
            + edges.flip(-1) * angle.sin().abs()) / 2
    return torch.stack([centre - half, centre + half], -2)


def _rotated(boxes: Tensor, geometry: Geometry) -> Tensor:
    """As mmrotate's ``RotatedBoxes.rescale_``."""
    x, y = geometry.factor
    w, h, angle = boxes[..., 2:].unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([geometry.moved(boxes[..., :2]), torch.stack([
        w * ((x * cos)**2 + (y * sin)**2).sqrt(),
        h * ((x * sin)**2 + (y * cos)**2).sqrt(),
        torch.atan2(x * sin, y * cos)], -1)], -1)


def _points(points: Any, geometry: Geometry) -> Any:
    """Keypoints (n, K, 2) in pixels of the input."""
    if (not isinstance(points, (Tensor, np.ndarray)) or points.ndim != 3
            or points.shape[-1] != 2):
        refuse(points, geometry.field)
    tensor = torch.as_tensor(points)
    _check_within(tensor, geometry)
    moved = geometry.moved(tensor)
    return moved if isinstance(points, Tensor) else moved.numpy()


def _polygons(polygons: Any, geometry: Geometry) -> Any:
    """mmocr's list of arrays x, y, x, y, ..., one for each instance."""
    if not isinstance(polygons, (list, tuple)):
        refuse(polygons, geometry.field)
    moved = []
    for polygon in map(np.asarray, polygons):
        if polygon.ndim != 1 or polygon.size % 2 or polygon.size == 0:
            refuse(polygon, geometry.field)
        points = torch.as_tensor(polygon)
        _check_within(points.view(1, -1, 2), geometry)
        moved.append(geometry.moved(points).numpy())
    return type(polygons)(moved)


def _holds(shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether masks or maps of ``shape`` hold the content and at most the
    batch's padding. Some batch augments pad images only."""
    return all(low <= edge <= high for low, edge, high in zip(
        geometry.old, shape, geometry.batch, strict=True))


def _masks(masks: Any, geometry: Geometry) -> Any:
    """mmdet's bitmap or polygon masks. Masks that had the batch's shape get
    the new batch's shape."""
    if not hasattr(masks, 'rescale') or geometry.corner != (0, 0):
        refuse(masks, geometry.field)
    (h, w), shape = geometry.old, (masks.height, masks.width)
    if not _holds(shape, geometry):
        raise ValueError(f'`{geometry.field}` must be as large as their '
                         f'image, {geometry.old}, but got {shape}. Let each '
                         'transform of the pipeline that changes images '
                         'change masks, too.')
    content = masks.masks
    if isinstance(content, np.ndarray):
        _check_none(content[:, h:], geometry)
        _check_none(content[:, :, w:], geometry)
        content = content[:, :h, :w]
    else:
        for polygons in filter(len, content):
            _check_within(torch.as_tensor(np.concatenate(polygons)).view(
                1, -1, 2), geometry)
    resized = type(masks)(content, h, w).resize(geometry.new)
    return (resized.pad(geometry.padded, pad_val=0)
            if shape == geometry.batch else resized)


def _map(labels: Any, geometry: Geometry) -> Any:
    """A map (C, H, W) of labels or metres, by nearest neighbour; padded as
    masks are."""
    if not isinstance(labels, Tensor):
        check_plain(labels, geometry.field)
        return labels
    shape, (h, w) = tuple(labels.shape[-2:]), geometry.old
    if labels.dim() != 3 or not _holds(shape, geometry):
        raise ValueError(f'`{geometry.field}` must have shape (C, H, W), as '
                         f'large as its image, {geometry.old}, but got shape '
                         f'{tuple(labels.shape)}. Remove SegRescale from the '
                         'pipeline.')
    was_padded = shape == geometry.batch
    top, left = geometry.corner if was_padded else (0, 0)
    content = labels[:, top:top + h, left:left + w]
    if content.shape != labels.shape:  # by one label, which may be any
        outside = torch.ones_like(labels[0], dtype=torch.bool)
        outside[top:top + h, left:left + w] = False
        padding = labels[:, outside]
        _check_none(padding != padding[:, :1], geometry)
    resized = F.interpolate(content[None].double(), geometry.new,
                            mode='nearest')[0].to(labels.dtype)
    return (F.pad(resized, geometry.padding, value=geometry.ignore)
            if was_padded else resized)


def _areas(areas: Any, geometry: Geometry) -> Any:
    """One area in pixels for each instance, in a list, tensor or array."""
    factor = math.prod(geometry.factor)
    if isinstance(areas, (list, tuple)):
        return type(areas)(area * factor for area in areas)
    return areas * factor


def _heatmaps(maps: Any, geometry: Geometry) -> Any:
    """mmpose's maps (K, h, w), or a list of them, on the grid of an output.

    Element j of MSRA's, Megvii's and most grids lies at pixel ``j * stride``
    and goes to ``j * factor``; with ``aligned`` (UDP) the last element lies
    at the last pixel. A sampled Gaussian of sigma pixels is one of ``sigma *
    factor``, which is how mmpose's configs of several sizes set it. The peak
    lies where the codec encodes the keypoint at that size, but for the
    rounding of its centre, up to half an element each. Images are resized
    about the centres of pixels, from which the grid is off by ``(1 - factor)
    / 2`` pixels of the smaller input, an eighth of an element at the most.
    """
    if isinstance(maps, (list, tuple)):
        return [_heatmaps(level, geometry) for level in maps]
    if not isinstance(maps, Tensor) or maps.dim() != 3:
        refuse(maps, geometry.field)
    sizes = [divmod(edge * after, before) for edge, before, after in zip(
        maps.shape[1:], geometry.batch, geometry.padded, strict=True)]
    if any(rest or not edge for edge, rest in sizes):
        raise ValueError(f'`{geometry.field}` must have whole edges at each '
                         f'size, but got {tuple(maps.shape[1:])} for images '
                         f'of {geometry.batch}, and images of '
                         f'{geometry.padded}. Pad to the stride of the '
                         "network: batch_transform=dict(type='MultiScaleBatch'"
                         ', size_divisor=32) in SCTLossHook.')
    dtype = torch.promote_types(maps.dtype, torch.float32)
    resized = maps.to(dtype)
    for axis, (size, _) in enumerate(sizes):
        old, edge = geometry.old[axis], maps.shape[axis + 1]
        new, padded = geometry.new[axis], geometry.padded[axis]
        step = old / new
        if geometry.aligned:
            step = (edge - 1) * (padded - 1) / max((size - 1) * (new - 1), 1)
        before, after = (torch.arange(n, dtype=dtype, device=maps.device)
                         for n in (edge, size))
        hats = (1 - (before - step * after[:, None]).abs()).clamp(min=0)
        with torch.autocast(maps.device.type, enabled=False):
            resized = (resized.movedim(axis + 1, -1) @ hats.T).movedim(
                -1, axis + 1)
    return (resized if maps.is_floating_point()
            else resized.round()).to(maps.dtype).contiguous()


def _normalised(labels: Any, geometry: Geometry) -> Any:
    """Keypoints (n, K, 2), divided by the edges of the input."""
    x, y = (new / padded * batch / old for new, padded, batch, old in zip(
        *(shape[::-1] for shape in (geometry.new, geometry.padded,
                                    geometry.batch, geometry.old)),
        strict=True))
    if x == y == 1:
        return labels
    if not isinstance(labels, Tensor) or labels.shape[-1] != 2:
        refuse(labels, geometry.field)
    return torch.stack([labels[..., 0] * x, labels[..., 1] * y], -1)


def _of_one_size(value: Any, geometry: Geometry) -> Any:
    """Labels of mmpose's SimCC and RTMPose, one for each pixel of the edge."""
    raise ValueError(f'`{geometry.field}` are those of a head that its host '
                     'fixes to one input size, as SimCC and RTMPose, but got '
                     f'images of {geometry.padded}. Use a head of heatmaps or '
                     'regression.')


def _lengths(axes: str, whole: bool = True) -> Resizer:
    """Lengths along the width (w) or the height (h), one for each axis."""
    def resized(value: Any, geometry: Geometry) -> Any:
        if value is None:
            return None
        factors = dict(zip('wh', geometry.factor, strict=True))
        name = geometry.field.rpartition('.')[2]
        values = [v * factors[axis] for v, axis in zip(
            numbers(name, value, (len(axes), ) if whole else (2, len(axes))),
            axes, strict=False)]
        return tuple(map(round, values)) if whole else tuple(values)
    return resized


def _homography(matrix: Any, geometry: Geometry) -> Any:
    if matrix is None:
        return None
    if not isinstance(matrix, np.ndarray) or matrix.shape != (3, 3):
        raise TypeError('`homography_matrix` of a sample must be an array '
                        f'of shape (3, 3), but got {matrix!r}. Pack it '
                        'as the host does.')
    return np.diag([*geometry.factor, 1]).astype(np.float32) @ matrix


def _padding(value: Any, geometry: Geometry) -> Any:
    return None if value is None else geometry.padding


def _shape_of_input(shape: Any, geometry: Geometry) -> Any:
    """mmpose's ``img_shape``, often that of the original image."""
    if shape is None or tuple(shape[:2]) == geometry.old:
        return geometry.new
    return shape


def _pad_shape(shape: Any, geometry: Geometry) -> Shape:
    """That of the batch, as of mmseg and of a fixed padding, or of the image
    alone."""
    if isinstance(shape, (list, tuple)) and tuple(shape[:2]) == (
            geometry.batch):
        return geometry.padded
    return padded_shape(geometry.new, geometry.divisor)


def _in(elements: Sequence[str], **fields: Resizer) -> dict[str, Resizer]:
    return {f'{element}.{name}': resizer for element in elements
            for name, resizer in fields.items()}


# By sample class and field. `a.*` stands for what else is in `a`. A class has
# the fields of its base classes, too.
_FIELDS: dict[str, dict[str, Resizer]] = {
    'BaseDataElement': {  # what mmcv's transforms, mmdet and mmseg pack
        **_in(INSTANCES, bboxes=boxes_at, masks=_masks),
        # Values of maps are labels or metres.
        **_in(('gt_sem_seg', 'gt_edge_map', 'gt_depth_map'),
              sem_seg=_map, data=_map),
        'img_shape': lambda value, geometry: geometry.new,
        'ori_shape': unchanged,
        'batch_input_shape': lambda value, geometry: geometry.padded,
        'pad_shape': _pad_shape,
        'homography_matrix': _homography,
        'scale_factor': _lengths('whwh', whole=False),
        'scale': _lengths('wh'),
        'pad_fixed_size': _lengths('wh'),
        'border': _lengths('hhww'),  # mmdet's CenterNet: top, bottom, ...
        'padding_size': _padding,  # mmseg: left, right, top, bottom
        'img_padding_size': _padding},
    'DetDataSample': {  # mmdet, mmrotate; mmyolo's keypoints and masks
        **_in(INSTANCES, keypoints=_points, keypoints_visible=unchanged),
        'proposals.bboxes': boxes_at,
        'gt_panoptic_seg.pan_seg': _map},
    'ActionDataSample': {  # mmaction2; AVA has several labels an instance
        'proposals.bboxes': boxes_at,
        'gt_instances.labels': unchanged},
    'PoseDataSample': {  # mmpose: instances in pixels of the original image
        'gt_instances.*': unchanged,
        'gt_instances.transformed_keypoints': _points,
        'img_shape': _shape_of_input,
        'input_size': _lengths('wh'),
        'input_center': unchanged,
        'input_scale': unchanged,
        **_in(('gt_instance_labels', ), keypoint_labels=_normalised,
              keypoint_weights=unchanged, keypoints_visible=unchanged,
              keypoints_visible_weights=unchanged),
        # YOLOX-Pose and RTMO: in pixels of the input.
        **_in(('gt_instance_labels', ), keypoints=_points, bboxes=boxes_at,
              areas=_areas),
        **_in(('gt_instance_labels', ), keypoint_x_labels=_of_one_size,
              keypoint_y_labels=_of_one_size),
        **_in(('gt_fields', ), heatmaps=_heatmaps, heatmap_mask=_heatmaps,
              instance_heatmaps=_heatmaps)},
    'TextDetDataSample': _in(INSTANCES, polygons=_polygons),  # mmocr
    'KIEDataSample': _in(INSTANCES, polygons=_polygons,
                         edge_labels=unchanged)}


def resizer_of(kind: type, field: str, value: Any = None) -> Resizer | None:
    """The function that resizes ``field``, such as 'gt_instances.bboxes', of
    samples of class ``kind``; None if there is none."""
    found = _listed(kind, field)
    element, _, name = field.rpartition('.')
    if found is None and element in INSTANCES and is_area(name, value):
        return _areas
    return found


@lru_cache(maxsize=4096)  # each sample of each batch asks for the same
def _listed(kind: type, field: str) -> Resizer | None:
    rest = f"{field.rpartition('.')[0]}.*"
    for base in kind.__mro__:
        fields = _FIELDS.get(base.__name__, {})
        if field in fields or rest in fields:
            return fields.get(field, fields.get(rest))
    return None


def register_resizer(sample: str,
                     *fields: str) -> Callable[[Resizer], Resizer]:
    """A decorator: the function resizes ``fields`` of samples of the class
    named ``sample``, and of its subclasses.

    The function takes the value of a field and a :class:`Geometry`, and
    returns the value at the new size, as a new object. ``unchanged`` is the
    function of what stays as it is.

    Args:
        sample: name of the class, as 'PoseDataSample'.
        fields: paths such as 'gt_fields.heatmaps', 'gt_fields' (as a whole),
            'gt_fields.*' (what else is in it), or of metainfo, 'cam2img'.
            Without any, the function resizes whole samples, which may then be
            of any class.

    Raises:
        TypeError: for names that are no str, and for no function.
    """
    for name in (sample, *fields):
        if not isinstance(name, str) or not name:
            raise TypeError('`register_resizer` must be given the name of a '
                            'sample class and names of fields, but got '
                            f"{name!r}. Write e.g. 'PoseDataSample'.")

    def register(function: Resizer) -> Resizer:
        if not callable(function):
            raise TypeError('`register_resizer` must decorate a function '
                            f'(value, geometry), but got {function!r}. See '
                            'docs/batches.md.')
        _FIELDS.setdefault(sample, {}).update(
            dict.fromkeys(fields or ('', ), function))
        _listed.cache_clear()
        return function
    return register
