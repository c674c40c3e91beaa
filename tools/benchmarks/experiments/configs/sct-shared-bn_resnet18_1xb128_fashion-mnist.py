# Ablation: SCT with shared BN.
_base_ = '../../../../configs/sct_resnet18_1xb128_fashion-mnist.py'
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN')))
custom_hooks = [*_base_.custom_hooks[:-1],
                {**_base_.custom_hooks[-1], 'scales': (28, 21, 14)}]
val_cfg = dict(sizes=(28, 21, 14))
