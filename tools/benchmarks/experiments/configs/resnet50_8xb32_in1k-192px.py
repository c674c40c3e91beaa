_base_ = './_base_/resnet50_8xb32_in1k.py'
train_pipeline, test_pipeline = _base_.pipelines['192px']
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
