# EfficientNet-Lite2, trained on ImageNet at 260 px only: a network in production, without a
# line about SCT. tools/dev/efficientnet_lite.py fetches its weights, of timm's
# tf_efficientnet_lite2.
_base_ = ['./_base_/photos.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='TIMMBackbone', model_name='tf_efficientnet_lite2'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280, topk=(1, 5)))
pipeline = [_base_.pipeline[0], {**_base_.resize, 'scale': 292},
            {**_base_.crop, 'crop_size': 260}, _base_.pipeline[-1]]
load, random_crop, *others = _base_.train_pipeline
train_dataloader = dict(dataset=dict(
    pipeline=[load, {**random_crop, 'scale': 260}, *others]))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=pipeline))
