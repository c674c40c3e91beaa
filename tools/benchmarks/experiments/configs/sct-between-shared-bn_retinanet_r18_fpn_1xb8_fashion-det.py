# Ablation: sizes between the scales, with shared BN.
_base_ = './sct-between_retinanet_r18_fpn_1xb8_fashion-det.py'
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN')))
custom_hooks = [*_base_.custom_hooks[:2], {
    **_base_.custom_hooks[2], 'shared_affine': False, 'scales': (128, 96, 64)}]
val_cfg = dict(sizes=(128, 96, 64))
