# A trained network to adapt to smaller sizes, on images without labels, which
# tools/dataset_converters/photos.py composes of free drawings, cut-outs and wallpapers.
# To compare it with its own answers, give tools/test.py --against-base --images
# data/photos/test. The labelled images of the test are only 20: they show that the weights,
# which tools/dev/efficientnet_lite.py fetches with them, are right.
_base_ = ['./minutes.py']
data_preprocessor = dict(num_classes=1000, mean=[127.0] * 3, std=[128.0] * 3, to_rgb=True)
resize = dict(type='ResizeEdge', scale=256, backend='pillow', interpolation='bicubic')
crop = dict(type='CenterCrop', crop_size=224)
pipeline = [dict(type='LoadImageFromFile'), resize, crop, dict(type='PackInputs')]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.5, 1.0), backend='pillow',
         interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'), dict(type='PackInputs')]
photos = dict(type='CustomDataset', data_root='data/photos', data_prefix='train',
              with_label=False)
labelled = dict(type='CustomDataset', data_root='data/efficientnet-lite',
                data_prefix='labelled', ann_file='labelled.txt')
train_dataloader = dict(
    batch_size=8, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**photos, pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(
    batch_size=10, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**labelled, pipeline=pipeline))
