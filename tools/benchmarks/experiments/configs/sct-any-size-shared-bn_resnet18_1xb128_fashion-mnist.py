# Ablation: shared BN.
_base_ = '../../../../configs/sct-any-size_resnet18_1xb128_fashion-mnist.py'
scales = (28, 24, 21, 18, 16, 14)
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN')))
custom_hooks = [*_base_.custom_hooks[:-1], {**_base_.custom_hooks[-1], 'scales': scales}]
val_cfg = dict(sizes=scales)
