# Baseline: a single-scale network.
_base_ = '../../../../configs/_base_/fashion-mnist.py'
pipeline = [{**_base_.resize, 'scale': 16}, dict(type='PackInputs')]
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(pipeline=pipeline))
