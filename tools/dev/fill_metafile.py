"""Write configs/metafile-*.yml, which describe the configs to openmim: scales,
parameters, FLOPs and results."""
import argparse
import glob
import json
import os
import os.path as osp
import re
from typing import NamedTuple

import torch
import yaml
from mmengine.config import Config
from torch import nn

from sct_mm.datasets.rescale_pipeline import nominal_size, train_sizes
from sct_mm.engine.load_model import built_model
from sct_mm.evaluation.measure import flops_of
from sct_mm.models.pinning import use_scale
from sct_mm.models.size_selection import scales_of
from sct_mm.utils.checkpoint import AtomicLocalBackend
from sct_mm.utils.cli import cli
from sct_mm.utils.config import load_config
from sct_mm.utils.config_walk import pipelines_in, pipelines_of, type_name
from sct_mm.utils.errors import UserError

# {config: {size in pixels: {metric: value in %}}}
Results = dict[str, dict[int, dict[str, float]]]

CARDS = osp.join('configs', 'metafile-{}.yml')
HEADER = '''\
# By tools/dev/fill_metafile.py. FLOPs are multiply-adds of one square image at
# the first of the scales, parameters those of all scales. Results are those of
# docs/results, in %, means over the seeds; a metric without a size is at the
# first of the scales.
'''
# {name in tools/test.py: (name in the metafiles of the hosts, value of 1 %)}
METRICS = {'accuracy/top1': ('Top 1 Accuracy', 1.0),
           'accuracy/top5': ('Top 5 Accuracy', 1.0),
           'coco/bbox_mAP': ('box AP', 0.01),
           'coco/segm_mAP': ('mask AP', 0.01)}


class Data(NamedTuple):
    """A data set, and the metafile-CARDS.yml that has its configs."""
    cards: str
    task: str
    name: str


# {part of the name of a config: the data set that it trains on}
DATA = {'_in1k': Data('classification', 'Image Classification',
                      'ImageNet-1k'),
        '_fashion-mnist': Data('classification', 'Image Classification',
                               'Fashion-MNIST'),
        '_glyphs': Data('classification', 'Image Classification',
                        'letters and digits of free fonts'),
        '_coco': Data('detection', 'Object Detection', 'COCO'),
        '_fashion-det': Data('detection', 'Object Detection',
                             'Fashion-MNIST, composed')}


def data_of(config: str) -> Data:
    return next(data for part, data in DATA.items() if part in config)


def results_of_experiment(found: dict) -> Results:
    """What tools/benchmarks/experiments/reproduce.py wrote of the arms that
    train a config without a change."""
    results: Results = {}
    for metric in METRICS.keys() & found.keys():
        for arm, config in found['configs'].items():
            for size, (mean, _) in found[metric][arm].items():
                if mean is not None:  # NaN, in JSON
                    results.setdefault(config, {}).setdefault(
                        int(size), {})[metric] = mean
    return results


def results_of_test(models: list[dict]) -> Results:
    """What tools/test.py wrote of ``models``."""
    results: Results = {}
    for model in models:
        config = osp.splitext(osp.basename(model['config']))[0]
        for row in model['rows']:
            results.setdefault(config, {})[row['scale']] = {
                name: row['metrics'][name] / METRICS[name][1]
                for name in METRICS
                if row['metrics'].get(name) is not None}
    return results


def merge(results: Results, more: Results) -> None:
    """Add the sizes of ``more`` to those of ``results``, or replace them."""
    for config, rows in more.items():
        results.setdefault(config, {}).update(rows)


def results_in(folder: str) -> Results:
    """The results in the JSON files of ``folder``. Those of more seeds, by
    reproduce.py, replace those of fewer, and those of tools/test.py, which
    tests one run. Files of another kind are left out.

    Raises:
        UserError: for a file that cannot be read as one of either tool.
    """
    several: list[tuple[int, Results]] = []
    single: Results = {}
    for path in sorted(glob.glob(osp.join(folder, '*.json'))):
        try:
            with open(path, encoding='utf-8') as file:
                found = json.load(file)
            if 'seeds' in found:
                several.append((len(found['seeds']),
                                results_of_experiment(found)))
            elif 'models' in found:
                merge(single, results_of_test(found['models']))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'The result {path!r} cannot be read ({error!r}). Make it '
                'again by tools/benchmarks/experiments/reproduce.py or '
                'tools/test.py.') from None
    seeds: Results = {}
    for _, results in sorted(several, key=lambda each: each[0]):
        merge(seeds, results)
    return {**single, **seeds}


@torch.no_grad()
def cost_of(model: nn.Module, size: int) -> dict:
    """Parameters, and multiply-adds of a square image of ``size`` pixels. The
    latter are left out of a network that does not run on images alone.
    Nothing is computed: the network moves to the meta device."""
    cost = dict(Parameters=sum(p.numel() for p in model.parameters()))
    model = model.to('meta').eval()
    channels = next(p for p in model.parameters() if p.dim() == 4).shape[1]
    image = torch.zeros(1, channels, size, size, device='meta')
    try:
        with use_scale(model, size if scales_of(model) else None):
            cost['FLOPs'] = int(flops_of(
                lambda: model(image, mode='tensor')))
    except Exception:  # a head that needs data samples fails in its own way
        pass
    return cost


