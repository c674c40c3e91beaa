# Baseline: one random size per step and shared BN (MixSize, arXiv 1908.08986).
# 13 epochs have the pixels of 6 at 96.
_base_ = './sct-shared-bn_resnet18_1xb128_glyphs.py'
sizes = (96, 84, 72, 60, 48, 42, 36)
custom_hooks = [*_base_.custom_hooks[:-1], dict(
    type='SCTLossHook', scales=sizes, scales_per_step=1)]
val_cfg = dict(sizes=sizes)
train_cfg = dict(max_epochs=13, val_interval=13)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 13}]
