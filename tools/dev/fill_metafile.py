"""The cards of our configs, for openmim and mmpretrain: metafile-*.yml."""
import argparse
import copy
import glob
import json
import os
import os.path as osp
from typing import NamedTuple

import torch
import yaml
from experiments import EXPERIMENTS, Each
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sct_mm.datasets.rescale_pipeline import nominal_size, train_sizes
from sct_mm.evaluation.measure import flops_of
from sct_mm.models.pinning import use_scale
from sct_mm.models.size_selection import scales_of
from sct_mm.utils.checkpoint import AtomicLocalBackend
from sct_mm.utils.cli import cli
from sct_mm.utils.config import load_config
from sct_mm.utils.config_walk import pipeline_of, pipelines_in, type_name
from sct_mm.utils.errors import UserError
from sct_mm.utils.package import CARDS

# {config: {size in pixels: {metric: value}}}
Results = dict[str, dict[int, dict[str, float]]]

HEADER = ('# By tools/dev/fill_metafile.py. FLOPs are multiply-adds of one square '
          'image at the\n# first of the scales, parameters those of all '
          'scales. Results are those of\n# docs/results, in %, means over '
          'the seeds; a metric without a size is at the\n# first of the '
          'scales.\n')
# As tools/test.py calls them -> as the hosts' cards do, and what 1 % is.
METRICS = {'accuracy/top1': ('Top 1 Accuracy', 1.0),
           'accuracy/top5': ('Top 5 Accuracy', 1.0),
           'coco/bbox_mAP': ('box AP', 0.01),
           'coco/segm_mAP': ('mask AP', 0.01)}


class Data(NamedTuple):
    cards: str  # of which file
    task: str
    name: str


# What the name of a config says of its data.
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
    """Task and data set of a config, by its name."""
    return next(data for part, data in DATA.items() if part in config)


def of_experiment(name: str, found: dict) -> Results:
    """The arms of tools/benchmarks/experiments/reproduce.py that are a config as it is."""
    results: Results = {}
    for label, arm in EXPERIMENTS[name].arms.items():
        if (isinstance(arm, Each) or arm.epochs is not None or arm.options
                or arm.start is not None):
            continue
        for metric in set(METRICS) & set(found):
            for size, (mean, _) in found[metric].get(label, {}).items():
                results.setdefault(osp.basename(arm.config), {}).setdefault(
                    int(size), {})[metric] = mean
    return results


def of_test(models: list[dict]) -> Results:
    """The models that tools/test.py tested, by the names of their configs."""
    results: Results = {}
    for model in models:
        config = osp.splitext(osp.basename(model['config']))[0]
        for row in model['rows']:
            results.setdefault(config, {})[row['scale']] = {
                name: row['metrics'][name] / METRICS[name][1]
                for name in METRICS if name in row['metrics']}
    return results


def join(results: Results, more: Results) -> None:
    """Add the sizes of ``more`` to those of ``results``."""
    for config, rows in more.items():
        results.setdefault(config, {}).update(rows)


def results_in(folder: str) -> Results:
    """What the JSON files in ``folder`` hold of our configs; more seeds
    (tools/benchmarks/experiments/reproduce.py) go before fewer, and before one run (tools/test.py).
    What is of another kind is left out.

    Raises:
        UserError: for a file that cannot be read as one of either tool.
    """
    several: list[tuple[int, Results]] = []
    single: Results = {}
    for path in sorted(glob.glob(osp.join(folder, '*.json'))):
        name = osp.splitext(osp.basename(path))[0]
        try:
            with open(path, encoding='utf-8') as file:
                found = json.load(file)
            if name in EXPERIMENTS:
                several.append((len(found['seeds']),
                                of_experiment(name, found)))
            elif isinstance(found, dict) and 'models' in found:
                join(single, of_test(found['models']))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f'The result {path!r} cannot be read ({error!r}).'
                            ' Make it again by tools/benchmarks/experiments/reproduce.py or '
                            'tools/test.py.') from None
    seeds: Results = {}
    for _, results in sorted(several, key=lambda each: each[0]):
        join(seeds, results)
    return {**single, **seeds}


