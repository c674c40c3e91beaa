# Each batch is divided over three scales, unevenly, since an image of 14 px costs
# a quarter of one of 28. 8 epochs cost less than three single-scale networks of 3
# epochs each.
_base_ = './_base_/fashion-mnist.py'
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(28, 21, 14))))
train_cfg = dict(max_epochs=8, val_interval=8)
val_cfg = dict(type='ScalesValLoop')
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 8}]
custom_hooks = [*_base_.custom_hooks, dict(
    type='SCTLossHook', partition=True, loss_weights=(0.34, 0.26, 0.4))]
