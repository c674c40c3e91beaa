# All frames of a clip are resized alike. Not run.
_base_ = ['mmaction::recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb.py']
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(224, 192, 160, 128))))
custom_hooks = [dict(type='SCTLossHook')]
val_cfg = dict(type='ScalesValLoop')
