# Ablation: SCT with shared BN.
_base_ = '../../../../configs/sct_resnet50_8xb32_in1k.py'
scales = (224, 192, 160, 128)
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN', requires_grad=True)))
custom_hooks = [*_base_.custom_hooks[:-1], {**_base_.custom_hooks[-1], 'scales': scales}]
val_cfg = dict(sizes=scales)
