# Baseline: a single-scale network.
_base_ = '../../../../configs/_base_/fashion-det.py'
resize = {**_base_.resize, 'scale': (120, 96)}
train_dataloader = dict(dataset=dict(pipeline=[
    resize if step.type == 'Resize' else step
    for step in _base_.train_dataloader.dataset.pipeline]))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=[
    resize if step.type == 'Resize' else step
    for step in _base_.test_dataloader.dataset.pipeline]))
