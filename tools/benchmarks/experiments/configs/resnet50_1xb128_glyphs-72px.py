# Baseline: a single-scale network.
_base_ = './resnet50_1xb128_glyphs-96px.py'
pipeline = [{**_base_.resize, 'scale': 72}, dict(type='PackInputs')]
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(pipeline=pipeline))