@torch.no_grad()
def cost_of(model: nn.Module, size: int) -> dict:
    """Parameters, and multiply-adds of a square image of ``size`` pixels
    where the network runs on images alone; no number is computed."""
    cost = dict(Parameters=sum(p.numel() for p in model.parameters()))
    model = model.to('meta').eval()
    channels = next(p for p in model.parameters() if p.dim() == 4).shape[1]
    image = torch.zeros(1, channels, size, size, device='meta')
    try:
        with use_scale(model, size if scales_of(model) else None):
            cost['FLOPs'] = int(flops_of(
                lambda: model(image, mode='tensor')))
    except Exception:  # of a head that asks the samples, each in its way
        pass
    return cost


def sct_of(cfg: Config) -> dict | None:
    """The SCTLossHook of a config; None of a stock network."""
    return next((hook for hook in cfg.get('custom_hooks', ())
                 if type_name(hook) == 'SCTLossHook'), None)


def scales_in(cfg: Config, model: nn.Module, size: int) -> list[int]:
    """What a network is trained at: its rows, what the hook is told, or
    what the pipeline makes; ``size`` where it resizes nothing."""
    told = (sct_of(cfg) or {}).get('scales')
    pipeline = pipeline_of(cfg.train_dataloader) or []
    return list(scales_of(model) or told or train_sizes(pipeline)
                or (size, ))


def metrics_of(rows: dict[int, dict[str, float]], base: int) -> dict:
    """{name: %} from the largest size down, the base scale's first."""
    metrics = {}
    for size in sorted(rows, key=lambda each: (each != base, -each)):
        for metric, value in rows[size].items():
            name = METRICS[metric][0]
            metrics[name if size == base else f'{name} at {size}'] = round(
                float(value), 2)
    return metrics


def card_of(path: str, config: str, results: Results) -> dict:
    """The card of the config at ``path``, which cards call ``config``."""
    cfg = load_config(path)
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(model)
    (_, pipeline), *_ = pipelines_in(cfg.test_dataloader.dataset)
    scales = scales_in(cfg, model, nominal_size(pipeline))
    name, data = osp.splitext(osp.basename(path))[0], data_of(path)
    metadata = {'Training Data': data.name,
                'Scales': '/'.join(map(str, scales))}  # for `mim search`
    if cfg.train_cfg.get('max_epochs'):
        metadata['Epochs'] = cfg.train_cfg.max_epochs
    card = {'Name': name, 'Config': config,
            'Metadata': {**metadata, **cost_of(model, scales[0])}}
    if sct_of(cfg):
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


def make_cards(root: str, results: Results | None = None
               ) -> dict[str, str]:
    """{path below ``root``: text} of the cards of all configs in it."""
    paths = sorted(glob.glob(osp.join(root, 'configs', '**', '*.py'),
                             recursive=True))
    made: dict[str, tuple[dict, list]] = {}
    for path in paths:
        config = osp.relpath(path, root).replace(os.sep, '/')
        if '/_base_/' in config:
            continue
        cards = data_of(config).cards
        made.setdefault(cards, []).append(
            card_of(path, config, results or {}))
    return {CARDS.format(cards): HEADER + yaml.safe_dump(
        dict(Collections=[collection(cards)], Models=models),
        sort_keys=False, width=79) for cards, models in made.items()}


def write_cards(root: str) -> list[str]:
    """Write the cards of the repository at ``root`` from its configs and
    docs/results: what tools/dev/fill_metafile.py does.

    Returns:
        list: the paths of the files.

    Raises:
        UserError: for a folder without configs, and for what
            :func:`results_in` refuses.
    """
    made = make_cards(root, results_in(osp.join(root, 'docs', 'results')))
    if not made:
        raise UserError(f'The repository must hold configs/, but {root!r} '
                        'does not. Name its folder.')
    for path, text in made.items():
        AtomicLocalBackend().put(text.encode(), osp.join(root, path))
    return [osp.join(root, path) for path in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.', metavar='FOLDER',
                        help='of the repository (default: this one)')
    for path in write_cards(parser.parse_args().root):
        print(path)


if __name__ == '__main__':
    cli(main)
