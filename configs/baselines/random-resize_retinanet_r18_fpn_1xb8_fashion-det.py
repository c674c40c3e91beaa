# To compare with: what mmdet offers for several sizes, one drawn a picture, and
# shared BN. 9 epochs cost what 3 at all three scales do.
_base_ = '../_base_/fashion-det.py'
resize = dict(type='RandomChoiceResize', scales=[(160, 128), (120, 96), (80, 64)],
              keep_ratio=True, backend='pillow')
train_dataloader = dict(dataset=dict(pipeline=[
    resize if step.type == 'Resize' else step
    for step in _base_.train_dataloader.dataset.pipeline]))
train_cfg = dict(max_epochs=9, val_interval=9)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 9}]
