# A trained network, to be adapted to smaller sizes, and images without labels:
# tools/dataset_converters/photos.py composes them from free drawings, cut-outs and
# wallpapers. The test images are compared with the network's own answers, so that there is
# no metric. tools/dev/efficientnet_lite.py fetches the weights, and the labelled images of
# the validation, which only show that the weights are right.
_base_ = ['./minutes.py']
data_preprocessor = dict(num_classes=1000, mean=[127.0] * 3, std=[128.0] * 3, to_rgb=True)
resize = dict(type='ResizeEdge', scale=256, backend='pillow', interpolation='bicubic')
crop = dict(type='CenterCrop', crop_size=224)
pipeline = [dict(type='LoadImageFromFile'), resize, crop, dict(type='PackInputs')]
photos = dict(type='CustomDataset', data_root='data/photos', with_label=False)
labelled = dict(type='CustomDataset', data_root='data/efficientnet-lite',
                data_prefix='labelled', ann_file='labelled.txt')
train_dataloader = dict(
    batch_size=32, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**photos, data_prefix='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=10, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**labelled, pipeline=pipeline))
test_dataloader = dict(
    batch_size=50, num_workers=2, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**photos, data_prefix='test', pipeline=pipeline))
test_evaluator = []
