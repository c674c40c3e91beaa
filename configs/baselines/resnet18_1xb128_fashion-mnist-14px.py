# To compare with: one network for one scale.
_base_ = '../_base_/fashion-mnist.py'
resize = dict(type='Resize', scale=14, backend='pillow')
train_dataloader = dict(dataset=dict(pipeline=[resize, dict(type='PackInputs')]))
val_dataloader = test_dataloader = dict(
    dataset=dict(pipeline=[resize, dict(type='PackInputs')]))
