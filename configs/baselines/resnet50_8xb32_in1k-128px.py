# To compare with: one network for one scale.
_base_ = './resnet50_8xb32_in1k-224px.py'
size = dict(RandomResizedCrop=dict(scale=128), CenterCrop=dict(crop_size=128),
            ResizeEdge=dict(scale=round(128 * 256 / 224)))
train_pipeline = [{**t, **size.get(t['type'], {})} for t in _base_.train_pipeline]
test_pipeline = [{**t, **size.get(t['type'], {})} for t in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
