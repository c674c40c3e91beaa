"""One family's network: with its own norms, with SSBN, and its pictures."""
import copy
import inspect
import os.path as osp
from importlib import import_module
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sct_mm.models.convert import convert_to_ssbn
from sct_mm.evaluation.coverage_hosts import configs_of_mmdet, Subject

# Arguments of mmpretrain's backbones, where the smallest is not the first of
# its table or the default has no batch normalization.
_ARGUMENTS: Dict[str, dict] = {
    'HRNet': dict(arch='w18'), 'MobileViT': dict(arch='xx_small'),
    'TIMMBackbone': dict(model_name='resnet18'),
    'VGG': dict(depth=11, norm_cfg=dict(type='BN'))}

# norm_cfg's types of batch normalization -> those of SSBN.
_FORMS = dict(BN='SSBN', BN2d='SSBN', BN1d='SSBN1d', SyncBN='SyncSSBN')


class Network(BaseModel):
    """A network that maps pictures to tensors, with a loss that reaches all
    of them: the squared distance from fixed noise."""

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


def tensors_of(value: Any) -> List[Tensor]:
    """All tensors of floats in what a network returned."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if hasattr(value, 'all_items'):  # mmengine's data elements
        value = dict(value.all_items())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_of(v)]
    return []


def batch_norms(model: nn.Module) -> Dict[str, _BatchNorm]:
    return {name: m for name, m in model.named_modules()
            if isinstance(m, _BatchNorm)}


def with_ssbn(config: Any, scales: Sequence[int]) -> Any:
    """A copy of ``config`` with SSBN in each ``norm_cfg`` of BN or SyncBN."""
    if isinstance(config, (list, tuple)):
        return type(config)(with_ssbn(v, scales) for v in config)
    if not isinstance(config, dict):
        return config
    new = {name: with_ssbn(v, scales) for name, v in config.items()}
    if new.get('type') in _FORMS:
        new.update(type=_FORMS[new['type']], scales=scales)
    return new


def without_weights(config: Any) -> Any:
    """A copy of ``config`` that starts from nothing that must be fetched."""
    if isinstance(config, (list, tuple)):
        return type(config)(without_weights(v) for v in config)
    if not isinstance(config, dict):
        return config
    return {name: None if name in ('pretrained', 'teacher_ckpt') or (
        name == 'init_cfg' and isinstance(v, dict)
        and 'checkpoint' in v) else without_weights(v)
        for name, v in config.items()}


def config_of_backbone(name: str) -> dict:
    """The smallest form of a backbone of mmpretrain, its norms spelled out
    as it defaults to them."""
    from mmpretrain.registry import MODELS as BACKBONES
    import_module('mmpretrain.models')
    cls = BACKBONES.module_dict[name]
    config: Dict[str, Any] = dict(type=f'mmpretrain.{name}')
    parameters: Dict[str, inspect.Parameter] = {}
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
    """The model of one of mmdet's configs, whose statistics train."""
    root = configs_of_mmdet()
    cfg = Config.fromfile(osp.join(root, path))
    import_module('mmdet.models')
    model = without_weights(cfg.model.to_dict())
    # A tracker's or a semi-supervised detector is trained as any other.
    model = model.get('detector') or model
    if not model.get('data_preprocessor'):
        model['data_preprocessor'] = dict(type='DetDataPreprocessor')
    if isinstance(model.get('data_preprocessor'), dict):
        # YOLOX's changes the size of the pictures behind the pipeline.
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
        options: further arguments of the network, as ``img_size``.
    """

    def __init__(self, subject: Subject, name: str, **options) -> None:
        self.host, self.name, self.options = subject.host, name, options
        self.config: Optional[dict] = None
        if self.host == 'mmpretrain':
            self.config = {**config_of_backbone(name), **options}
        elif self.host == 'mmdet':
            self.config = config_of_detector(name)

    def __call__(self, scales: Optional[Sequence[int]] = None,
                 by: str = 'norm_cfg', initialised: bool = True) -> nn.Module:
        """The network: from the same random numbers each time, and, with
        ``scales``, with SSBN ``by`` 'norm_cfg' or by 'WithSSBN'."""
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
            # A detector resizes its pictures itself, to one size.
            return net.backbone if kind == 'detection' else net
        return build

    def pictures(self, base: int) -> dict:
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
    """The fewest classes that a part of a detector is for."""
    if isinstance(config, (list, tuple)):
        return min(map(least_classes, config), default=80)
    if not isinstance(config, dict):
        return 80
    return min([value if name in ('num_classes', 'num_things_classes')
                and isinstance(value, int) else least_classes(value)
                for name, value in config.items()], default=80)
