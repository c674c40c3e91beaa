# Detection of Fashion-MNIST's clothes on cluttered canvases, which
# tools/dataset_converters/fashion_det.py composes, by a thin RetinaNet: minutes on a CPU.
# Its backbone may start from a classifier of fashion-mnist.py trained with avg_down=False.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
size, root = (160, 128), 'data/fashion-det/'  # pixels
model = dict(
    data_preprocessor=dict(mean=[72.94], std=[90.02], bgr_to_rgb=False, pad_size_divisor=16),
    backbone=dict(_delete_=True, type='mmpretrain.ResNet_CIFAR', depth=18, in_channels=1,
                  stem_channels=16, base_channels=16, strides=(2, 2, 2, 2), out_indices=(1, 2, 3)),
    neck=dict(in_channels=[32, 64, 128], out_channels=32, start_level=0, num_outs=3,
              add_extra_convs=False),
    bbox_head=dict(num_classes=10, in_channels=32, feat_channels=32, stacked_convs=2,
                   anchor_generator=dict(ratios=[1.0], strides=[4, 8, 16])))
load = dict(type='LoadImageFromFile', color_type='grayscale')
resize = dict(type='Resize', scale=size, keep_ratio=True, backend='pillow')
annotate = dict(type='LoadAnnotations', with_bbox=True)
meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=meta)
clothes = ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker',
           'Bag', 'Ankle boot')
data = dict(type='CocoDataset', data_root=root, metainfo=dict(classes=clothes))
train_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(**data, ann_file='train.json', data_prefix=dict(img='train/'), pipeline=[
        load, annotate, resize, dict(type='RandomFlip', prob=0.5), pack]))
test_dataloader = val_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**data, ann_file='val.json', data_prefix=dict(img='val/'), test_mode=True,
                 pipeline=[load, resize, annotate, pack]))
test_evaluator = val_evaluator = dict(type='CocoMetric', ann_file=root + 'val.json')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, fused=True),
                     clip_grad=dict(max_norm=10.0))
param_scheduler = [dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=100),
                   dict(type='CosineAnnealingLR', T_max=3, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=3)
val_cfg, test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
randomness = dict(seed=0)
custom_imports = dict(imports=['sct_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='EpochSeedHook'), dict(type='ChannelsLastHook')]