def sct_hook_of(cfg: Config) -> dict | None:
    """The config of the SCTLossHook; None if there is none."""
    return next((hook for hook in cfg.get('custom_hooks', ())
                 if type_name(hook) == 'SCTLossHook'), None)


def scales_in(cfg: Config, model: nn.Module, size: int) -> list[int]:
    """The sizes at which a network is trained: those of its SSBN layers, of
    its hook, or of its training pipeline; else ``size``."""
    return list(scales_of(model) or (sct_hook_of(cfg) or {}).get('scales')
                or [s for pipeline in pipelines_of(cfg.train_dataloader)
                    for s in train_sizes(pipeline)] or (size, ))


def metrics_of(rows: dict[int, dict[str, float]], base: int) -> dict:
    """{name: %}, first at ``base``, then from the largest size down."""
    metrics = {}
    for size in sorted(rows, key=lambda each: (each != base, -each)):
        for metric, value in rows[size].items():
            name = METRICS[metric][0]
            metrics[name if size == base else f'{name} at {size}'] = round(
                float(value), 2)
    return metrics


def card_of(path: str, config: str, results: Results) -> dict:
    """The card of the config at ``path``, which lies at ``config`` in the
    repository."""
    cfg = load_config(path)
    model = built_model(cfg)
    (_, pipeline), *_ = pipelines_in(cfg.test_dataloader.dataset)
    scales = scales_in(cfg, model, nominal_size(pipeline))
    name, data = osp.splitext(osp.basename(path))[0], data_of(path)
    metadata = {'Training Data': data.name,
                'Scales': '/'.join(map(str, scales))}  # for `mim search`
    # The weights of a trained network are of another schedule.
    if cfg.train_cfg.get('max_epochs') and '-pre_' not in name:
        metadata['Epochs'] = cfg.train_cfg.max_epochs
    card = {'Name': name, 'Config': config,
            'Metadata': {**metadata, **cost_of(model, scales[0])}}
    if sct_hook_of(cfg):
        card['In Collection'] = f'SCT {data.cards}'
    if results.get(name):
        card['Results'] = [dict(Task=data.task, Dataset=data.name,
                                Metrics=metrics_of(results[name], scales[0]))]
    return card


def collection(cards: str) -> dict:
    return {'Name': f'SCT {cards}',
            'Metadata': {'Training Techniques': ['Scale Calibrated Training']},
            'Paper': {'URL': 'https://arxiv.org/abs/1909.00182',
                      'Title': 'Scale Calibrated Training: Improving '
                      'Generalization of Deep Networks via Scale-Specific '
                      'Normalization'}}


def of_a_sibling(path: str) -> bool:
    """Whether the config at ``path`` inherits from a host that is not
    installed with this package (tools/dev/hosts.txt): it has no card."""
    with open(path, encoding='utf-8') as file:
        host = re.search(r"^_base_ = \['(\w+)::", file.read(), re.M)
    return host is not None and host[1] not in ('mmpretrain', 'mmdet')


def make_cards(root: str, results: Results | None = None
               ) -> dict[str, str]:
    """{path below ``root``: text} of the cards of all configs below it."""
    paths = sorted(glob.glob(osp.join(root, 'configs', '**', '*.py'),
                             recursive=True))
    made: dict[str, tuple[dict, list]] = {}
    for path in paths:
        config = osp.relpath(path, root).replace(os.sep, '/')
        if '/_base_/' in config or of_a_sibling(path):
            continue
        cards = data_of(config).cards
        made.setdefault(cards, []).append(
            card_of(path, config, results or {}))
    return {CARDS.format(cards): HEADER + yaml.safe_dump(
        dict(Collections=[collection(cards)], Models=models),
        sort_keys=False, width=79) for cards, models in made.items()}


def write_cards(root: str) -> list[str]:
    """Write the cards of the repository at ``root`` from its configs and
    docs/results.

    Returns:
        list: the paths of the files.

    Raises:
        UserError: if there is no config, and for a result that cannot be
            read.
    """
    made = make_cards(root, results_in(osp.join(root, 'docs', 'results')))
    if not made:
        raise UserError(f'The repository must hold configs/, but {root!r} '
                        'does not. Name its folder.')
    for path, text in made.items():
        AtomicLocalBackend().put(text.encode(), osp.join(root, path))
    return [osp.join(root, path) for path in made]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.', metavar='FOLDER',
                        help='of the repository (default: this one)')
    return parser.parse_args()


def main() -> None:
    for path in write_cards(parse_args().root):
        print(path)


if __name__ == '__main__':
    cli(main)
