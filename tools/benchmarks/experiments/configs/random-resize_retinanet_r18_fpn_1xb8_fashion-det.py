# Baseline: mmdet's multi-scale training, which draws a size for each image, with
# shared BN. A batch is padded to its largest image: 6 epochs cost 5.8 at 128.
_base_ = '../../../../configs/_base_/fashion-det.py'
resize = dict(type='RandomChoiceResize', scales=[(160, 128), (120, 96), (80, 64)],
              keep_ratio=True, backend='pillow')
train_dataloader = dict(dataset=dict(pipeline=[
    resize if step.type == 'Resize' else step
    for step in _base_.train_dataloader.dataset.pipeline]))
train_cfg = dict(max_epochs=6, val_interval=6)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'T_max': 6}]
