_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', './_base_/sct.py']
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(224, 192, 160, 128))))
randomness = dict(seed=0)
# PIL's bilinear filter is antialiased, as the resize of training is; OpenCV's is not.
pillow = {k: dict(backend='pillow', interpolation='bilinear')
          for k in ('ResizeEdge', 'RandomResizedCrop')}
train_pipeline = [{**t, **pillow.get(t['type'], {})} for t in _base_.train_pipeline]
test_pipeline = [{**t, **pillow.get(t['type'], {})} for t in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
