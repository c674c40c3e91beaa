# The neck joins maps of strides 8 to 32, and nothing pads pictures to them.
_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
norm = dict(type='SyncSSBN', scales=(640, 512, 384))
model = dict(backbone=dict(norm_cfg=norm), neck=dict(norm_cfg=norm),
             bbox_head=dict(norm_cfg=norm))
custom_hooks = [*_base_.custom_hooks, dict(
    type='SCTLossHook', scales_per_step=1, between=0.5, size_divisor=32, backward='joint'),
    dict(type='SharedAffineHook')]
val_cfg = dict(type='ScalesValLoop')
