# To compare with: SCT without private normalization.
_base_ = '../sct_resnet50_8xb32_in1k.py'
model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BN', requires_grad=True)))
custom_hooks = [dict(type='EpochSeedHook'),
                dict(type='SCTLossHook', scales=(224, 192, 160, 128))]
val_cfg = dict(sizes=(224, 192, 160, 128))
