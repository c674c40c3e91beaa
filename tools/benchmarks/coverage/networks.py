"""The families of networks of each host, and the builder of one network, with
the host's norms or with SSBN, and of a batch of images for it."""
import copy
import inspect
import os.path as osp
import re
from collections.abc import Callable, Sequence
from glob import glob
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sct_mm.models.convert import convert_to_ssbn
from sct_mm.utils.errors import UserError

HOSTS = ('mmpretrain', 'mmdet', 'timm', 'torchvision')
# {norm_cfg's type of batch normalization: that of SSBN}
_FORMS = dict(BN='SSBN', BN2d='SSBN', BN1d='SSBN1d', SyncBN='SyncSSBN')
# Arguments of mmpretrain's backbones whose smallest form is not the first of
# their table, or has no batch normalization by default.
_ARGUMENTS: dict[str, dict] = {
    'HRNet': dict(arch='w18'), 'MobileViT': dict(arch='xx_small'),
    'TIMMBackbone': dict(model_name='resnet18'),
    'VGG': dict(depth=11, norm_cfg=dict(type='BN'))}

# Parts of the names of small networks, the smallest first. A name with none of
# these, or with a part of _WITHOUT, whose backbones have no batch
# normalization, comes last.
_SMALL = ('atto', 'femto', 'pico', 'nano', 'xxs', 'xx_small', 'tiny', 'mini',
          'xs', '[_-]r18', 's0', 'a0', 'b0', 't0', '_0?50', '18', 'n0',
          '_s(mall)?(?![a-z0-9])', '_m0', '26', '[_-]r50', '50')
_WITHOUT = 'swin|caffe|gn-|gn_|_gn'

