# Baseline: a single-scale network, also to be adapted. Not run.
_base_ = '../../../../configs/sct-modern_resnet50_8xb32_in1k.py'
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN', requires_grad=True)))
custom_hooks = [_base_.custom_hooks[0], _base_.ema]
val_cfg = dict(_delete_=True)
train_cfg = dict(max_epochs=100)
param_scheduler = [_base_.warm_up, {**_base_.cosine, 'end': 100, 'T_max': 95}]
