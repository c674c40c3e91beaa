# Ablation: shared BN.
_base_ = '../../../../configs/sct_retinanet_r18_fpn_1xb8_fashion-det.py'
scales = (128, 112, 96, 80, 64)
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN')))
custom_hooks = [*_base_.custom_hooks[:-1], {**_base_.custom_hooks[-1], 'scales': scales}]
val_cfg = dict(sizes=scales)
