# A network of short steps, in which the cost of calls counts. It does not
# train: calls.py measures a step on noise.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
model = dict(backbone=dict(
    norm_cfg=dict(type='SSBN', scales=(32, 28, 24, 20))))
