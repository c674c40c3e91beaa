# For tests at any size from 224 to 128 px. 513 epochs cost what 300 at 224 px cost. Not run.
_base_ = ['mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', './_base_/sct-in1k.py']
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(224, 192, 160, 128))))
val_cfg = dict(type='ScalesValLoop')
randomness = dict(seed=0)
train_cfg = dict(max_epochs=513)
param_scheduler = dict(gamma=0.9883)  # 0.98 for 300 epochs
