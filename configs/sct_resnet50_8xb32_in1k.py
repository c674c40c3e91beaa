# For tests at any size from 224 to 128. 171 epochs cost what 100 at 224 do. Not run.
# As the paper describes SCT, all scales in each step:
# sct-paper_resnet50_8xb32_in1k.py.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', './_base_/sct-in1k.py']
model = dict(backbone=dict(norm_cfg=dict(type='SSBN', scales=(224, 192, 160, 128))))
# 50,000 images at four scales cost 2.57 times the validation at 224 alone: 6 %
# of an epoch, whose 1.28 million images run forward and backward.
val_cfg = dict(type='ScalesValLoop')
randomness = dict(seed=0)
train_cfg = dict(max_epochs=171)
param_scheduler = dict(milestones=[51, 103, 154])
# PIL's bilinear filter is antialiased, as the resize of training is; OpenCV's is not.
pillow = {k: dict(backend='pillow', interpolation='bilinear')
          for k in ('ResizeEdge', 'RandomResizedCrop')}
train_pipeline = [{**t, **pillow.get(t['type'], {})} for t in _base_.train_pipeline]
test_pipeline = [{**t, **pillow.get(t['type'], {})} for t in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