# Families for which these rules choose a large network, or one that fails.
_PREFERRED = {
    'timm/byobnet': 'resnext26ts', 'timm/densenet': 'densenet121',
    'timm/dla': 'dla34', 'timm/levit': 'levit_128s',
    'timm/mobilenetv3': 'mobilenetv3_small_050',
    'timm/regnet': 'regnetx_002', 'timm/tresnet': 'tresnet_m',
    'torchvision/regnet': 'regnet_y_400mf',
    # The others need proposals, or operators that run on a GPU only.
    'mmdet/cascade_rpn':
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'mmdet/dcn': 'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'mmdet/libra_rcnn': 'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',
    # With random weights, a network of two stages has no proposals.
    'mmdet/hrnet': 'hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py',
    'mmdet/dcnv2': 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py'}

# Why a host's network does not run here, if its own error does not say why.
KNOWN = {
    'mmpretrain/SparseResNet': 'it runs within SparK only, which gives it '
    'the mask of its images',
    'mmdet/ddq': "at its first pass its decoder gets the head's branches, for "
    'which a network that has not run has no place',
    'mmdet/guided_anchoring': "mmcv's masked_conv2d takes one image in a "
    'test, and got two',
    'mmdet/lad': 'its teacher comes from a checkpoint, of which there is none',
    'mmdet/ld': 'its teacher comes from a checkpoint, of which there is none',
    'mmdet/mask2former_vis': 'it takes videos',
    'mmdet/reid': 'it takes images of 256 x 128 pixels, pooled by a fixed '
    'kernel',
    'mmdet/fast_rcnn': 'its images come with proposals, which SCT refuses',
    'mmdet/simple_copy_paste': 'its SyncBN wants several processes',
    'mmdet/strong_baselines': 'its SyncBN wants several processes',
    'mmdet/tridentnet': 'without a checkpoint, the host leaves its weights as '
    'the memory was',
    'torchvision/optical_flow.raft': 'it takes pairs of images',
    'torchvision/video.resnet': 'it takes videos',
    'torchvision/video.s3d': 'it takes videos',
    'torchvision/video.mvit': 'it takes videos'}


class Subject(NamedTuple):
    """A family of a host, and its networks from the smallest up. The first
    that has batch normalization is checked."""
    host: str
    family: str
    candidates: tuple[str, ...]

    @property
    def key(self) -> str:
        return f'{self.host}/{self.family}'


def small_first(names, key: str = '') -> tuple[str, ...]:
    """``names`` from the smallest network up, as far as names say it."""
    def rank(name: str) -> tuple:
        words = [i for i, word in enumerate(_SMALL) if re.search(word, name)]
        numbers = [int(n) for n in re.findall(r'\d+', name)]
        return (name != _PREFERRED.get(key),
                bool(re.search(_WITHOUT, name)),
                min(words, default=len(_SMALL)),
                min(numbers, default=0), len(name), name)
    return tuple(sorted(names, key=rank))


def _mmpretrain() -> list[Subject]:
    from mmpretrain.registry import MODELS
    import_module('mmpretrain.models')
    return [Subject('mmpretrain', name, (name, ))
            for name, cls in sorted(MODELS.module_dict.items())
            if cls.__module__.startswith('mmpretrain.models.backbones.')]


def configs_of_mmdet() -> str:
    package = osp.dirname(find_spec('mmdet').origin)
    return osp.join(package, '.mim', 'configs')


def _mmdet() -> list[Subject]:
    root = configs_of_mmdet()
    families: dict[str, list[str]] = {}
    for path in sorted(glob(osp.join(root, '[!_]*', '*.py'))):
        name = osp.relpath(path, root)
        if name.startswith('common'):  # data sets and schedules
            continue
        families.setdefault(osp.dirname(name), []).append(name)
    return [Subject('mmdet', family, small_first(names, f'mmdet/{family}'))
            for family, names in families.items()]


def _timm() -> list[Subject]:
    import timm
    modules: dict[str, list[str]] = {}
    for name in timm.list_models():
        module = timm.model_entrypoint(name).__module__
        modules.setdefault(module.rsplit('.', 1)[-1], []).append(name)
    return [Subject('timm', module, small_first(names, f'timm/{module}'))
            for module, names in sorted(modules.items())]


def _torchvision() -> list[Subject]:
    from torchvision import models
    modules: dict[str, list[str]] = {}
    for kind in (models, models.segmentation, models.detection,
                 models.video, models.optical_flow):
        for name in models.list_models(module=kind):
            module = models.get_model_builder(name).__module__
            modules.setdefault(module.removeprefix('torchvision.models.'),
                               []).append(name)
    return [Subject('torchvision', module, small_first(
                names, f'torchvision/{module}'))
            for module, names in sorted(modules.items())]


def subjects(hosts=HOSTS) -> list[Subject]:
    """All families of those ``hosts`` that are installed.

    Raises:
        UserError: for another host.
    """
    found = dict(mmpretrain=_mmpretrain, mmdet=_mmdet, timm=_timm,
                 torchvision=_torchvision)
    for host in hosts:
        if host not in found:
            raise UserError(f'`hosts` must be of {HOSTS}, but got {host!r}. '
                            'Leave it out for all.')
    return [subject for host in hosts if find_spec(host)
            for subject in found[host]()]


def host_versions() -> dict[str, str]:
    """{package: version} of the packages on which a check depends."""
    versions = {}
    for name in ('torch', 'mmengine', 'mmcv', *HOSTS):
        for distribution in (name, f'onedl-{name}', f'{name}-lite'):
            try:
                versions[name] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return versions


def may_have_batch_norm(subject: Subject) -> bool:
    """Whether the code of a family of timm or torchvision mentions batch
    normalization; the others need not be built. True of other hosts."""
    if subject.host not in ('timm', 'torchvision'):
        return True
    package = dict(timm='timm.models.',
                   torchvision='torchvision.models.')[subject.host]
    module = import_module(package + subject.family)
    with open(module.__file__, encoding='utf-8') as file:
        text = file.read().lower()
    return any(word in text for word in ('batchnorm', 'norm_act', 'conv_bn',
                                         'resnet', 'efficientnet'))


class Network(BaseModel):
    """A network that maps images to tensors, with a loss of all of them: the
    squared distance from fixed noise."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs, data_samples=None, mode='tensor'):
        outputs = tensors_of(self.net(inputs))
        if mode == 'tensor':
            return outputs
        generator = torch.Generator().manual_seed(0)
        return dict(loss=sum(
            (out - torch.randn(out.shape, generator=generator)).pow(2).mean()
            for out in outputs))


def tensors_of(value: Any) -> list[Tensor]:
    """All floating-point tensors in the outputs of a network."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if hasattr(value, 'all_items'):  # mmengine's data elements
        value = dict(value.all_items())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_of(v)]
    return []


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: m for name, m in model.named_modules()
            if isinstance(m, _BatchNorm)}


def with_ssbn(config: Any, scales: Sequence[int]) -> Any:
    """A copy of ``config`` with SSBN in place of each BN and SyncBN."""
    if isinstance(config, (list, tuple)):
        return type(config)(with_ssbn(v, scales) for v in config)
    if not isinstance(config, dict):
        return config
    new = {name: with_ssbn(v, scales) for name, v in config.items()}
    if new.get('type') in _FORMS:
        new.update(type=_FORMS[new['type']], scales=scales)
    return new


def without_weights(config: Any) -> Any:
    """A copy of ``config`` that loads no checkpoint."""
    if isinstance(config, (list, tuple)):
        return type(config)(without_weights(v) for v in config)
    if not isinstance(config, dict):
        return config
    return {name: None if name in ('pretrained', 'teacher_ckpt') or (
        name == 'init_cfg' and isinstance(v, dict)
        and 'checkpoint' in v) else without_weights(v)
        for name, v in config.items()}


def config_of_backbone(name: str) -> dict:
    """The config of the smallest form of a backbone of mmpretrain, with its
    default ``norm_cfg`` written out."""
    from mmpretrain.registry import MODELS as BACKBONES
    import_module('mmpretrain.models')
    cls = BACKBONES.module_dict[name]
    config: dict[str, Any] = dict(type=f'mmpretrain.{name}')
    parameters: dict[str, inspect.Parameter] = {}
    tables = [t for t in ('arch_settings', 'arch_zoo')
              if isinstance(getattr(cls, t, None), dict)]
    for base in cls.__mro__:
        if '__init__' in vars(base):
            own = inspect.signature(base.__init__).parameters
            argument = next((a for a in ('arch', 'depth') if a in own), None)
            if argument and tables and len(config) == 1:
                config[argument] = next(iter(getattr(cls, tables[0])))
            parameters = {**own, **parameters}
    norm = parameters.get('norm_cfg')
    if norm is not None and isinstance(norm.default, dict):
        config['norm_cfg'] = dict(norm.default)
    return {**config, **_ARGUMENTS.get(name, {})}


