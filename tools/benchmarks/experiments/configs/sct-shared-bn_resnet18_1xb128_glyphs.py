# Ablation: SCT with shared BN.
_base_ = '../../../../configs/sct_resnet18_1xb128_glyphs.py'
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN')))
custom_hooks = [*_base_.custom_hooks[:-1],
                {**_base_.custom_hooks[-1], 'scales': (96, 72, 48, 36)}]
val_cfg = dict(sizes=(96, 72, 48, 36))
