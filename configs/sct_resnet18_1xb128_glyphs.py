# Each batch is divided over the scales. An epoch costs 0.61 of one at 96: 10 epochs
# cost what 6 of the network for 96 alone do.
_base_ = './_base_/glyphs.py'
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(96, 72, 48, 36))))
train_cfg = dict(max_epochs=10, val_interval=10)
val_cfg = dict(type='ScalesValLoop')
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 10}]
custom_hooks = [*_base_.custom_hooks, dict(
    type='SCTLossHook', partition=True, loss_weights=(0.34, 0.22, 0.22, 0.22))]
