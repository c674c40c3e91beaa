"""The families of networks of the hosts, as they list them themselves."""
import os.path as osp
import re
from glob import glob
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Dict, List, NamedTuple, Tuple

HOSTS = ('mmpretrain', 'mmdet', 'timm', 'torchvision')

# How hosts name their small networks, the smallest first; a name with none of
# these, or with a backbone without batch normalization, comes last.
_SMALL = ('atto', 'femto', 'pico', 'nano', 'xxs', 'xx_small', 'tiny', 'mini',
          'xs', '[_-]r18', 's0', 'a0', 'b0', 't0', '_0?50', '18', 'n0',
          '_s(mall)?(?![a-z0-9])', '_m0', '26', '[_-]r50', '50')
_WITHOUT = 'swin|caffe|gn-|gn_|_gn'

# Where these choose a large network.
_PREFERRED = {
    'timm/byobnet': 'resnext26ts', 'timm/densenet': 'densenet121',
    'timm/dla': 'dla34', 'timm/levit': 'levit_128s',
    'timm/mobilenetv3': 'mobilenetv3_small_050',
    'timm/regnet': 'regnetx_002', 'timm/tresnet': 'tresnet_m',
    'torchvision/regnet': 'regnet_y_400mf',
    # The others need proposals, or operators that are written for a GPU only.
    'mmdet/cascade_rpn':
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'mmdet/dcn': 'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'mmdet/libra_rcnn': 'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',
    # Random weights propose nothing to a network of two stages.
    'mmdet/hrnet': 'hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py',
    'mmdet/dcnv2': 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py'}

# Why a host does not run here, or not in all, where its own words do not tell.
KNOWN = {
    'mmpretrain/SparseResNet': 'it runs within SparK only, which gives it '
    'the mask of its pictures',
    'mmdet/ddq': "at its first pass its decoder gets the head's branches, for "
    'which a network that has not run has no place',
    'mmdet/guided_anchoring': "mmcv's masked_conv2d takes one picture in a "
    'test, and got two',
    'mmdet/lad': 'its teacher comes from a checkpoint, of which there is none',
    'mmdet/ld': 'its teacher comes from a checkpoint, of which there is none',
    'mmdet/mask2former_vis': 'it takes videos',
    'mmdet/reid': 'it takes pictures of 256 x 128 pixels, pooled by a fixed '
    'kernel',
    'mmdet/fast_rcnn': 'its pictures come with proposals, which SCT refuses',
    'mmdet/simple_copy_paste': 'its SyncBN wants several processes',
    'mmdet/strong_baselines': 'its SyncBN wants several processes',
    'mmdet/tridentnet': 'without a checkpoint, the host leaves its weights as '
    'the memory was',
    'torchvision/optical_flow.raft': 'it takes pairs of pictures',
    'torchvision/video.resnet': 'it takes videos',
    'torchvision/video.s3d': 'it takes videos',
    'torchvision/video.mvit': 'it takes videos'}


class Subject(NamedTuple):
    """A family of a host, and its networks from the smallest up; the first
    that has batch normalization is tried."""
    host: str
    family: str
    candidates: Tuple[str, ...]

    @property
    def key(self) -> str:
        return f'{self.host}/{self.family}'


def small_first(names, key: str = '') -> Tuple[str, ...]:
    """``names`` from the smallest network up, as far as names tell."""
    def rank(name: str) -> tuple:
        words = [i for i, word in enumerate(_SMALL) if re.search(word, name)]
        numbers = [int(n) for n in re.findall(r'\d+', name)]
        return (name != _PREFERRED.get(key),
                bool(re.search(_WITHOUT, name)),
                min(words, default=len(_SMALL)),
                min(numbers, default=0), len(name), name)
    return tuple(sorted(names, key=rank))


def _mmpretrain() -> List[Subject]:
    from mmpretrain.registry import MODELS
    import_module('mmpretrain.models')
    return [Subject('mmpretrain', name, (name, ))
            for name, cls in sorted(MODELS.module_dict.items())
            if cls.__module__.startswith('mmpretrain.models.backbones.')]


def configs_of_mmdet() -> str:
    package = osp.dirname(find_spec('mmdet').origin)
    return osp.join(package, '.mim', 'configs')


def _mmdet() -> List[Subject]:
    root = configs_of_mmdet()
    families: Dict[str, List[str]] = {}
    for path in sorted(glob(osp.join(root, '[!_]*', '*.py'))):
        name = osp.relpath(path, root)
        if name.startswith('common'):  # data sets and schedules
            continue
        families.setdefault(osp.dirname(name), []).append(name)
    return [Subject('mmdet', family, small_first(names, f'mmdet/{family}'))
            for family, names in families.items()]


def _timm() -> List[Subject]:
    import timm
    modules: Dict[str, List[str]] = {}
    for name in timm.list_models():
        module = timm.model_entrypoint(name).__module__
        modules.setdefault(module.rsplit('.', 1)[-1], []).append(name)
    return [Subject('timm', module, small_first(names, f'timm/{module}'))
            for module, names in sorted(modules.items())]


def _torchvision() -> List[Subject]:
    from torchvision import models
    modules: Dict[str, List[str]] = {}
    for kind in (models, models.segmentation, models.detection,
                 models.video, models.optical_flow):
        for name in models.list_models(module=kind):
            module = models.get_model_builder(name).__module__
            modules.setdefault(module.removeprefix('torchvision.models.'),
                               []).append(name)
    return [Subject('torchvision', module, small_first(
                names, f'torchvision/{module}'))
            for module, names in sorted(modules.items())]


def subjects(hosts=HOSTS) -> List[Subject]:
    """All families of the ``hosts`` that are installed.

    Raises:
        ValueError: for another host.
    """
    found = dict(mmpretrain=_mmpretrain, mmdet=_mmdet, timm=_timm,
                 torchvision=_torchvision)
    for host in hosts:
        if host not in found:
            raise ValueError(f'`hosts` must be of {HOSTS}, but got {host!r}. '
                             'Leave it out for all.')
    return [subject for host in hosts if find_spec(host)
            for subject in found[host]()]


def host_versions() -> Dict[str, str]:
    """{name: version} of what the result of a trial depends on."""
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
    """Whether the code of a family of timm or torchvision speaks of batch
    normalization; it spares building the others."""
    if subject.host not in ('timm', 'torchvision'):
        return True
    package = dict(timm='timm.models.',
                   torchvision='torchvision.models.')[subject.host]
    module = import_module(package + subject.family)
    with open(module.__file__, encoding='utf-8') as file:
        text = file.read().lower()
    return any(word in text for word in ('batchnorm', 'norm_act', 'conv_bn',
                                         'resnet', 'efficientnet'))
