# Trained on crops of 512 px, tested on whole images: the scales 512, 384 and 256 serve tests
# at 1024, 768 and 512 px. Not run.
_base_ = ['mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
norm = dict(type='SyncSSBN', scales=(512, 384, 256))
model = dict(backbone=dict(norm_cfg=norm), decode_head=dict(norm_cfg=norm),
             auxiliary_head=dict(norm_cfg=norm))
custom_hooks = [dict(type='SCTLossHook')]
val_cfg = dict(type='ScalesValLoop')
