_base_ = './_base_/fashion-det.py'
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(128, 96, 64))))
custom_hooks = [*_base_.custom_hooks, dict(type='SCTLossHook')]
val_cfg = dict(type='ScalesValLoop')
