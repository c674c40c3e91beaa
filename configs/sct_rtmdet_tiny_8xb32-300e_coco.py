# One scale per step, all alike. 300 epochs cost what 198 at 640 px cost. Not run.
_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
norm = dict(type='SyncSSBN', scales=(640, 576, 512, 448, 384))
model = dict(backbone=dict(norm_cfg=norm), neck=dict(norm_cfg=norm),
             bbox_head=dict(norm_cfg=norm))
custom_hooks = [*_base_.custom_hooks,
                dict(type='SCTLossHook', scales_per_step=1, shared_affine=True)]
val_cfg = dict(type='ScalesValLoop')