def config_of_detector(path: str) -> dict:
    """The model of one of mmdet's configs, with all norms in training mode."""
    root = configs_of_mmdet()
    cfg = Config.fromfile(osp.join(root, path))
    import_module('mmdet.models')
    model = without_weights(cfg.model.to_dict())
    # The detector of a tracker or of semi-supervised training.
    model = model.get('detector') or model
    if not model.get('data_preprocessor'):
        model['data_preprocessor'] = dict(type='DetDataPreprocessor')
    if isinstance(model.get('data_preprocessor'), dict):
        # Those of YOLOX change the size of the images after the pipeline.
        model['data_preprocessor'].pop('batch_augments', None)
    if isinstance(model.get('teacher_config'), str):
        model['teacher_config'] = osp.join(
            root, model['teacher_config'].removeprefix('configs/'))
    for part in (model, model.get('backbone') or {}):
        if part.get('norm_eval'):
            part['norm_eval'] = False
        if part.get('frozen_stages', 0) > 0:
            part['frozen_stages'] = -1
    return model


class Builder:
    """Builds one network of a family.

    Args:
        name: of a backbone, a config or a model of ``subject.host``.
        options: further arguments of the network, e.g. ``img_size``.
    """

    def __init__(self, subject: Subject, name: str, **options) -> None:
        self.host, self.name, self.options = subject.host, name, options
        self.config: dict | None = None
        if self.host == 'mmpretrain':
            self.config = {**config_of_backbone(name), **options}
        elif self.host == 'mmdet':
            self.config = config_of_detector(name)

    def __call__(self, scales: Sequence[int] | None = None,
                 by: str = 'norm_cfg', initialised: bool = True) -> nn.Module:
        """The network, from the same random numbers each time. If ``scales``
        is given, it has SSBN ``by`` 'norm_cfg' or 'WithSSBN'."""
        torch.manual_seed(0)
        if self.config is None:
            model = Network(self._function()(self.name, **self.options))
            return convert_to_ssbn(model, scales) if scales else model
        config = self.config
        if scales and by == 'norm_cfg':
            config = with_ssbn(config, scales)
        elif scales:
            config = dict(type='WithSSBN', model=config, scales=scales)
        with DefaultScope.overwrite_default_scope(self.host):
            model = MODELS.build(ConfigDict(copy.deepcopy(config)))
        torch.manual_seed(1)
        if initialised:
            model.init_weights()
        return Network(model) if self.host == 'mmpretrain' else model

    def _function(self) -> Callable:
        if self.host == 'timm':
            import timm
            return timm.create_model
        from torchvision import models

        def build(name: str, **options) -> nn.Module:
            kind = models.get_model_builder(name).__module__.split('.')[2]
            if kind not in ('detection', 'segmentation'):
                return models.get_model(name, weights=None, **options)
            net = models.get_model(name, weights=None, weights_backbone=None,
                                   **options)
            # A detector of torchvision resizes its images to one size.
            return net.backbone if kind == 'detection' else net
        return build

    def images(self, base: int) -> dict:
        """A batch of ``base`` pixels, as the data preprocessor makes it."""
        if self.host == 'mmdet':
            return self._detection(base)
        generator = torch.Generator().manual_seed(0)
        return dict(inputs=torch.randn(2, 3, base, base,
                                       generator=generator),
                    data_samples=None)

    def _detection(self, base: int) -> dict:
        from mmdet.testing import demo_mm_inputs
        text, classes = str(self.config), least_classes(self.config)
        np.random.seed(0)
        data = demo_mm_inputs(
            2, (3, base, base), num_items=[3, 2],
            with_mask='mask' in text.lower(),
            num_classes=max(classes, 2), with_semantic=any(
                word in text for word in ('semantic', 'panoptic', 'Panoptic')))
        for sample in data['data_samples']:
            sample.gt_instances.labels %= classes
            sample.set_metainfo(dict(batch_input_shape=(base, base),
                                     pad_shape=(base, base)))
        with DefaultScope.overwrite_default_scope('mmdet'):
            preprocessor = MODELS.build(self.config['data_preprocessor'])
        batch = preprocessor(data, True)
        return {name: batch[name] for name in ('inputs', 'data_samples')}


def least_classes(config: Any) -> int:
    """The smallest number of classes of a part of a detector."""
    if isinstance(config, (list, tuple)):
        return min(map(least_classes, config), default=80)
    if not isinstance(config, dict):
        return 80
    return min([value if name in ('num_classes', 'num_things_classes')
                and isinstance(value, int) else least_classes(value)
                for name, value in config.items()], default=80)
