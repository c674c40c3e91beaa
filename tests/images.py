"""Images, a metric, a validation and a training that several tests share."""
import itertools

import numpy as np
import torch
from conftest import SCALES
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner

from sct_mm import SSBN, SCTLossHook

COUNT = itertools.count()


@DATASETS.register_module(force=True)
class Images(BaseDataset):
    """Images of 16 pixels; counts how often they are read."""
    loaded = 0

    def load_data_list(self):
        type(self).loaded += 1
        rng = np.random.default_rng(0)
        return [dict(img=rng.integers(0, 255, (16, 16, 3)).astype(np.float32),
                     gt_label=i % 5) for i in range(10)]


@METRICS.register_module(force=True)
class Logits(BaseMetric):
    """Top-1 accuracy, and the logits as a list."""

    def process(self, data_batch, data_samples):
        labels = [int(s.gt_label) for s in data_batch['data_samples']]
        self.results += [(row.tolist(), label)
                         for row, label in zip(data_samples, labels,
                                               strict=True)]

    def compute_metrics(self, results):
        top1 = np.mean([np.argmax(row) == label for row, label in results])
        return {'accuracy/top1': float(top1),
                'logits': [row for row, _ in results]}


def model(norm=None):
    return dict(type='TinyModel', norm=norm or (lambda c: SSBN(c, SCALES)),
                data_preprocessor=dict(type='ImgDataPreprocessor',
                                       mean=[127.] * 3, std=[64.] * 3))


def loader(wrap=None, **options):
    dataset = dict(type='Images', pipeline=[
        dict(type='mmcv.Resize', scale=16),
        dict(type='mmpretrain.PackInputs')])
    return dict(batch_size=4, num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=wrap(dataset) if wrap else dataset, **options)


def runner(folder, val=None, **options):
    name = f'loops-{next(COUNT)}'
    settings = dict(
        model=model(), work_dir=str(folder), experiment_name=name,
        val_dataloader=loader(), val_evaluator=dict(type='Logits'),
        val_cfg=val or dict(type='ScalesValLoop'), log_level='ERROR')
    settings.update(options)
    torch.manual_seed(0)
    return Runner(**settings)


def trained(folder, epochs=2, **options):
    options.setdefault('custom_hooks', [SCTLossHook()])
    run = runner(
        folder, train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)), **options)
    run.train()
    return run
