# For tests at any size from 36 to 96 px, with the recipe of
# sct-any-size_resnet18_1xb128_fashion-mnist.py. 16 epochs see as many pixels as 6 at 96 px.
_base_ = './_base_/glyphs.py'
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(96, 72, 48, 36))))
custom_hooks = [*_base_.custom_hooks, dict(type='SCTLossHook', recipe='any-size')]
train_cfg = dict(max_epochs=16, val_interval=16)
val_cfg = dict(type='ScalesValLoop')
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 16}]
