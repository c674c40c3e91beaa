# Baseline: one random size per step and shared BN (MixSize, arXiv 1908.08986).
# 8 epochs cost what 4.7 at 28 do.
_base_ = './sct-shared-bn_resnet18_1xb128_fashion-mnist.py'
sizes = (28, 26, 24, 22, 20, 18, 16, 14)
custom_hooks = [*_base_.custom_hooks[:-1], dict(
    type='SCTLossHook', scales=sizes, scales_per_step=1)]
val_cfg = dict(sizes=sizes)
