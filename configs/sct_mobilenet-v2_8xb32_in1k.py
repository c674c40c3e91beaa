_base_ = ['mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', './_base_/sct.py']
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(224, 192, 160, 128))))
val_cfg = dict(type='ScalesValLoop')
randomness = dict(seed=0)
