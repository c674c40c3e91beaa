# EfficientNet-Lite0, trained on ImageNet at 224 px only: a network in production, without a
# line about SCT. tools/dev/efficientnet_lite.py fetches its weights, of timm's
# tf_efficientnet_lite0.
_base_ = ['./_base_/photos.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='TIMMBackbone', model_name='tf_efficientnet_lite0'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280, topk=(1, 5)))
