# To compare with: one network for one scale.
_base_ = '../_base_/fashion-det.py'
train_pipeline, test_pipeline = (
    [{**step, 'scale': (120, 96)} if step.type == 'Resize' else step
     for step in loader.dataset.pipeline]
    for loader in (_base_.train_dataloader, _base_.test_dataloader))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
