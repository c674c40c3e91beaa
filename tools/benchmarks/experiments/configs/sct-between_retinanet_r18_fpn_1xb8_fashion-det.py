# Ablation: three scales, and in half of the steps a size between two of them.
_base_ = '../../../../configs/_base_/fashion-det.py'
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(128, 96, 64))))
custom_hooks = [*_base_.custom_hooks, dict(
    type='SCTLossHook', scales_per_step=1, between=0.5, shared_affine=True)]
train_cfg = dict(max_epochs=9, val_interval=9)
val_cfg = dict(type='ScalesValLoop')
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 9}]
